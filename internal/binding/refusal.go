package binding

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
)

// A Reason says why a pod gets no identity. It is part of events and audit
// lines, hence stable.
type Reason string

const (
	// NoLabel means: the pod does not carry the label aadpodidbinding.
	NoLabel Reason = "NoLabel"
	// NoBinding means: no AzureIdentityBinding has the label's value as selector, and
	// none of the pod's namespace chooses it by podSelector or service account.
	NoBinding Reason = "NoBinding"
	// IdentityMissing means: the binding's AzureIdentity does not exist.
	IdentityMissing Reason = "IdentityMissing"
	// OtherNamespace means: the binding matches but is only for pods of its namespace.
	OtherNamespace Reason = "OtherNamespace"
	// NotAllowed means: the pod has identities, but not the one it asks for.
	NotAllowed Reason = "NotAllowed"
	// OtherServiceAccount means: the binding would match, but is for other service
	// accounts.
	OtherServiceAccount Reason = "OtherServiceAccount"
	// OtherLabels means: the selector matches, but the podSelector does not.
	OtherLabels Reason = "OtherLabels"
	// InvalidSelector means: the podSelector cannot be understood.
	InvalidSelector Reason = "InvalidSelector"
	// InvalidSchedule means: the schedule cannot be understood, so it never opens.
	InvalidSchedule Reason = "InvalidSchedule"
	// NotOpen means: the binding exists but is not open at this instant.
	NotOpen Reason = "NotOpen"
	// AwaitingApproval means: the binding is open only on request, and no approved
	// AccessRequest is in force.
	AwaitingApproval Reason = "AwaitingApproval"
	// WindowTooShort means: the binding is open, but closes sooner than its
	// minimumRemaining.
	WindowTooShort Reason = "WindowTooShort"
	// InvalidIdentity means: the AzureIdentity cannot be used as it is written.
	InvalidIdentity Reason = "InvalidIdentity"
	// UnsupportedType means: the type of the AzureIdentity does not exist.
	UnsupportedType Reason = "UnsupportedType"
	// UnsupportedSelector means: the request names the identity by its object id.
	UnsupportedSelector Reason = "UnsupportedSelector"
	// NotAssigned means: the pod may use the identity, but the machine does not have
	// it yet. Waiting helps.
	NotAssigned Reason = "NotAssigned"
)

// A Refusal is a decision against a request. Text is for the pod's author: what
// is missing and where.
type Refusal struct {
	Reason Reason
	Text   string
	// Binding and Identity are those that come closest; nil if there is none.
	Binding  *v1.AzureIdentityBinding
	Identity *v1.AzureIdentity
	// Opens is when a binding opens that is not open now (NotOpen, AwaitingApproval),
	// or opens again (WindowTooShort); zero if that is not foreseen.
	Opens time.Time
}

func (r *Refusal) Error() string { return r.Text }

// Wait reports whether the same question may have another answer shortly.
func (r *Refusal) Wait() bool { return r.Reason == NotAssigned }

// refusal makes a refusal about a bound identity.
func (b *Bound) refusal(r Reason, opens time.Time, format string, args ...any) *Refusal {
	return &Refusal{Reason: r, Text: fmt.Sprintf(format, args...), Binding: b.Binding, Identity: b.Identity, Opens: opens}
}

// Text tells a person why the binding yields nothing for the pod.
func (p Problem) Text(pod Pod) string {
	b := p.Binding
	switch p.Reason {
	case IdentityMissing:
		return fmt.Sprintf("AzureIdentityBinding %s/%s names the AzureIdentity %s, which does not exist in namespace %s", b.Namespace, b.Name, quote(b.Spec.AzureIdentity), b.Namespace)
	case OtherNamespace:
		return fmt.Sprintf("AzureIdentityBinding %s/%s is only for pods of namespace %s, and the pod is in namespace %s", b.Namespace, b.Name, b.Namespace, pod.Namespace)
	case OtherServiceAccount:
		names := append([]string{b.Spec.ServiceAccountName}, b.Spec.ServiceAccountNames...)
		names = slices.DeleteFunc(names, func(n string) bool { return n == "" })
		return fmt.Sprintf("AzureIdentityBinding %s/%s is only for pods that run as service account %s, and pod %s/%s runs as %s", b.Namespace, b.Name, few(names, " or "), pod.Namespace, pod.Name, quote(pod.ServiceAccount))
	case OtherLabels:
		return fmt.Sprintf("AzureIdentityBinding %s/%s has the pod's label %s as selector, but its podSelector asks for other labels than pod %s/%s has", b.Namespace, b.Name, v1.BindingLabel, pod.Namespace, pod.Name)
	case InvalidSchedule:
		return fmt.Sprintf("AzureIdentityBinding %s/%s never opens: spec.schedule: %v", b.Namespace, b.Name, p.Err)
	case InvalidSelector:
		return fmt.Sprintf("AzureIdentityBinding %s/%s matches no pod: %v", b.Namespace, b.Name, p.Err)
	default:
		return fmt.Sprintf("AzureIdentityBinding %s/%s: %s", b.Namespace, b.Name, p.Reason)
	}
}

// few joins names, and not endlessly many.
func few(names []string, sep string) string {
	const limit = 10
	if n := len(names) - limit; n > 0 {
		names = append(slices.Clone(names[:limit]), fmt.Sprintf("%d more", n))
	}
	return strings.Join(names, sep)
}

// vain explains why a pod has no identity at all.
func vain(pod Pod, problems []Problem) *Refusal {
	label := pod.Labels[v1.BindingLabel]
	if len(problems) == 0 {
		if label == "" {
			return &Refusal{Reason: NoLabel, Text: fmt.Sprintf("pod %s/%s does not have the label %s, whose value chooses an AzureIdentityBinding by its selector, and no AzureIdentityBinding of its namespace chooses it by podSelector or service account", pod.Namespace, pod.Name, v1.BindingLabel)}
		}
		return &Refusal{Reason: NoBinding, Text: fmt.Sprintf("no AzureIdentityBinding has the selector %s, which is the label %s of pod %s/%s", quote(label), v1.BindingLabel, pod.Namespace, pod.Name)}
	}
	// The one that is nearest to the goal.
	order := []Reason{InvalidSchedule, IdentityMissing, InvalidSelector, OtherServiceAccount, OtherLabels, OtherNamespace}
	p := slices.MinFunc(problems, func(a, b Problem) int { return slices.Index(order, a.Reason) - slices.Index(order, b.Reason) })
	return &Refusal{Reason: p.Reason, Text: p.Text(pod), Binding: p.Binding}
}

// closed explains why a binding is not open at now; requests are all of it that
// concern the pod, and opens is when it opens next.
func (b *Bound) closed(requests []*lanyard.AccessRequest, now, opens time.Time) *Refusal {
	name := b.Binding.Namespace + "/" + b.Binding.Name
	s := &b.Binding.Spec
	if !opens.IsZero() {
		return b.refusal(NotOpen, opens, "AzureIdentityBinding %s is not open now: it opens %s", name, b.moment(opens, now))
	}
	if open, changes := term(s, now); !open && changes.IsZero() {
		return b.refusal(NotOpen, opens, "AzureIdentityBinding %s is open no more: its notAfter was %s", name, b.moment(s.NotAfter.Time, now))
	}
	if s.Access == "" || s.Access == v1.AccessAlways {
		return b.refusal(NotOpen, opens, "AzureIdentityBinding %s is not open now, and its schedule, notBefore and notAfter never let it open", name)
	}
	return b.refusal(AwaitingApproval, opens, "AzureIdentityBinding %s is open only on request, and %s", name, b.ask(requests, now))
}

// ask tells what has become of the requests, and what to do.
func (b *Bound) ask(requests []*lanyard.AccessRequest, now time.Time) string {
	var pending, last *lanyard.AccessRequest
	for _, r := range requests {
		switch d := r.Status.Decision; {
		case !r.DeletionTimestamp.IsZero():
		case d == nil:
			if pending == nil || r.Name < pending.Name {
				pending = r
			}
		case last == nil || d.At.After(last.Status.Decision.At.Time) || d.At.Equal(&last.Status.Decision.At) && r.Name < last.Name:
			last = r
		}
	}
	ns := b.Binding.Namespace
	if pending != nil {
		return fmt.Sprintf("AccessRequest %s/%s of %s for %s waits for a decision: whoever holds the verb approve runs \"kubectl lanyard approve %s -n %s\"", ns, pending.Name, quote(pending.Spec.Requester.Username), pending.Spec.Duration.Duration, pending.Name, ns)
	}
	how := fmt.Sprintf("ask with \"kubectl lanyard access request %s -n %s --reason WHY --duration 1h\"", b.Binding.Name, ns)
	if last == nil {
		return "nobody has asked: " + how
	}
	d := last.Status.Decision
	switch d.Verdict {
	case lanyard.Approved:
		_, to, _ := Granted(last)
		return fmt.Sprintf("the approval of AccessRequest %s/%s ended %s: %s", ns, last.Name, b.moment(to, now), how)
	case lanyard.Revoked:
		return fmt.Sprintf("the approval of AccessRequest %s/%s was revoked by %s: %s", ns, last.Name, quote(d.By), how)
	default:
		return fmt.Sprintf("AccessRequest %s/%s was denied by %s: %s", ns, last.Name, quote(d.By), how)
	}
}

// short refuses an open binding that closes sooner than it wants to.
func (b *Bound) short(now time.Time) *Refusal {
	if !b.tooShort(now) {
		return nil
	}
	_, again := b.at(b.Closes)
	text := ""
	if !again.IsZero() {
		text = "; it opens again " + b.moment(again, now)
	}
	return b.refusal(WindowTooShort, again, "AzureIdentityBinding %s/%s closes %s, sooner than its minimumRemaining of %s, and a token would outlive that%s",
		b.Binding.Namespace, b.Binding.Name, b.moment(b.Closes, now), b.Binding.Spec.MinimumRemaining.Duration, text)
}

func (b *Bound) tooShort(now time.Time) bool {
	m := b.Binding.Spec.MinimumRemaining
	return m != nil && !b.Closes.IsZero() && b.Closes.Sub(now) < m.Duration
}

// moment writes an instant in the schedule's time zone and how far it is away:
// "2026-11-23 00:00 Europe/Berlin, in 31 h".
func (b *Bound) moment(t, now time.Time) string {
	zone, name := time.UTC, "UTC"
	if b.calendar != nil {
		zone, name = b.calendar.Zone(), b.calendar.Zone().String()
	}
	layout := "2006-01-02 15:04"
	if t.Second() != 0 {
		layout = "2006-01-02 15:04:05"
	}
	d := t.Sub(now)
	how := "in " + about(d)
	if d < 0 {
		how = about(-d) + " ago"
	}
	return t.In(zone).Format(layout) + " " + name + ", " + how
}

func about(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", (d+time.Second-1)/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 72*time.Hour:
		return fmt.Sprintf("%d h", d/time.Hour)
	default:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
}

package binding

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
)

// A Reason says why a pod gets no identity. It is part of events and audit
// lines, hence stable.
type Reason string

const (
	// NoLabel means: the pod does not carry the label aadpodidbinding.
	NoLabel Reason = "NoLabel"
	// NoBinding means: no AzureIdentityBinding has the label's value as selector.
	NoBinding Reason = "NoBinding"
	// IdentityMissing means: the binding's AzureIdentity does not exist.
	IdentityMissing Reason = "IdentityMissing"
	// OtherNamespace means: the binding matches but is only for pods of its namespace.
	OtherNamespace Reason = "OtherNamespace"
	// NotAllowed means: the pod has identities, but not the one it asks for.
	NotAllowed Reason = "NotAllowed"
	// NotOpen means: the binding exists but is not open at this instant.
	NotOpen Reason = "NotOpen"
	// InvalidIdentity means: the AzureIdentity cannot be used as it is written.
	InvalidIdentity Reason = "InvalidIdentity"
	// UnsupportedType means: the type of the AzureIdentity is not served.
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
	Opens    time.Time // for NotOpen: when it opens next; zero if never
}

func (r *Refusal) Error() string { return r.Text }

// Wait reports whether the same question may have another answer shortly.
func (r *Refusal) Wait() bool { return r.Reason == NotAssigned }

// A Selector is the identity that a request names. At most one field is set;
// the zero value leaves the choice to Select.
type Selector struct {
	ClientID   string
	ObjectID   string
	ResourceID string
}

// Select decides which identity a request of the pod gets at the instant now:
// the one it names, or else the first by namespace and name that is written
// correctly. The error is always a *Refusal. Every identity that is returned is
// entitled by a binding: an assignment alone entitles to nothing.
func Select(pod Pod, w World, sel Selector, now time.Time) (Bound, error) {
	label := pod.Labels[v1.BindingLabel]
	if label == "" {
		return Bound{}, &Refusal{Reason: NoLabel, Text: fmt.Sprintf("pod %s/%s does not have the label %s, whose value chooses an AzureIdentityBinding by its selector", pod.Namespace, pod.Name, v1.BindingLabel)}
	}
	bound, problems := Of(pod, w)
	if len(bound) == 0 {
		return Bound{}, vain(pod, label, problems)
	}
	open, next := Active(bound, now)
	if len(open) == 0 {
		return Bound{}, &Refusal{Reason: NotOpen, Text: fmt.Sprintf("AzureIdentityBinding %s/%s is not open now", bound[0].Binding.Namespace, bound[0].Binding.Name), Binding: bound[0].Binding, Identity: bound[0].Identity, Opens: next}
	}
	b, refusal := choose(pod, open, sel)
	if refusal != nil {
		return Bound{}, refusal
	}
	if refusal := usable(b); refusal != nil {
		return Bound{}, refusal
	}
	if note, ok := assigned(pod, w.Assigned, b.Identity); !ok {
		text := fmt.Sprintf("AzureIdentity %s/%s is not assigned to the machine of pod %s/%s yet", b.Identity.Namespace, b.Identity.Name, pod.Namespace, pod.Name)
		if note != "" {
			text += ": " + note
		}
		return Bound{}, &Refusal{Reason: NotAssigned, Text: text, Binding: b.Binding, Identity: b.Identity}
	}
	return b, nil
}

// vain explains why a labelled pod has no identity at all.
func vain(pod Pod, label string, problems []Problem) *Refusal {
	if len(problems) == 0 {
		return &Refusal{Reason: NoBinding, Text: fmt.Sprintf("no AzureIdentityBinding has the selector %s, which is the label %s of pod %s/%s", quote(label), v1.BindingLabel, pod.Namespace, pod.Name)}
	}
	p := problems[0]
	if i := slices.IndexFunc(problems, func(p Problem) bool { return p.Reason == IdentityMissing }); i >= 0 {
		p = problems[i] // nearer to the goal than a binding of another namespace
	}
	r := &Refusal{Reason: p.Reason, Binding: p.Binding}
	if p.Reason == IdentityMissing {
		r.Text = fmt.Sprintf("AzureIdentityBinding %s/%s names the AzureIdentity %s, which does not exist in namespace %s", p.Binding.Namespace, p.Binding.Name, quote(p.Binding.Spec.AzureIdentity), p.Binding.Namespace)
	} else {
		r.Text = fmt.Sprintf("AzureIdentityBinding %s/%s is only for pods of namespace %s, and the pod is in namespace %s", p.Binding.Namespace, p.Binding.Name, p.Binding.Namespace, pod.Namespace)
	}
	return r
}

func choose(pod Pod, open []Bound, sel Selector) (Bound, *Refusal) {
	var what string
	var match func(*v1.AzureIdentity) bool
	switch {
	case sel.ObjectID != "":
		return Bound{}, &Refusal{Reason: UnsupportedSelector, Text: "an identity cannot be chosen by object_id: name it by client_id or msi_res_id"}
	case sel.ClientID != "":
		what = "client id " + quote(sel.ClientID)
		match = func(id *v1.AzureIdentity) bool { return azure.Fold(id.Spec.ClientID) == azure.Fold(sel.ClientID) }
	case sel.ResourceID != "":
		what = "resource id " + quote(sel.ResourceID)
		match = func(id *v1.AzureIdentity) bool { return sameResource(id.Spec.ResourceID, sel.ResourceID) }
	default:
		for _, b := range open {
			if usable(b) == nil {
				return b, nil
			}
		}
		return open[0], nil
	}
	// The same identity may be bound twice, once written badly.
	var first *Bound
	for i, b := range open {
		if match(b.Identity) {
			if usable(b) == nil {
				return b, nil
			}
			if first == nil {
				first = &open[i]
			}
		}
	}
	if first != nil {
		return *first, nil
	}
	names := make([]string, 0, len(open))
	for _, b := range open {
		names = append(names, b.Identity.Namespace+"/"+b.Identity.Name)
	}
	return Bound{}, &Refusal{Reason: NotAllowed, Text: fmt.Sprintf("no binding of pod %s/%s leads to the identity with %s; its bindings lead to AzureIdentity %s", pod.Namespace, pod.Name, what, strings.Join(names, ", ")), Binding: open[0].Binding}
}

func sameResource(a, b string) bool {
	x, err := azure.ParseResourceID(a)
	if err != nil {
		return false
	}
	y, err := azure.ParseResourceID(b)
	return err == nil && x.Equal(y)
}

// usable refuses identities that can never work as they are written.
func usable(b Bound) *Refusal {
	id := b.Identity
	switch id.Spec.Type {
	case v1.UserAssignedMSI:
		if _, err := ManagedIdentity(id); err != nil {
			return &Refusal{Reason: InvalidIdentity, Text: fmt.Sprintf("AzureIdentity %s/%s: %v", id.Namespace, id.Name, err), Binding: b.Binding, Identity: id}
		}
		return nil
	default:
		return &Refusal{Reason: UnsupportedType, Text: fmt.Sprintf("AzureIdentity %s/%s: identity type %d is not supported by this version", id.Namespace, id.Name, id.Spec.Type), Binding: b.Binding, Identity: id}
	}
}

// assigned reports whether the pod's machine has the identity, and otherwise
// what the controller noted about that.
func assigned(pod Pod, all []*v1.AzureAssignedIdentity, id *v1.AzureIdentity) (note string, ok bool) {
	for _, a := range all {
		if !Concerns(a, pod, id) || !a.DeletionTimestamp.IsZero() || a.Spec.NodeName != pod.Node {
			continue
		}
		// An assignment may still describe the identity as it was.
		if !sameResource(a.Spec.AzureIdentityRef.Spec.ResourceID, id.Spec.ResourceID) {
			note = "the AzureIdentity was changed and the change is not in force yet"
			continue
		}
		if s := a.Status.Status; s == v1.AssignedIDAssigned || s == "" {
			return "", true
		}
		for _, c := range a.Status.Conditions {
			if c.Type == v1.ConditionAssigned && c.Status != "True" {
				note = c.Message
			}
		}
	}
	return note, false
}

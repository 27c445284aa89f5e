package binding

import (
	"slices"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/schedule"
)

// Active returns those of bound that are open at the instant now, each identity
// once, with Closes set, and the first later instant at which that changes; zero
// means never, or not within two years. Of several open bindings of an identity
// the one that closes last counts.
func Active(bound []Bound, now time.Time) (active []Bound, next time.Time) {
	for _, b := range bound {
		open, changes := b.at(now)
		next = earlier(next, changes)
		if !open {
			continue
		}
		b.Closes = changes
		if i := slices.IndexFunc(active, func(a Bound) bool { return sameIdentity(a, b) }); i < 0 {
			active = append(active, b)
		} else if closesLater(b, active[i]) {
			active[i] = b
		}
	}
	return active, next
}

// closesLater compares what Closes says; zero is the latest.
func closesLater(a, b Bound) bool {
	return !b.Closes.IsZero() && (a.Closes.IsZero() || a.Closes.After(b.Closes))
}

// earlier returns the earlier of two instants; zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Unlimited reports whether a binding is open at all times, whatever is asked
// for or approved.
func Unlimited(b *v1.AzureIdentityBinding) bool { return always(b) }

// always reports whether a binding is open at all times.
func always(b *v1.AzureIdentityBinding) bool {
	s := &b.Spec
	return s.NotBefore == nil && s.NotAfter == nil && s.Schedule == nil && (s.Access == "" || s.Access == v1.AccessAlways) && s.MinimumRemaining == nil
}

// at reports whether all that limits the binding in time is open at now, and
// when that changes next; zero means never.
func (b *Bound) at(now time.Time) (open bool, changes time.Time) {
	if always(b.Binding) {
		return true, time.Time{}
	}
	for t := now; ; {
		open, changes = b.limits(t)
		switch {
		case t.Equal(now) && open, !open && changes.IsZero():
			return open, changes
		case open:
			return false, t
		}
		t = changes // nothing opens before, but another limit may be closed then
	}
}

// limits reports whether every limit is open at t. If so, changes is when the
// first of them closes, else when the last of the closed ones opens.
func (b *Bound) limits(t time.Time) (open bool, changes time.Time) {
	s := &b.Binding.Spec
	open = true
	add := func(o bool, at time.Time) {
		switch {
		case open && !o:
			open, changes = false, at
		case open:
			changes = earlier(changes, at)
		case !o && (at.IsZero() || !changes.IsZero() && at.After(changes)):
			changes = at
		}
	}
	add(term(s, t))
	if s.Schedule != nil {
		c := b.calendar
		if c == nil { // a Bound that Of did not make
			c, _ = schedule.New(s.Schedule)
		}
		if c == nil {
			return false, time.Time{}
		}
		add(c.At(t))
	}
	if s.Access != "" && s.Access != v1.AccessAlways {
		add(granted(b.Requests, t))
	}
	return open, changes
}

// term is the time from notBefore on and before notAfter.
func term(s *v1.AzureIdentityBindingSpec, t time.Time) (open bool, changes time.Time) {
	if s.NotAfter != nil && (!t.Before(s.NotAfter.Time) || s.NotBefore != nil && !s.NotBefore.Time.Before(s.NotAfter.Time)) {
		return false, time.Time{}
	}
	if s.NotBefore != nil && t.Before(s.NotBefore.Time) {
		return false, s.NotBefore.Time
	}
	if s.NotAfter != nil {
		return true, s.NotAfter.Time
	}
	return true, time.Time{}
}

// granted is the union of the times of approved requests.
func granted(requests []*lanyard.AccessRequest, t time.Time) (open bool, changes time.Time) {
	until := t
	for again := true; again; {
		again = false
		for _, r := range requests {
			if from, to, ok := Granted(r); ok && !until.Before(from) && until.Before(to) {
				until, open, again = to, true, true
			}
		}
	}
	if open {
		return true, until
	}
	for _, r := range requests {
		if from, to, ok := Granted(r); ok && t.Before(from) && from.Before(to) {
			changes = earlier(changes, from)
		}
	}
	return false, changes
}

// Granted returns the time for which a request opens its binding: at from <= t <
// to. It is false if the request is not approved.
func Granted(r *lanyard.AccessRequest) (from, to time.Time, ok bool) {
	d := r.Status.Decision
	if d == nil || d.Verdict != lanyard.Approved || d.At.IsZero() || r.Spec.Duration.Duration <= 0 || !r.DeletionTimestamp.IsZero() {
		return time.Time{}, time.Time{}, false
	}
	return d.At.Time, d.At.Add(r.Spec.Duration.Duration), true
}

// Asks reports whether a request is for a binding and, if it names a pod, for
// that one. A pod of another namespace with that name is another pod.
func Asks(r *lanyard.AccessRequest, b *v1.AzureIdentityBinding, pod Pod) bool {
	return r.Namespace == b.Namespace && r.Spec.Binding == b.Name && (r.Spec.Pod == "" || r.Spec.Pod == pod.Name && r.Namespace == pod.Namespace)
}

// approved returns the requests that open the binding for the pod, now, before
// or later.
func approved(b *v1.AzureIdentityBinding, pod Pod, all []*lanyard.AccessRequest) []*lanyard.AccessRequest {
	var out []*lanyard.AccessRequest
	for _, r := range all {
		if _, _, ok := Granted(r); ok && Asks(r, b, pod) {
			out = append(out, r)
		}
	}
	return out
}

// Automatic reports whether a rule of the binding approves a request that nobody
// has decided yet. Whoever calls it trusts spec.requester because admission has
// checked it.
func Automatic(b *v1.AzureIdentityBinding, r *lanyard.AccessRequest) bool {
	if b.Spec.Access != v1.AccessOnRequest || b.Spec.Approval == nil || r.Status.Decision != nil || !r.DeletionTimestamp.IsZero() ||
		!b.DeletionTimestamp.IsZero() || r.Namespace != b.Namespace || r.Spec.Binding != b.Name || r.Spec.Duration.Duration <= 0 {
		return false
	}
	who := r.Spec.Requester
	return slices.ContainsFunc(b.Spec.Approval.Automatic, func(a v1.AutomaticApproval) bool {
		return r.Spec.Duration.Duration <= a.MaxDuration.Duration &&
			(who.Username != "" && slices.Contains(a.Users, who.Username) ||
				slices.ContainsFunc(a.Groups, func(g string) bool { return g != "" && slices.Contains(who.Groups, g) }))
	})
}

// An Opening says whether a binding is open, whatever pod it is for: the
// condition Open.
type Opening struct {
	Open    bool
	Changes time.Time // the first later instant at which Open changes; zero means never
	Reason  Reason    // empty if it is open
	Text    string    // for people
}

// OpeningOf returns the state of a binding at the instant now. A request that is
// for one pod only counts.
func OpeningOf(b *v1.AzureIdentityBinding, w World, now time.Time) Opening {
	var requests []*lanyard.AccessRequest
	for _, r := range w.Requests {
		if r.Namespace == b.Namespace && r.Spec.Binding == b.Name {
			requests = append(requests, r)
		}
	}
	bound := Bound{Binding: b, Requests: requests}
	if b.Spec.Schedule != nil {
		var err error
		if bound.calendar, err = w.Calendars.of(b); err != nil {
			p := Problem{Binding: b, Reason: InvalidSchedule, Err: err}
			return Opening{Reason: p.Reason, Text: p.Text(Pod{})}
		}
	}
	open, changes := bound.at(now)
	if !open {
		r := bound.closed(requests, now, changes)
		return Opening{Changes: changes, Reason: r.Reason, Text: r.Text}
	}
	text := "open"
	if !changes.IsZero() {
		text = "open until " + bound.moment(changes, now)
	}
	return Opening{Open: true, Changes: changes, Text: text}
}

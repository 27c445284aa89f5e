package binding

import (
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
)

// A Selector is the identity that a request names. At most one field is set;
// the zero value leaves the choice to Select.
type Selector struct {
	ClientID   string
	ObjectID   string
	ResourceID string
}

// Select decides which identity a request of the pod gets at the instant now:
// the one it names, or else the first by namespace and name that is open and
// written correctly. The error is always a *Refusal. Every identity that is
// returned is entitled by a binding: an assignment alone entitles to nothing.
// Closes of what is returned says when the answer is valid no more.
func Select(pod Pod, w World, sel Selector, now time.Time) (Bound, error) {
	var buffer [4]Bound
	open := opened(entitled(buffer[:0], pod, &w, nil), now)
	if sel.ObjectID == "" {
		best := -1
		for i := range open {
			b := &open[i]
			switch {
			case best >= 0 && !sameIdentity(*b, open[best]):
			case !sel.names(b.Identity) || b.tooShort(now) || Valid(b.Identity) != nil:
				continue
			case best < 0 || closesLater(*b, open[best]):
				best = i
				continue
			default:
				continue
			}
			break
		}
		if best >= 0 {
			if _, ok := assigned(pod, &w, open[best].Identity); ok {
				return open[best], nil
			}
		}
	}
	return Bound{}, refuse(pod, w, sel, now)
}

// Candidates returns all identities that a request of the pod could get at the
// instant now: open, written correctly and assigned, each once. If there is
// none, the refusal says why.
func Candidates(pod Pod, w World, now time.Time) ([]Bound, *Refusal) {
	var all []Bound
	for _, b := range opened(entitled(nil, pod, &w, nil), now) {
		if b.tooShort(now) || Valid(b.Identity) != nil {
			continue
		}
		if _, ok := assigned(pod, &w, b.Identity); !ok {
			continue
		}
		if i := len(all) - 1; i >= 0 && sameIdentity(all[i], b) {
			if closesLater(b, all[i]) {
				all[i] = b
			}
			continue
		}
		all = append(all, b)
	}
	if len(all) == 0 {
		return nil, refuse(pod, w, Selector{}, now)
	}
	return all, nil
}

// opened keeps of bound what is open, in place, and sets Closes.
func opened(bound []Bound, now time.Time) []Bound {
	open := bound[:0]
	for i := range bound {
		ok, changes := bound[i].at(now)
		if ok {
			b := bound[i]
			b.Closes = changes
			open = append(open, b)
		}
	}
	return open
}

// names reports whether the selector lets the identity be chosen.
func (s Selector) names(id *v1.AzureIdentity) bool {
	switch {
	case s.ClientID != "":
		return sameFolded(id.Spec.ClientID, s.ClientID)
	case s.ResourceID != "":
		return id.Spec.Type == v1.UserAssignedMSI && sameResource(id.Spec.ResourceID, s.ResourceID)
	default:
		return true
	}
}

// refuse finds out why Select has found nothing. It repeats the work: refusals
// are rare, and their texts cost what grants should not.
func refuse(pod Pod, w World, sel Selector, now time.Time) *Refusal {
	bound, problems := Of(pod, w)
	switch {
	case len(bound) == 0:
		return vain(pod, problems)
	case sel.ObjectID != "":
		return &Refusal{Reason: UnsupportedSelector, Text: "an identity cannot be chosen by object_id: name it by client_id or msi_res_id"}
	}
	named := slices.DeleteFunc(slices.Clone(bound), func(b Bound) bool { return !sel.names(b.Identity) })
	if len(named) == 0 {
		return stranger(pod, bound, sel)
	}
	open := opened(slices.Clone(named), now)
	if len(open) == 0 {
		return soonest(pod, named, w.Requests, now)
	}
	var first *Refusal // of the first identity, unless a later one is further
	for i := range open {
		b := &open[i]
		r := b.unusable()
		if r == nil {
			r = b.short(now)
		}
		if r == nil {
			return unassigned(pod, &w, b)
		}
		if first == nil {
			first = r
		}
	}
	return first
}

// stranger refuses an identity that no binding of the pod leads to.
func stranger(pod Pod, bound []Bound, sel Selector) *Refusal {
	what := "client id " + quote(sel.ClientID)
	if sel.ClientID == "" {
		what = "resource id " + quote(sel.ResourceID)
	}
	var names []string
	for _, b := range bound {
		if n := b.Identity.Namespace + "/" + b.Identity.Name; !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return &Refusal{Reason: NotAllowed, Text: fmt.Sprintf("no binding of pod %s/%s leads to the identity with %s; its bindings lead to AzureIdentity %s", pod.Namespace, pod.Name, what, few(names, ", ")), Binding: bound[0].Binding}
}

// soonest refuses because nothing is open, with the binding that opens first.
func soonest(pod Pod, bound []Bound, requests []*lanyard.AccessRequest, now time.Time) *Refusal {
	best, opens := 0, time.Time{}
	for i := range bound {
		if _, at := bound[i].at(now); !at.IsZero() && (opens.IsZero() || at.Before(opens)) {
			best, opens = i, at
		}
	}
	if opens.IsZero() { // one that can be asked for is nearer than one that is over
		best = max(0, slices.IndexFunc(bound, func(b Bound) bool { return b.Binding.Spec.Access == v1.AccessOnRequest }))
	}
	b := &bound[best]
	var asked []*lanyard.AccessRequest
	for _, r := range requests {
		if Asks(r, b.Binding, pod) {
			asked = append(asked, r)
		}
	}
	return b.closed(asked, now, opens)
}

// unusable refuses identities that can never work as they are written.
func (b *Bound) unusable() *Refusal {
	err := Valid(b.Identity)
	if err == nil {
		return nil
	}
	reason := InvalidIdentity
	if e := (*TypeError)(nil); errors.As(err, &e) {
		reason = UnsupportedType
	}
	return b.refusal(reason, time.Time{}, "AzureIdentity %s/%s: %v", b.Identity.Namespace, b.Identity.Name, err)
}

// unassigned refuses because the machine does not have the identity.
func unassigned(pod Pod, w *World, b *Bound) *Refusal {
	text := fmt.Sprintf("AzureIdentity %s/%s is not assigned to the machine of pod %s/%s yet", b.Identity.Namespace, b.Identity.Name, pod.Namespace, pod.Name)
	if note, _ := assigned(pod, w, b.Identity); note != "" {
		text += ": " + note
	}
	return b.refusal(NotAssigned, time.Time{}, "%s", text)
}

// assigned reports whether the pod's machine has the identity, and otherwise
// what the controller noted about that.
func assigned(pod Pod, w *World, id *v1.AzureIdentity) (note string, ok bool) {
	if w.Managed {
		return "", true
	}
	for _, a := range w.Assigned {
		if a.Spec.Pod != pod.Name || !Concerns(a, pod, id) || !a.DeletionTimestamp.IsZero() || a.Spec.NodeName != pod.Node {
			continue
		}
		// An assignment may still describe the identity as it was.
		was := &a.Spec.AzureIdentityRef.Spec
		if was.Type != id.Spec.Type || id.Spec.Type == v1.UserAssignedMSI && !sameResource(was.ResourceID, id.Spec.ResourceID) {
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

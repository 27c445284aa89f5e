// Package binding holds the rules of Pod Identity: which identities a pod may
// use at an instant, which one a request gets, and why it gets none. They are
// functions of values; controller and node agent call the same ones.
//
//	pod's labels, service account ── bindings that match ── identities   Of
//	    ── those that time and approvals open at this instant            Active
//	    ── those whose identity the machine has                          Candidates
//	    ── the one that the request names                                Select
//
// A binding is open while all of these are: notBefore and notAfter, the schedule
// (package schedule), and with access OnRequest an approved AccessRequest. What cannot
// be understood never opens.
//
// Time zones are looked up by name with package time. A program that must not
// depend on the machine's files imports time/tzdata; this package does not.
package binding

import (
	"cmp"
	"slices"
	"strings"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/schedule"
)

// A Pod is what the rules need to know about a pod.
type Pod struct {
	Namespace      string
	Name           string
	UID            string
	Node           string // empty until it is scheduled
	ServiceAccount string
	Labels         map[string]string
}

// A World is what the rules look at besides the pod. It may hold more than
// concerns the pod; nothing in it is modified.
type World struct {
	// Bindings are the candidates; those that do not match are passed over.
	Bindings []*v1.AzureIdentityBinding
	// Identity returns an identity by namespace and name, or nil.
	Identity func(namespace, name string) *v1.AzureIdentity
	// Assigned are the assignments; those of other pods are passed over.
	Assigned []*v1.AzureAssignedIdentity
	// Requests are the access requests; those for other bindings are passed over.
	Requests []*lanyard.AccessRequest
	// Calendars keeps compiled schedules from one call to the next; nil means that
	// each call compiles those it meets.
	Calendars *Calendars
	// ForceNamespaced limits every binding to pods of its own namespace.
	ForceNamespaced bool
	// Managed means that the machines have all identities already: no assignment is
	// needed.
	Managed bool
}

// A Bound is an identity that a pod may use, with the binding that says so.
type Bound struct {
	Binding  *v1.AzureIdentityBinding
	Identity *v1.AzureIdentity
	// Requests are the approved ones for this binding and pod, in force or not; nil
	// if the binding needs none.
	Requests []*lanyard.AccessRequest
	// Closes is when the binding closes; zero means never, or not within two years.
	// Active, Candidates and Select set it. A token may outlive it, a cached answer
	// must not.
	Closes time.Time

	calendar *schedule.Calendar // of the binding's schedule; nil if there is none
}

// A Problem is a binding that is meant for a pod but yields no identity.
type Problem struct {
	Binding *v1.AzureIdentityBinding
	Reason  Reason
	Err     error // for InvalidSchedule and InvalidSelector: what is wrong
}

// Of returns the identities that the pod is entitled to, ordered by namespace
// and name of the identity, then of the binding, and the bindings that match in
// vain. An identity comes once per binding if a binding is not open at all
// times; Active makes it one. Whether an identity is usable is not judged here.
func Of(pod Pod, w World) (bound []Bound, problems []Problem) {
	bound = entitled(nil, pod, &w, &problems)
	slices.SortFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Binding.Namespace, b.Binding.Namespace), cmp.Compare(a.Binding.Name, b.Binding.Name))
	})
	return bound, problems
}

// entitled is Of with a buffer to append to; a nil list drops the problems.
func entitled(bound []Bound, pod Pod, w *World, problems *[]Problem) []Bound {
	note := func(b *v1.AzureIdentityBinding, r Reason, err error) {
		if problems != nil {
			*problems = append(*problems, Problem{Binding: b, Reason: r, Err: err})
		}
	}
	label := pod.Labels[v1.BindingLabel]
	for _, b := range w.Bindings {
		if s := b.Spec.Selector; s != "" && s != label {
			continue // as match would say; most of a large world ends here
		}
		reason, err := match(b, &pod)
		switch {
		case reason == other:
			continue
		case reason != "":
			note(b, reason, err)
			continue
		case w.ForceNamespaced && b.Namespace != pod.Namespace:
			note(b, OtherNamespace, nil)
			continue
		}
		id := w.Identity(b.Namespace, b.Spec.AzureIdentity)
		switch {
		case id == nil || !id.DeletionTimestamp.IsZero():
			note(b, IdentityMissing, nil)
			continue
		case Namespaced(id, w.ForceNamespaced) && b.Namespace != pod.Namespace:
			note(b, OtherNamespace, nil)
			continue
		}
		next := Bound{Binding: b, Identity: id}
		if b.Spec.Schedule != nil {
			if next.calendar, err = w.Calendars.of(b); err != nil {
				note(b, InvalidSchedule, err)
				continue
			}
		}
		if b.Spec.Access != v1.AccessAlways && b.Spec.Access != "" {
			next.Requests = approved(b, pod, w.Requests)
		}
		bound = append(bound, next)
	}
	if len(bound) < 2 {
		return bound
	}
	slices.SortFunc(bound, func(a, b Bound) int {
		return cmp.Or(
			cmp.Compare(a.Identity.Namespace, b.Identity.Namespace), cmp.Compare(a.Identity.Name, b.Identity.Name),
			cmp.Compare(a.Binding.Namespace, b.Binding.Namespace), cmp.Compare(a.Binding.Name, b.Binding.Name))
	})
	return withoutIdle(bound)
}

// withoutIdle keeps of the bindings of an identity, which lie side by side, only
// the first that is always open, if there is one: the others change nothing.
func withoutIdle(bound []Bound) []Bound {
	kept := bound[:0]
	for len(bound) > 0 {
		n := 1
		for n < len(bound) && sameIdentity(bound[n], bound[0]) {
			n++
		}
		same := bound[:n]
		bound = bound[n:]
		if i := slices.IndexFunc(same, func(b Bound) bool { return always(b.Binding) }); i >= 0 {
			same = same[i : i+1]
		}
		kept = append(kept, same...)
	}
	return kept
}

func sameIdentity(a, b Bound) bool {
	return a.Identity.Namespace == b.Identity.Namespace && a.Identity.Name == b.Identity.Name
}

// Namespaced reports whether an identity is only for pods of its own namespace.
func Namespaced(id *v1.AzureIdentity, force bool) bool {
	return force || strings.EqualFold(id.Annotations[v1.BehaviorAnnotation], v1.BehaviorNamespaced)
}

// Excepted reports whether a pod is let through to the metadata service: an
// exception of its namespace names one of its labels. Values are compared
// without regard to case, as Pod Identity v1 did.
func Excepted(pod Pod, exceptions []*v1.AzurePodIdentityException) bool {
	for _, e := range exceptions {
		if e.Namespace != pod.Namespace {
			continue
		}
		for k, v := range e.Spec.PodLabels {
			if have, ok := pod.Labels[k]; ok && strings.EqualFold(have, v) {
				return true
			}
		}
	}
	return false
}

// Package binding holds the rules of Pod Identity: which identities a pod may
// use at an instant, which one a request gets, and why it gets none. They are
// functions of values; controller and node agent call the same ones.
//
//	pod's label ── bindings with that selector ── identities      Of
//	            ── those open at this instant                      Active
//	            ── those whose identity the machine has, and the
//	               one that the request names                      Select
package binding

import (
	"cmp"
	"slices"
	"strings"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
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
	// Bindings are the candidates; those with another selector are passed over.
	Bindings []*v1.AzureIdentityBinding
	// Identity returns an identity by namespace and name, or nil.
	Identity func(namespace, name string) *v1.AzureIdentity
	// Assigned are the assignments; those of other pods are passed over.
	Assigned []*v1.AzureAssignedIdentity
	// ForceNamespaced limits every binding to pods of its own namespace.
	ForceNamespaced bool
}

// A Bound is an identity that a pod may use, with the binding that says so.
type Bound struct {
	Binding  *v1.AzureIdentityBinding
	Identity *v1.AzureIdentity
}

// A Problem is a binding that matches a pod's label but yields no identity.
type Problem struct {
	Binding *v1.AzureIdentityBinding
	Reason  Reason
}

// Of returns the identities that the pod's label entitles it to, each once,
// ordered by namespace and name of the identity, and the bindings that match
// the label in vain. Whether an identity is usable is not judged here.
func Of(pod Pod, w World) (bound []Bound, problems []Problem) {
	label := pod.Labels[v1.BindingLabel]
	if label == "" {
		return nil, nil
	}
	matching := make([]*v1.AzureIdentityBinding, 0, len(w.Bindings))
	for _, b := range w.Bindings {
		if b.Spec.Selector == label && b.DeletionTimestamp.IsZero() {
			matching = append(matching, b)
		}
	}
	slices.SortFunc(matching, func(a, b *v1.AzureIdentityBinding) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	type key struct{ namespace, name string }
	seen := map[key]bool{}
	for _, b := range matching {
		if w.ForceNamespaced && b.Namespace != pod.Namespace {
			problems = append(problems, Problem{b, OtherNamespace})
			continue
		}
		id := w.Identity(b.Namespace, b.Spec.AzureIdentity)
		switch {
		case id == nil || !id.DeletionTimestamp.IsZero():
			problems = append(problems, Problem{b, IdentityMissing})
		case Namespaced(id, w.ForceNamespaced) && b.Namespace != pod.Namespace:
			problems = append(problems, Problem{b, OtherNamespace})
		case !seen[key{id.Namespace, id.Name}]:
			seen[key{id.Namespace, id.Name}] = true
			bound = append(bound, Bound{b, id})
		}
	}
	slices.SortFunc(bound, func(a, b Bound) int {
		return cmp.Or(cmp.Compare(a.Identity.Namespace, b.Identity.Namespace), cmp.Compare(a.Identity.Name, b.Identity.Name))
	})
	return bound, problems
}

// Active returns those of bound that are open at the instant now, and the next
// instant at which that changes; zero means never. All bindings are open at all
// times as long as the API has no time windows.
func Active(bound []Bound, _ time.Time) (active []Bound, next time.Time) {
	return bound, time.Time{}
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

// managedIdentity is the resource type of user-assigned identities.
const managedIdentity = "Microsoft.ManagedIdentity/userAssignedIdentities"

// ManagedIdentity parses the resource id of a user-assigned identity. The error
// says what the AzureIdentity should hold instead.
func ManagedIdentity(id *v1.AzureIdentity) (azure.ResourceID, error) {
	if id.Spec.ResourceID == "" {
		return azure.ResourceID{}, &ResourceIDError{ID: ""}
	}
	parsed, err := azure.ParseResourceID(id.Spec.ResourceID)
	if err != nil {
		return azure.ResourceID{}, &ResourceIDError{ID: id.Spec.ResourceID, Err: err}
	}
	if !parsed.Is(managedIdentity) || parsed.SubscriptionID == "" || parsed.ResourceGroup == "" || parsed.Extends != nil {
		return azure.ResourceID{}, &ResourceIDError{ID: id.Spec.ResourceID}
	}
	return parsed, nil
}

// A ResourceIDError is a spec.resourceID that names no user-assigned identity.
type ResourceIDError struct {
	ID  string
	Err error // nil if the id is well-formed but of something else
}

func (e *ResourceIDError) Error() string {
	const want = "it must be /subscriptions/{id}/resourceGroups/{group}/providers/" + managedIdentity + "/{name}; `az identity show --name NAME --resource-group GROUP --query id` prints it"
	switch {
	case e.ID == "":
		return "spec.resourceID is empty: " + want
	case e.Err != nil:
		return "spec.resourceID: " + e.Err.Error() + ": " + want
	default:
		return "spec.resourceID " + quote(e.ID) + " is not a user-assigned identity: " + want
	}
}

// Unwrap returns the parser's error.
func (e *ResourceIDError) Unwrap() error { return e.Err }

// quote keeps foreign input short.
func quote(s string) string {
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return `"` + s + `"`
}

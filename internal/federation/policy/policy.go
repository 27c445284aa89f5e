// Package policy decides which service accounts may claim which identities. It
// is a function of values.
//
//	Decide(policies, claim, identity)
//	    no policy chooses the namespace and the service account   Denied
//	    one names the identity                                    Allowed
//	    one names others by another kind of name                  Undecided: look the identity up, ask again
//
// Nothing is allowed that no policy allows; policies only add to each other.
// What a policy says in a way that cannot be read allows nothing.
package policy

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/azure"
)

// A Claim is a service account that wants to be an identity.
type Claim struct {
	Namespace       string
	NamespaceLabels map[string]string
	ServiceAccount  string
}

// An Identity is what is known of the identity that is claimed: one of the
// names, or both once it was looked up.
type Identity struct {
	ClientID   string
	ResourceID string // ARM id; empty for an application
	// Known says that it was looked up: a name that is empty does not exist.
	Known bool
}

// A Verdict on a claim.
type Verdict int

// Verdicts. The zero value denies.
const (
	Denied Verdict = iota
	Undecided
	Allowed
)

// Decide returns the verdict, and the policy that allows it.
func Decide(policies []lanyard.FederationPolicy, c Claim, id Identity) (Verdict, string) {
	verdict := Denied
	for i := range policies {
		p := &policies[i].Spec
		if !chooses(p, c) {
			continue
		}
		for _, allowed := range p.Identities {
			switch names(allowed, id) {
			case Allowed:
				return Allowed, policies[i].Name
			case Undecided:
				verdict = Undecided
			case Denied:
			}
		}
	}
	return verdict, ""
}

// Identities returns the ARM ids of the managed identities that policies allow
// by name to a claim.
func Identities(policies []lanyard.FederationPolicy, c Claim) []string {
	var out []string
	for i := range policies {
		if !chooses(&policies[i].Spec, c) {
			continue
		}
		for _, allowed := range policies[i].Spec.Identities {
			if allowed.ResourceID != "" {
				out = append(out, allowed.ResourceID)
			}
		}
	}
	return out
}

func chooses(p *lanyard.FederationPolicySpec, c Claim) bool {
	if len(p.ServiceAccountNames) > 0 && !slices.Contains(p.ServiceAccountNames, c.ServiceAccount) {
		return false
	}
	if slices.Contains(p.Namespaces, c.Namespace) {
		return true
	}
	if p.NamespaceSelector == nil {
		return false
	}
	selector, err := metav1.LabelSelectorAsSelector(p.NamespaceSelector)
	return err == nil && selector.Matches(labels.Set(c.NamespaceLabels))
}

// names reports whether a policy's entry is the identity's.
func names(allowed lanyard.PolicyIdentity, id Identity) Verdict {
	switch {
	case allowed.ClientID != "":
		return same(azure.Fold(allowed.ClientID), azure.Fold(id.ClientID), id.Known)
	case allowed.ResourceID != "":
		return same(Key(allowed.ResourceID), Key(id.ResourceID), id.Known)
	case allowed.ResourceGroup != "":
		return same(Key(allowed.ResourceGroup), group(id.ResourceID), id.Known)
	}
	return Denied
}

func same(allowed, claimed string, known bool) Verdict {
	switch {
	case allowed == "":
		return Denied // not readable
	case claimed == "" && !known:
		return Undecided
	case allowed == claimed:
		return Allowed
	}
	return Denied
}

// Key returns an ARM id in the form in which two are compared; empty if it is
// not one, which equals nothing.
func Key(resourceID string) string {
	id, err := azure.ParseResourceID(resourceID)
	if err != nil || id.IsRoot() {
		return ""
	}
	return id.Key()
}

// group returns the resource group that a managed identity is in.
func group(resourceID string) string {
	id, err := azure.ParseResourceID(resourceID)
	if err != nil || !id.Is(azure.TypeManagedIdentity) || id.ResourceGroup == "" {
		return ""
	}
	return azure.Group(id.SubscriptionID, id.ResourceGroup).Key()
}

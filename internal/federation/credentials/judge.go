package credentials

import (
	"context"
	"errors"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/federation/policy"
	"github.com/lanyard-id/lanyard/internal/federation/record"
)

// A judgement is what was found before Azure was asked.
type judgement struct {
	policies []lanyard.FederationPolicy
	// ask says that the identity is to be looked up. What nobody may claim and
	// nobody has claimed before is not: whoever may write a FederatedIdentity
	// learns nothing about the identities that there are.
	ask bool
	// doubt are claims that can only be judged after that.
	doubt []*claim
}

// judge gives each claim the verdict that it can have without Azure.
func (c *Controller) judge(ctx context.Context, b *batch) (judgement, error) {
	var list lanyard.FederationPolicyList
	if err := c.Client.List(ctx, &list); err != nil {
		return judgement{}, fmt.Errorf("listing FederationPolicies: %w", err)
	}
	j := judgement{policies: list.Items}
	for _, x := range b.claims {
		if x.marked() {
			j.ask = true
		}
		if x.going() {
			x.verdict = drop
			continue
		}
		if why := malformed(x.Spec); why != "" {
			x.verdict, x.why = drop, failure{record.ReasonInvalid, why}
			continue
		}
		p, err := c.claimOf(ctx, x.FederatedIdentity)
		if err != nil {
			return j, err
		}
		switch v, _ := policy.Decide(j.policies, p, policy.Identity{ClientID: x.Spec.ClientID, ResourceID: x.Spec.ResourceID}); v {
		case policy.Allowed:
			x.verdict, j.ask = want, true
		case policy.Undecided:
			x.verdict, j.ask, j.doubt = hold, true, append(j.doubt, x)
		case policy.Denied:
			x.deny()
		}
	}
	return j, nil
}

// malformed says what is wrong with a spec that no schema can tell.
func malformed(s lanyard.FederatedIdentitySpec) string {
	if s.ResourceID == "" {
		return ""
	}
	r, err := azure.ParseResourceID(s.ResourceID)
	switch {
	case err != nil:
		return err.Error()
	case !r.Is(azure.TypeManagedIdentity) || r.Extends != nil || r.SubscriptionID == "" || r.ResourceGroup == "":
		return "spec.resourceID is not that of a user-assigned managed identity: /subscriptions/ID/resourceGroups/GROUP/providers/" + azure.TypeManagedIdentity + "/NAME"
	}
	return ""
}

// deny gives everybody the same answer, whether or not the identity exists.
func (c *claim) deny() {
	name := c.Spec.ClientID
	field := "clientID: " + name
	if name == "" {
		name = c.Spec.ResourceID
		field = "resourceID: " + name
	}
	c.verdict = drop
	c.why = failure{record.ReasonNotAllowed, fmt.Sprintf("no FederationPolicy allows service account %s/%s to be identity %s: somebody who may write FederationPolicies can allow it with namespaces: [%s] and identities: [{%s}]",
		c.Namespace, c.Spec.ServiceAccountName, name, c.Namespace, field)}
}

// claimOf is what policies are asked about.
func (c *Controller) claimOf(ctx context.Context, f *lanyard.FederatedIdentity) (policy.Claim, error) {
	ns := record.Namespace()
	if err := c.Client.Get(ctx, types.NamespacedName{Name: f.Namespace}, ns); client.IgnoreNotFound(err) != nil {
		return policy.Claim{}, fmt.Errorf("reading namespace %s: %w", f.Namespace, err)
	}
	return policy.Claim{Namespace: f.Namespace, NamespaceLabels: ns.Labels, ServiceAccount: f.Spec.ServiceAccountName}, nil
}

// find looks the identity up and judges what was in doubt. Errors are a refusal
// unless the cluster's.
func (c *Controller) find(ctx context.Context, b *batch, j judgement) error {
	p, err := c.parent(ctx, b.target, b.claims[0].FederatedIdentity, j.policies)
	if errors.Is(err, federated.ErrNotFound) {
		for _, x := range j.doubt {
			x.deny()
		}
		for _, x := range b.claims {
			if err := c.accepted(ctx, x); err != nil {
				return err
			}
		}
	}
	if err != nil {
		return err
	}
	known := policy.Identity{ClientID: p.ClientID, ResourceID: p.ResourceID, Known: true}
	for _, x := range j.doubt {
		about, err := c.claimOf(ctx, x.FederatedIdentity)
		if err != nil {
			return err
		}
		if v, _ := policy.Decide(j.policies, about, known); v == policy.Allowed {
			x.verdict = want
		} else {
			x.deny()
		}
	}
	tenant := p.TenantID
	if tenant == "" {
		tenant = c.TenantID
	}
	for _, x := range b.claims {
		if x.verdict != want {
			continue
		}
		if x.Spec.TenantID != "" && tenant != "" && !strings.EqualFold(x.Spec.TenantID, tenant) {
			x.verdict = drop
			x.why = failure{record.ReasonOtherTenant, fmt.Sprintf("tenant %s was asked for, but the identity belongs to tenant %s: correct tenantID (annotation azure.workload.identity/tenant-id), or leave it out", x.Spec.TenantID, tenant)}
		}
	}
	return nil
}

// parent returns the identity that f names. Where the directory may not be read,
// managed identities that policies name by their ARM id are looked through.
func (c *Controller) parent(ctx context.Context, t *target, f *lanyard.FederatedIdentity, policies []lanyard.FederationPolicy) (federated.Parent, error) {
	if p, ok := t.found(); ok {
		return p, nil
	}
	var (
		p   federated.Parent
		err error
	)
	if f.Spec.ResourceID != "" {
		p, err = c.Directory.FindResource(ctx, f.Spec.ResourceID)
	} else {
		p, err = c.Directory.Find(ctx, f.Spec.ClientID)
		if errors.Is(err, federated.ErrForbidden) {
			if q, ok := c.among(ctx, f, policies); ok {
				p, err = q, nil
			}
		}
	}
	if err != nil {
		return federated.Parent{}, asked(err)
	}
	if f.Spec.ClientID != "" && !strings.EqualFold(p.ClientID, f.Spec.ClientID) {
		return federated.Parent{}, asked(fmt.Errorf("%w: Azure answered with another identity (%s)", federated.ErrNotFound, p.ClientID))
	}
	t.set(p)
	return p, nil
}

func (c *Controller) among(ctx context.Context, f *lanyard.FederatedIdentity, policies []lanyard.FederationPolicy) (federated.Parent, bool) {
	about, err := c.claimOf(ctx, f)
	if err != nil {
		return federated.Parent{}, false
	}
	for _, resource := range policy.Identities(policies, about) {
		if malformed(lanyard.FederatedIdentitySpec{ResourceID: resource}) != "" {
			continue
		}
		t := c.remember(policy.Key(resource))
		p, err := c.parent(ctx, t, &lanyard.FederatedIdentity{Spec: lanyard.FederatedIdentitySpec{ResourceID: resource}}, nil)
		if err == nil && strings.EqualFold(p.ClientID, f.Spec.ClientID) {
			return p, true
		}
	}
	return federated.Parent{}, false
}

// rival returns another FederatedIdentity that names the same identity and
// service account, by the other kind of name, if it is allowed and, with older,
// older than f.
func (c *Controller) rival(ctx context.Context, f *lanyard.FederatedIdentity, p federated.Parent, older bool) (*lanyard.FederatedIdentity, error) {
	var list lanyard.FederatedIdentityList
	if err := c.Client.List(ctx, &list, client.InNamespace(f.Namespace), client.MatchingFields{record.IndexServiceAccount: f.Spec.ServiceAccountName}); err != nil {
		return nil, fmt.Errorf("listing FederatedIdentities: %w", err)
	}
	for i := range list.Items {
		o := &list.Items[i]
		named := strings.EqualFold(o.Spec.ClientID, p.ClientID) && p.ClientID != "" || policy.Key(o.Spec.ResourceID) == policy.Key(p.ResourceID) && o.Spec.ResourceID != ""
		switch {
		case o.UID == f.UID || !named || !o.DeletionTimestamp.IsZero() || record.IdentityKey(o) == record.IdentityKey(f):
		case older && !before(o, f):
		case !record.Is(o, lanyard.ConditionAccepted, metav1.ConditionTrue):
		default:
			return o, nil
		}
	}
	return nil, nil
}

func before(a, b *lanyard.FederatedIdentity) bool {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.Name < b.Name
}

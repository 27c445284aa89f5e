package policy_test

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/federation/policy"
)

const (
	clientID = "C0FFEE00-0000-0000-0000-000000000001"
	another  = "c0ffee00-0000-0000-0000-000000000002"
	groupID  = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/Team-A"
	resource = groupID + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/web"
)

func TestDecide(t *testing.T) {
	claim := policy.Claim{Namespace: "a", NamespaceLabels: map[string]string{"team": "a"}, ServiceAccount: "web"}
	byClient, byResource := policy.Identity{ClientID: "c0ffee00-0000-0000-0000-000000000001"}, policy.Identity{ResourceID: resource}
	both := policy.Identity{ClientID: clientID, ResourceID: resource, Known: true}
	application := policy.Identity{ClientID: clientID, Known: true}
	in := func(ids ...lanyard.PolicyIdentity) lanyard.FederationPolicySpec {
		return lanyard.FederationPolicySpec{Namespaces: []string{"a"}, Identities: ids}
	}
	client, res, group := lanyard.PolicyIdentity{ClientID: clientID}, lanyard.PolicyIdentity{ResourceID: resource}, lanyard.PolicyIdentity{ResourceGroup: groupID}
	selecting := func(s metav1.LabelSelector, namespaces ...string) lanyard.FederationPolicySpec {
		return lanyard.FederationPolicySpec{Namespaces: namespaces, NamespaceSelector: &s, Identities: []lanyard.PolicyIdentity{client}}
	}
	for name, tc := range map[string]struct {
		policies []lanyard.FederationPolicySpec
		id       policy.Identity
		want     policy.Verdict
	}{
		"without a policy nothing is allowed":                   {nil, byClient, policy.Denied},
		"a client id is compared without regard to case":        {[]lanyard.FederationPolicySpec{in(client)}, byClient, policy.Allowed},
		"another client id is not allowed":                      {[]lanyard.FederationPolicySpec{in(lanyard.PolicyIdentity{ClientID: another})}, byClient, policy.Denied},
		"a resource id is compared without regard to case":      {[]lanyard.FederationPolicySpec{in(res)}, policy.Identity{ResourceID: "/SUBSCRIPTIONS/11111111-2222-3333-4444-555555555555/resourcegroups/team-a/providers/microsoft.managedidentity/userassignedidentities/WEB"}, policy.Allowed},
		"a group has all that is in it":                         {[]lanyard.FederationPolicySpec{in(group)}, byResource, policy.Allowed},
		"a group does not have what begins like it":             {[]lanyard.FederationPolicySpec{in(lanyard.PolicyIdentity{ResourceGroup: groupID[:len(groupID)-1]})}, byResource, policy.Denied},
		"a group has no applications":                           {[]lanyard.FederationPolicySpec{in(group)}, application, policy.Denied},
		"a path trick is in no group":                           {[]lanyard.FederationPolicySpec{in(group)}, policy.Identity{ResourceID: groupID + "/../other/providers/Microsoft.ManagedIdentity/userAssignedIdentities/web"}, policy.Undecided},
		"a path trick that was looked up is in no group":        {[]lanyard.FederationPolicySpec{in(group)}, policy.Identity{ResourceID: groupID + "/../x", Known: true}, policy.Denied},
		"another kind of resource is in no group":               {[]lanyard.FederationPolicySpec{in(group)}, policy.Identity{ResourceID: groupID + "/providers/Microsoft.KeyVault/vaults/web", Known: true}, policy.Denied},
		"a nested resource is in no group":                      {[]lanyard.FederationPolicySpec{in(group)}, policy.Identity{ResourceID: resource + "/federatedIdentityCredentials/x", Known: true}, policy.Denied},
		"a client id against a resource id needs a look":        {[]lanyard.FederationPolicySpec{in(res)}, byClient, policy.Undecided},
		"a resource id against a client id needs a look":        {[]lanyard.FederationPolicySpec{in(client)}, byResource, policy.Undecided},
		"after the look it is allowed by the other name":        {[]lanyard.FederationPolicySpec{in(res)}, both, policy.Allowed},
		"another policy's denial takes nothing away":            {[]lanyard.FederationPolicySpec{in(lanyard.PolicyIdentity{ClientID: another}), in(client)}, byClient, policy.Allowed},
		"an allowance wins over what is undecided":              {[]lanyard.FederationPolicySpec{in(res, client)}, byClient, policy.Allowed},
		"the name of the namespace must be exact":               {[]lanyard.FederationPolicySpec{{Namespaces: []string{"aa", "A", "*"}, Identities: []lanyard.PolicyIdentity{client}}}, byClient, policy.Denied},
		"no namespaces and no selector are nobody":              {[]lanyard.FederationPolicySpec{{Identities: []lanyard.PolicyIdentity{client}}}, byClient, policy.Denied},
		"an empty selector is everybody":                        {[]lanyard.FederationPolicySpec{selecting(metav1.LabelSelector{})}, byClient, policy.Allowed},
		"a selector chooses by labels":                          {[]lanyard.FederationPolicySpec{selecting(metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}})}, byClient, policy.Allowed},
		"a selector of other labels does not":                   {[]lanyard.FederationPolicySpec{selecting(metav1.LabelSelector{MatchLabels: map[string]string{"team": "b"}})}, byClient, policy.Denied},
		"a selector adds to the names":                          {[]lanyard.FederationPolicySpec{selecting(metav1.LabelSelector{MatchLabels: map[string]string{"team": "b"}}, "a")}, byClient, policy.Allowed},
		"a selector that cannot be read chooses nobody":         {[]lanyard.FederationPolicySpec{selecting(metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "team", Operator: "Near"}}})}, byClient, policy.Denied},
		"the service account is among the names":                {[]lanyard.FederationPolicySpec{{Namespaces: []string{"a"}, ServiceAccountNames: []string{"x", "web"}, Identities: []lanyard.PolicyIdentity{client}}}, byClient, policy.Allowed},
		"the service account is not among the names":            {[]lanyard.FederationPolicySpec{{Namespaces: []string{"a"}, ServiceAccountNames: []string{"x"}, Identities: []lanyard.PolicyIdentity{client}}}, byClient, policy.Denied},
		"an entry without a name allows nothing":                {[]lanyard.FederationPolicySpec{in(lanyard.PolicyIdentity{})}, policy.Identity{Known: true}, policy.Denied},
		"a resource id that cannot be read equals no other one": {[]lanyard.FederationPolicySpec{in(lanyard.PolicyIdentity{ResourceID: "x"})}, policy.Identity{ResourceID: "x"}, policy.Denied},
	} {
		t.Run(name, func(t *testing.T) {
			var policies []lanyard.FederationPolicy
			for _, s := range tc.policies {
				policies = append(policies, lanyard.FederationPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: s})
			}
			got, by := policy.Decide(policies, claim, tc.id)
			if got != tc.want || (by == "p") != (got == policy.Allowed) {
				t.Errorf("verdict %d by %q, want %d", got, by, tc.want)
			}
		})
	}
}

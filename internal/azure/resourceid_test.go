package azure

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sub = "/subscriptions/00000000-0000-0000-0000-000000000001"

func TestParseResourceID(t *testing.T) {
	uami := ResourceID{SubscriptionID: "00000000-0000-0000-0000-000000000001", ResourceGroup: "rg", Provider: "Microsoft.ManagedIdentity",
		Types: []string{"userAssignedIdentities"}, Names: []string{"demo1"}}
	vault := ResourceID{SubscriptionID: "00000000-0000-0000-0000-000000000001", ResourceGroup: "rg", Provider: "Microsoft.KeyVault",
		Types: []string{"vaults"}, Names: []string{"v"}}
	tests := map[string]struct {
		in   string
		want ResourceID
		typ  string
		name string
	}{
		"the root scope":                        {"/", ResourceID{}, "", ""},
		"a subscription":                        {sub, ResourceID{SubscriptionID: uami.SubscriptionID}, TypeSubscription, uami.SubscriptionID},
		"a resource group":                      {sub + "/resourceGroups/rg", Group(uami.SubscriptionID, "rg"), TypeResourceGroup, "rg"},
		"a managed identity":                    {sub + "/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo1", uami, TypeManagedIdentity, "demo1"},
		"keywords in another case":              {"/SUBSCRIPTIONS/00000000-0000-0000-0000-000000000001/resourcegroups/rg/PROVIDERS/Microsoft.ManagedIdentity/userAssignedIdentities/demo1", uami, TypeManagedIdentity, "demo1"},
		"a federated credential":                {sub + "/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo1/federatedIdentityCredentials/f", uami.Child("federatedIdentityCredentials", "f"), TypeFederatedCredential, "f"},
		"a role assignment on a vault":          {vault.String() + "/providers/Microsoft.Authorization/roleAssignments/g", vault.Resource(TypeRoleAssignment, "g"), TypeRoleAssignment, "g"},
		"a role assignment on a resource group": {sub + "/resourceGroups/rg/providers/Microsoft.Authorization/roleAssignments/g", Group(uami.SubscriptionID, "rg").Resource(TypeRoleAssignment, "g"), TypeRoleAssignment, "g"},
		"a role definition of the tenant":       {"/providers/Microsoft.Authorization/roleDefinitions/g", ResourceID{}.Resource(TypeRoleDefinition, "g"), TypeRoleDefinition, "g"},
		"a group with dots and brackets":        {sub + "/resourceGroups/a.b_(c)-d", Group(uami.SubscriptionID, "a.b_(c)-d"), TypeResourceGroup, "a.b_(c)-d"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseResourceID(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if got.Type() != tt.typ || got.Name() != tt.name {
				t.Errorf("type %q, name %q", got.Type(), got.Name())
			}
		})
	}
}

func TestParseResourceIDRefuses(t *testing.T) {
	tests := map[string]struct{ in, hint string }{
		"nothing":                    {"", "must start with"},
		"a name alone":               {"demo1", "must start with"},
		"no leading slash":           {"subscriptions/1", "must start with"},
		"no subscription":            {"/subscriptions", "subscription id is missing"},
		"an empty subscription":      {"/subscriptions/", "empty segment"},
		"no group name":              {sub + "/resourceGroups", "resource group's name"},
		"a slash at the end":         {sub + "/", "empty segment"},
		"two slashes":                {sub + "//resourceGroups/rg", "empty segment"},
		"a type without a name":      {sub + "/resourceGroups/rg/providers/Microsoft.KeyVault/vaults", "namespace, type and name"},
		"a nested type, no name":     {sub + "/resourceGroups/rg/providers/Microsoft.KeyVault/vaults/v/secrets", "has no name"},
		"dot dot":                    {sub + "/resourceGroups/../providers/P/t/n", "not a name"},
		"dot":                        {sub + "/resourceGroups/./providers/P/t/n", "not a name"},
		"an escaped slash":           {sub + "/resourceGroups/a%2fb", "not allowed"},
		"a wildcard":                 {sub + "/resourceGroups/*", "not allowed"},
		"a query":                    {sub + "?api-version=1", "not allowed"},
		"a fragment":                 {sub + "#x", "not allowed"},
		"a backslash":                {sub + `\..`, "not allowed"},
		"a line break":               {sub + "\n", "not allowed"},
		"a NUL":                      {sub + "\x00", "not allowed"},
		"bytes that are not UTF-8":   {"/subscriptions/\xff", "UTF-8"},
		"something before providers": {sub + "/foo/bar", "expected providers"},
		"a very long id":             {"/subscriptions/" + strings.Repeat("a", maxResourceID), "longer than"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseResourceID(tt.in)
			if !errors.Is(err, ErrInvalidResourceID) || !strings.Contains(err.Error(), tt.hint) {
				t.Errorf("got %v, %v; want an error with %q", got, err, tt.hint)
			}
		})
	}
}

func TestParentsLeadToTheRoot(t *testing.T) {
	id, err := ParseResourceID(sub + "/resourceGroups/rg/providers/Microsoft.KeyVault/vaults/v/secrets/s/providers/Microsoft.Authorization/roleAssignments/g")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for !id.IsRoot() {
		id = id.Parent()
		got = append(got, id.String())
	}
	rg := sub + "/resourceGroups/rg"
	want := []string{rg + "/providers/Microsoft.KeyVault/vaults/v/secrets/s", rg + "/providers/Microsoft.KeyVault/vaults/v", rg, sub, "/"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestEqualIgnoresOnlyTheCaseOfASCII(t *testing.T) {
	tests := map[string]struct {
		a, b string
		want bool
	}{
		"all upper case":              {sub + "/resourceGroups/rg", strings.ToUpper(sub + "/resourceGroups/rg"), true},
		"another name":                {sub + "/resourceGroups/rg", sub + "/resourceGroups/rg1", false},
		"the Kelvin sign is not a k":  {sub + "/resourceGroups/k", sub + "/resourceGroups/\u212a", false},
		"a group is not its resource": {sub + "/resourceGroups/rg", sub + "/resourceGroups/rg/providers/P/t/n", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a, err := ParseResourceID(tt.a)
			if err != nil {
				t.Fatal(err)
			}
			b, err := ParseResourceID(tt.b)
			if err != nil {
				t.Fatal(err)
			}
			if a.Equal(b) != tt.want {
				t.Errorf("Equal = %v", !tt.want)
			}
		})
	}
}

func TestIdentityStringWritesResourceGroupsInLowerCase(t *testing.T) {
	id := Group("S", "resourceGroups").Resource(TypeManagedIdentity, "A")
	if got, want := id.IdentityString(), "/subscriptions/S/resourcegroups/resourceGroups/providers/Microsoft.ManagedIdentity/userAssignedIdentities/A"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestFindResourceAcceptsEverySpellingOfManagement(t *testing.T) {
	for _, a := range ManagementAudiences() {
		if r, ok := FindResource(a); !ok || r.AppID != AppManagement {
			t.Errorf("FindResource(%q) = %v, %v", a, r, ok)
		}
	}
	if r, ok := FindResource("https://management.azure.com.evil.example"); ok {
		t.Errorf("found %v", r)
	}
}

// What parses, formats to something that parses to the same value; keys decide equality.
func FuzzParseResourceID(f *testing.F) {
	for _, s := range []string{"/", sub, sub + "/resourceGroups/rg", sub + "/resourcegroups/RG/providers/P/t/n/u/m/providers/Q/v/o", "/providers/P/t/n", "//", "/subscriptions/%2e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseResourceID(s)
		if err != nil {
			return
		}
		again, err := ParseResourceID(id.String())
		if err != nil {
			t.Fatalf("%q parses, its own form %q does not: %v", s, id, err)
		}
		if diff := cmp.Diff(id, again); diff != "" {
			t.Fatalf("parse(format(x)) differs:\n%s", diff)
		}
		if Fold(s) != id.Key() {
			t.Fatalf("key %q of %q changes more than case", id.Key(), s)
		}
		for n := 0; !id.IsRoot(); n++ {
			if parent := id.Parent(); len(parent.Key()) >= len(id.Key()) || !strings.HasPrefix(id.Key(), parent.Key()) {
				t.Fatalf("parent %q of %q is not a prefix", parent, id)
			}
			id = id.Parent()
		}
	})
}

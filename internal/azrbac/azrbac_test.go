package azrbac

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/azure"
)

var update = flag.Bool("update", false, "rewrite golden files")

const (
	sub    = "/subscriptions/1"
	rg     = sub + "/resourceGroups/RG"
	vault  = rg + "/providers/Microsoft.KeyVault/vaults/v"
	secret = vault + "/secrets/s"
	get    = "Microsoft.KeyVault/vaults/secrets/getSecret/action"
	read   = "Microsoft.KeyVault/vaults/read"
)

func TestMatch(t *testing.T) {
	tests := map[string]struct {
		pattern, action string
		want            bool
	}{
		"the same text":                            {"A/b/read", "A/b/read", true},
		"case is ignored":                          {"A/B/READ", "a/b/read", true},
		"a star alone is everything":               {"*", "A/b/c/d/action", true},
		"a star spans slashes":                     {"A/*/read", "A/b/c/d/read", true},
		"a star inside a segment":                  {"A/b*/read", "A/bcd/read", true},
		"a star at the start":                      {"*/read", "A/b/read", true},
		"a star at the end":                        {"A/*", "A/b/write", true},
		"a star at the end needs the slash":        {"A/*", "A", false},
		"a whole segment may be absent":            {"A/b/*/assign/action", "A/b/assign/action", true},
		"or be one":                                {"A/b/*/assign/action", "A/b/c/assign/action", true},
		"the slash itself may not be absent":       {"A/b/*/assign/action", "A/bassign/action", false},
		"two optional segments":                    {"A/*/b/*/c", "A/b/c", true},
		"two optional segments in a row":           {"A/*/*/c", "A/c", true},
		"a segment that is there needs its slash":  {"A/*/", "A/0", false},
		"a leading star is no optional segment":    {"*/read", "read", false},
		"a prefix is not enough":                   {"A/b", "A/b/read", false},
		"a suffix is not enough":                   {"b/read", "A/b/read", false},
		"an empty pattern matches nothing":         {"", "A/b/read", false},
		"a question mark is not a wildcard":        {"A/?/read", "A/b/read", false},
		"a dot is not a wildcard":                  {"A.b/read", "Axb/read", false},
		"many stars end quickly":                   {strings.Repeat("*a", 200), strings.Repeat("a", 400) + "b", false},
		"many optional segments end quickly":       {strings.Repeat("/*", 200) + "/x", strings.Repeat("/a", 400), false},
		"the Kelvin sign is not a k":               {"\u212a/read", "k/read", false},
		"a pattern longer than the action matches": {"A/*/*/*/*/*/c", "A/c", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Match(tt.pattern, tt.action); got != tt.want {
				t.Errorf("Match(%q, %q) = %v", tt.pattern, tt.action, got)
			}
		})
	}
}

func TestCovers(t *testing.T) {
	tests := map[string]struct {
		scope, resource string
		want            bool
	}{
		"itself":                                  {vault, vault, true},
		"below":                                   {rg, secret, true},
		"above":                                   {vault, rg, false},
		"beside":                                  {vault, vault + "2", false},
		"the root covers everything":              {"/", secret, true},
		"nothing but the root covers the root":    {sub, "/", false},
		"another case":                            {strings.ToLower(rg), strings.ToUpper(secret), true},
		"a prefix of the subscription's id":       {"/subscriptions/1", "/subscriptions/11/resourceGroups/rg", false},
		"a prefix of the group's name":            {sub + "/resourceGroups/rg", sub + "/resourceGroups/rg1", false},
		"dot dot does not climb":                  {sub + "/resourceGroups/a", sub + "/resourceGroups/a/../b", false},
		"dot is refused":                          {sub, sub + "/./resourceGroups", false},
		"an escape is refused":                    {sub, sub + "/a%2fb", false},
		"a wildcard scope is refused":             {"/subscriptions/*", sub, false},
		"an empty scope covers nothing":           {"", sub, false},
		"a slash at the end makes it malformed":   {sub + "/", rg, false},
		"two slashes are not the root":            {"//", sub, false},
		"a scope without a slash covers nothing":  {"subscriptions/1", "subscriptions/1/resourceGroups/rg", false},
		"a sibling whose name starts the same":    {rg + "/providers/P/t/a", rg + "/providers/P/t/a-b", false},
		"a resource in the group named in a path": {sub + "/resourceGroups/RG/providers/P/t/n", rg + "/providers/P/t/n/providers/Q/u/m", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Covers(tt.scope, tt.resource); got != tt.want {
				t.Errorf("Covers(%q, %q) = %v", tt.scope, tt.resource, got)
			}
		})
	}
}

func TestEvaluate(t *testing.T) {
	custom := func(id string, p ...Permission) Definition {
		return Definition{ID: id, Name: id, Custom: true, AssignableScopes: []string{sub}, Permissions: p}
	}
	definitions := append(BuiltIn(),
		custom("all-data-but-secrets", Permission{DataActions: []string{"*"}, NotDataActions: []string{"Microsoft.KeyVault/vaults/secrets/*"}}),
		custom("two-blocks", Permission{Actions: []string{"*"}, NotActions: []string{"*/read"}}, Permission{Actions: []string{read}}),
		custom("conditional", Permission{DataActions: []string{"*"}, Condition: "@Request[x] StringEquals 'y'"}),
	)
	to := func(id, principal, role, scope string) Assignment {
		return Assignment{ID: id, PrincipalID: principal, RoleID: role, Scope: scope}
	}
	tests := map[string]struct {
		request     Request
		assignments []Assignment
		by          string // id of the deciding assignment; "" means denied
		reason      string
	}{
		"nothing is allowed by default": {
			Request{[]string{"p"}, read, false, vault}, nil, "", "no role assignment"},
		"a role at the resource": {
			Request{[]string{"p"}, get, true, secret}, []Assignment{to("a", "p", azure.RoleKeyVaultSecretsUser, secret)}, "a", `role "Key Vault Secrets User" assigned at`},
		"a role at the vault reaches its secrets": {
			Request{[]string{"p"}, get, true, secret}, []Assignment{to("a", "p", azure.RoleKeyVaultSecretsUser, vault)}, "a", ""},
		"a role at the root reaches everything": {
			Request{[]string{"p"}, get, true, secret}, []Assignment{to("a", "p", azure.RoleKeyVaultSecretsUser, "/")}, "a", ""},
		"a role at another secret does not": {
			Request{[]string{"p"}, get, true, secret}, []Assignment{to("a", "p", azure.RoleKeyVaultSecretsUser, vault+"/secrets/other")}, "", "none at or above"},
		"somebody else's role does not": {
			Request{[]string{"p"}, get, true, secret}, []Assignment{to("a", "q", azure.RoleKeyVaultSecretsUser, vault)}, "", "no role assignment"},
		"a group's role does": {
			Request{[]string{"p", "G"}, get, true, secret}, []Assignment{to("a", "g", azure.RoleKeyVaultSecretsUser, vault)}, "a", ""},
		"an empty principal is nobody": {
			Request{[]string{""}, get, true, secret}, []Assignment{to("a", "", azure.RoleOwner, "/")}, "", "no role assignment"},
		"Owner reads no secret": {
			Request{[]string{"p"}, get, true, secret}, []Assignment{to("a", "p", azure.RoleOwner, sub)}, "", "only for the management plane"},
		"a data role manages nothing": {
			Request{[]string{"p"}, "Microsoft.KeyVault/vaults/delete", false, vault}, []Assignment{to("a", "p", azure.RoleKeyVaultAdministrator, sub)}, "", "does not have the action"},
		"Contributor does not assign roles": {
			Request{[]string{"p"}, "Microsoft.Authorization/roleAssignments/write", false, rg}, []Assignment{to("a", "p", azure.RoleContributor, sub)}, "", "notActions"},
		"Contributor and User Access Administrator together do": {
			Request{[]string{"p"}, "Microsoft.Authorization/roleAssignments/write", false, rg},
			[]Assignment{to("a", "p", azure.RoleContributor, sub), to("b", "p", azure.RoleUserAccessAdministrator, sub)}, "b", ""},
		"notDataActions take away": {
			Request{[]string{"p"}, get, true, secret}, []Assignment{to("a", "p", "all-data-but-secrets", sub)}, "", "notActions"},
		"notDataActions of one role leave another role alone": {
			Request{[]string{"p"}, get, true, secret},
			[]Assignment{to("a", "p", "all-data-but-secrets", sub), to("b", "p", azure.RoleKeyVaultSecretsUser, sub)}, "b", ""},
		"notActions of one block leave another block alone": {
			Request{[]string{"p"}, read, false, vault}, []Assignment{to("a", "p", "two-blocks", sub)}, "a", ""},
		"Managed Identity Operator may assign": {
			Request{[]string{"p"}, "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action", false, rg + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"},
			[]Assignment{to("a", "p", azure.RoleManagedIdentityOperator, rg)}, "a", ""},
		"Managed Identity Contributor may not": {
			Request{[]string{"p"}, "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action", false, rg + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"},
			[]Assignment{to("a", "p", azure.RoleManagedIdentityContributor, rg)}, "", "does not have the action"},
		"the narrowest scope decides, whatever the order": {
			Request{[]string{"p"}, get, true, secret},
			[]Assignment{to("wide", "p", azure.RoleKeyVaultAdministrator, sub), to("narrow", "p", azure.RoleKeyVaultSecretsUser, vault), to("middle", "p", azure.RoleKeyVaultSecretsUser, rg)}, "narrow", ""},
		"of two at one scope the smaller id decides": {
			Request{[]string{"p"}, get, true, secret},
			[]Assignment{to("b", "p", azure.RoleKeyVaultSecretsUser, vault), to("a", "p", azure.RoleKeyVaultAdministrator, vault)}, "a", ""},
		"a role that does not exist grants nothing": {
			Request{[]string{"p"}, get, true, secret}, []Assignment{to("a", "p", "gone", vault)}, "", "does not exist"},
		"an assignment with a condition grants nothing": {
			Request{[]string{"p"}, get, true, secret},
			[]Assignment{{ID: "a", PrincipalID: "p", RoleID: azure.RoleKeyVaultSecretsUser, Scope: vault, Condition: "true"}}, "", "condition"},
		"a permission with a condition grants nothing": {
			Request{[]string{"p"}, get, true, secret}, []Assignment{to("a", "p", "conditional", vault)}, "", "condition"},
		"ids in another case are the same": {
			Request{[]string{"ABC"}, strings.ToUpper(get), true, strings.ToUpper(secret)},
			[]Assignment{to("a", "abc", strings.ToUpper(azure.RoleKeyVaultSecretsUser), strings.ToLower(vault))}, "a", ""},
		"a pattern is not an action": {
			Request{[]string{"p"}, "*", false, vault}, []Assignment{to("a", "p", azure.RoleOwner, "/")}, "", "is not an action"},
		"an empty action is refused": {
			Request{[]string{"p"}, "", false, vault}, []Assignment{to("a", "p", azure.RoleOwner, "/")}, "", "is not an action"},
		"a malformed scope is refused": {
			Request{[]string{"p"}, read, false, rg + "/../../2"}, []Assignment{to("a", "p", azure.RoleOwner, "/")}, "", "is not a scope"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := Evaluate(tt.request, tt.assignments, definitions)
			if got.Allowed != (tt.by != "") || got.Assignment.ID != tt.by {
				t.Errorf("allowed %v by %q, want %q (%s)", got.Allowed, got.Assignment.ID, tt.by, got.Reason)
			}
			if !strings.Contains(got.Reason, tt.reason) || got.Reason == "" {
				t.Errorf("reason %q lacks %q", got.Reason, tt.reason)
			}
		})
	}
}

// The golden file is a matrix of every built-in role against the actions that decide the story.
func TestBuiltInRolesGolden(t *testing.T) {
	actions := []struct {
		name string
		data bool
	}{
		{"Microsoft.Resources/subscriptions/resourceGroups/read", false},
		{"Microsoft.Resources/subscriptions/resourceGroups/write", false},
		{"Microsoft.Authorization/roleAssignments/read", false},
		{"Microsoft.Authorization/roleAssignments/write", false},
		{"Microsoft.Authorization/roleAssignments/delete", false},
		{"Microsoft.ManagedIdentity/userAssignedIdentities/read", false},
		{"Microsoft.ManagedIdentity/userAssignedIdentities/write", false},
		{"Microsoft.ManagedIdentity/userAssignedIdentities/assign/action", false},
		{"Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials/write", false},
		{"Microsoft.Compute/virtualMachineScaleSets/read", false},
		{"Microsoft.Compute/virtualMachineScaleSets/write", false},
		{"Microsoft.KeyVault/vaults/read", false},
		{"Microsoft.KeyVault/vaults/write", false},
		{"Microsoft.KeyVault/vaults/secrets/getSecret/action", true},
		{"Microsoft.KeyVault/vaults/secrets/setSecret/action", true},
		{"Microsoft.KeyVault/vaults/secrets/readMetadata/action", true},
		{"Microsoft.KeyVault/vaults/secrets/delete", true},
		{"Microsoft.KeyVault/vaults/secrets/purge/action", true},
		{"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read", true},
	}
	var b strings.Builder
	for _, d := range BuiltIn() {
		fmt.Fprintf(&b, "%s %s\n", d.ID, d.Name)
		for _, a := range actions {
			if granted, _ := d.grants(a.name, a.data); granted {
				fmt.Fprintf(&b, "\t%s\n", a.name)
			}
		}
	}
	const file = "testdata/builtin.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("-want +got (rewrite with -update):\n%s", diff)
	}
}

// Matching agrees with the plain definition: a "*" is any run, and a "/*/" may be read as "/".
func FuzzMatch(f *testing.F) {
	f.Add("A/*/read", "A/read")
	f.Add("*", "")
	f.Add("a/*/*/b*", "a/b")
	f.Fuzz(func(t *testing.T, pattern, action string) {
		if len(pattern) > 12 || len(action) > 16 {
			return
		}
		if got, want := Match(pattern, action), slowMatch(azure.Fold(pattern), azure.Fold(action), 0); got != want {
			t.Fatalf("Match(%q, %q) = %v, want %v", pattern, action, got, want)
		}
		if Match(pattern, action) != Match(strings.ToUpper(pattern), action) && isASCII(pattern) {
			t.Fatalf("case of %q matters", pattern)
		}
	})
}

func slowMatch(p, s string, i int) bool {
	if i == len(p) {
		return s == ""
	}
	if p[i] != '*' {
		return s != "" && s[0] == p[i] && slowMatch(p, s[1:], i+1)
	}
	for n := 0; n <= len(s); n++ {
		if slowMatch(p, s[n:], i+1) {
			return true
		}
	}
	return i > 0 && p[i-1] == '/' && i+1 < len(p) && p[i+1] == '/' && slowMatch(p, s, i+2)
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
}

// Nothing panics; whatever is allowed is granted by an assignment of that very principal whose scope covers the
// request and whose role grants the action; and taking assignments away never allows more.
func FuzzEvaluate(f *testing.F) {
	f.Add("p", get, true, secret, "p", azure.RoleKeyVaultSecretsUser, vault, "*", "")
	f.Add("p", read, false, vault, "q", azure.RoleOwner, "/", "*/read", "a/*")
	f.Fuzz(func(t *testing.T, principal, action string, data bool, scope, other, role, at, has, not string) {
		definitions := append(BuiltIn(), Definition{ID: "fuzz", Permissions: []Permission{{Actions: []string{has}, NotActions: []string{not}, DataActions: []string{not}, NotDataActions: []string{has}}}})
		assignments := []Assignment{{ID: "1", PrincipalID: other, RoleID: role, Scope: at}, {ID: "2", PrincipalID: other, RoleID: "fuzz", Scope: at}}
		request := Request{[]string{principal}, action, data, scope}
		got := Evaluate(request, assignments, definitions)
		if got.Reason == "" {
			t.Fatal("a decision without a reason")
		}
		if !got.Allowed {
			if got.Assignment.ID != "" || got.Role.ID != "" {
				t.Fatalf("denied, but names %v", got)
			}
			if d := Evaluate(request, assignments[:1], definitions); d.Allowed {
				t.Fatal("fewer assignments allow more")
			}
			return
		}
		granted, _ := got.Role.grants(action, data)
		if principal == "" || !strings.EqualFold(principal, got.Assignment.PrincipalID) || !Covers(got.Assignment.Scope, scope) || !granted {
			t.Fatalf("allowed %+v by %+v", request, got)
		}
		if d := Evaluate(request, nil, definitions); d.Allowed {
			t.Fatal("allowed without an assignment")
		}
	})
}

func BenchmarkEvaluate(b *testing.B) {
	definitions := BuiltIn()
	var assignments []Assignment
	for i := range 1000 {
		assignments = append(assignments, Assignment{ID: fmt.Sprint(i), PrincipalID: fmt.Sprint(i % 50), RoleID: definitions[i%len(definitions)].ID, Scope: rg})
	}
	request := Request{[]string{"7", "8", "9"}, get, true, secret}
	b.ReportAllocs()
	for b.Loop() {
		Evaluate(request, assignments, definitions)
	}
}

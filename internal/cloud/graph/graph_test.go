package graph_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const root = azure.ResourceGraph

// A reply is what Graph answered.
type reply struct {
	status int
	header http.Header
	body   map[string]any
	raw    string
}

func (r reply) text(path ...string) string {
	var v any = r.body
	for _, p := range path {
		m, _ := v.(map[string]any)
		v = m[p]
	}
	s, _ := v.(string)
	return s
}

// names are the display names (or names) of a list.
func (r reply) names() []string {
	list, _ := r.body["value"].([]any)
	names := []string{}
	for _, v := range list {
		o, _ := v.(map[string]any)
		name, ok := o["displayName"].(string)
		if !ok {
			name, _ = o["name"].(string)
		}
		names = append(names, name)
	}
	return names
}

func send(t *testing.T, c *cloudtest.Cloud, token, method, path string, body any) reply {
	t.Helper()
	var in io.Reader
	if text, ok := body.(string); ok {
		in = strings.NewReader(text)
	} else if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		in = bytes.NewReader(raw)
	}
	if strings.HasPrefix(path, "/") {
		path = root + path
	}
	req, err := http.NewRequestWithContext(t.Context(), method, path, in)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := reply{status: resp.StatusCode, header: resp.Header, raw: string(raw)}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &r.body); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, raw)
		}
	}
	return r
}

// owner sends requests as the Global Administrator.
func owner(t *testing.T, c *cloudtest.Cloud) func(method, path string, body any) reply {
	token := c.Token(c.Owner(), root)
	return func(method, path string, body any) reply {
		t.Helper()
		return send(t, c, token, method, path, body)
	}
}

type fields = map[string]any

func credential(name string) fields {
	return fields{"name": name, "issuer": "https://oidc.example/", "subject": "system:serviceaccount:ns:" + name, "audiences": []string{azure.AudienceExchange}}
}

func TestAnApplicationLivesAndDies(t *testing.T) {
	c := cloudtest.New(t)
	do := owner(t, c)
	made := do("POST", "/v1.0/applications", fields{"displayName": "shop", "identifierUris": []string{"api://shop"}, "tags": []string{"a"}})
	id, appID := made.text("id"), made.text("appId")
	if made.status != 201 || uuid.Validate(id) != nil || uuid.Validate(appID) != nil || made.header.Get("Location") != root+"/v1.0/applications/"+id ||
		made.text("@odata.context") != root+"/v1.0/$metadata#applications/$entity" || made.text("signInAudience") != "AzureADMyOrg" || made.text("createdDateTime") == "" {
		t.Fatalf("made: %d %v %s", made.status, made.header, made.raw)
	}
	if h := made.header; h.Get("OData-Version") != "4.0" || uuid.Validate(h.Get("request-id")) != nil || !strings.HasPrefix(h.Get("Content-Type"), "application/json;odata.metadata=minimal") {
		t.Errorf("headers: %v", h)
	}
	for _, path := range []string{"/v1.0/applications/" + id, "/beta/applications/" + strings.ToUpper(id), "/v1.0/applications(appId='" + appID + "')", "/v1.0/applications('" + id + "')", "/v1.0/directoryObjects/" + id} {
		if r := do("GET", path, nil); r.status != 200 || r.text("appId") != appID {
			t.Errorf("GET %s: %d %s", path, r.status, r.raw)
		}
	}
	if r := do("PATCH", "/v1.0/applications/"+id, fields{"displayName": "shop 2", "notes": "x"}); r.status != 204 || r.raw != "" {
		t.Fatalf("patched: %d %s", r.status, r.raw)
	}
	if r := do("GET", "/v1.0/applications/"+id, nil); r.text("displayName") != "shop 2" || r.text("notes") != "x" || fmt.Sprint(r.body["tags"]) != "[a]" {
		t.Errorf("after the patch: %s", r.raw)
	}
	sp := do("POST", "/v1.0/servicePrincipals", fields{"appId": appID})
	if sp.status != 201 || sp.text("servicePrincipalType") != "Application" || sp.text("appOwnerOrganizationId") != c.Tenant.ID || sp.text("displayName") != "shop 2" {
		t.Fatalf("principal: %d %s", sp.status, sp.raw)
	}
	if r := do("POST", "/v1.0/servicePrincipals", fields{"appId": appID}); r.status != 409 || r.text("error", "code") != "Request_MultipleObjectsWithSameKeyValue" {
		t.Errorf("a second principal: %d %s", r.status, r.raw)
	}
	secret := do("POST", "/v1.0/applications/"+id+"/addPassword", fields{"passwordCredential": fields{"displayName": "ci"}})
	if secret.status != 200 || len(secret.text("secretText")) != 40 || !strings.HasPrefix(secret.text("secretText"), secret.text("hint")) {
		t.Fatalf("secret: %d", secret.status)
	}
	shown := do("GET", "/v1.0/applications/"+id, nil)
	if strings.Contains(shown.raw, secret.text("secretText")) || !strings.Contains(shown.raw, secret.text("keyId")) || strings.Contains(c.Log.String(), secret.text("secretText")) {
		t.Errorf("the secret is shown or logged, or its id is not: %s", shown.raw)
	}
	if r := do("POST", "/v1.0/applications/"+id+"/removePassword", fields{"keyId": secret.text("keyId")}); r.status != 204 {
		t.Errorf("removed: %d %s", r.status, r.raw)
	}
	if r := do("POST", "/v1.0/applications/"+id+"/federatedIdentityCredentials", credential("one")); r.status != 201 {
		t.Errorf("credential: %d %s", r.status, r.raw)
	}
	if r := do("DELETE", "/v1.0/applications/"+id, nil); r.status != 204 {
		t.Fatalf("deleted: %d %s", r.status, r.raw)
	}
	for _, path := range []string{"/v1.0/applications/" + id, "/v1.0/servicePrincipals/" + sp.text("id"), "/v1.0/servicePrincipals(appId='" + appID + "')"} {
		if r := do("GET", path, nil); r.status != 404 || r.text("error", "code") != "Request_ResourceNotFound" || r.text("error", "innerError", "request-id") != r.header.Get("request-id") {
			t.Errorf("GET %s after the deletion: %d %s", path, r.status, r.raw)
		}
	}
	if r := do("POST", "/v1.0/applications", fields{"displayName": "again", "identifierUris": []string{"api://shop"}}); r.status != 201 {
		t.Errorf("the URI of a deleted application: %d %s", r.status, r.raw)
	}
}

func TestListsAreFilteredAndPaged(t *testing.T) {
	c := cloudtest.New(t)
	do := owner(t, c)
	for _, name := range []string{"alpha", "beta", "it's"} {
		do("POST", "/v1.0/applications", fields{"displayName": name, "identifierUris": []string{"api://" + strings.Trim(name, "'s")}})
	}
	alpha := do("GET", "/v1.0/applications?$filter=displayName%20eq%20'alpha'", nil).body["value"].([]any)[0].(map[string]any)
	c.Do("PUT", "/subscriptions/"+c.Subscription+"/resourceGroups/rg", fields{"location": "eastus"}, nil)
	var identity struct {
		ID         string
		Properties struct{ ClientID, PrincipalID string }
	}
	c.Do("PUT", "/subscriptions/"+c.Subscription+"/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/pay", fields{"location": "eastus"}, &identity)
	for name, tt := range map[string]struct {
		path  string
		names []string
	}{
		"by application id":                   {"applications?$filter=appId eq '" + alpha["appId"].(string) + "'", []string{"alpha"}},
		"by the start of a name, any case":    {"applications?$filter=startswith(displayName,'AL')", []string{"alpha"}},
		"by a name with a quote":              {"applications?$filter=displayName eq 'it''s'", []string{"it's"}},
		"by an identifier URI":                {"applications?$filter=identifierUris/any(s:s eq 'api://beta')", []string{"beta"}},
		"by two terms":                        {"applications?$filter=appId eq '" + alpha["appId"].(string) + "' and startswith(displayName,'b')", []string{}},
		"by either term":                      {"applications?$filter=displayName eq 'alpha' or displayName eq 'beta'&$orderby=displayName", []string{"alpha", "beta"}},
		"by a list":                           {"applications?$filter=displayName in ('beta','alpha')&$orderby=displayName desc", []string{"beta", "alpha"}},
		"by the opposite":                     {"applications?$filter=not (displayName eq 'alpha' or displayName eq 'beta' or displayName eq 'owner')", []string{"it's"}},
		"principals by a name of theirs":      {"servicePrincipals?$filter=servicePrincipalNames/any(c:c eq '" + identity.Properties.ClientID + "')", []string{"pay"}},
		"principals by type":                  {"servicePrincipals?$filter=servicePrincipalType eq 'ManagedIdentity'", []string{"pay"}},
		"principals by an alternative name":   {"servicePrincipals?$filter=alternativeNames/any(a:a eq '" + identity.ID + "')", []string{"pay"}},
		"credentials of one that has none":    {"applications/" + alpha["id"].(string) + "/federatedIdentityCredentials?$filter=subject eq 'x'", []string{}},
		"users, of whom there are none":       {"users?$filter=userPrincipalName eq 'a@b'", []string{}},
		"the organization":                    {"organization", []string{"Contoso"}},
		"the groups, of which there are none": {"groups", []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			r := do("GET", "/v1.0/"+strings.NewReplacer(" ", "%20").Replace(tt.path), nil)
			if diff := cmp.Diff(tt.names, r.names()); diff != "" || r.status != 200 {
				t.Errorf("%d (-want +got):\n%s\n%s", r.status, diff, r.raw)
			}
		})
	}
	pay := do("GET", "/v1.0/servicePrincipals(appId='"+identity.Properties.ClientID+"')", nil)
	if want := []any{"isExplicit=True", identity.ID}; pay.text("id") != identity.Properties.PrincipalID || !cmp.Equal(pay.body["alternativeNames"], any(want)) {
		t.Errorf("the managed identity: %s", pay.raw)
	}
	if r := do("DELETE", "/v1.0/servicePrincipals/"+pay.text("id"), nil); r.status != 400 {
		t.Errorf("deleting the principal of a managed identity: %d %s", r.status, r.raw)
	}
	seen := map[string]bool{}
	next := root + "/v1.0/applications?$top=2&$select=id,displayName"
	pages := 0
	for ; next != ""; pages++ {
		r := do("GET", next, nil)
		for _, n := range r.names() {
			seen[n] = true
		}
		next = r.text("@odata.nextLink")
	}
	if len(seen) != 4 || pages != 2 {
		t.Errorf("%d pages with %v", pages, seen)
	}
	objects := do("POST", "/v1.0/directoryObjects/getByIds", fields{"ids": []any{alpha["id"], identity.Properties.PrincipalID, uuid.NewString()}, "types": []string{"user", "group", "servicePrincipal"}})
	if list := objects.body["value"].([]any); len(list) != 1 || list[0].(map[string]any)["@odata.type"] != "#microsoft.graph.servicePrincipal" {
		t.Errorf("by ids: %s", objects.raw)
	}
}

func TestWhoMayDoWhat(t *testing.T) {
	c := cloudtest.New(t)
	do := owner(t, c)
	foreign := do("POST", "/v1.0/applications", fields{"displayName": "foreign"}).text("id")
	grant := func(name string, permissions ...string) azcore.TokenCredential {
		sp, cred := c.Application(name)
		c.Update(func(tx *state.Tx) error { return directory.SetAccess(tx, sp.ID, permissions, nil) })
		return cred
	}
	tokens := map[string]string{
		"nobody":   c.Token(grant("nobody"), root),
		"reader":   c.Token(grant("reader", azure.PermissionApplicationReadAll), root),
		"ownedby":  c.Token(grant("ownedby", azure.PermissionApplicationReadWriteOwnedBy), root),
		"writer":   c.Token(grant("writer", azure.PermissionApplicationReadWriteAll), root),
		"arm":      c.Token(c.Owner(), azure.ResourceManagement),
		"forged":   c.Token(c.Owner(), root) + "x",
		"no token": "",
	}
	mine := send(t, c, tokens["ownedby"], "POST", "/v1.0/applications", fields{"displayName": "mine"})
	if mine.status != 201 {
		t.Fatalf("OwnedBy creates: %d %s", mine.status, mine.raw)
	}
	change := func(id string) (string, string, any) {
		return "PATCH", "/v1.0/applications/" + id, fields{"notes": "x"}
	}
	federate := func(id string) (string, string, any) {
		return "POST", "/v1.0/applications/" + id + "/federatedIdentityCredentials", credential("x" + uuid.NewString())
	}
	list := func(string) (string, string, any) { return "GET", "/v1.0/applications", nil }
	create := func(string) (string, string, any) { return "POST", "/v1.0/applications", fields{"displayName": "new"} }
	principal := func(id string) (string, string, any) {
		return "POST", "/v1.0/servicePrincipals", fields{"appId": do("GET", "/v1.0/applications/"+id, nil).text("appId")}
	}
	for _, tt := range []struct {
		name    string
		as      string
		request func(id string) (method, path string, body any)
		on      string
		status  int
		code    string
	}{
		{"without a permission nothing is read", "nobody", list, "", 403, "Authorization_RequestDenied"},
		{"without a permission nothing is made", "nobody", create, "", 403, "Authorization_RequestDenied"},
		{"without a permission nobody learns what exists", "nobody", change, uuid.NewString(), 403, "Authorization_RequestDenied"},
		{"a reader reads", "reader", list, "", 200, ""},
		{"a reader makes nothing", "reader", create, "", 403, "Authorization_RequestDenied"},
		{"a reader changes nothing", "reader", change, foreign, 403, "Authorization_RequestDenied"},
		{"OwnedBy reads", "ownedby", list, "", 200, ""},
		{"OwnedBy changes what it made", "ownedby", change, mine.text("id"), 204, ""},
		{"OwnedBy federates what it made", "ownedby", federate, mine.text("id"), 201, ""},
		{"OwnedBy makes a principal of what it made", "ownedby", principal, mine.text("id"), 201, ""},
		{"OwnedBy changes nothing else", "ownedby", change, foreign, 403, "Authorization_RequestDenied"},
		{"OwnedBy federates nothing else", "ownedby", federate, foreign, 403, "Authorization_RequestDenied"},
		{"OwnedBy makes no principal of another's", "ownedby", principal, foreign, 403, "Authorization_RequestDenied"},
		{"a writer changes everything", "writer", change, foreign, 204, ""},
		{"a token for Resource Manager is none for Graph", "arm", list, "", 401, "InvalidAuthenticationToken"},
		{"a changed token is none", "forged", list, "", 401, "InvalidAuthenticationToken"},
		{"a token is needed", "no token", list, "", 401, "InvalidAuthenticationToken"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			method, path, body := tt.request(tt.on)
			r := send(t, c, tokens[tt.as], method, path, body)
			if r.status != tt.status || r.text("error", "code") != tt.code {
				t.Errorf("%d %s, want %d %s", r.status, r.raw, tt.status, tt.code)
			}
			if tt.status == 401 && !strings.HasPrefix(r.header.Get("WWW-Authenticate"), "Bearer ") {
				t.Errorf("challenge: %v", r.header)
			}
		})
	}
	if log := c.Log.String(); !strings.Contains(log, "graph request refused") || strings.Contains(log, tokens["reader"]) {
		t.Errorf("log: %s", log)
	}
}

func TestFederatedCredentials(t *testing.T) {
	c := cloudtest.New(t)
	do := owner(t, c)
	id := do("POST", "/v1.0/applications", fields{"displayName": "shop"}).text("id")
	at := "/v1.0/applications/" + id + "/federatedIdentityCredentials"
	first := do("POST", at, credential("one"))
	if first.status != 201 || uuid.Validate(first.text("id")) != nil || first.text("name") != "one" || first.body["description"] != nil {
		t.Fatalf("made: %d %s", first.status, first.raw)
	}
	with := func(name, key string, value any) fields {
		f := credential(name)
		f[key] = value
		return f
	}
	for _, tt := range []struct {
		name, method, path string
		body               any
		status             int
		code, text         string
	}{
		{"by id", "GET", at + "/" + first.text("id"), nil, 200, "", "oidc.example"},
		{"by name", "GET", at + "/ONE", nil, 200, "", "oidc.example"},
		{"by name as a key", "GET", at + "(name='one')", nil, 200, "", "oidc.example"},
		{"by the application's client id", "GET", "/v1.0/applications(appId='" + do("GET", "/v1.0/applications/"+id, nil).text("appId") + "')/federatedIdentityCredentials/one", nil, 200, "", "oidc.example"},
		{"one that is not there", "GET", at + "/two", nil, 404, "Request_ResourceNotFound", "two"},
		{"of an application that is not there", "GET", "/v1.0/applications/" + uuid.NewString() + "/federatedIdentityCredentials", nil, 404, "Request_ResourceNotFound", ""},
		{"a name twice", "POST", at, with("one", "subject", "other"), 409, "Request_MultipleObjectsWithSameKeyValue", "FederatedIdentityCredential with name one already exists."},
		{"issuer and subject twice", "POST", at, with("two", "subject", "system:serviceaccount:ns:one"), 409, "Request_MultipleObjectsWithSameKeyValue", "issuer and subject"},
		{"a name of two characters", "POST", at, credential("ab"), 400, "Request_BadRequest", "name 'ab' is invalid"},
		{"two audiences", "POST", at, with("two", "audiences", []string{"a", "b"}), 400, "Request_BadRequest", "exactly one audience"},
		{"an issuer with a space", "POST", at, with("two", "issuer", "https://oidc.example/ "), 400, "Request_BadRequest", "issuer"},
		{"an issuer without TLS", "POST", at, with("two", "issuer", "http://oidc.example/"), 400, "Request_BadRequest", "issuer"},
		{"no subject", "POST", at, with("two", "subject", nil), 400, "Request_BadRequest", "subject"},
		{"a description of 601 characters", "POST", at, with("two", "description", strings.Repeat("x", 601)), 400, "Request_BadRequest", "description"},
		{"a member that nobody knows", "POST", at, with("two", "colour", "blue"), 400, "Request_BadRequest", "Invalid property 'colour'."},
		{"a flexible one under v1.0", "POST", at, with("two", "claimsMatchingExpression", fields{"value": "x", "languageVersion": 1}), 400, "Request_BadRequest", "/beta only"},
		{"no JSON", "POST", at, "{", 400, "Request_BadRequest", "Unable to read JSON"},
		{"a new name", "PATCH", at + "/one", fields{"name": "uno"}, 400, "Request_BadRequest", "cannot be changed"},
		{"a new subject", "PATCH", at + "/one", fields{"subject": "system:serviceaccount:ns:uno", "description": "x"}, 204, "", ""},
		{"a method that it has not", "PUT", at + "/one", fields{}, 405, "Request_BadRequest", "method"},
		{"a path that leads nowhere", "GET", "/v1.0/applications/" + id + "/nothing", nil, 400, "BadRequest", "segment"},
		{"another version", "GET", "/v2.0/applications", nil, 400, "Request_BadRequest", "version"},
		{"a filter that nobody understands", "GET", "/v1.0/applications?$filter=displayName%20like%20'x'", nil, 400, "Request_BadRequest", "Invalid filter clause"},
		{"an option that is not served", "GET", "/v1.0/applications?$expand=owners", nil, 400, "Request_UnsupportedQuery", "$expand"},
		{"deleting", "DELETE", at + "/" + first.text("id"), nil, 204, "", ""},
		{"deleting it again", "DELETE", at + "/" + first.text("id"), nil, 404, "Request_ResourceNotFound", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := do(tt.method, tt.path, tt.body)
			if r.status != tt.status || r.text("error", "code") != tt.code || !strings.Contains(r.raw, tt.text) {
				t.Errorf("%d %s, want %d %s %q", r.status, r.raw, tt.status, tt.code, tt.text)
			}
		})
	}
	for i := range directory.MaxFederatedCredentials {
		if r := do("POST", at, credential(fmt.Sprintf("cred-%02d", i))); r.status != 201 {
			t.Fatalf("number %d: %d %s", i, r.status, r.raw)
		}
	}
	if r := do("POST", at, credential("one-too-many")); r.status != 400 || !strings.Contains(r.raw, "(20)") {
		t.Errorf("number 21: %d %s", r.status, r.raw)
	}
}

func TestConcurrentWritesNeverBreakTheLimit(t *testing.T) {
	c := cloudtest.New(t)
	do := owner(t, c)
	id := do("POST", "/v1.0/applications", fields{"displayName": "shop"}).text("id")
	at := "/v1.0/applications/" + id + "/federatedIdentityCredentials"
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			if r := do("POST", at, credential(fmt.Sprintf("cred-%02d", i))); r.status != 201 && r.status != 400 {
				t.Errorf("%d %s", r.status, r.raw)
			}
		})
	}
	wg.Wait()
	c.Check("concurrent writes")
}

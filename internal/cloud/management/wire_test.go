package management_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A request by hand; target is everything after the host, sent as it is.
type request struct {
	method, target, bearer, body string
	header                       map[string]string
}

func send(c *cloudtest.Cloud, q request) (*http.Response, string) {
	c.T.Helper()
	if q.method == "" {
		q.method = http.MethodGet
	}
	r, err := http.NewRequestWithContext(c.T.Context(), q.method, "https://"+azure.HostManagement+q.target, strings.NewReader(q.body))
	if err != nil {
		c.T.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if q.bearer != "" {
		r.Header.Set("Authorization", "Bearer "+q.bearer)
	}
	for k, v := range q.header {
		r.Header.Set(k, v)
	}
	resp, err := c.Client.Do(r)
	if err != nil {
		c.T.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		c.T.Fatal(err)
	}
	return resp, string(raw)
}

const version = "?api-version=2021-04-01"

func TestAuthentication(t *testing.T) {
	c, other := cloudtest.New(t), cloudtest.New(t)
	good := c.Token(c.Owner(), azure.ResourceManagement)
	parts := strings.Split(good, ".")
	for name, tt := range map[string]struct {
		header, code, text string
	}{
		"no header":                       {"", "AuthenticationFailed", "The 'Authorization' header is missing."},
		"Basic":                           {"Basic eDp5", "AuthenticationFailed", "invalid format"},
		"Bearer and nothing":              {"Bearer ", "AuthenticationFailed", "invalid format"},
		"nonsense":                        {"Bearer x", "InvalidAuthenticationToken", "The access token is invalid."},
		"a token for the vault":           {"Bearer " + c.Token(c.Owner(), azure.ResourceVault), "InvalidAuthenticationTokenAudience", "wrong audience or resource 'https://vault.azure.net'"},
		"a token of another cloud":        {"Bearer " + other.Token(other.Owner(), azure.ResourceManagement), "InvalidAuthenticationTokenTenant", "from the wrong issuer 'https://sts.windows.net/" + other.Tenant.ID + "/'"},
		"another signature":               {"Bearer " + good[:len(good)-4] + "AAAA", "InvalidAuthenticationToken", "The access token is invalid."},
		"no signature":                    {"Bearer " + parts[0] + "." + parts[1] + ".", "InvalidAuthenticationToken", "The access token is invalid."},
		"a token that says alg none":      {"Bearer eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0." + parts[1] + ".", "InvalidAuthenticationToken", "The access token is invalid."},
		"the claims of another, unsigned": {"Bearer " + parts[0] + ".e30." + parts[2], "InvalidAuthenticationToken", "The access token is invalid."},
	} {
		t.Run(name, func(t *testing.T) {
			q := request{target: subscription + version}
			if tt.header != "" {
				q.header = map[string]string{"Authorization": tt.header}
			}
			resp, body := send(c, q)
			if tt.code == "InvalidAuthenticationTokenTenant" && strings.Contains(body, `"InvalidAuthenticationToken"`) {
				t.Fatal(body)
			}
			if resp.StatusCode != 401 || !strings.Contains(body, `"code":"`+tt.code+`"`) || !strings.Contains(body, tt.text) {
				t.Errorf("%d %s, want 401 %s with %q", resp.StatusCode, body, tt.code, tt.text)
			}
			challenge := resp.Header.Get("WWW-Authenticate")
			if !strings.HasPrefix(challenge, `Bearer authorization_uri="https://login.windows.net/`+c.Tenant.ID+`", error="invalid_token", error_description="`) || strings.Count(challenge, `"`) != 6 {
				t.Errorf("challenge %s", challenge)
			}
		})
	}
	if resp, body := send(c, request{target: subscription + version, bearer: good}); resp.StatusCode != 200 {
		t.Errorf("the good token: %s", body)
	}
	for _, audience := range azure.ManagementAudiences() {
		if resp, body := send(c, request{target: subscription + version, bearer: c.Token(c.Owner(), audience)}); resp.StatusCode != 200 {
			t.Errorf("audience %s: %s", audience, body)
		}
	}
	c.Advance(2 * time.Hour)
	if resp, body := send(c, request{target: subscription + version, bearer: good}); resp.StatusCode != 401 || !strings.Contains(body, "ExpiredAuthenticationToken") {
		t.Errorf("expired: %s", body)
	}
	if log := c.Log.String(); strings.Contains(log, good) || strings.Contains(log, parts[2]) {
		t.Error("the log has a token")
	}
}

// Everything that a caller without any role tries is refused, whatever the spelling, and says what was missing.
func TestAuthorizationFailedText(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	newIdentity(c, "demo")
	sp, cred := c.Application("nobody")
	bearer := c.Token(cred, azure.ResourceManagement)
	for name, tt := range map[string]struct{ method, target, action, scope string }{
		"a group":                    {"GET", rg, "Microsoft.Resources/subscriptions/resourceGroups/read", rg},
		"a group that is not":        {"GET", rg + "2", "Microsoft.Resources/subscriptions/resourceGroups/read", rg + "2"},
		"a new group":                {"PUT", rg + "2", "Microsoft.Resources/subscriptions/resourceGroups/write", rg + "2"},
		"the end of a group":         {"DELETE", rg, "Microsoft.Resources/subscriptions/resourceGroups/delete", rg},
		"the subscription":           {"GET", subscription, "Microsoft.Resources/subscriptions/read", subscription},
		"an identity":                {"GET", identities + "demo", "Microsoft.ManagedIdentity/userAssignedIdentities/read", identities + "demo"},
		"identities of a group":      {"GET", strings.TrimSuffix(identities, "/"), "Microsoft.ManagedIdentity/userAssignedIdentities/read", rg},
		"a federated credential":     {"PUT", identities + "demo/federatedIdentityCredentials/fic", "Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials/write", identities + "demo/federatedIdentityCredentials/fic"},
		"a role assignment":          {"PUT", rg + "/providers/Microsoft.Authorization/roleAssignments/x", "Microsoft.Authorization/roleAssignments/write", rg + "/providers/Microsoft.Authorization/roleAssignments/x"},
		"role assignments":           {"GET", subscription + "/providers/Microsoft.Authorization/roleAssignments", "Microsoft.Authorization/roleAssignments/read", subscription},
		"a scale set":                {"PATCH", sets + "ss", "Microsoft.Compute/virtualMachineScaleSets/write", sets + "ss"},
		"instances":                  {"GET", sets + "ss/virtualMachines", "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/read", sets + "ss"},
		"a vault":                    {"PUT", vaults + "v", "Microsoft.KeyVault/vaults/write", vaults + "v"},
		"the names of vaults":        {"POST", subscription + "/providers/Microsoft.KeyVault/checkNameAvailability", "Microsoft.KeyVault/checkNameAvailability/read", subscription},
		"an identity in upper case":  {"GET", strings.Replace(identities, "resourceGroups", "RESOURCEGROUPS", 1) + "DEMO", "Microsoft.ManagedIdentity/userAssignedIdentities/read", identities + "DEMO"},
		"locations":                  {"GET", subscription + "/locations", "Microsoft.Resources/subscriptions/locations/read", subscription},
		"a role for the whole cloud": {"PUT", "/providers/Microsoft.Authorization/roleAssignments/x", "Microsoft.Authorization/roleAssignments/write", "/providers/Microsoft.Authorization/roleAssignments/x"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := send(c, request{method: tt.method, target: tt.target + version, bearer: bearer, body: "{}"})
			want := fmt.Sprintf(`{"error":{"code":"AuthorizationFailed","message":"The client '%s' with object id '%s' does not have authorization to perform action '%s' over scope '%s' or the scope is invalid. If access was recently granted, please refresh your credentials."}}`+"\n", sp.AppID, sp.ID, tt.action, tt.scope)
			if resp.StatusCode != 403 || body != want {
				t.Errorf("%d %s\nwant %s", resp.StatusCode, body, want)
			}
		})
	}
	for name, target := range map[string]string{"subscriptions": "/subscriptions", "groups": subscription + "/resourceGroups", "resources": subscription + "/resources"} {
		if resp, body := send(c, request{target: target + version, bearer: bearer}); resp.StatusCode != 200 || body != `{"value":[]}`+"\n" {
			t.Errorf("%s that nobody may read: %d %s", name, resp.StatusCode, body)
		}
	}
	if log := c.Log.String(); !strings.Contains(log, "no role assignment") {
		t.Error("the log does not say why")
	}
}

func TestPathsAndErrors(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	newIdentity(c, "demo")
	bearer := c.Token(c.Owner(), azure.ResourceManagement)
	long := strings.Repeat("a", 91)
	for name, tt := range map[string]struct {
		method, target, body string
		status               int
		want                 string
	}{
		"no api-version":                       {"GET", subscription, "", 400, "MissingApiVersionParameter"},
		"an empty api-version":                 {"GET", subscription + "?api-version=", "", 400, "MissingApiVersionParameter"},
		"api-version in another case":          {"GET", subscription + "?Api-Version=1", "", 200, "subscriptionId"},
		"any api-version":                      {"GET", subscription + "?api-version=1999-01-01", "", 200, "subscriptionId"},
		"a subscription that is not":           {"GET", "/subscriptions/" + uuid.Nil.String() + version, "", 404, "SubscriptionNotFound"},
		"a subscription whose id starts so":    {"GET", subscription + "5" + version, "", 404, "SubscriptionNotFound"},
		"a group that is not":                  {"GET", rg + "2" + version, "", 404, "ResourceGroupNotFound"},
		"a group in upper case":                {"GET", strings.ToUpper(rg) + version, "", 200, `"name":"rg"`},
		"an identity in upper case":            {"GET", strings.ToUpper(identities) + "DEMO" + version, "", 200, `"name":"demo"`},
		"a resource in a group that is not":    {"GET", strings.Replace(identities, "rg", "none", 1) + "demo" + version, "", 404, "ResourceGroupNotFound"},
		"a resource that is not":               {"GET", identities + "none" + version, "", 404, "The Resource 'Microsoft.ManagedIdentity/userAssignedIdentities/none' under resource group 'rg' was not found."},
		"a new resource in no group":           {"PUT", strings.Replace(identities, "rg", "none", 1) + "demo" + version, `{"location":"eastus"}`, 404, "ResourceGroupNotFound"},
		"an unknown namespace":                 {"GET", rg + "/providers/Microsoft.Nothing/things/x" + version, "", 404, "InvalidResourceNamespace"},
		"an unknown type":                      {"GET", rg + "/providers/Microsoft.KeyVault/things/x" + version, "", 404, "InvalidResourceType"},
		"an unknown nested type":               {"GET", vaults + "v/things/x" + version, "", 404, "InvalidResourceType"},
		"a vault without a group":              {"PUT", subscription + "/providers/Microsoft.KeyVault/vaults/v" + version, "{}", 404, "InvalidResourceUri"},
		"a vault on a vault":                   {"GET", vaults + "v/providers/Microsoft.KeyVault/vaults/v" + version, "", 404, "InvalidResourceUri"},
		"vaults of the subscription":           {"GET", subscription + "/providers/Microsoft.KeyVault/vaults" + version, "", 200, "value"},
		"a slash more in front":                {"GET", "/" + subscription + version, "", 200, "subscriptionId"},
		"a slash at the end":                   {"GET", subscription + "/" + version, "", 200, "subscriptionId"},
		"an empty segment":                     {"GET", subscription + "//resourceGroups" + version, "", 400, "empty segment"},
		"an escaped slash":                     {"GET", subscription + "%2fresourceGroups" + version, "", 400, "InvalidRequestUri"},
		"an escaped dot dot":                   {"GET", rg + "/%2e%2e/rg2" + version, "", 400, "InvalidRequestUri"},
		"dot dot":                              {"GET", rg + "/../rg2" + version, "", 400, "InvalidRequestUri"},
		"a doubly escaped slash":               {"GET", rg + "%252f" + version, "", 400, "InvalidRequestUri"},
		"a backslash":                          {"GET", rg + "%5c.." + version, "", 400, "InvalidRequestUri"},
		"a NUL":                                {"GET", rg + "%00" + version, "", 400, "InvalidRequestUri"},
		"a line break":                         {"GET", rg + "%0a" + version, "", 400, "InvalidRequestUri"},
		"a group name with escaped brackets":   {"PUT", subscription + "/resourceGroups/a%28b%29" + version, `{"location":"eastus"}`, 201, `"name":"a(b)"`},
		"a group name of 91 letters":           {"PUT", subscription + "/resourceGroups/" + long + version, `{"location":"eastus"}`, 400, "InvalidResourceGroupName"},
		"a group name that ends with a dot":    {"PUT", subscription + "/resourceGroups/a." + version, `{"location":"eastus"}`, 400, "InvalidResourceGroupName"},
		"no location":                          {"PUT", rg + "3" + version, `{}`, 400, "LocationRequired"},
		"an unknown location":                  {"PUT", rg + "3" + version, `{"location":"moon"}`, 400, "LocationNotAvailableForResourceType"},
		"a body that is not JSON":              {"PUT", rg + "3" + version, `x`, 400, "InvalidRequestContent"},
		"a tag with a slash":                   {"PUT", rg + "3" + version, `{"location":"eastus","tags":{"a/b":""}}`, 400, "InvalidTagNameCharacters"},
		"a body beyond all bounds":             {"PUT", rg + "3" + version, strings.Repeat(" ", 2<<20), 413, "RequestContentTooLarge"},
		"an identity with a bad name":          {"PUT", identities + "a.b" + version, `{"location":"eastus"}`, 400, "managed identity name"},
		"an identity moved elsewhere":          {"PUT", identities + "demo" + version, `{"location":"westus"}`, 409, "InvalidResourceLocation"},
		"a method that does not fit":           {"POST", rg + version, "", 405, "MethodNotAllowed"},
		"deleting a collection":                {"DELETE", strings.TrimSuffix(identities, "/") + version, "", 405, "MethodNotAllowed"},
		"an action that is not":                {"POST", identities + "demo/dance" + version, "", 405, "MethodNotAllowed"},
		"a federated credential, empty":        {"PUT", identities + "demo/federatedIdentityCredentials/fic" + version, `{"properties":{}}`, 400, "Federated Identity Credential from HTTP body has empty properties"},
		"a federated credential, two":          {"PUT", identities + "demo/federatedIdentityCredentials/fic" + version, `{"properties":{"issuer":"https://i.example","subject":"s","audiences":["a","b"]}}`, 400, "Federated identity credentials must have exactly one audience."},
		"a federated credential, bad name":     {"PUT", identities + "demo/federatedIdentityCredentials/-a" + version, `{"properties":{"issuer":"https://i.example","subject":"s","audiences":["a"]}}`, 400, "Federated Identity Credential name '-a' is invalid."},
		"a federated credential of nobody":     {"PUT", identities + "none/federatedIdentityCredentials/fic" + version, `{"properties":{}}`, 404, "The parent user-assigned identity doesn't exist."},
		"a federated credential gone":          {"DELETE", identities + "demo/federatedIdentityCredentials/gone" + version, "", 204, ""},
		"an identity gone":                     {"DELETE", identities + "gone" + version, "", 204, ""},
		"an assignment with a condition":       {"PUT", rg + "/providers/Microsoft.Authorization/roleAssignments/" + uuid.NewString() + version, `{"properties":{"condition":"true"}}`, 400, "InvalidCondition"},
		"an assignment on an assignment":       {"GET", rg + "/providers/Microsoft.Authorization/roleAssignments/x/providers/Microsoft.Authorization/roleAssignments" + version, "", 400, "not supported"},
		"an unknown filter":                    {"GET", subscription + "/providers/Microsoft.Authorization/roleAssignments" + version + "&$filter=x%20eq%20'y'", "", 400, "InvalidFilterInQueryString"},
		"a broken filter":                      {"GET", subscription + "/providers/Microsoft.Authorization/roleAssignments" + version + "&$filter=atScope(", "", 400, "InvalidFilterInQueryString"},
		"a scale set of too many":              {"PUT", sets + "ss" + version, `{"location":"eastus","sku":{"capacity":100000}}`, 400, "sku.capacity"},
		"a scale set whose properties are odd": {"PUT", sets + "ss" + version, `{"location":"eastus","properties":[]}`, 400, "must be an object"},
		"the root":                             {"GET", "/" + version, "", 404, "InvalidResourceUri"},
		"a path of one word":                   {"GET", "/hello" + version, "", 404, "InvalidResourceUri"},
		"tenants":                              {"GET", "/tenants" + version, "", 200, `"tenantType":"AAD"`},
		"all namespaces":                       {"GET", "/providers" + version, "", 200, "Microsoft.KeyVault"},
		"a namespace that is not":              {"GET", subscription + "/providers/Nothing" + version, "", 404, "InvalidResourceNamespace"},
		"HEAD of a resource":                   {"HEAD", identities + "demo" + version, "", 204, ""},
		"HEAD of nothing":                      {"HEAD", identities + "none" + version, "", 404, ""},
		"HEAD of a group":                      {"HEAD", rg + version, "", 204, ""},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := send(c, request{method: tt.method, target: tt.target, bearer: bearer, body: tt.body})
			if resp.StatusCode != tt.status || !strings.Contains(body, tt.want) {
				t.Errorf("%d %.600s\nwant %d with %q", resp.StatusCode, body, tt.status, tt.want)
			}
			if resp.StatusCode >= 400 && tt.method != "HEAD" {
				var e struct {
					Error struct{ Code, Message string }
				}
				if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error.Code == "" || e.Error.Message == "" {
					t.Errorf("no error envelope: %s", body)
				}
			}
			for _, h := range []string{"x-ms-request-id", "x-ms-correlation-request-id", "x-ms-routing-request-id", "Cache-Control", "X-Content-Type-Options"} {
				if resp.Header.Get(h) == "" {
					t.Errorf("header %s is missing", h)
				}
			}
			if tt.method == "GET" && resp.Header.Get("x-ms-ratelimit-remaining-subscription-reads") == "" {
				t.Error("the header that guard counts on is missing")
			}
		})
	}
	if resp, body := send(c, request{method: "PUT", target: rg + version, bearer: bearer, body: "{}", header: map[string]string{"Content-Type": "text/plain"}}); resp.StatusCode != 415 {
		t.Errorf("text/plain: %d %s", resp.StatusCode, body)
	}
	correlation := uuid.NewString()
	if resp, _ := send(c, request{target: subscription + version, bearer: bearer, header: map[string]string{"x-ms-correlation-request-id": correlation}}); resp.Header.Get("x-ms-correlation-request-id") != correlation {
		t.Error("the correlation id is not echoed")
	}
	if resp, _ := send(c, request{target: subscription + version, bearer: bearer, header: map[string]string{"x-ms-correlation-request-id": "<script>"}}); strings.Contains(resp.Header.Get("x-ms-correlation-request-id"), "<") {
		t.Error("nonsense is echoed")
	}
}

// Roles reach exactly as far as their scope.
func TestScopesGate(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	c.Do("PUT", rg+"1", map[string]any{"location": "eastus"}, nil)
	newIdentity(c, "one")
	newIdentity(c, "one1")
	sp, cred := c.Application("reader")
	grant(c, sp.ID, azure.RoleContributor, identities+"one")
	inGroup, groupCred := c.Application("group reader")
	grant(c, inGroup.ID, azure.RoleReader, rg)
	one, group := c.Token(cred, azure.ResourceManagement), c.Token(groupCred, azure.ResourceManagement)
	for name, tt := range map[string]struct {
		bearer, method, target, body string
		want                         int
	}{
		"the identity":                              {one, "GET", identities + "one", "", 200},
		"in upper case":                             {one, "GET", strings.ToUpper(identities + "one"), "", 200},
		"a namesake with one more letter":           {one, "GET", identities + "one1", "", 403},
		"its credentials":                           {one, "GET", identities + "one/federatedIdentityCredentials", "", 200},
		"its group":                                 {one, "GET", rg, "", 403},
		"Contributor assigns no role":               {one, "PUT", identities + "one/providers/Microsoft.Authorization/roleAssignments/" + uuid.NewString(), "{}", 403},
		"Contributor deletes no role assignment":    {one, "DELETE", identities + "one/providers/Microsoft.Authorization/roleAssignments/" + uuid.NewString(), "", 403},
		"Contributor makes no role":                 {one, "PUT", identities + "one/providers/Microsoft.Authorization/roleDefinitions/" + uuid.NewString(), "{}", 403},
		"the subscription of what one can see":      {one, "GET", subscription, "", 200},
		"a group":                                   {group, "GET", rg, "", 200},
		"a group whose name starts the same":        {group, "GET", rg + "1", "", 403},
		"a resource in the group":                   {group, "GET", identities + "one1", "", 200},
		"a reader changes nothing":                  {group, "PUT", identities + "one", `{"location":"eastus"}`, 403},
		"a reader deletes nothing":                  {group, "DELETE", identities + "one", "", 403},
		"nor by another spelling of the method":     {group, "delete", identities + "one", "", 403},
		"a way out of the group by an extension id": {group, "GET", rg + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/one/providers/Microsoft.Authorization/roleAssignments", "", 200},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := send(c, request{method: tt.method, target: tt.target + version, bearer: tt.bearer, body: tt.body})
			if resp.StatusCode != tt.want && (tt.method != "delete" || resp.StatusCode != 405) {
				t.Errorf("%d %s, want %d", resp.StatusCode, body, tt.want)
			}
		})
	}
	if _, body := send(c, request{target: subscription + "/resources" + version, bearer: one}); strings.Count(body, `"name"`) != 1 || !strings.Contains(body, `"name":"one"`) {
		t.Errorf("resources that one may read: %s", body)
	}
	if _, body := send(c, request{target: subscription + "/resourceGroups" + version, bearer: group}); strings.Count(body, `"name"`) != 1 {
		t.Errorf("groups that one may read: %s", body)
	}
}

// An assignment is addressed by its own scope only: who administers one group cannot reach assignments elsewhere.
func TestAnAssignmentIsNotReachedFromAnotherScope(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	c.Do("PUT", rg+"1", map[string]any{"location": "eastus"}, nil)
	sp, cred := c.Application("admin of rg1")
	victim, _ := c.Application("victim")
	grant(c, sp.ID, azure.RoleOwner, rg+"1")
	id := grant(c, victim.ID, azure.RoleReader, rg)
	name := id[strings.LastIndexByte(id, '/')+1:]
	bearer := c.Token(cred, azure.ResourceManagement)
	elsewhere := rg + "1/providers/Microsoft.Authorization/roleAssignments/" + name
	for method, want := range map[string]int{"GET": 404, "DELETE": 204, "PUT": 400} {
		body := `{"properties":{"roleDefinitionId":"` + subscription + `/providers/Microsoft.Authorization/roleDefinitions/` + azure.RoleOwner + `","principalId":"` + sp.ID + `"}}`
		if resp, text := send(c, request{method: method, target: elsewhere + version, bearer: bearer, body: body}); resp.StatusCode != want {
			t.Errorf("%s: %d %s, want %d", method, resp.StatusCode, text, want)
		}
	}
	if resp, _ := send(c, request{method: "DELETE", target: id + version, bearer: bearer}); resp.StatusCode != 403 {
		t.Errorf("at its own scope: %d", resp.StatusCode)
	}
	c.Do("GET", id, nil, nil)
}

// Deleting a resource takes its role assignments with it, so that a namesake starts without.
func TestRoleAssignmentsGoWithTheirScope(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	newIdentity(c, "one")
	sp, cred := c.Application("reader")
	grant(c, sp.ID, azure.RoleReader, identities+"one")
	bearer := c.Token(cred, azure.ResourceManagement)
	if resp, body := send(c, request{target: identities + "one" + version, bearer: bearer}); resp.StatusCode != 200 {
		t.Fatal(body)
	}
	c.Do("DELETE", rg, nil, nil)
	group(c)
	newIdentity(c, "one")
	if resp, body := send(c, request{target: identities + "one" + version, bearer: bearer}); resp.StatusCode != 403 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestConcurrentWritesToOneIdentityConflict(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	newIdentity(c, "demo")
	newIdentity(c, "other")
	bearer := c.Token(c.Owner(), azure.ResourceManagement)
	put := func(parent, name string) (int, string) {
		resp, body := send(c, request{method: "PUT", target: identities + parent + "/federatedIdentityCredentials/" + name + version, bearer: bearer,
			body: `{"properties":{"issuer":"https://i.example","subject":"` + name + `","audiences":["a"]}}`})
		return resp.StatusCode, body
	}
	// While a transaction is open the first write waits with its claim; whichever comes second is refused at once.
	type result struct {
		status int
		body   string
	}
	results := make(chan result, 2)
	c.Update(func(*state.Tx) error {
		for _, name := range []string{"fic-1", "fic-2"} {
			go func() {
				status, body := put("DEMO", name)
				results <- result{status, body}
			}()
		}
		if r := <-results; r.status != 409 || !strings.Contains(r.body, "Concurrent Federated Identity Credentials writes under the same managed identity are not supported.") {
			t.Errorf("%d %s", r.status, r.body)
		}
		return nil
	})
	if r := <-results; r.status != 201 {
		t.Errorf("the first: %d %s", r.status, r.body)
	}
	if status, body := put("demo", "fic-3"); status != 201 {
		t.Errorf("afterwards: %d %s", status, body)
	}
}

func TestManyWritersLeaveAConsistentState(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	c.Do("PUT", sets+"ss", map[string]any{"location": "eastus"}, nil)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			id := fmt.Sprintf("%sid-%d", identities, w%4)
			as := c.As(c.OwnerSP)
			for range 5 {
				for _, step := range []struct {
					method, path string
					body         any
				}{
					{"PUT", id, map[string]any{"location": "eastus"}},
					{"PATCH", sets + "ss", map[string]any{"identity": map[string]any{"type": "UserAssigned", "userAssignedIdentities": map[string]any{id: map[string]any{}}}}},
					{"GET", subscription + "/resources", nil},
					{"DELETE", id, nil},
				} {
					// Refusals are expected: the writers delete each other's identities.
					_ = c.Management.Do(context.Background(), as, step.method, step.path, step.body, nil)
				}
			}
		})
	}
	wg.Wait()
	c.Check("many writers")
}

func TestMetadataEndpointsAreAnonymousAndHaveTwoForms(t *testing.T) {
	c := cloudtest.New(t)
	var list []struct {
		Name           string
		Authentication struct {
			LoginEndpoint string
			Audiences     []string
		}
		Suffixes map[string]string
	}
	_, body := send(c, request{target: "/metadata/endpoints?api-version=2019-05-01"})
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list) != 1 || list[0].Name != "AzureCloud" || len(list[0].Authentication.Audiences) == 0 || list[0].Suffixes["keyVaultDns"] != "vault.azure.net" {
		t.Errorf("az's form: %v %s", err, body)
	}
	var one struct{ Name, ResourceManager, MicrosoftGraphResourceID string }
	_, body = send(c, request{target: "/metadata/endpoints?api-version=2022-09-01"})
	if err := json.Unmarshal([]byte(body), &one); err != nil || one.Name != "AzureCloud" || one.ResourceManager != "https://management.azure.com/" {
		t.Errorf("Terraform's form: %v %s", err, body)
	}
	if resp, _ := send(c, request{target: "/metadata/endpoints"}); resp.StatusCode != 400 {
		t.Errorf("without version: %d", resp.StatusCode)
	}
	if resp, _ := send(c, request{target: "/metadata/endpoints/../../subscriptions?api-version=2022-09-01"}); resp.StatusCode != 400 {
		t.Errorf("a way around authentication: %d", resp.StatusCode)
	}
}

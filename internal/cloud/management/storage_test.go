package management_test

import (
	"strings"
	"testing"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
)

func TestStorageAccounts(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	bearer := c.Token(c.Owner(), azure.ResourceManagement)
	accounts := rg + "/providers/" + azure.TypeStorageAccount + "/"
	const good = `{"location":"eastus","kind":"StorageV2","sku":{"name":"Standard_LRS"},"properties":{"allowBlobPublicAccess":true}}`
	names := subscription + "/providers/Microsoft.Storage/checkNameAvailability"
	for _, tt := range []struct {
		name, method, target, body string
		status                     int
		text                       string
	}{
		{"a free name", "POST", names, `{"name":"lanyardoidc","type":"Microsoft.Storage/storageAccounts"}`, 200, `"nameAvailable":true`},
		{"a bad name", "POST", names, `{"name":"Bad-Name","type":"Microsoft.Storage/storageAccounts"}`, 200, "AccountNameInvalid"},
		{"made", "PUT", accounts + "lanyardoidc", good, 200, `"primaryEndpoints":{"blob":"https://lanyardoidc.blob.core.windows.net/"}`},
		{"made again", "PUT", accounts + "lanyardoidc", good, 200, `"kind":"StorageV2"`},
		{"a taken name", "POST", names, `{"name":"lanyardoidc","type":"Microsoft.Storage/storageAccounts"}`, 200, "AlreadyExists"},
		{"another with the same name", "PUT", strings.Replace(accounts, rg, rg+"2", 1) + "lanyardoidc", good, 409, "StorageAccountAlreadyTaken"},
		{"a name with a capital", "PUT", accounts + "Lanyard", good, 400, "AccountNameInvalid"},
		{"without a SKU", "PUT", accounts + "nosku", `{"location":"eastus"}`, 400, "InvalidRequestPropertyValue"},
		{"closed by default", "PUT", accounts + "closed", `{"location":"eastus","sku":{"name":"Standard_LRS"}}`, 200, `"allowBlobPublicAccess":false`},
		{"read", "GET", accounts + "LANYARDOIDC", "", 200, `"allowSharedKeyAccess":false`},
		{"listed", "GET", strings.TrimSuffix(accounts, "/"), "", 200, `"name":"closed"`},
		{"listed in the subscription", "GET", subscription + "/providers/" + azure.TypeStorageAccount, "", 200, `"name":"lanyardoidc"`},
		{"changed", "PATCH", accounts + "lanyardoidc", `{"tags":{"a":"b"},"properties":{"allowBlobPublicAccess":false}}`, 200, `"allowBlobPublicAccess":false`},
		{"its keys", "POST", accounts + "lanyardoidc/listKeys", "", 403, "KeyBasedAuthenticationNotPermitted"},
		{"deleted", "DELETE", accounts + "lanyardoidc", "", 200, ""},
		{"deleted again", "DELETE", accounts + "lanyardoidc", "", 204, ""},
		{"the name is free again", "POST", names, `{"name":"lanyardoidc","type":"Microsoft.Storage/storageAccounts"}`, 200, `"nameAvailable":true`},
	} {
		if strings.Contains(tt.target, rg+"2") {
			send(c, request{method: "PUT", target: rg + "2" + version, bearer: bearer, body: `{"location":"eastus"}`})
		}
		resp, body := send(c, request{method: tt.method, target: tt.target + version, bearer: bearer, body: tt.body})
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.text) {
			t.Errorf("%s: %d %s, want %d %s", tt.name, resp.StatusCode, body, tt.status, tt.text)
		}
	}
}

func TestTheTenantsRolesAreEverybodysToRead(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	_, cred := c.Application("nobody")
	owner, nobody := c.Token(c.Owner(), azure.ResourceManagement), c.Token(cred, azure.ResourceManagement)
	custom := subscription + "/providers/" + azure.TypeRoleDefinition + "/aaaaaaaa-0000-4000-8000-00000000000a"
	if resp, body := send(c, request{method: "PUT", target: custom + version, bearer: owner,
		body: `{"properties":{"roleName":"Custom","assignableScopes":["` + subscription + `"],"permissions":[{"actions":["*/read"]}]}}`}); resp.StatusCode != 201 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	const definitions = "/providers/" + azure.TypeRoleDefinition
	filter := version + "&$filter=roleName%20eq%20'storage%20blob%20data%20contributor'"
	for _, tt := range []struct {
		name, target, bearer string
		status               int
		text                 string
	}{
		{"by name, at the root", definitions + filter, nobody, 200, azure.RoleStorageBlobDataContributor},
		{"by id, at the root", definitions + "/" + azure.RoleReader + version, nobody, 200, `"roleName":"Reader"`},
		{"by name, in a subscription", subscription + definitions + filter, owner, 200, subscription + definitions + "/" + azure.RoleStorageBlobDataContributor},
		{"by name, in a group", rg + definitions + filter, owner, 200, azure.RoleStorageBlobDataContributor},
		{"in a subscription, by nobody", subscription + definitions + filter, nobody, 403, "AuthorizationFailed"},
		{"a custom one at the root, by nobody", definitions + "/aaaaaaaa-0000-4000-8000-00000000000a" + version, nobody, 404, "RoleDefinitionDoesNotExist"},
		{"a custom one at the root, by its owner", definitions + "/aaaaaaaa-0000-4000-8000-00000000000a" + version, owner, 200, `"CustomRole"`},
	} {
		resp, body := send(c, request{method: "GET", target: tt.target, bearer: tt.bearer})
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.text) {
			t.Errorf("%s: %d %.400s, want %d %s", tt.name, resp.StatusCode, body, tt.status, tt.text)
		}
	}
}

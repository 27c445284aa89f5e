package arm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azarm "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	azcloud "github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"

	protocol "github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/mic/arm"
)

type credential struct{}

func (credential) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "t", ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// manager is Resource Manager with one machine.
type manager struct {
	mu     sync.Mutex
	get    string // body of GET
	answer func(w http.ResponseWriter)
	log    []string // METHOD path[ If-Match]: body
}

func (m *manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Method == http.MethodPatch {
		m.log = append(m.log, strings.TrimSpace(fmt.Sprint(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:], " ", r.Header.Get("If-Match"), string(body))))
		if m.answer != nil {
			m.answer(w)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, m.get)
}

func azureCloud(t *testing.T, m *manager) *arm.Client {
	t.Helper()
	srv := httptest.NewTLSServer(m)
	t.Cleanup(srv.Close)
	return &arm.Client{Source: &arm.Connection{Credential: credential{}, Options: azarm.ClientOptions{DisableRPRegistration: true, ClientOptions: policy.ClientOptions{
		Transport: srv.Client(),
		Retry:     policy.RetryOptions{MaxRetries: -1},
		Cloud:     azcloud.Configuration{Services: map[azcloud.ServiceName]azcloud.ServiceConfiguration{azcloud.ResourceManager: {Endpoint: srv.URL, Audience: "a"}}},
	}}}}
}

const (
	subscription = "/subscriptions/11111111-2222-3333-4444-555555555555"
	group        = subscription + "/resourceGroups/nodes"
	idPrefix     = subscription + "/resourcegroups/myResourceGroup/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestAPatchNamesOnlyWhatChanges(t *testing.T) {
	a, b := idPrefix+"a", idPrefix+"b"
	ids := func(names ...string) (out []azure.ResourceID) {
		for _, n := range names {
			out = append(out, must(azure.ParseResourceID(n)))
		}
		return out
	}
	quoted := func(id string) string { return `"` + ids(id)[0].String() + `"` }
	for _, c := range []struct {
		name, get   string
		add, remove []azure.ResourceID
		want        string
	}{
		{"the first identity", `{}`, ids(a), nil, `{"identity":{"type":"UserAssigned","userAssignedIdentities":{` + quoted(a) + `:{}}}}`},
		{"one more, written differently by Azure", `{"identity":{"type":"userAssigned","userAssignedIdentities":{"` + strings.ToUpper(b) + `":{}}}}`, ids(a), nil, `{"identity":{"type":"UserAssigned","userAssignedIdentities":{` + quoted(a) + `:{}}}}`},
		{"beside a system identity", `{"identity":{"type":"SystemAssigned"}}`, ids(a), nil, `{"identity":{"type":"SystemAssigned, UserAssigned","userAssignedIdentities":{` + quoted(a) + `:{}}}}`},
		{"one goes, one stays", `{"identity":{"type":"UserAssigned","userAssignedIdentities":{"` + a + `":{},"` + b + `":{}}}}`, nil, ids(a), `{"identity":{"type":"UserAssigned","userAssignedIdentities":{` + quoted(a) + `:null}}}`},
		{"one comes, one goes", `{"identity":{"type":"UserAssigned","userAssignedIdentities":{"` + a + `":{}}}}`, ids(b), ids(a), `{"identity":{"type":"UserAssigned","userAssignedIdentities":{` + quoted(a) + `:null,` + quoted(b) + `:{}}}}`},
		{"the last one goes, if nobody was faster", `{"etag":"e1","identity":{"type":"UserAssigned","userAssignedIdentities":{"` + a + `":{}}}}`, nil, ids(a), `e1{"identity":{"type":"None"}}`},
		{"the last one beside a system identity goes", `{"identity":{"type":"SystemAssigned, UserAssigned","userAssignedIdentities":{"` + a + `":{}}}}`, nil, ids(a), `{"identity":{"type":"SystemAssigned"}}`},
	} {
		for _, kind := range []string{"virtualMachines", "virtualMachineScaleSets"} {
			t.Run(c.name+", "+kind, func(t *testing.T) {
				m := &manager{get: c.get}
				machine := must(azure.ParseResourceID(group + "/providers/Microsoft.Compute/" + kind + "/m"))
				if err := azureCloud(t, m).Update(t.Context(), machine, c.add, c.remove); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff([]string{"m " + c.want}, m.log); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
			})
		}
	}
}

func TestWhatAzureRefusesKeepsItsCode(t *testing.T) {
	machine := must(azure.ParseResourceID(group + "/providers/Microsoft.Compute/virtualMachines/m"))
	id := []azure.ResourceID{must(azure.ParseResourceID(idPrefix + "a"))}
	for _, c := range []struct {
		name   string
		get    string
		status int
		body   string
		want   arm.Error
	}{
		{"a role is missing", `{}`, 403, `{"error":{"code":"LinkedAuthorizationFailed","message":"m"}}`, arm.Error{Status: 403, Code: "LinkedAuthorizationFailed", Message: "m"}},
		{"throttled", `{}`, 429, `{"error":{"code":"TooManyRequests","message":"m"}}`, arm.Error{Status: 429, Code: "TooManyRequests", Message: "m", RetryAfter: 17 * time.Second}},
		{"not JSON", `{}`, 502, `<html>`, arm.Error{Status: 502, Message: "Bad Gateway"}},
		{"the machine is on its way out", `{"properties":{"provisioningState":"Deleting"}}`, 200, ``, arm.Error{Status: 409, Code: "Deleting", Message: "the machine is being deleted"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &manager{get: c.get, answer: func(w http.ResponseWriter) {
				if c.status == http.StatusTooManyRequests {
					w.Header().Set("Retry-After", "17")
				}
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
			}}
			err := azureCloud(t, m).Update(t.Context(), machine, id, nil)
			var e *arm.Error
			if !errors.As(err, &e) {
				t.Fatalf("%T %v", err, err)
			}
			got := *e
			got.Err = nil
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestAccountsSayWhatIsMissing(t *testing.T) {
	full := arm.Account{TenantID: "t", ClientID: "c", ClientSecret: "s3cret"}
	with := func(edit func(*arm.Account)) arm.Account { a := full; edit(&a); return a }
	for _, c := range []struct {
		name     string
		account  arm.Account
		assignee string
		err      string
	}{
		{"a service principal", full, "c", ""},
		{"a sovereign cloud", with(func(a *arm.Account) { a.Cloud = "AzureUSGovernmentCloud" }), "c", ""},
		{"a managed identity", arm.Account{UseMSI: true, MSIClientID: "m"}, "m", ""},
		{"azure.json of a cluster with a managed identity", arm.Account{ClientID: "msi", ClientSecret: "msi"}, "", ""},
		{"no secret", with(func(a *arm.Account) { a.ClientSecret = "" }), "c", "set TENANT_ID, CLIENT_ID and CLIENT_SECRET"},
		{"an unknown cloud", with(func(a *arm.Account) { a.Cloud = "Nimbus" }), "c", `unknown cloud "Nimbus"`},
		{"a custom cloud without its description", with(func(a *arm.Account) { a.Cloud = "AzureStackCloud" }), "c", "AZURE_ENVIRONMENT_FILEPATH"},
		{"a custom cloud", with(func(a *arm.Account) {
			a.Cloud, a.Endpoints = "AzureStackCloud", &protocol.Cloud{Custom: true, Authority: "https://login.example/", Manager: "https://manager.example"}
		}), "c", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.account.Assignee(); got != c.assignee {
				t.Errorf("assignee %q, want %q", got, c.assignee)
			}
			_, err := c.account.Connect()
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v", err)
			}
			if err != nil && strings.Contains(err.Error(), full.ClientSecret) {
				t.Error("the error shows the secret")
			}
		})
	}
}

func TestConfigurationFilesAreReadAndNeverQuoted(t *testing.T) {
	a, err := arm.ParseAccount([]byte(`{"cloud":"AzurePublicCloud","tenantId":"t","aadClientId":"c","aadClientSecret":"s","useManagedIdentityExtension":true,"userAssignedIdentityID":"u","vmType":"vmss"}`))
	if diff := cmp.Diff(arm.Account{Cloud: "AzurePublicCloud", TenantID: "t", ClientID: "c", ClientSecret: "s", UseMSI: true, MSIClientID: "u"}, a); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	if _, err := arm.ParseAccount([]byte(`{"aadClientSecret":"s3cret"`)); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v", err)
	}
}

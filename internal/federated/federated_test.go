package federated_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/graph"
)

const identityID = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id"

type credential struct{}

func (credential) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "t0ken", ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// An azure is Resource Manager and Graph with one parent each, whose
// credentials are in one map.
type azure struct {
	mu          sync.Mutex
	credentials map[string]federated.Credential
	writes      []string                                     // METHOD name
	refuse      func(w http.ResponseWriter, write bool) bool // answers in its place
	busy        atomic.Int32
	worst       atomic.Int32 // most writes at one time
}

func refusal(w http.ResponseWriter, status int, code, message string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"code":%q,"message":%q}}`, code, message)
}

func (a *azure) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	write := r.Method != http.MethodGet
	if write {
		a.worst.Store(max(a.worst.Load(), a.busy.Add(1)))
		defer a.busy.Add(-1)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refuse != nil && a.refuse(w, write) {
		return
	}
	body, _ := io.ReadAll(r.Body)
	segments := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	name := segments[len(segments)-1]
	if write {
		a.writes = append(a.writes, r.Method+" "+name)
	}
	if strings.HasPrefix(r.URL.Path, "/v1.0/") {
		a.graph(w, r.Method, name, body)
		return
	}
	a.manager(w, r.Method, name, body)
}

func (a *azure) manager(w http.ResponseWriter, method, name string, body []byte) {
	type wire struct {
		Name       string `json:"name"`
		Properties struct {
			Issuer    string   `json:"issuer"`
			Subject   string   `json:"subject"`
			Audiences []string `json:"audiences"`
		} `json:"properties"`
	}
	encode := func(c federated.Credential) (x wire) {
		x.Name, x.Properties.Issuer, x.Properties.Subject, x.Properties.Audiences = c.Name, c.Issuer, c.Subject, []string{c.Audience}
		return x
	}
	have, there := a.credentials[name]
	switch {
	case name == "id":
		fmt.Fprint(w, `{"properties":{"clientId":"c","principalId":"p","tenantId":"t"}}`)
	case name == "federatedIdentityCredentials":
		list := struct {
			Value []wire `json:"value"`
		}{[]wire{}}
		for _, c := range a.credentials {
			list.Value = append(list.Value, encode(c))
		}
		_ = json.NewEncoder(w).Encode(list)
	case method == http.MethodPut:
		var x wire
		_ = json.Unmarshal(body, &x)
		a.credentials[name] = federated.Credential{Name: name, Issuer: x.Properties.Issuer, Subject: x.Properties.Subject, Audience: x.Properties.Audiences[0]}
		_ = json.NewEncoder(w).Encode(encode(a.credentials[name]))
	case !there:
		refusal(w, http.StatusNotFound, "NotFound", "m")
	case method == http.MethodDelete:
		delete(a.credentials, name)
	default:
		_ = json.NewEncoder(w).Encode(encode(have))
	}
}

func (a *azure) graph(w http.ResponseWriter, method, name string, body []byte) {
	encode := func(c federated.Credential) graph.FederatedIdentityCredential {
		return graph.FederatedIdentityCredential{ID: "id-" + c.Name, Name: c.Name, Issuer: c.Issuer, Subject: c.Subject, Description: c.Description, Audiences: []string{c.Audience}}
	}
	var x graph.FederatedIdentityCredential
	_ = json.Unmarshal(body, &x)
	decoded := federated.Credential{Issuer: x.Issuer, Subject: x.Subject, Description: x.Description, Audience: strings.Join(x.Audiences, ",")}
	name, own := strings.CutPrefix(name, "id-")
	switch {
	case method == http.MethodGet:
		page := graph.Page[graph.FederatedIdentityCredential]{Value: []graph.FederatedIdentityCredential{}}
		for _, c := range a.credentials {
			page.Value = append(page.Value, encode(c))
		}
		_ = json.NewEncoder(w).Encode(page)
	case method == http.MethodPost:
		decoded.Name = x.Name
		a.credentials[x.Name] = decoded
		_ = json.NewEncoder(w).Encode(encode(decoded))
	case !own || a.credentials[name].Name == "":
		refusal(w, http.StatusNotFound, graph.CodeNotFound, "m")
	case method == http.MethodDelete:
		delete(a.credentials, name)
		w.WriteHeader(http.StatusNoContent)
	default:
		decoded.Name = name
		a.credentials[name] = decoded
		w.WriteHeader(http.StatusNoContent)
	}
}

func start(t *testing.T) (*azure, *federated.Client) {
	t.Helper()
	a := &azure{credentials: map[string]federated.Credential{}}
	srv := httptest.NewTLSServer(a)
	t.Cleanup(srv.Close)
	return a, &federated.Client{
		Credential: credential{}, Cloud: arm.Cloud{Name: "test", Authority: "https://login.test/", Manager: srv.URL, Graph: srv.URL},
		Options: policy.ClientOptions{Transport: srv.Client(), Retry: policy.RetryOptions{MaxRetries: 1, RetryDelay: time.Millisecond}},
	}
}

var parents = []federated.Parent{
	{Kind: federated.ManagedIdentity, ResourceID: identityID},
	{Kind: federated.Application, ObjectID: "o", DisplayName: "app", ClientID: "c"},
}

func each(t *testing.T, do func(t *testing.T, a *azure, c *federated.Client, p federated.Parent)) {
	for _, p := range parents {
		t.Run(string(p.Kind), func(t *testing.T) {
			a, c := start(t)
			do(t, a, c, p)
		})
	}
}

func TestPutWritesOnlyWhatDiffers(t *testing.T) {
	each(t, func(t *testing.T, a *azure, c *federated.Client, p federated.Parent) {
		want := federated.Credential{Name: "mine", Issuer: "https://i/", Subject: "s"}
		for range 2 {
			if err := c.Put(t.Context(), p, want); err != nil {
				t.Fatal(err)
			}
		}
		if len(a.writes) != 1 {
			t.Errorf("writes %q", a.writes)
		}
		want.Issuer = "https://other/"
		if err := c.Put(t.Context(), p, want); err != nil || len(a.writes) != 2 {
			t.Errorf("%v after %q", err, a.writes)
		}
		want.Audience = federated.Audience
		got, err := c.List(t.Context(), p)
		if diff := cmp.Diff([]federated.Credential{want}, got); diff != "" || err != nil {
			t.Errorf("%v (-want +got)\n%s", err, diff)
		}
		for _, existed := range []bool{true, false} {
			if got, err := c.Delete(t.Context(), p, "mine"); got != existed || err != nil {
				t.Errorf("deleting: %t, %v", got, err)
			}
		}
	})
}

func TestWhatAzureWouldRefuseIsNotAsked(t *testing.T) {
	each(t, func(t *testing.T, a *azure, c *federated.Client, p federated.Parent) {
		a.credentials["theirs"] = federated.Credential{Name: "theirs", Issuer: "https://i/", Subject: "s", Audience: "other"}
		err := c.Put(t.Context(), p, federated.Credential{Name: "mine", Issuer: "https://i/", Subject: "s"})
		var taken *federated.Taken
		if !errors.Is(err, federated.ErrTaken) || !errors.As(err, &taken) || taken.By.Name != "theirs" || taken.By.Audience != "other" {
			t.Errorf("taken: %v", err)
		}
		for i := range federated.MaxPerParent - 1 {
			name := fmt.Sprint("more-", i)
			a.credentials[name] = federated.Credential{Name: name, Issuer: "https://i/", Subject: name, Audience: federated.Audience}
		}
		if err := c.Put(t.Context(), p, federated.Credential{Name: "mine", Issuer: "https://i/", Subject: "new"}); !errors.Is(err, federated.ErrLimit) {
			t.Errorf("limit: %v", err)
		}
		if len(a.writes) > 0 {
			t.Errorf("writes %q", a.writes)
		}
		if err := c.Put(t.Context(), p, federated.Credential{Name: "more-0", Issuer: "https://new/", Subject: "s"}); err != nil {
			t.Errorf("changing one at the limit: %v", err)
		}
	})
}

func TestWhoeverWasFasterIsFoundOut(t *testing.T) {
	each(t, func(t *testing.T, a *azure, c *federated.Client, p federated.Parent) {
		a.refuse = func(w http.ResponseWriter, write bool) bool {
			if write {
				a.credentials["theirs"] = federated.Credential{Name: "theirs", Issuer: "https://i/", Subject: "s", Audience: federated.Audience}
				refusal(w, http.StatusBadRequest, "BadRequest", "Issuer and subject combination already exists for this Managed Identity.")
			}
			return write
		}
		if err := c.Put(t.Context(), p, federated.Credential{Name: "mine", Issuer: "https://i/", Subject: "s"}); !errors.Is(err, federated.ErrTaken) {
			t.Error(err)
		}
	})
}

func TestWritesToOneParentAreSerialAndOutlastThoseOfOthers(t *testing.T) {
	each(t, func(t *testing.T, a *azure, c *federated.Client, p federated.Parent) {
		conflicts := 2
		a.refuse = func(w http.ResponseWriter, write bool) bool {
			if !write || conflicts == 0 {
				return false
			}
			conflicts--
			refusal(w, http.StatusConflict, "Conflict", "Too many Federated Identity Credentials are written concurrently")
			return true
		}
		var group sync.WaitGroup
		for i := range 10 {
			group.Go(func() {
				name := fmt.Sprint("c-", i)
				if err := c.Put(t.Context(), p, federated.Credential{Name: name, Issuer: "https://i/", Subject: name}); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if len(a.credentials) != 10 || a.worst.Load() != 1 {
			t.Errorf("%d credentials, %d writes at one time", len(a.credentials), a.worst.Load())
		}
	})
}

func TestRefusalsAreWhatCallersBranchOn(t *testing.T) {
	each(t, func(t *testing.T, a *azure, c *federated.Client, p federated.Parent) {
		with := func(status int) error {
			a.refuse = func(w http.ResponseWriter, _ bool) bool {
				w.Header().Set("Retry-After", "17")
				refusal(w, status, "C", "m")
				return true
			}
			return c.Put(t.Context(), p, federated.Credential{Name: "mine", Issuer: "https://i/", Subject: "s"})
		}
		if err := with(http.StatusForbidden); !errors.Is(err, federated.ErrForbidden) || !strings.Contains(err.Error(), "needs") {
			t.Error(err)
		}
		if err := with(http.StatusNotFound); !errors.Is(err, federated.ErrNotFound) {
			t.Error(err)
		}
		var throttled *federated.Throttled
		if err := with(http.StatusTooManyRequests); !errors.As(err, &throttled) || throttled.RetryAfter != 17*time.Second {
			t.Error(err)
		}
		a.refuse = func(w http.ResponseWriter, _ bool) bool {
			refusal(w, http.StatusNotFound, "NotFound", "m")
			return true
		}
		if existed, err := c.Delete(t.Context(), p, "mine"); existed || err != nil {
			t.Errorf("deleting what has no parent: %t, %v", existed, err)
		}
	})
}

func TestACallerThatGivesUpDoesNotWait(t *testing.T) {
	each(t, func(t *testing.T, a *azure, c *federated.Client, p federated.Parent) {
		ctx, cancel := context.WithCancel(t.Context())
		a.refuse = func(w http.ResponseWriter, write bool) bool {
			if write {
				cancel()
				refusal(w, http.StatusConflict, "Conflict", "m")
			}
			return write
		}
		if err := c.Put(ctx, p, federated.Credential{Name: "mine", Issuer: "https://i/", Subject: "s"}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestAnIdentityIsFoundByItsClientID(t *testing.T) {
	for _, c := range []struct {
		name, principals, applications string
		want                           federated.Parent
		err                            string
	}{
		{
			"a managed identity", `{"id":"p","appId":"c","displayName":"id","servicePrincipalType":"ManagedIdentity","alternativeNames":["isExplicit=True","` + strings.ToLower(identityID) + `"]}`, ``,
			federated.Parent{Kind: federated.ManagedIdentity, ResourceID: identityID, ClientID: "c", PrincipalID: "p", DisplayName: "id"}, "",
		},
		{
			"an application", `{"id":"p","appId":"c","servicePrincipalType":"Application","appOwnerOrganizationId":"t"}`, `{"id":"o","appId":"c","displayName":"app"}`,
			federated.Parent{Kind: federated.Application, ObjectID: "o", ClientID: "c", PrincipalID: "p", TenantID: "t", DisplayName: "app"}, "",
		},
		{"an application without a service principal", ``, `{"id":"o","appId":"c"}`, federated.Parent{Kind: federated.Application, ObjectID: "o", ClientID: "c"}, ""},
		{"an application of another tenant", `{"id":"p","appId":"c","servicePrincipalType":"Application","appOwnerOrganizationId":"elsewhere"}`, ``, federated.Parent{}, "registered in another tenant (elsewhere)"},
		{"a system-assigned identity", `{"id":"p","appId":"c","servicePrincipalType":"ManagedIdentity","alternativeNames":["isExplicit=False","/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/vm"]}`, ``, federated.Parent{}, "use a user-assigned one"},
		{"a managed identity of unknown place", `{"id":"p","appId":"c","servicePrincipalType":"ManagedIdentity"}`, ``, federated.Parent{}, "give its resource id"},
		{"nobody", ``, ``, federated.Parent{}, "no application or managed identity with client id c"},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				answer := map[string]string{"/v1.0/servicePrincipals": c.principals, "/v1.0/applications": c.applications}[r.URL.Path]
				fmt.Fprintf(w, `{"value":[%s]}`, answer)
			}))
			t.Cleanup(srv.Close)
			client := &federated.Client{Credential: credential{}, Cloud: arm.Cloud{Graph: srv.URL}, Options: policy.ClientOptions{Transport: srv.Client()}}
			got, err := client.Find(t.Context(), "c")
			if (err == nil) != (c.err == "") || err != nil && (!strings.Contains(err.Error(), c.err) || !errors.Is(err, federated.ErrNotFound)) {
				t.Errorf("got %v", err)
			}
			if strings.EqualFold(got.ResourceID, c.want.ResourceID) {
				got.ResourceID = c.want.ResourceID
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestAnIdentityIsFoundByItsResourceIDWithoutGraph(t *testing.T) {
	_, c := start(t)
	c.Cloud.Graph = ""
	got, err := c.FindResource(t.Context(), identityID)
	if diff := cmp.Diff(federated.Parent{Kind: federated.ManagedIdentity, ResourceID: identityID, ClientID: "c", PrincipalID: "p", TenantID: "t", DisplayName: "id"}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	for _, wrong := range []string{"", "id", identityID + "/federatedIdentityCredentials/x", "/subscriptions/s/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id", identityID + "/../x"} {
		if _, err := c.FindResource(t.Context(), wrong); err == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}

func TestNamesAreThoseThatResourceManagerTakes(t *testing.T) {
	var names []string
	for i := range 200 {
		name := federated.AccountName("shop", fmt.Sprint("payroll-", i), "https://issuer.example/")
		if strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" || strings.ContainsAny(name[:1], "-_") || len(name) > 120 {
			t.Errorf("%q", name)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != 200 {
		t.Error("names are not unique")
	}
	if federated.AccountName("a-b", "c", "https://i/") == federated.AccountName("a", "b-c", "https://i/") {
		t.Error("one service account would take another's credential")
	}
	if got := federated.Subject("shop", "payroll"); got != "system:serviceaccount:shop:payroll" {
		t.Error(got)
	}
}

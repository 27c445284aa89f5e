package serviceaccount_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"

	"github.com/lanyard-id/lanyard/internal/arm"
	. "github.com/lanyard-id/lanyard/internal/serviceaccount"
)

const (
	principalNotFound = `{"error":{"code":"PrincipalNotFound","message":"Principal 1 does not exist in the directory 2."}}`
	resourceNotFound  = `{"error":{"code":"Request_ResourceNotFound","message":"Resource 'x' does not exist or one of its queried reference-property objects are not present."}}`
	noReference       = `{"error":{"code":"Request_BadRequest","message":"The appId 'x' of the service principal does not reference a valid application object."}}`
	throttled         = `{"error":{"code":"TooManyRequests","message":"m"}}`
)

func TestWhatWasMadeAMomentAgoIsWaitedFor(t *testing.T) {
	d := newDesk(t)
	d.faults = []*fault{
		{method: "POST", path: "/servicePrincipals", times: 2, status: 400, body: noReference},
		{method: "POST", path: "/federatedIdentityCredentials", times: 2, status: 404, body: resourceNotFound},
		{method: "PUT", path: "/roleAssignments/", times: 3, status: 400, body: principalNotFound},
	}
	o := d.options()
	d.must(Create, o, []string{"aad-application created", "aad-application created", "service-account created", "federated-identity created", "role-assignment created"})
	for _, f := range d.faults {
		if f.times > 0 {
			t.Errorf("%s %s was not asked often enough", f.method, f.path)
		}
	}
	// What was there before is not: then it is an error.
	d.faults = []*fault{{method: "GET", path: "/federatedIdentityCredentials", times: 1, status: 404, body: resourceNotFound}}
	if err := d.run(Create, o, PhaseFederated); err == nil {
		t.Error("it waits for what is not new")
	}
}

func TestThrottlingIsWaitedFor(t *testing.T) {
	d := newDesk(t)
	o := d.managed()
	d.must(Create, o, []string{"managed-identity created"}, PhaseIdentity)
	d.faults = []*fault{{method: "PUT", path: "/federatedIdentityCredentials/", times: 2, status: 429, body: throttled}, {method: "GET", path: "/federatedIdentityCredentials", times: 2, status: 429, body: throttled}}
	d.must(Create, o, []string{"federated-identity created"}, PhaseFederated)
}

func TestWhoeverGivesUpIsToldWhy(t *testing.T) {
	d := newDesk(t)
	o := d.managed()
	d.must(Create, o, []string{"managed-identity created"}, PhaseIdentity)
	ctx, cancel := context.WithCancel(t.Context())
	hits := 0
	d.faults = []*fault{{method: "PUT", path: "/roleAssignments/", times: 1 << 30, status: 400, body: principalNotFound, then: func() {
		if hits++; hits == 3 {
			cancel()
		}
	}}}
	r := Runner{Options: o, Connect: func(context.Context) (*Azure, error) { return d.azure(), nil }, Wait: time.Millisecond}
	_, err := r.Run(ctx, Create, []string{PhaseRoleAssignment})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "PrincipalNotFound") {
		t.Error(err)
	}
}

// A recorder answers for all of a cloud, and remembers its hosts.
type recorder struct{ seen map[string]bool }

func (r recorder) Do(req *http.Request) (*http.Response, error) {
	r.seen[req.URL.Host] = true
	body := `{"value":[],"id":"o","appId":"a"}`
	switch {
	case strings.Contains(req.URL.Path, "/roleDefinitions"):
		body = `{"value":[{"id":"/providers/Microsoft.Authorization/roleDefinitions/r","properties":{"roleName":"Reader"}}]}`
	case strings.Contains(req.URL.Path, "/roleAssignments/"):
		body = `{}`
	}
	status := http.StatusCreated
	if req.Method == http.MethodGet {
		status = http.StatusOK
	}
	return &http.Response{StatusCode: status, Request: req, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
}

func (r recorder) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	r.seen[strings.Join(o.Scopes, " ")] = true
	return azcore.AccessToken{Token: "t", ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func TestEverythingGoesToTheCloudThatWasChosen(t *testing.T) {
	for name, want := range map[string][]string{
		arm.China:      {"https://management.core.chinacloudapi.cn//.default", "https://microsoftgraph.chinacloudapi.cn/.default", "management.chinacloudapi.cn", "microsoftgraph.chinacloudapi.cn"},
		arm.Government: {"graph.microsoft.us", "https://graph.microsoft.us/.default", "https://management.core.usgovcloudapi.net//.default", "management.usgovcloudapi.net"},
	} {
		cloud, err := arm.CloudByName(name)
		if err != nil {
			t.Fatal(err)
		}
		rec := recorder{map[string]bool{}}
		r := Runner{
			Options: Options{Namespace: "n", Name: "payroll", Issuer: issuer, Scope: "/subscriptions/11111111-2222-3333-4444-555555555555", Role: "Reader"},
			Connect: func(context.Context) (*Azure, error) {
				return &Azure{Cloud: cloud, Credential: rec, TenantID: "t", SubscriptionID: "s", Options: policy.ClientOptions{Transport: rec, Retry: policy.RetryOptions{MaxRetries: -1}}}, nil
			},
		}
		if _, err := r.Run(t.Context(), Create, []string{PhaseApplication, PhaseFederated, PhaseRoleAssignment}); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(rec.seen))); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}

func TestARoleThatCannotBeAssignedIsAnError(t *testing.T) {
	d := newDesk(t)
	o := d.managed()
	d.faults = []*fault{{method: "PUT", path: "/roleAssignments/", times: 1 << 30, status: 403, body: `{"error":{"code":"AuthorizationFailed","message":"The client 'x' does not have authorization."}}`}}
	err := d.run(Create, o)
	if err == nil || !strings.Contains(err.Error(), "phase role-assignment: not allowed") || d.result.RoleAssignment != nil {
		t.Errorf("%v, %+v", err, d.result.RoleAssignment)
	}
	// What was done before is known, and going on is doing it again.
	if len(d.result.Steps) != 3 {
		t.Errorf("steps %q", d.steps)
	}
	d.faults = nil
	d.must(Create, o, []string{"managed-identity unchanged", "service-account unchanged", "federated-identity unchanged", "role-assignment created"})
}

func TestAnAssignmentUnderAnotherNameIsEnough(t *testing.T) {
	d := newDesk(t)
	o := d.managed()
	d.must(Create, o, []string{"managed-identity created"}, PhaseIdentity)
	d.cloud.Do("PUT", d.group()+"/providers/Microsoft.Authorization/roleAssignments/0d0e7f5e-7d5c-4c7e-9a39-3d1f2b8f1c11", map[string]any{"properties": map[string]string{
		"principalId":      d.result.Identity.PrincipalID,
		"roleDefinitionId": "/subscriptions/" + d.cloud.Subscription + "/providers/Microsoft.Authorization/roleDefinitions/acdd72a7-3385-48ef-bd42-f606fba81ae7",
	}}, nil)
	d.must(Create, o, []string{"role-assignment unchanged"}, PhaseRoleAssignment)
	// It is not ours: it stays.
	d.must(Delete, o, []string{"role-assignment absent"}, PhaseRoleAssignment)
	if got := d.assignments(d.result.Identity.PrincipalID); len(got) != 1 {
		t.Errorf("role assignments %q", got)
	}
}

func TestWhoMayNotInTheClusterIsToldWhatIsMissing(t *testing.T) {
	d := newDesk(t)
	config := cluster.Config(t)
	config.Impersonate = rest.ImpersonationConfig{UserName: "alice"}
	var err error
	if d.cluster, err = NewCluster(config); err != nil {
		t.Fatal(err)
	}
	o := d.options()
	o.ApplicationClientID = "x"
	for verb, want := range map[Verb]string{Create: "needs the verb get on serviceaccounts in namespace " + d.namespace, Delete: "needs the verb delete on serviceaccounts"} {
		if err := d.run(verb, o, PhaseAccount); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", verb, err)
		}
	}
}

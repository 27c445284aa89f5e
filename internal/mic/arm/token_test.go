package arm_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azarm "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	azcloud "github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/mic/arm"
)

// named is a credential that always has the same token, good for an hour.
type named string

func (n named) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(n), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// A token that Azure refuses, because a clock is wrong or it was revoked, is
// not the reason for an hour without assignments.
func TestATokenThatIsRefusedIsNotUsedAgain(t *testing.T) {
	var asked []string
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get("Authorization")
		asked = append(asked, token)
		w.Header().Set("Content-Type", "application/json")
		if token == "Bearer old" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"error":{"code":"ExpiredAuthenticationToken","message":"m"}}`)
			return
		}
		fmt.Fprint(w, `{}`)
	}))
	t.Cleanup(srv.Close)
	made := 0
	client := &arm.Client{Source: &arm.Connection{
		Credential: named("old"),
		Anew:       func() (azcore.TokenCredential, error) { made++; return named(fmt.Sprint("new-", made)), nil },
		Options: azarm.ClientOptions{DisableRPRegistration: true, ClientOptions: policy.ClientOptions{
			Transport: srv.Client(), Retry: policy.RetryOptions{MaxRetries: -1},
			Cloud: azcloud.Configuration{Services: map[azcloud.ServiceName]azcloud.ServiceConfiguration{azcloud.ResourceManager: {Endpoint: srv.URL, Audience: "a"}}},
		}},
	}}
	for _, kind := range []string{"virtualMachines", "virtualMachineScaleSets", "virtualMachines"} {
		_, err := client.Identities(t.Context(), must(azure.ParseResourceID(group+"/providers/Microsoft.Compute/"+kind+"/m")))
		var e *arm.Error
		if refused := errors.As(err, &e) && e.Status == http.StatusUnauthorized; refused != (len(asked) == 1) {
			t.Errorf("request %d: %v", len(asked), err)
		}
	}
	if diff := cmp.Diff([]string{"Bearer old", "Bearer new-1", "Bearer new-1"}, asked); diff != "" {
		t.Errorf("tokens (-want +got)\n%s", diff)
	}
}

// An account that Azure never accepts is not a flood of requests to Entra.
func TestAnAccountThatIsNeverAcceptedIsRenewedSeldom(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	t.Cleanup(srv.Close)
	made := 0
	client := &arm.Client{Source: &arm.Connection{
		Credential: named("t"),
		Anew:       func() (azcore.TokenCredential, error) { made++; return named("t"), nil },
		Options: azarm.ClientOptions{DisableRPRegistration: true, ClientOptions: policy.ClientOptions{
			Transport: srv.Client(), Retry: policy.RetryOptions{MaxRetries: -1},
			Cloud: azcloud.Configuration{Services: map[azcloud.ServiceName]azcloud.ServiceConfiguration{azcloud.ResourceManager: {Endpoint: srv.URL, Audience: "a"}}},
		}},
	}}
	began := time.Now()
	for range 50 {
		if _, err := client.Identities(t.Context(), must(azure.ParseResourceID(group+"/providers/Microsoft.Compute/virtualMachines/m"))); err == nil {
			t.Fatal("no error")
		}
	}
	if most := 1 + int(time.Since(began)/time.Second); made < 1 || made > most {
		t.Errorf("the credential was made %d times, want at most %d", made, most)
	}
}

package proxy

import (
	"crypto/rand"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/lanyard-id/lanyard/internal/entra"
)

// A wire leads what an SDK sends to the metadata service to the proxy, and what
// it sends to Entra to the fake one.
type wire struct {
	f     *fixture
	proxy int // requests to the metadata service
}

func (w *wire) Do(r *http.Request) (*http.Response, error) {
	switch {
	case r.URL.Host == "169.254.169.254":
		w.proxy++
		r.URL.Host = strings.TrimPrefix(w.f.url, "http://")
		return (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
	case strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration"):
		base := "https://" + r.URL.Host + "/" + tenant
		return &http.Response{
			StatusCode: http.StatusOK, Request: r, Header: http.Header{"Content-Type": {"application/json"}},
			Body: io.NopCloser(strings.NewReader(`{"token_endpoint":"` + base + `/oauth2/v2.0/token","authorization_endpoint":"` + base + `/oauth2/v2.0/authorize","issuer":"` + base + `/v2.0"}`)),
		}, nil
	}
	res, err := w.f.entra.RoundTrip(r)
	if res != nil {
		res.Request = r
	}
	return res, err
}

// resource is one that nobody asked for before: the SDK keeps tokens of managed
// identities for the whole process.
func resource() string { return "api://" + rand.Text() }

func TestTheAzureSDKGetsTokensByManagedIdentity(t *testing.T) {
	for name, tt := range map[string]struct {
		id    azidentity.ManagedIDKind
		oid   string // of the token
		error string
	}{
		"the default":                {nil, mineOID, ""},
		"by client id":               {azidentity.ClientID(other), otherOID, ""},
		"by object id":               {azidentity.ObjectID(mineOID), mineOID, ""},
		"by resource id":             {azidentity.ResourceID(mineARM), mineOID, ""},
		"by another's object id":     {azidentity.ObjectID(otherOID), "", "Identity not found"},
		"by a resource id of no one": {azidentity.ResourceID(mineARM + "2"), "", "Identity not found"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{f: newFixture(t)}
			cred, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ClientOptions: azcore.ClientOptions{Transport: w}, ID: tt.id})
			if err != nil {
				t.Fatal(err)
			}
			got, err := cred.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{resource() + "/.default"}})
			if tt.error != "" {
				if err == nil || !strings.Contains(err.Error(), tt.error) || w.proxy != 1 {
					t.Errorf("got %v after %d requests, want %q after one", err, w.proxy, tt.error)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if oid := (answer{AccessToken: got.Token}).claim(t, "oid"); oid != tt.oid {
				t.Errorf("got a token of %s, want one of %s", oid, tt.oid)
			}
		})
	}
}

// v1.6 answered 500 to everything that Entra refused, and SDKs asked again for a
// minute.
func TestTheAzureSDKDoesNotRepeatWhatEntraRefused(t *testing.T) {
	w := &wire{f: newFixture(t)}
	w.f.entra.refuse = refusal(400, 700016, "unauthorized_client", "Application with identifier 'x' was not found")
	cred, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ClientOptions: azcore.ClientOptions{Transport: w}, ID: azidentity.ClientID(other)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = cred.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{resource() + "/.default"}})
	if err == nil || !strings.Contains(err.Error(), "AADSTS700016") || w.proxy != 1 {
		t.Errorf("got %v after %d requests", err, w.proxy)
	}
}

func TestWithWorkloadIdentityTheAzureSDKGetsTheSameIdentity(t *testing.T) {
	w := &wire{f: newFixture(t)}
	options := azcore.ClientOptions{Transport: w}
	direct, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
		ClientOptions: options, ClientID: mine, TenantID: tenant, TokenFilePath: w.f.file, DisableInstanceDiscovery: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	through, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ClientOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	both := [2]string{}
	for i, cred := range []azcore.TokenCredential{direct, through} {
		got, err := cred.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{resource() + "/.default"}})
		if err != nil {
			t.Fatal(err)
		}
		both[i] = (answer{AccessToken: got.Token}).claim(t, "oid")
	}
	if both[0] != mineOID || both[1] != mineOID {
		t.Errorf("got tokens of %v, want both of %s", both, mineOID)
	}
	for i, q := range w.f.entra.requests {
		if q.Assertion != federated || q.AssertionType != entra.AssertionTypeJWT || q.ClientID != mine {
			t.Errorf("exchange %d was %+v", i, q)
		}
	}
	if n := len(w.f.entra.requests); n != 2 {
		t.Errorf("Entra was asked %d times", n)
	}
	w.f.entra.set(func(e *fakeEntra) {
		e.refuse = refusal(400, 500011, "invalid_resource", "The resource principal was not found")
	})
	if _, err := through.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{resource() + "/.default"}}); err == nil || !strings.Contains(err.Error(), "AADSTS500011") {
		t.Errorf("got %v", err)
	}
}

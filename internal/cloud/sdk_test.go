package cloud

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

const (
	issuerHost = "oidc.cluster.example"
	issuerURL  = "https://" + issuerHost + "/tenant-1/"
	subject    = "system:serviceaccount:default:demo"
	identityID = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo"
)

// A cluster signs service account tokens and publishes its keys.
type cluster struct {
	t   *testing.T
	key *rsa.PrivateKey
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{t, key}
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var v any
	switch r.URL.Path {
	case "/tenant-1/.well-known/openid-configuration":
		v = oidc.Configuration{Issuer: issuerURL, JWKSURI: issuerURL + "openid/v1/jwks"}
	case "/tenant-1/openid/v1/jwks":
		v = oidc.KeySet{Keys: []oidc.Key{oidc.NewKey("k1", &c.key.PublicKey)}}
	default:
		http.NotFound(w, r)
		return
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		c.t.Error(err)
	}
}

// token is a token as the API server's TokenRequest makes it: without typ.
func (c *cluster) token() string {
	now := time.Now()
	raw, err := oidc.Sign(c.key, map[string]any{"kid": "k1"}, map[string]any{
		"iss": issuerURL, "sub": subject, "aud": []string{azure.AudienceExchange},
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return raw
}

// TestAzureIdentity runs the real SDK, unmodified, through the proxy and by
// direct dial.
func TestAzureIdentity(t *testing.T) {
	cl := newCluster(t)
	f := start(t, Config{Hosts: map[string]http.Handler{issuerHost: cl}})
	certs, key, der := newCertificate(t)
	var (
		secret string
		app    directory.Application
		sp, id directory.ServicePrincipal
	)
	f.update(func(tx *state.Tx) (err error) {
		if app, sp, err = directory.CreateApplication(tx, "app"); err != nil {
			return err
		}
		if secret, err = directory.AddPassword(tx, app.ObjectID, "secret", time.Now().Add(time.Hour)); err != nil {
			return err
		}
		if _, err = directory.AddCertificate(tx, app.ObjectID, "certificate", der); err != nil {
			return err
		}
		if id, err = directory.CreateManagedIdentity(tx, identityID); err != nil {
			return err
		}
		_, err = directory.PutFederatedCredential(tx, id.ID, directory.FederatedCredential{
			Name: "demo", Issuer: issuerURL, Subject: subject, Audiences: []string{azure.AudienceExchange},
		})
		return err
	})
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte(cl.token()), 0o600); err != nil {
		t.Fatal(err)
	}
	for route, client := range map[string]*http.Client{"through the proxy": f.proxied(), "by direct dial": f.direct()} {
		opts := azcore.ClientOptions{Transport: client}
		for name, tt := range map[string]struct {
			credential func() (azcore.TokenCredential, error)
			principal  directory.ServicePrincipal
			lifetime   time.Duration
		}{
			"a client secret": {func() (azcore.TokenCredential, error) {
				return azidentity.NewClientSecretCredential(f.tenant.ID, sp.AppID, secret, &azidentity.ClientSecretCredentialOptions{ClientOptions: opts})
			}, sp, 3599 * time.Second},
			"a client secret and the tenant's domain": {func() (azcore.TokenCredential, error) {
				return azidentity.NewClientSecretCredential(f.tenant.Domain, sp.AppID, secret, &azidentity.ClientSecretCredentialOptions{ClientOptions: opts})
			}, sp, 3599 * time.Second},
			"a certificate": {func() (azcore.TokenCredential, error) {
				return azidentity.NewClientCertificateCredential(f.tenant.ID, sp.AppID, certs, key, &azidentity.ClientCertificateCredentialOptions{ClientOptions: opts})
			}, sp, 3599 * time.Second},
			"a certificate chain in the header": {func() (azcore.TokenCredential, error) {
				return azidentity.NewClientCertificateCredential(f.tenant.ID, sp.AppID, certs, key, &azidentity.ClientCertificateCredentialOptions{ClientOptions: opts, SendCertificateChain: true})
			}, sp, 3599 * time.Second},
			"an assertion": {func() (azcore.TokenCredential, error) {
				return azidentity.NewClientAssertionCredential(f.tenant.ID, id.AppID, func(context.Context) (string, error) { return cl.token(), nil }, &azidentity.ClientAssertionCredentialOptions{ClientOptions: opts})
			}, id, 86399 * time.Second},
			"workload identity": {func() (azcore.TokenCredential, error) {
				return azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{ClientOptions: opts, TenantID: f.tenant.ID, ClientID: id.AppID, TokenFilePath: tokenFile})
			}, id, 86399 * time.Second},
		} {
			t.Run(name+" "+route, func(t *testing.T) {
				cred, err := tt.credential()
				if err != nil {
					t.Fatal(err)
				}
				for _, res := range []string{azure.ResourceVault, azure.ResourceManagement, "https://management.core.windows.net/"} {
					before := time.Now().Truncate(time.Second)
					tok, err := cred.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{res + "/.default"}, EnableCAE: true})
					if err != nil {
						t.Fatal(err)
					}
					if life := tok.ExpiresOn.Sub(before); life < tt.lifetime-time.Second || life > tt.lifetime+10*time.Second {
						t.Errorf("lifetime %s, want %s", life, tt.lifetime)
					}
					c, err := f.login.Verify(t.Context(), tok.Token, res)
					if err != nil {
						t.Fatal(err)
					}
					if c.AppID != tt.principal.AppID || c.ObjectID != tt.principal.ID || c.Audience != res {
						t.Errorf("claims = %+v", c)
					}
					if log := f.log.String(); strings.Contains(log, tok.Token) || strings.Contains(log, secret) {
						t.Error("a secret is in the log")
					}
				}
			})
		}
	}
	log := f.log.String()
	for _, want := range []string{"token issued", "client=" + id.AppID, "host=login.microsoftonline.com method=POST path=/" + f.tenant.ID + "/oauth2/v2.0/token status=200", "host=oidc.cluster.example method=GET"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	if n := strings.Count(log, "path=/tenant-1/openid/v1/jwks"); n != 1 {
		t.Errorf("the issuer's keys were fetched %d times, want once", n)
	}
	f = f.restart()
	cred, err := azidentity.NewClientSecretCredential(f.tenant.ID, sp.AppID, secret, &azidentity.ClientSecretCredentialOptions{ClientOptions: azcore.ClientOptions{Transport: f.direct()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cred.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{azure.ResourceVault + "/.default"}}); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func newCertificate(t *testing.T) ([]*x509.Certificate, *rsa.PrivateKey, []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "app"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{cert}, key, der
}

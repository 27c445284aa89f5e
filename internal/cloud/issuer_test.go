package cloud

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/control"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

// An issuer that publishes its documents on the cloud's own blobs is fetched
// in process, and a rotated key counts as soon as the setting allows.
func TestAnIssuerOnBlobs(t *testing.T) {
	f := start(t, Config{Settings: control.Settings{JWKSRefetch: fault.Duration(time.Second)}})
	const issuer = "https://lanyardoidc." + azure.SuffixBlob + "/cluster/"
	seeded, err := f.Seed(t.Context(), Seed{
		ResourceGroup: "rg", Accounts: []SeedAccount{{Name: "lanyardoidc", Public: true}},
		Identities: []SeedIdentity{{Name: "demo", Federated: []directory.FederatedCredential{{Name: "demo", Issuer: issuer, Subject: subject, Audiences: []string{azure.AudienceExchange}}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	options := azcore.ClientOptions{Transport: f.direct()}
	owner, err := azidentity.NewClientSecretCredential(seeded.Tenant.ID, seeded.Operator.ClientID, string(seeded.Operator.Secret), &azidentity.ClientSecretCredentialOptions{ClientOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := azblob.NewClient(seeded.Accounts["lanyardoidc"], owner, &azblob.ClientOptions{ClientOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blobs.CreateContainer(t.Context(), "cluster", &azblob.CreateContainerOptions{Access: to.Ptr(azblob.PublicAccessTypeBlob)}); err != nil {
		t.Fatal(err)
	}
	publish := func(name string, v any) {
		t.Helper()
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := blobs.UploadBuffer(t.Context(), "cluster", name, raw, nil); err != nil {
			t.Fatal(err)
		}
	}
	exchange := func(kid string, c *cluster) error {
		now := time.Now()
		raw, err := oidc.Sign(c.key, map[string]any{"kid": kid}, map[string]any{
			"iss": issuer, "sub": subject, "aud": []string{azure.AudienceExchange}, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		})
		if err != nil {
			t.Fatal(err)
		}
		cred, err := azidentity.NewClientAssertionCredential(seeded.Tenant.ID, seeded.Identities["demo"].ClientID, func(context.Context) (string, error) { return raw, nil }, &azidentity.ClientAssertionCredentialOptions{ClientOptions: azcore.ClientOptions{Transport: f.direct()}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = cred.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{azure.ResourceVault + "/.default"}})
		return err
	}
	one, two := newCluster(t), newCluster(t)
	publish(".well-known/openid-configuration", oidc.Configuration{Issuer: issuer, JWKSURI: issuer + "openid/v1/jwks"})
	publish("openid/v1/jwks", oidc.KeySet{Keys: []oidc.Key{oidc.NewKey("one", &one.key.PublicKey)}})
	if err := exchange("one", one); err != nil {
		t.Fatal(err)
	}
	f.Clock().Shift(time.Second)
	if err := exchange("two", two); err == nil || !strings.Contains(err.Error(), "AADSTS7000272") {
		t.Errorf("a key that is not published: %v", err)
	}
	publish("openid/v1/jwks", oidc.KeySet{Keys: []oidc.Key{oidc.NewKey("one", &one.key.PublicKey), oidc.NewKey("two", &two.key.PublicKey)}})
	f.Clock().Shift(time.Second)
	if err := exchange("two", two); err != nil {
		t.Errorf("the new key: %v", err)
	}
	if err := f.Check(); err != nil {
		t.Error(err)
	}
	if log := f.log.String(); !strings.Contains(log, "host=lanyardoidc.blob.core.windows.net method=GET path=/cluster/openid/v1/jwks status=200") {
		t.Error("the keys were not fetched from the blobs")
	}
	resp, err := f.direct().Do(getRequest(t, "https://nosuch."+azure.SuffixBlob+"/cluster/x"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("an account that is not there: %d", resp.StatusCode)
	}
}

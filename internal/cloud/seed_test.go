package cloud

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/management"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

const (
	demoTenant       = "aaaaaaaa-0000-4000-8000-000000000001"
	demoSubscription = "aaaaaaaa-0000-4000-8000-000000000002"
)

func demoSeed() Seed {
	return Seed{
		Tenant: directory.Tenant{ID: demoTenant}, SubscriptionID: demoSubscription, ResourceGroup: "demo",
		Identities: []SeedIdentity{
			{Name: "billing"},
			{Name: "web", Federated: []directory.FederatedCredential{{Name: "demo-web", Issuer: issuerURL, Subject: subject, Audiences: []string{azure.AudienceExchange}}}},
		},
		ScaleSets: []SeedScaleSet{{Name: "aks-nodepool1-vmss", Instances: 2, Identities: []string{"billing"}}},
		Vaults:    []SeedVault{{Name: "demo-vault", Secrets: map[string]string{"greeting": "hello"}}},
		Applications: []SeedApplication{
			{Name: "mic", IdentifierURIs: []string{"api://mic"}},
		},
		Roles: []SeedRole{
			{To: "web", Role: azure.RoleKeyVaultSecretsUser, On: "providers/Microsoft.KeyVault/vaults/demo-vault"},
			{To: "mic", Role: azure.RoleManagedIdentityOperator},
			{To: "mic", Role: azure.RoleVirtualMachineContributor},
		},
	}
}

// seed seeds and checks every invariant.
func (f *fixture) seed(s Seed) Seeded {
	f.t.Helper()
	out, err := f.Seed(f.t.Context(), s)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, check := range []func(*state.Tx) error{directory.Check, management.Check} {
		if err := f.db.View(check); err != nil {
			f.t.Fatal(err)
		}
	}
	return out
}

func TestSeedIsIdempotentAndSurvivesARestart(t *testing.T) {
	f := start(t, Config{})
	first := f.seed(demoSeed())
	if first.Tenant.ID != demoTenant || first.SubscriptionID != demoSubscription || first.Vaults["demo-vault"] != "https://demo-vault.vault.azure.net" {
		t.Errorf("seeded = %+v", first)
	}
	secret := first.Applications["mic"].Secret
	if len(secret) != 40 || len(first.Operator.Secret) != 40 {
		t.Fatal("no secrets for mic and operator")
	}
	if s := fmt.Sprintf("%v %+v %#v %q", first, first, first.Operator, secret); strings.Contains(s, string(secret)) || strings.Contains(s, string(first.Operator.Secret)) {
		t.Error("the secrets print themselves")
	}
	f = f.restart()
	again := f.seed(demoSeed())
	want := first
	want.Operator.Secret = ""
	mic := want.Applications["mic"]
	mic.Secret = ""
	want.Applications = map[string]Principal{"mic": mic}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("second seed (-want +got):\n%s", diff)
	}

	cred := func(p Principal, secret Secret) azcore.TokenCredential {
		c, err := azidentity.NewClientSecretCredential(demoTenant, p.ClientID, string(secret), &azidentity.ClientSecretCredentialOptions{ClientOptions: azcore.ClientOptions{Transport: f.proxied()}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	read := func(c azcore.TokenCredential) (string, error) {
		client, err := azsecrets.NewClient(first.Vaults["demo-vault"], c, &azsecrets.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: f.proxied()}})
		if err != nil {
			t.Fatal(err)
		}
		s, err := client.GetSecret(t.Context(), "greeting", "", nil)
		if err != nil {
			return "", err
		}
		return *s.Value, nil
	}
	if got, err := read(cred(first.Operator, first.Operator.Secret)); err != nil || got != "hello" {
		t.Errorf("operator reads %q, %v", got, err)
	}
	var refused *azcore.ResponseError
	if _, err := read(cred(mic, secret)); !errors.As(err, &refused) || refused.StatusCode != 403 {
		t.Errorf("mic without the role: %v, want 403", err)
	}

	imds := httptest.NewServer(f.Metadata(first.ScaleSets["aks-nodepool1-vmss"] + "/virtualMachines/0"))
	defer imds.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, imds.URL+"/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Metadata", "true")
	resp, err := imds.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var tok struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&tok); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("metadata: status %d, %v", resp.StatusCode, err)
	}
	if c, err := f.login.Verify(t.Context(), tok.AccessToken, azure.ResourceVault); err != nil || c.ObjectID != first.Identities["billing"].PrincipalID {
		t.Errorf("metadata gave a token of %+v, %v", c, err)
	}

	renew := demoSeed()
	renew.Applications[0].NewSecret = true
	renewed := f.seed(renew).Applications["mic"].Secret
	if renewed == "" || renewed == secret {
		t.Error("NewSecret made no new secret")
	}
	if _, err := read(cred(mic, secret)); err == nil || !strings.Contains(err.Error(), "AADSTS7000215") {
		t.Errorf("the old secret: %v, want AADSTS7000215", err)
	}
}

func TestSeedRefuses(t *testing.T) {
	f := start(t, Config{})
	f.seed(demoSeed())
	for name, change := range map[string]func(*Seed){
		"another tenant than the state directory's": func(s *Seed) { s.Tenant.ID = demoSubscription },
		"no resource group":                         func(s *Seed) { s.ResourceGroup = "" },
		"a subscription id that is no GUID":         func(s *Seed) { s.SubscriptionID = "demo" },
		"two identities of one name":                func(s *Seed) { s.Identities = append(s.Identities, SeedIdentity{Name: "web"}) },
		"an application named like the operator":    func(s *Seed) { s.Applications[0].Name = OperatorName },
		"a role for nobody":                         func(s *Seed) { s.Roles[0].To = "nobody" },
		"a role that does not exist":                func(s *Seed) { s.Roles[0].Role = demoTenant },
		"a scale set with an unknown identity":      func(s *Seed) { s.ScaleSets[0].Identities = []string{"nobody"} },
		"a vault name that is none":                 func(s *Seed) { s.Vaults[0].Name = "x" },
		"a location that does not exist":            func(s *Seed) { s.Location = "moon"; s.ResourceGroup = "other" },
	} {
		t.Run(name, func(t *testing.T) {
			s := demoSeed()
			change(&s)
			if out, err := f.Seed(t.Context(), s); err == nil {
				t.Errorf("seeded %+v", out)
			}
			if err := f.db.View(directory.Check); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSeededApplicationsHaveTheirPermissions(t *testing.T) {
	f := start(t, Config{})
	seed := Seed{ResourceGroup: "rg", Applications: []SeedApplication{
		{Name: "controller", Permissions: []string{azure.PermissionApplicationReadWriteOwnedBy}},
		{Name: "shop", Owners: []string{"controller"}}, {Name: "other"},
	}}
	var seeded Seeded
	for range 2 { // a second time changes nothing
		var err error
		if seeded, err = f.Seed(t.Context(), seed); err != nil {
			t.Fatal(err)
		}
	}
	token, err := f.login.ApplicationToken(t.Context(), seeded.Applications["controller"].PrincipalID, azure.ResourceGraph)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := oidc.Parse(token.AccessToken)
	if err != nil || string(parsed.Claims["roles"]) != `["Application.ReadWrite.OwnedBy"]` {
		t.Errorf("roles in the token: %s, %v", parsed.Claims["roles"], err)
	}
	for name, want := range map[string]int{"shop": http.StatusCreated, "other": http.StatusForbidden} {
		body := `{"name":"one","issuer":"https://oidc.example/","subject":"s","audiences":["a"]}`
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
			azure.ResourceGraph+"/v1.0/applications(appId='"+seeded.Applications[name].ClientID+"')/federatedIdentityCredentials", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token.AccessToken)
		req.Header.Set("Content-Type", "application/json")
		resp, err := f.direct().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", name, resp.StatusCode, want)
		}
	}
	seed.Applications[1].Owners = []string{"nobody"}
	if _, err := f.Seed(t.Context(), seed); err == nil {
		t.Error("an owner that is not in the seed is accepted")
	}
}

package directory

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

const identityID = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"

var expiry = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// fixture is a directory with a home tenant; do runs one transaction and
// then the invariant.
type fixture struct {
	t  *testing.T
	db *state.DB
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	db, err := state.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	f := fixture{t, db}
	f.ok(func(tx *state.Tx) error {
		_, err := PutTenant(tx, Tenant{DisplayName: "Contoso Ltd."})
		return err
	})
	return f
}

func (f fixture) do(fn func(*state.Tx) error) error {
	f.t.Helper()
	err := f.db.Update(fn)
	if bad := f.db.View(Check); bad != nil {
		f.t.Fatalf("the invariant is broken after %v: %v", err, bad)
	}
	return err
}

func (f fixture) ok(fn func(*state.Tx) error) {
	f.t.Helper()
	if err := f.do(fn); err != nil {
		f.t.Fatal(err)
	}
}

func (f fixture) identity(name string) (sp ServicePrincipal) {
	f.t.Helper()
	f.ok(func(tx *state.Tx) (err error) {
		sp, err = CreateManagedIdentity(tx, identityID+name)
		return err
	})
	return sp
}

func (f fixture) application(name string) (app Application, sp ServicePrincipal) {
	f.t.Helper()
	f.ok(func(tx *state.Tx) (err error) {
		app, sp, err = CreateApplication(tx, name)
		return err
	})
	return app, sp
}

func credential(name string) FederatedCredential {
	return FederatedCredential{
		Name: name, Issuer: "https://oidc.example/cluster/", Subject: "system:serviceaccount:ns:" + name,
		Audiences: []string{"api://AzureADTokenExchange"},
	}
}

func TestTenants(t *testing.T) {
	f := newFixture(t)
	put := func(t Tenant) (got Tenant, err error) {
		err = f.do(func(tx *state.Tx) error {
			got, err = PutTenant(tx, t)
			return err
		})
		return got, err
	}
	second, err := put(Tenant{ID: "AAAAAAAA-bbbb-cccc-dddd-eeeeeeeeeeee", DisplayName: "Fabrikam", Domain: "Fabrikam.Example"})
	if err != nil {
		t.Fatal(err)
	}
	f.ok(func(tx *state.Tx) error {
		home, err := HomeTenant(tx)
		if err != nil || home.DisplayName != "Contoso Ltd." || home.Domain != "contosoltd.onmicrosoft.com" {
			t.Errorf("home tenant = %v, %v; want the first one", home, err)
		}
		for _, name := range []string{"aaaaaaaa-BBBB-cccc-dddd-eeeeeeeeeeee", "FABRIKAM.example"} {
			got, ok, err := TenantByName(tx, name)
			if err != nil || !ok || got != second {
				t.Errorf("TenantByName(%q) = %v, %v, %v", name, got, ok, err)
			}
		}
		if _, ok, err := TenantByName(tx, "nowhere.example"); ok || err != nil {
			t.Errorf("found nowhere.example: %v", err)
		}
		return nil
	})
	for name, tt := range map[string]struct {
		in   Tenant
		want error
	}{
		"an id that is no GUID is refused":       {Tenant{ID: "contoso", DisplayName: "x"}, ErrInvalid},
		"a tenant needs a display name":          {Tenant{}, ErrInvalid},
		"a domain is a domain name":              {Tenant{DisplayName: "x", Domain: "not a domain"}, ErrInvalid},
		"two tenants cannot share their domain":  {Tenant{DisplayName: "x", Domain: "fabrikam.example"}, ErrExists},
		"a domain cannot look like a path":       {Tenant{DisplayName: "x", Domain: "../x.example"}, ErrInvalid},
		"a long name still makes a short domain": {Tenant{DisplayName: strings.Repeat("y", 200)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := put(tt.in); !errors.Is(err, tt.want) {
				t.Errorf("PutTenant(%v) = %v, want %v", tt.in, err, tt.want)
			}
		})
	}
}

func TestManagedIdentityHasOnePrincipalPerResource(t *testing.T) {
	f := newFixture(t)
	sp := f.identity("billing")
	if sp.Type != TypeManagedIdentity || sp.DisplayName != "billing" || !sp.UserAssigned() || sp.ID == sp.AppID {
		t.Errorf("principal = %+v", sp)
	}
	err := f.do(func(tx *state.Tx) error {
		_, err := CreateManagedIdentity(tx, strings.ToUpper(identityID[:1])+identityID[1:]+"BILLING")
		return err
	})
	if !errors.Is(err, ErrExists) {
		t.Errorf("same id in another case: %v, want ErrExists", err)
	}
	for _, bad := range []string{"", "billing", "/subscriptions/x/"} {
		err := f.do(func(tx *state.Tx) error {
			_, err := CreateManagedIdentity(tx, bad)
			return err
		})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("CreateManagedIdentity(%q) = %v, want ErrInvalid", bad, err)
		}
	}
	f.ok(func(tx *state.Tx) error {
		for what, find := range map[string]func() (ServicePrincipal, bool, error){
			"id":     func() (ServicePrincipal, bool, error) { return ServicePrincipalByID(tx, strings.ToUpper(sp.ID)) },
			"app id": func() (ServicePrincipal, bool, error) { return ServicePrincipalByAppID(tx, strings.ToUpper(sp.AppID)) },
			"resource": func() (ServicePrincipal, bool, error) {
				return ServicePrincipalByResource(tx, strings.ToLower(sp.ResourceID))
			},
		} {
			got, ok, err := find()
			if err != nil || !ok || got != sp {
				t.Errorf("by %s: %v, %v, %v", what, got, ok, err)
			}
		}
		return nil
	})
	f.ok(func(tx *state.Tx) error {
		_, err := PutFederatedCredential(tx, sp.ID, credential("one"))
		return err
	})
	f.ok(func(tx *state.Tx) error {
		existed, err := DeleteServicePrincipal(tx, sp.ID)
		if !existed {
			t.Error("the principal did not exist")
		}
		return err
	})
	f.ok(func(tx *state.Tx) error {
		if existed, err := DeleteServicePrincipal(tx, sp.ID); existed || err != nil {
			t.Errorf("second delete = %v, %v", existed, err)
		}
		all, err := ListFederatedCredentials(tx, sp.ID)
		if len(all) != 0 {
			t.Errorf("credentials outlived the identity: %v", all)
		}
		return err
	})
	if again := f.identity("billing"); again.ID == sp.ID || again.AppID == sp.AppID {
		t.Error("a new identity of the same name got the ids of the old one")
	}
}

func TestApplicationAndItsSecrets(t *testing.T) {
	f := newFixture(t)
	app, sp := f.application("mic")
	var secret string
	f.ok(func(tx *state.Tx) (err error) {
		secret, err = AddPassword(tx, app.ObjectID, "first", expiry)
		return err
	})
	if len(secret) != 40 || strings.Contains(mustJSON(t, f.read(app.AppID)), secret) {
		t.Errorf("secret has %d characters, or is stored", len(secret))
	}
	p := f.read(app.AppID).Passwords[0]
	if !p.Matches(secret) || p.Matches(secret+"x") || p.Matches("") || (PasswordCredential{}).Matches("") {
		t.Error("Matches does not tell the right secret from others")
	}
	if p.Hint != secret[:3] || !p.NotAfter.Equal(expiry) {
		t.Errorf("credential = %+v", p)
	}
	for name, fn := range map[string]func(tx *state.Tx) error{
		"no expiry":         func(tx *state.Tx) error { _, err := AddPassword(tx, app.ObjectID, "x", time.Time{}); return err },
		"a bad uri":         func(tx *state.Tx) error { return SetIdentifierURIs(tx, app.ObjectID, "no uri") },
		"a bad version":     func(tx *state.Tx) error { return SetTokenVersion(tx, app.ObjectID, 3) },
		"no name":           func(tx *state.Tx) error { _, _, err := CreateApplication(tx, ""); return err },
		"no certificate":    func(tx *state.Tx) error { _, err := AddCertificate(tx, app.ObjectID, "x", []byte("x")); return err },
		"an EC certificate": func(tx *state.Tx) error { _, err := AddCertificate(tx, app.ObjectID, "x", ecCert(t)); return err },
	} {
		if err := f.do(fn); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if err := f.do(func(tx *state.Tx) error { _, err := AddPassword(tx, sp.ID, "x", expiry); return err }); !errors.Is(err, ErrNotFound) {
		t.Errorf("AddPassword with the principal's id: %v, want ErrNotFound", err)
	}
	der := rsaCert(t)
	f.ok(func(tx *state.Tx) error { _, err := AddCertificate(tx, app.ObjectID, "cert", der); return err })
	if err := f.do(func(tx *state.Tx) error { _, err := AddCertificate(tx, app.ObjectID, "cert", der); return err }); !errors.Is(err, ErrExists) {
		t.Errorf("same certificate again: %v, want ErrExists", err)
	}
	f.ok(func(tx *state.Tx) error {
		return SetIdentifierURIs(tx, app.ObjectID, "api://mic", "https://mic.example/x")
	})
	other, _ := f.application("other")
	if err := f.do(func(tx *state.Tx) error { return SetIdentifierURIs(tx, other.ObjectID, "api://MIC") }); !errors.Is(err, ErrExists) {
		t.Errorf("taking another's URI: %v, want ErrExists", err)
	}
	f.ok(func(tx *state.Tx) error { return SetIdentifierURIs(tx, app.ObjectID, "api://mic") })
	f.ok(func(tx *state.Tx) error {
		got, ok, err := ApplicationByURI(tx, "API://mic")
		if err != nil || !ok || got.ObjectID != app.ObjectID {
			t.Errorf("ApplicationByURI = %v, %v, %v", got, ok, err)
		}
		if _, ok, _ := ApplicationByURI(tx, "https://mic.example/x"); ok {
			t.Error("a removed URI still resolves")
		}
		return nil
	})
	f.ok(func(tx *state.Tx) error {
		existed, err := RemovePassword(tx, app.ObjectID, p.KeyID)
		if !existed {
			t.Error("the password did not exist")
		}
		return err
	})
	if n := len(f.read(app.AppID).Passwords); n != 0 {
		t.Errorf("%d passwords left", n)
	}
	f.ok(func(tx *state.Tx) error { _, err := DeleteApplication(tx, app.ObjectID); return err })
	f.ok(func(tx *state.Tx) error {
		if _, ok, _ := ServicePrincipalByID(tx, sp.ID); ok {
			t.Error("the principal outlived its application")
		}
		return nil
	})
}

func (f fixture) read(appID string) (app Application) {
	f.t.Helper()
	f.ok(func(tx *state.Tx) (err error) {
		app, _, err = ApplicationByAppID(tx, appID)
		return err
	})
	return app
}

func TestFederatedCredentialRules(t *testing.T) {
	f := newFixture(t)
	app, appSP := f.application("app")
	id := f.identity("billing")
	var vm ServicePrincipal
	f.ok(func(tx *state.Tx) (err error) {
		vm, err = CreateManagedIdentity(tx, "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/vm")
		return err
	})
	change := func(fn func(*FederatedCredential)) FederatedCredential {
		fc := credential("cred")
		fn(&fc)
		return fc
	}
	long := strings.Repeat("é", 601)
	for name, tt := range map[string]struct {
		parent string
		fc     FederatedCredential
		want   error
	}{
		"an application can have one":               {app.ObjectID, credential("cred"), nil},
		"a user-assigned identity can have one":     {id.ID, credential("cred"), nil},
		"the parent's id is found in any case":      {strings.ToUpper(id.ID), credential("cred"), nil},
		"a system-assigned identity cannot":         {vm.ID, credential("cred"), ErrFederatedUnsupported},
		"an application's principal is no parent":   {appSP.ID, credential("cred"), ErrNotFound},
		"a parent must exist":                       {"nobody", credential("cred"), ErrNotFound},
		"a name of two characters is too short":     {app.ObjectID, change(func(f *FederatedCredential) { f.Name = "ab" }), ErrFederatedName},
		"a name of 121 characters is too long":      {app.ObjectID, change(func(f *FederatedCredential) { f.Name = strings.Repeat("a", 121) }), ErrFederatedName},
		"a name cannot start with a dash":           {app.ObjectID, change(func(f *FederatedCredential) { f.Name = "-abc" }), ErrFederatedName},
		"a name cannot hold a slash":                {app.ObjectID, change(func(f *FederatedCredential) { f.Name = "a/bc" }), ErrFederatedName},
		"a name cannot end in a line feed":          {app.ObjectID, change(func(f *FederatedCredential) { f.Name = "abc\n" }), ErrFederatedName},
		"an issuer is https":                        {app.ObjectID, change(func(f *FederatedCredential) { f.Issuer = "http://oidc.example/" }), ErrFederatedIssuer},
		"an issuer has no query":                    {app.ObjectID, change(func(f *FederatedCredential) { f.Issuer = "https://oidc.example/?a" }), ErrFederatedIssuer},
		"an issuer has no white space around it":    {app.ObjectID, change(func(f *FederatedCredential) { f.Issuer += " " }), ErrFederatedIssuer},
		"an issuer has at most 600 characters":      {app.ObjectID, change(func(f *FederatedCredential) { f.Issuer += long }), ErrFederatedIssuer},
		"a subject is required":                     {app.ObjectID, change(func(f *FederatedCredential) { f.Subject = "" }), ErrFederatedSubject},
		"a subject has at most 600 characters":      {app.ObjectID, change(func(f *FederatedCredential) { f.Subject = long }), ErrFederatedSubject},
		"a subject of 600 characters is fine":       {app.ObjectID, change(func(f *FederatedCredential) { f.Subject = long[:1200] }), nil},
		"a description has at most 600 characters":  {app.ObjectID, change(func(f *FederatedCredential) { f.Description = long }), ErrFederatedDescription},
		"no audience is refused":                    {app.ObjectID, change(func(f *FederatedCredential) { f.Audiences = nil }), ErrFederatedAudience},
		"two audiences are refused":                 {app.ObjectID, change(func(f *FederatedCredential) { f.Audiences = []string{"a", "b"} }), ErrFederatedAudience},
		"an empty audience is refused":              {app.ObjectID, change(func(f *FederatedCredential) { f.Audiences = []string{""} }), ErrFederatedAudience},
		"an audience that is not UTF-8 is refused":  {app.ObjectID, change(func(f *FederatedCredential) { f.Audiences = []string{"\xff"} }), ErrFederatedAudience},
		"a subject with control bytes is refused":   {app.ObjectID, change(func(f *FederatedCredential) { f.Subject = "a\x00b" }), ErrFederatedSubject},
		"an issuer without a host is refused":       {app.ObjectID, change(func(f *FederatedCredential) { f.Issuer = "https:///x" }), ErrFederatedIssuer},
		"an issuer with a user part is refused":     {app.ObjectID, change(func(f *FederatedCredential) { f.Issuer = "https://u@oidc.example" }), ErrFederatedIssuer},
		"a description of several lines is allowed": {app.ObjectID, change(func(f *FederatedCredential) { f.Description = "a\nb" }), nil},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			err := f.do(func(tx *state.Tx) error {
				_, err := PutFederatedCredential(tx, tt.parent, tt.fc)
				return err
			})
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestFederatedCredentialsAreReplacedByNameAndUniqueByIssuerAndSubject(t *testing.T) {
	f := newFixture(t)
	id := f.identity("billing")
	other := f.identity("other")
	put := func(parent string, fc FederatedCredential) (created bool, err error) {
		err = f.do(func(tx *state.Tx) error {
			created, err = PutFederatedCredential(tx, parent, fc)
			return err
		})
		return created, err
	}
	first := credential("One")
	if created, err := put(id.ID, first); err != nil || !created {
		t.Fatalf("first put: %v, %v", created, err)
	}
	moved := first
	moved.Name, moved.Subject = "ONE", "system:serviceaccount:ns:moved"
	if created, err := put(id.ID, moved); err != nil || created {
		t.Fatalf("put by another case of the name: %v, %v; want a replacement", created, err)
	}
	clash := moved
	clash.Name = "two"
	if _, err := put(id.ID, clash); !errors.Is(err, ErrFederatedDuplicate) || !errors.Is(err, ErrExists) {
		t.Fatalf("same issuer and subject: %v, want ErrFederatedDuplicate", err)
	}
	if _, err := put(other.ID, clash); err != nil {
		t.Fatalf("same issuer and subject under another identity: %v", err)
	}
	clash.Subject = strings.ToUpper(clash.Subject)
	if _, err := put(id.ID, clash); err != nil {
		t.Fatalf("subject in another case is another subject: %v", err)
	}
	for i := range MaxFederatedCredentials - 2 {
		if _, err := put(id.ID, credential(fmt.Sprintf("cred-%02d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := put(id.ID, credential("one-too-many")); !errors.Is(err, ErrFederatedLimit) {
		t.Fatalf("21st: %v, want ErrFederatedLimit", err)
	}
	if created, err := put(id.ID, credential("cred-00")); err != nil || created {
		t.Fatalf("replacing one of 20: %v, %v", created, err)
	}
	f.ok(func(tx *state.Tx) error {
		got, ok, err := GetFederatedCredential(tx, id.ID, "oNe")
		want := moved
		want.Name = "One"
		if diff := cmp.Diff(want, got); diff != "" || !ok {
			t.Errorf("credential (-want +got), found %v:\n%s", ok, diff)
		}
		return err
	})
	f.ok(func(tx *state.Tx) error {
		existed, err := DeleteFederatedCredential(tx, id.ID, "ONE")
		if !existed {
			t.Error("it did not exist")
		}
		return err
	})
	f.ok(func(tx *state.Tx) error {
		existed, err := DeleteFederatedCredential(tx, id.ID, "ONE")
		if existed {
			t.Error("it existed twice")
		}
		return err
	})
}

func TestCheckFindsWhatIsBroken(t *testing.T) {
	for name, breakIt := range map[string]func(tx *state.Tx, app Application, sp ServicePrincipal) error{
		"a federated credential without parent": func(tx *state.Tx, _ Application, _ ServicePrincipal) error {
			return state.Put(tx, bucketFederated, federatedKey("gone", "cred"), credential("cred"))
		},
		"two credentials with the same issuer and subject": func(tx *state.Tx, app Application, _ ServicePrincipal) error {
			for _, n := range []string{"one", "two"} {
				fc := credential("same")
				fc.Name = n
				if err := state.Put(tx, bucketFederated, federatedKey(app.ObjectID, n), fc); err != nil {
					return err
				}
			}
			return nil
		},
		"21 credentials": func(tx *state.Tx, app Application, _ ServicePrincipal) error {
			for i := range MaxFederatedCredentials + 1 {
				fc := credential(fmt.Sprintf("cred-%d", i))
				if err := state.Put(tx, bucketFederated, federatedKey(app.ObjectID, fc.Name), fc); err != nil {
					return err
				}
			}
			return nil
		},
		"a managed identity without resource": func(tx *state.Tx, _ Application, sp ServicePrincipal) error {
			sp.ResourceID = ""
			return state.Put(tx, bucketPrincipals, sp.ID, sp)
		},
		"two principals with one client id": func(tx *state.Tx, app Application, sp ServicePrincipal) error {
			sp.AppID = app.AppID
			return state.Put(tx, bucketPrincipals, sp.ID, sp)
		},
		"an index entry to nowhere": func(tx *state.Tx, _ Application, _ ServicePrincipal) error {
			return state.Put(tx, indexURI, "api://x", "nobody")
		},
		"an application of no tenant": func(tx *state.Tx, app Application, _ ServicePrincipal) error {
			app.TenantID = "gone"
			return putApplication(tx, app)
		},
		"an object under another's id": func(tx *state.Tx, app Application, _ ServicePrincipal) error {
			return state.Put(tx, bucketApps, "11111111-2222-3333-4444-555555555555", app)
		},
		"a principal whose application is gone": func(tx *state.Tx, app Application, _ ServicePrincipal) error {
			return state.Delete(tx, bucketApps, app.ObjectID)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			app, _ := f.application("app")
			sp := f.identity("billing")
			if err := f.db.Update(func(tx *state.Tx) error { return breakIt(tx, app, sp) }); err != nil {
				t.Fatal(err)
			}
			if err := f.db.View(Check); err == nil {
				t.Error("Check found nothing")
			}
		})
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func rsaCert(t *testing.T) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return selfSigned(t, &key.PublicKey, key)
}

func ecCert(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return selfSigned(t, &key.PublicKey, key)
}

func selfSigned(t *testing.T, pub, key any) []byte {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app"}, NotBefore: expiry.AddDate(-1, 0, 0), NotAfter: expiry}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

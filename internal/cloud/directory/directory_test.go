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
			if err != nil || !ok || !cmp.Equal(got, sp) {
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
	key := f.read(app.AppID).Keys[0].KeyID
	f.ok(func(tx *state.Tx) error { return RemoveCertificate(tx, app.ObjectID, key) })
	if n := len(f.read(app.AppID).Keys); n != 0 {
		t.Errorf("%d certificates left", n)
	}
	for name, fn := range map[string]func(tx *state.Tx) error{
		"a password that is gone":    func(tx *state.Tx) error { return ExpirePassword(tx, app.ObjectID, p.KeyID, expiry) },
		"a certificate that is gone": func(tx *state.Tx) error { return RemoveCertificate(tx, app.ObjectID, p.KeyID) },
	} {
		if err := f.do(fn); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", name, err)
		}
	}
}

func (f fixture) read(appID string) (app Application) {
	f.t.Helper()
	f.ok(func(tx *state.Tx) (err error) {
		app, _, err = ApplicationByAppID(tx, appID)
		return err
	})
	return app
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

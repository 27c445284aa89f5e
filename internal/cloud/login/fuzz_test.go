package login

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/entra"
)

// FuzzAssertion throws tokens at the check of assertions, with signatures
// that are wrong, and right ones for whatever header and claims. It must
// never panic, refuses with an AADSTS code, and accepts nothing that an
// independent reader would not also find to be signed by the issuer's (or
// the application's) key for this subject.
func FuzzAssertion(f *testing.F) {
	const good = `{"iss":"ISSUER","sub":"` + subject + `","aud":["api://AzureADTokenExchange"],"exp":1900000000}`
	f.Add(`{"alg":"RS256","kid":"k1"}`, good, "valid")
	f.Add(`{"alg":"RS256","kid":"k1","typ":"JWT"}`, good, "valid")
	f.Add(`{"alg":"RS256","kid":"k1","Kid":"k2"}`, good, "valid")
	f.Add(`{"alg":"RS256","kid":"k1"}`, good, "AAAA")
	f.Add(`{"alg":"none"}`, good, "")
	f.Add(`{"alg":"RS256","kid":"k1","crit":["x"]}`, good, "valid")
	f.Add(`{"alg":"RS256","kid":"k1"}`, `{"iss":"ISSUER","sub":["x"],"aud":{},"exp":1e400}`, "valid")
	f.Add(`{"alg":"PS256","x5t":"AAAA","x5c":["x"]}`, `{"iss":"CLIENT","sub":"CLIENT"}`, "valid")
	f.Add(`{"alg":"RS256","x5c":["CERT"]}`, `{"iss":"CLIENT","sub":"CLIENT","aud":"https://sts.windows.net/TENANT/","exp":1900000000}`, "valid")
	f.Add("", "", "")
	d := newDoor(f)
	pair := keyPair{key: d.issuer.key}
	pair.der = selfSigned(f, pair.key, d.clock.Now().Add(-time.Hour), d.clock.Now().Add(time.Hour))
	d.update(func(tx *state.Tx) error {
		_, err := directory.AddCertificate(tx, d.micApp.ObjectID, "certificate", pair.der)
		return err
	})
	c, err := d.server.client(d.tenant, d.mic.AppID, "https://vault.azure.net")
	if err != nil {
		f.Fatal(err)
	}
	names := strings.NewReplacer("ISSUER", d.issuer.url, "CLIENT", d.mic.AppID, "TENANT", d.tenant.ID, "CERT", stdBase64(pair.der))
	f.Fuzz(func(t *testing.T, header, claims, signature string) {
		raw := segment(names.Replace(header)) + "." + segment(names.Replace(claims))
		if signature == "valid" {
			sum := sha256.Sum256([]byte(raw))
			sig, err := rsa.SignPKCS1v15(rand.Reader, d.issuer.key, crypto.SHA256, sum[:])
			if err != nil {
				t.Fatal(err)
			}
			signature = segment(string(sig))
		}
		raw += "." + signature
		err := d.server.checkAssertion(t.Context(), c, entra.TokenRequest{ClientID: d.mic.AppID, Assertion: raw, AssertionType: entra.AssertionTypeJWT})
		if err != nil {
			if errorCode(err) == 0 {
				t.Fatalf("an error without a code: %v", err)
			}
			return
		}
		parsed, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.RS256})
		if err != nil {
			t.Fatalf("accepted %q, which go-jose does not parse: %v", raw, err)
		}
		var got map[string]json.RawMessage
		if err := parsed.Claims(&d.issuer.key.PublicKey, &got); err != nil {
			t.Fatalf("accepted %q: %v", raw, err)
		}
		iss, sub := string(got["iss"]), string(got["sub"])
		if federated := iss == quote(t, d.issuer.url) && sub == quote(t, subject); !federated && (iss != sub || !strings.EqualFold(iss, quote(t, d.mic.AppID))) {
			t.Fatalf("accepted issuer %s, subject %s", iss, sub)
		}
	})
}

func quote(t *testing.T, s string) string {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

package login

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

func TestCertificateAssertions(t *testing.T) {
	d := newDoor(t)
	now := d.clock.Now()
	pair := newKeyPair(t, now.Add(-time.Hour), now.Add(time.Hour))
	other := newKeyPair(t, now.Add(-time.Hour), now.Add(time.Hour))
	old := newKeyPair(t, now.Add(-2*time.Hour), now.Add(-time.Hour))
	d.update(func(tx *state.Tx) error {
		for _, p := range []keyPair{pair, old} {
			if _, err := directory.AddCertificate(tx, d.micApp.ObjectID, "certificate", p.der); err != nil {
				return err
			}
		}
		return nil
	})
	h1 := func(p keyPair) []byte { h := sha1.Sum(p.der); return h[:] }
	h256 := func(p keyPair) []byte { h := sha256.Sum256(p.der); return h[:] }
	x5t := func(p keyPair) map[string]any {
		return map[string]any{"x5t": base64.RawURLEncoding.EncodeToString(h1(p)), "typ": "JWT"}
	}
	claims := func(change map[string]any) map[string]any {
		c := map[string]any{
			"aud": "https://login.microsoftonline.com/" + d.tenant.ID + "/oauth2/v2.0/token", "iss": d.mic.AppID, "sub": d.mic.AppID,
			"jti": uuid.NewString(), "nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
		}
		for k, v := range change {
			if c[k] = v; v == nil {
				delete(c, k)
			}
		}
		return c
	}
	aud := func(s string) string {
		return sign(t, pair.key, oidc.RS256, x5t(pair), claims(map[string]any{"aud": s}))
	}
	chain := base64.StdEncoding.EncodeToString(pair.der)
	for name, tt := range map[string]struct {
		assertion    string
		code, status int // 0: accepted
	}{
		"PS256 with a padded x5t#S256, as MSAL for Go": {sign(t, pair.key, oidc.PS256, map[string]any{"typ": "JWT", "x5t#S256": base64.StdEncoding.EncodeToString(h256(pair))}, claims(nil)), 0, 0},
		"RS256 with x5t and x5c, as ADAL":              {sign(t, pair.key, oidc.RS256, map[string]any{"x5t": base64.URLEncoding.EncodeToString(h1(pair)), "x5c": []string{chain}}, claims(map[string]any{"aud": "https://login.microsoftonline.com/" + d.tenant.ID + "/oauth2/token?api-version=1.0", "exp": now.Add(24 * time.Hour).Unix()})), 0, 0},
		"segments with padding, as Python":             {signWith(t, pair.key, oidc.RS256, base64.URLEncoding, x5t(pair), claims(map[string]any{"jti": "padding needs an odd length.."})), 0, 0},
		"x5c alone":                                    {sign(t, pair.key, oidc.RS256, map[string]any{"x5c": []string{chain, "ignored"}}, claims(nil)), 0, 0},
		"the tenant's domain as audience":              {aud("https://login.windows.net/" + d.tenant.Domain + "/oauth2/token"), 0, 0},
		"the v2 issuer as audience":                    {aud("https://login.microsoftonline.com/" + d.tenant.ID + "/v2.0"), 0, 0},
		"the v1 issuer as audience":                    {aud("https://sts.windows.net/" + d.tenant.ID + "/"), 0, 0},
		"no jti":                                       {sign(t, pair.key, oidc.RS256, x5t(pair), claims(map[string]any{"jti": nil})), 0, 0},
		"a jti that is a number":                       {sign(t, pair.key, oidc.RS256, x5t(pair), claims(map[string]any{"jti": 7})), 50027, 400},
		"another tenant's endpoint as audience":        {aud("https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/oauth2/v2.0/token"), 700023, 401},
		"a resource as audience":                       {aud("https://vault.azure.net"), 700023, 401},
		"our path on a foreign host as audience":       {aud("https://evil.example/" + d.tenant.ID + "/oauth2/v2.0/token"), 700023, 401},
		"our host as a user name in the audience":      {aud("https://login.microsoftonline.com@evil.example/" + d.tenant.ID + "/oauth2/v2.0/token"), 700023, 401},
		"our endpoint by http as audience":             {aud("http://login.microsoftonline.com/" + d.tenant.ID + "/oauth2/v2.0/token"), 700023, 401},
		"two audiences":                                {sign(t, pair.key, oidc.RS256, x5t(pair), claims(map[string]any{"aud": []string{"https://sts.windows.net/" + d.tenant.ID + "/", "x"}})), 700023, 401},
		"another subject":                              {sign(t, pair.key, oidc.RS256, x5t(pair), claims(map[string]any{"sub": d.demo.AppID})), 50048, 400},
		"no subject":                                   {sign(t, pair.key, oidc.RS256, x5t(pair), claims(map[string]any{"sub": nil})), 50048, 400},
		"a certificate that the application has not":   {sign(t, other.key, oidc.RS256, x5t(other), claims(nil)), 700027, 401},
		"another's key under our thumbprint":           {sign(t, other.key, oidc.RS256, x5t(pair), claims(nil)), 700027, 401},
		"another's certificate beside our thumbprint":  {sign(t, other.key, oidc.RS256, map[string]any{"x5t": x5t(pair)["x5t"], "x5c": []string{base64.StdEncoding.EncodeToString(other.der)}}, claims(nil)), 700027, 401},
		"an expired certificate":                       {sign(t, old.key, oidc.RS256, x5t(old), claims(nil)), 700027, 401},
		"no thumbprint":                                {sign(t, pair.key, oidc.RS256, nil, claims(nil)), 50027, 400},
		"a thumbprint that is no hash":                 {sign(t, pair.key, oidc.RS256, map[string]any{"x5t": "AAAA"}, claims(nil)), 50027, 400},
		"an x5c that is no list":                       {sign(t, pair.key, oidc.RS256, map[string]any{"x5c": chain}, claims(nil)), 50027, 400},
		"HS256 with the certificate as secret":         {hs256(t, "k", pair.der, claims(nil)), 50027, 400},
		"RS256 in the header, PS256 in the signature":  {sign(t, pair.key, oidc.PS256, map[string]any{"alg": oidc.RS256, "x5t": x5t(pair)["x5t"]}, claims(nil)), 700027, 401},
		"algorithm none":                               {segment(`{"alg":"none"}`) + "." + segment(`{"iss":"`+d.mic.AppID+`"}`) + ".", 50027, 400},
		"an expiry six minutes ago":                    {sign(t, pair.key, oidc.RS256, x5t(pair), claims(map[string]any{"exp": now.Add(-6 * time.Minute).Unix()})), 700024, 401},
		"a start six minutes ahead":                    {sign(t, pair.key, oidc.RS256, x5t(pair), claims(map[string]any{"nbf": now.Add(6 * time.Minute).Unix()})), 700024, 401},
		"another issuer without a kid":                 {sign(t, pair.key, oidc.RS256, x5t(pair), claims(map[string]any{"iss": d.demo.AppID, "sub": d.demo.AppID})), 50027, 400},
	} {
		t.Run(name, func(t *testing.T) {
			d.in(t)
			r := d.post(d.v2(), d.form(map[string]string{"client_secret": "", "client_assertion": tt.assertion, "client_assertion_type": entra.AssertionTypeJWT}))
			if tt.code == 0 {
				if r.status != http.StatusOK {
					t.Fatalf("status %d: %s", r.status, r.raw)
				}
				if c := decodeClaims(t, r.token["access_token"].(string)); c["appidacr"] != "2" || c["appid"] != d.mic.AppID {
					t.Errorf("claims = %v", c)
				}
				return
			}
			if r.status != tt.status || len(r.Codes) != 1 || r.Codes[0] != tt.code {
				t.Errorf("status %d, codes %v, want %d, %d: %s", r.status, r.Codes, tt.status, tt.code, r.raw)
			}
		})
	}
	// A certificate of one application says nothing about another client.
	r := d.post(d.v2(), d.form(map[string]string{"client_id": d.demo.AppID, "client_secret": "", "client_assertion_type": entra.AssertionTypeJWT,
		"client_assertion": sign(t, pair.key, oidc.RS256, x5t(pair), claims(map[string]any{"iss": d.demo.AppID, "sub": d.demo.AppID}))}))
	d.wantError(t, r, 401, 700027, "invalid_client", "AADSTS700027: Client assertion contains an invalid signature. [Reason - The key was not found.")
}

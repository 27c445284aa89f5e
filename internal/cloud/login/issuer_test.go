package login

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

const subject = "system:serviceaccount:default:Demo"

// An issuer is an external OIDC issuer, as a cluster is one: it signs tokens
// and publishes its key over https.
type issuer struct {
	t       testing.TB
	server  *httptest.Server
	key     *rsa.PrivateKey
	url     string
	fetches atomic.Int32
	broken  atomic.Bool
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{t: t, key: key}
	i.server = httptest.NewTLSServer(i)
	i.url = i.server.URL + "/cluster/"
	t.Cleanup(i.server.Close)
	return i
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.fetches.Add(1)
	var v any
	switch {
	case i.broken.Load():
		http.Error(w, "broken", http.StatusInternalServerError)
		return
	case r.URL.Path == "/cluster"+oidc.ConfigurationPath:
		v = oidc.Configuration{Issuer: i.url, JWKSURI: i.url + "jwks"}
	case r.URL.Path == "/cluster/jwks":
		v = oidc.KeySet{Keys: []oidc.Key{oidc.NewKey("k1", &i.key.PublicKey)}}
	default:
		http.NotFound(w, r)
		return
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		i.t.Error(err)
	}
}

// claims are those of a good token at the instant now, with changes; nil
// removes.
func (i *issuer) claims(now time.Time, change map[string]any) map[string]any {
	c := map[string]any{
		"iss": i.url, "sub": subject, "aud": []string{azure.AudienceExchange},
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	for k, v := range change {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

// token signs claims; a header member of nil is removed.
func (i *issuer) token(header map[string]any, claims any) string {
	i.t.Helper()
	h := map[string]any{"kid": "k1"}
	for k, v := range header {
		h[k] = v
	}
	return sign(i.t, i.key, oidc.RS256, h, claims)
}

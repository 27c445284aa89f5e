package inspect

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/issuer"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newKey(t *testing.T) issuer.Key {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	k, err := issuer.NewKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A site is an issuer's public URL and the cluster behind it.
type site struct {
	*httptest.Server
	path          string
	configuration oidc.Configuration
	keys          []issuer.Key
	rawKeys       string // instead of keys
	answer        http.HandlerFunc
	servers       []issuer.APIServer
	fetcher       Fetcher
}

func (s *site) issuer() string { return s.URL + s.path }

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case s.answer != nil:
		s.answer(w, r)
	case r.URL.Path == "/c/"+issuer.ConfigurationPath:
		_ = json.NewEncoder(w).Encode(s.configuration)
	case r.URL.Path == "/c/"+issuer.KeysPath && s.rawKeys != "":
		_, _ = w.Write([]byte(s.rawKeys))
	case r.URL.Path == "/c/"+issuer.KeysPath || r.URL.Path == "/elsewhere":
		data, _ := issuer.FormatKeys(s.keys)
		_, _ = w.Write(data)
	default:
		http.NotFound(w, r)
	}
}

func TestACheckNamesTheMistakesThatPeopleMake(t *testing.T) {
	a, b := newKey(t), newKey(t)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := issuer.NewKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	forged := b
	forged.ID = a.ID
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(code)
		}
	}
	for name, tt := range map[string]struct {
		change func(*site)
		errors string // codes
		odd    string
	}{
		"all is well": {func(*site) {}, "", ""},
		"the issuer has a slash more than the document": {func(s *site) { s.configuration.Issuer += "/" }, "trailing-slash", ""},
		"tokens have a slash more than the issuer":      {func(s *site) { s.servers[0].Issuer += "/" }, "trailing-slash", ""},
		"the document is another cluster's":             {func(s *site) { s.configuration.Issuer = "https://other.example/" }, "issuer-mismatch", ""},
		"upper case":                                    {func(s *site) { s.configuration.Issuer = strings.Replace(s.configuration.Issuer, "/c", "/C", 1) }, "issuer-case", ""},
		"the signing key is not published":              {func(s *site) { s.keys = []issuer.Key{b} }, "missing-key", "extra-key"},
		"one of two API servers signs with another key": {func(s *site) {
			s.servers = append(s.servers, issuer.APIServer{URL: "https://two", Issuer: s.issuer(), Keys: []issuer.Key{a, b}, Signer: b.ID})
		}, "missing-key", ""},
		"another key under the same id":             {func(s *site) { s.keys = []issuer.Key{forged} }, "wrong-key", ""},
		"a key that nobody accepts":                 {func(s *site) { s.keys = append(s.keys, b) }, "", "extra-key"},
		"a key of a rotation that is not published": {func(s *site) { s.servers[0].Keys = append(s.servers[0].Keys, b) }, "", "unpublished-key"},
		"an API server that does not answer": {func(s *site) {
			s.servers = append(s.servers, issuer.APIServer{URL: "https://two", Err: errors.New("away")})
		}, "", "api-server-away"},
		"ES256": {func(s *site) {
			s.keys, s.servers[0].Keys, s.servers[0].Signer = []issuer.Key{ec}, []issuer.Key{ec}, ec.ID
		}, "signing-algorithm", "key-unusable"},
		"jwks_uri is the API server's address": {func(s *site) {
			s.configuration.JWKSURI = "https://10.0.0.4:6443/openid/v1/jwks"
		}, "jwks-uri-wrong", "jwks-uri-elsewhere"},
		"jwks_uri by http":              {func(s *site) { s.configuration.JWKSURI = strings.Replace(s.configuration.JWKSURI, "https", "http", 1) }, "jwks-uri-not-https", ""},
		"keys elsewhere":                {func(s *site) { s.configuration.JWKSURI = s.URL + "/elsewhere" }, "", "jwks-uri-elsewhere"},
		"the issuer by http":            {func(s *site) { s.path = "!http" }, "issuer-url issuer-mismatch", ""},
		"nothing is published":          {func(s *site) { s.answer = status(404) }, "not-found", ""},
		"the container is not public":   {func(s *site) { s.answer = status(409) }, "not-public", ""},
		"the API server lets nobody in": {func(s *site) { s.answer = status(403) }, "not-public", ""},
		"a redirect":                    {func(s *site) { s.answer = status(302) }, "redirect", ""},
		"a broken server":               {func(s *site) { s.answer = status(500) }, "unreachable", ""},
		"a page instead of a document":  {func(s *site) { s.answer = func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") } }, "discovery-unreadable", ""},
		"a document without end": {func(s *site) {
			s.answer = func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat(" ", 2<<20)) }
		}, "too-large", ""},
		"a private key is published": {func(s *site) { s.rawKeys = `{"keys":[{"kty":"RSA","kid":"x","n":"AQ","e":"AQAB","d":"c2VjcmV0"}]}` }, "private-key-published", ""},
		"keys that are no JSON":      {func(s *site) { s.rawKeys = "keys" }, "keys-unreadable", ""},
		"an empty key set":           {func(s *site) { s.rawKeys = `{"keys":[]}` }, "no-keys", ""},
		"the signing key is the 101st": {func(s *site) {
			s.keys = append(slices.Repeat([]issuer.Key{b}, 100), a)
			s.servers[0].Keys = append(s.servers[0].Keys, b)
		}, "too-many-keys key-id-twice missing-key", ""},
		"a certificate of an unknown authority": {func(s *site) { s.fetcher.HTTP = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} }, "tls", ""},
		"an address that Entra cannot reach":    {func(s *site) { s.fetcher.AllowPrivate = false }, "private-address", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := &site{path: "/c", keys: []issuer.Key{a}}
			s.Server = httptest.NewTLSServer(s)
			defer s.Close()
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.configuration = oidc.Configuration{Issuer: s.issuer(), JWKSURI: s.URL + "/c/" + issuer.KeysPath}
			s.servers = []issuer.APIServer{{URL: "https://one", Issuer: s.issuer(), Keys: []issuer.Key{a}, Signer: a.ID}}
			s.fetcher = Fetcher{HTTP: s.Client(), AllowPrivate: true}
			tt.change(s)
			asked := s.issuer()
			if s.path == "!http" {
				asked = "http://oidc.example/"
			}
			check := Check{Fetcher: s.fetcher, Issuer: asked, Observe: func(context.Context) ([]issuer.APIServer, error) { return s.servers, nil }}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			r, err := check.Run(ctx)
			if err != nil {
				t.Fatal(err)
			}
			codes := map[string][]string{}
			for _, f := range r.Findings {
				codes[f.Severity] = append(codes[f.Severity], f.Code)
				if strings.Contains(f.Text, "c2VjcmV0") {
					t.Errorf("a secret is told: %s", f.Text)
				}
			}
			for severity, want := range map[string]string{Wrong: tt.errors, Odd: tt.odd} {
				got := unique(codes[severity])
				if !slices.Equal(got, unique(strings.Fields(want))) {
					t.Errorf("%s: %v, want %s; all: %+v", severity, got, want, r.Findings)
				}
			}
			if r.OK != (tt.errors == "") {
				t.Errorf("OK is %t", r.OK)
			}
		})
	}
}

func unique(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return append([]string{}, slices.Compact(s)...)
}

func TestAddressesThatEntraCannotReach(t *testing.T) {
	for address, want := range map[string]bool{
		"8.8.8.8": true, "2603:1030::1": true, "10.0.0.1": false, "192.168.1.1": false, "172.16.0.1": false, "127.0.0.1": false, "::1": false,
		"169.254.169.254": false, "100.64.0.1": false, "fd00::1": false, "fe80::1": false, "0.0.0.0": false, "::ffff:10.0.0.1": false, "224.0.0.1": false,
	} {
		if got := onInternet(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: %t", address, got)
		}
	}
	f := Fetcher{Lookup: func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("10.0.0.4")}, nil
	}}
	if _, found := f.Fetch(t.Context(), "https://oidc.corp.example"); len(found) != 1 || found[0].Code != "private-address" {
		t.Errorf("%+v", found)
	}
}

func TestACheckWithoutAnyAPIServerSaysSo(t *testing.T) {
	_, err := Check{Observe: func(context.Context) ([]issuer.APIServer, error) {
		return []issuer.APIServer{{URL: "https://one", Err: errors.New("away")}}, nil
	}}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no API server answers") {
		t.Errorf("%v", err)
	}
}

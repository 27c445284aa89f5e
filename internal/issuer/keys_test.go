package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newRSA() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) }

func newKey() Key { return must(NewKey(&newRSA().PublicKey)) }

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func public(k crypto.PublicKey) string {
	return block("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(k)))
}

func TestKeysOfEveryFormAreReadAndNamedAsKubernetesDoes(t *testing.T) {
	r := newRSA()
	ec := map[string]*ecdsa.PrivateKey{}
	for alg, curve := range map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()} {
		ec[alg] = must(ecdsa.GenerateKey(curve, rand.Reader))
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	small := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	for name, tt := range map[string]struct {
		pem  string
		want []string // algorithms
		err  string
	}{
		"a public key":                        {public(&r.PublicKey), []string{"RS256"}, ""},
		"a public key in RSA's own form":      {block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&r.PublicKey)), []string{"RS256"}, ""},
		"a private key":                       {block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(r)), []string{"RS256"}, ""},
		"a private key in PKCS 8":             {block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(r))), []string{"RS256"}, ""},
		"an elliptic key, after parameters":   {block("EC PARAMETERS", []byte{6, 1, 2}) + block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ec["ES256"]))), []string{"ES256"}, ""},
		"a key for P-384":                     {public(&ec["ES384"].PublicKey), []string{"ES384"}, ""},
		"a key for P-521":                     {public(&ec["ES512"].PublicKey), []string{"ES512"}, ""},
		"several keys, one of them twice":     {public(&r.PublicKey) + public(&ec["ES256"].PublicKey) + public(&r.PublicKey), []string{"RS256", "ES256"}, ""},
		"a curve that Kubernetes has not":     {public(&small.PublicKey), nil, "none of P-256"},
		"a kind of key that Kubernetes lacks": {public(ed.Public()), nil, "RSA and ECDSA keys only"},
		"an encrypted key":                    {block("ENCRYPTED PRIVATE KEY", []byte{1}), nil, "give the public key"},
		"a damaged private key":               {block("RSA PRIVATE KEY", []byte("damaged secret")), nil, "cannot be read"},
		"no PEM":                              {"ssh-rsa AAAA", nil, "no key in PEM form"},
		"nothing":                             {"", nil, "no key in PEM form"},
	} {
		t.Run(name, func(t *testing.T) {
			keys, err := ParsePEM([]byte(tt.pem))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "secret") {
					t.Fatalf("%v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, k := range keys {
				got = append(got, k.Algorithm)
				if id := must(KeyID(k.Public)); id != k.ID || len(id) != 43 {
					t.Errorf("id %q, want %q", k.ID, id)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			// What is printed is read by others, and holds nothing private.
			data := must(FormatKeys(keys))
			var set jose.JSONWebKeySet
			if err := json.Unmarshal(data, &set); err != nil {
				t.Fatal(err)
			}
			for i, j := range set.Keys {
				if !j.IsPublic() || j.Use != "sig" || j.KeyID != keys[i].ID || j.Algorithm != keys[i].Algorithm {
					t.Errorf("printed: %s", data)
				}
			}
			back, err := ParseKeys(data)
			if err != nil || len(back) != len(keys) || !back[0].Equal(keys[0]) {
				t.Errorf("read back: %v, %v", back, err)
			}
		})
	}
}

func TestAPrivateKeyIsNeverPublished(t *testing.T) {
	r := newRSA()
	private := must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: r, KeyID: "x", Use: "sig"}}}))
	symmetric := []byte(`{"keys":[{"kty":"oct","kid":"x","k":"c2VjcmV0"}]}`)
	for name, data := range map[string][]byte{"a private RSA key": private, "a symmetric key": symmetric} {
		if keys, err := ParseKeys(data); !errors.Is(err, ErrPrivate) || keys != nil || strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("%s: %v, %v", name, keys, err)
		}
	}
	k := newKey()
	k.Public = r
	if data, err := FormatKeys([]Key{k}); err == nil {
		t.Errorf("printed: %s", data)
	}
	dir := t.TempDir()
	if _, err := Publish(t.Context(), Directory{dir}, Documents{"https://a.example", []Key{k}}, Permission{Force: true}); err == nil {
		t.Error("a private key was published")
	}
	if entries := must(os.ReadDir(dir)); len(entries) > 0 {
		t.Errorf("written: %v", entries)
	}
	// Not out of a directory that somebody else has filled, either.
	d := Documents{"https://a.example", []Key{newKey()}}
	if _, err := Publish(t.Context(), Directory{dir}, d, Permission{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, KeysPath), private, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&Server{Source: Folder{Directory{dir}}}).Refresh(t.Context()); !errors.Is(err, ErrPrivate) {
		t.Errorf("served: %v", err)
	}
}

func TestDocumentsThatEntraCannotUseAreRefused(t *testing.T) {
	good := newKey()
	ec := must(NewKey(&must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).PublicKey))
	small := must(NewKey(&must(rsa.GenerateKey(rand.Reader, 1024)).PublicKey))
	many := make([]Key, 101)
	for i := range many {
		many[i] = good
	}
	for name, tt := range map[string]struct {
		d    Documents
		want string
	}{
		"all is well":                      {Documents{"https://a.example/x/", []Key{good}}, ""},
		"a hundred keys":                   {Documents{"https://a.example", many[:100]}, ""},
		"one key more":                     {Documents{"https://a.example", many}, "only the first 100"},
		"no keys":                          {Documents{"https://a.example", nil}, "no key"},
		"an issuer by http":                {Documents{"http://a.example", []Key{good}}, "does not begin with https://"},
		"the default issuer of old":        {Documents{"kubernetes/serviceaccount", []Key{good}}, "not a URL"},
		"no issuer":                        {Documents{"", []Key{good}}, "not known"},
		"an issuer with a query":           {Documents{"https://a.example/?x=1", []Key{good}}, "query"},
		"an issuer that ends with a space": {Documents{"https://a.example/ ", []Key{good}}, "white space"},
		"a key for ES256":                  {Documents{"https://a.example", []Key{good, ec}}, "RS256 only"},
		"a key of 1024 bits":               {Documents{"https://a.example", []Key{small}}, "1024 bits"},
		"two keys with one id":             {Documents{"https://a.example", []Key{good, {good.ID, "RS256", newKey().Public}}}, "two different keys"},
		"a key without an id":              {Documents{"https://a.example", []Key{{"", "RS256", good.Public}}}, "no id"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tt.d.Validate()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

package login

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/oidc"
)

// sign makes a token with exactly this header (plus alg), unlike oidc.Sign,
// which would not make bad ones.
func sign(t testing.TB, key *rsa.PrivateKey, alg string, header map[string]any, claims any) string {
	t.Helper()
	return signWith(t, key, alg, base64.RawURLEncoding, header, claims)
}

func signWith(t testing.TB, key *rsa.PrivateKey, alg string, enc *base64.Encoding, header map[string]any, claims any) string {
	t.Helper()
	h := map[string]any{"alg": alg}
	for k, v := range header {
		if h[k] = v; v == nil {
			delete(h, k)
		}
	}
	hj, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	cj, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed := enc.EncodeToString(hj) + "." + enc.EncodeToString(cj)
	sum := sha256.Sum256([]byte(signed))
	var sig []byte
	if alg == oidc.PS256 {
		sig, err = rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	} else {
		sig, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	}
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + enc.EncodeToString(sig)
}

// A keyPair is an application's certificate and key.
type keyPair struct {
	key *rsa.PrivateKey
	der []byte
}

func newKeyPair(t *testing.T, notBefore, notAfter time.Time) keyPair {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{key, selfSigned(t, key, notBefore, notAfter)}
}

func selfSigned(t testing.TB, key *rsa.PrivateKey, notBefore, notAfter time.Time) []byte {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app"}, NotBefore: notBefore, NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func stdBase64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

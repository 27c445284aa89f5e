package credential_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/lanyard-id/lanyard/internal/credential"
)

// keyPair is made once: RSA keys take time.
var keyPair = sync.OnceValues(func() (*rsa.PrivateKey, *x509.Certificate) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key, selfSigned(key, time.Now().Add(time.Hour))
})

func selfSigned(key crypto.Signer, until time.Time) *x509.Certificate {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert
}

func pemOf(t *testing.T, key crypto.PrivateKey, certs ...*x509.Certificate) map[string][]byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, c := range certs {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return map[string][]byte{"tls.crt": chain, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}
}

func secret(keysAndValues ...string) map[string][]byte {
	data := map[string][]byte{}
	for i := 0; i < len(keysAndValues); i += 2 {
		data[keysAndValues[i]] = []byte(keysAndValues[i+1])
	}
	return data
}

func TestPassword(t *testing.T) {
	for _, c := range []struct {
		name string
		data map[string][]byte
		want string // the password; after "error: " a part of the error
	}{
		{"the documented key", secret("clientSecret", "s~1"), "s~1"},
		{"the documented key before others", secret("clientSecret", "s~1", "password", "other", "a", "b"), "s~1"},
		{"the key password", secret("password", "s~1", "x", "y"), "s~1"},
		{"the only key", secret("anything", "s~1"), "s~1"},
		{"a line end of echo is not part of it", secret("clientSecret", "s~1\r\n"), "s~1"},
		{"several keys and none of ours", secret("b", "1", "a", "2"), "error: the keys a, b: put the password under the key clientSecret"},
		{"nothing", nil, "error: no keys"},
		{"an empty password", secret("clientSecret", "\n"), "error: empty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := credential.Password(c.data)
			if part, wanted := strings.CutPrefix(c.want, "error: "); wanted {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Fatalf("got %v, %v", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			form, err := got.Form("id", "aud", time.Now())
			if err != nil || form.Get("client_secret") != c.want || len(form) != 1 {
				t.Errorf("form %v, %v", form, err)
			}
		})
	}
}

func TestCertificatesOfEveryFileFormatSignTheSameAssertion(t *testing.T) {
	key, cert := keyPair()
	otherKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	issuer := selfSigned(otherKey, time.Now().Add(time.Hour))
	encode := func(e *pkcs12.Encoder, password string, leaf *x509.Certificate, others ...*x509.Certificate) []byte {
		pfx, err := e.Encode(key, leaf, others, password)
		if err != nil {
			t.Fatal(err)
		}
		return pfx
	}
	for name, data := range map[string]map[string][]byte{
		"PEM":                                  pemOf(t, key, cert),
		"PEM with a chain":                     pemOf(t, key, cert, issuer),
		"PKCS#12 of OpenSSL 3":                 {"certificate": encode(pkcs12.Modern2023, "pw", cert), "password": []byte("pw")},
		"PKCS#12 with PBMAC1":                  {"certificate": encode(pkcs12.Modern2026, "pw", cert), "password": []byte("pw")},
		"PKCS#12 of Windows, 3DES":             {"certificate": encode(pkcs12.LegacyDES, "pw", cert), "password": []byte("pw")},
		"PKCS#12 with RC2":                     {"certificate": encode(pkcs12.LegacyRC2, "pw", cert), "password": []byte("pw")},
		"PKCS#12 without a password":           {"certificate": encode(pkcs12.LegacyDES, "", cert)},
		"PKCS#12, the issuer comes first":      {"certificate": encode(pkcs12.Modern2023, "pw", issuer, cert), "password": []byte("pw")},
		"a password with the line end of echo": {"certificate": encode(pkcs12.Modern2023, "pw", cert), "password": []byte("pw\n")},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := credential.Certificate(data)
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			form, err := c.Form("client", "https://login.example/t/oauth2/v2.0/token", now)
			if err != nil || form.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
				t.Fatalf("form %v, %v", form, err)
			}
			tok, err := jwt.ParseSigned(form.Get("client_assertion"), []jose.SignatureAlgorithm{jose.PS256})
			if err != nil {
				t.Fatal(err)
			}
			var claims jwt.Claims
			if err := tok.Claims(key.Public(), &claims); err != nil {
				t.Fatal(err)
			}
			if err := claims.ValidateWithLeeway(jwt.Expected{Issuer: "client", Subject: "client", AnyAudience: jwt.Audience{"https://login.example/t/oauth2/v2.0/token"}, Time: now}, 0); err != nil || claims.ID == "" {
				t.Errorf("claims %+v: %v", claims, err)
			}
			if life := claims.Expiry.Time().Sub(now); life > 10*time.Minute {
				t.Errorf("the assertion lives %s", life)
			}
			hash := sha256.Sum256(cert.Raw)
			header := tok.Headers[0]
			if got := header.ExtraHeaders["x5t#S256"]; got != base64.RawURLEncoding.EncodeToString(hash[:]) {
				t.Errorf("x5t#S256 is %v", got)
			}
			if chain, err := header.Certificates(x509.VerifyOptions{Roots: pool(cert), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil || !chain[0][0].Equal(cert) {
				t.Errorf("x5c: %v", err)
			}
		})
	}
}

func pool(c *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c)
	return p
}

func TestWhatIsNoCertificateIsRefusedWithAWayOut(t *testing.T) {
	key, cert := keyPair()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pfx, err := pkcs12.Modern2023.Encode(key, cert, nil, "pw")
	if err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	mismatch := pemOf(t, other, cert)
	for _, c := range []struct {
		name string
		data map[string][]byte
		want string
	}{
		{"nothing", nil, "no keys: put a PKCS#12 file under the key certificate"},
		{"a password", secret("clientSecret", "x"), "the keys clientSecret: put a PKCS#12 file"},
		{"a wrong password", map[string][]byte{"certificate": pfx, "password": []byte("no")}, "the key password of the Secret is not the password"},
		{"no password", map[string][]byte{"certificate": pfx}, "the key password of the Secret is not the password"},
		{"text", secret("certificate", "-----BEGIN CERTIFICATE-----", "password", ""), "no PKCS#12 file"},
		{"half a file", map[string][]byte{"certificate": pfx[:len(pfx)/2], "password": []byte("pw")}, "no PKCS#12 file"},
		{"an elliptic curve", pemOf(t, ec, selfSigned(ec, time.Now().Add(time.Hour))), "Entra accepts RSA keys only"},
		{"the key of another certificate", mismatch, "reading tls.crt and tls.key"},
		{"endless iterations of the MAC", map[string][]byte{"certificate": endless(t, pfx), "password": []byte("pw")}, "more than 1000000 iterations"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := credential.Certificate(c.data)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v, want %q", got, err, c.want)
			}
		})
	}
}

// endless gives a PKCS#12 file's MAC two thousand million iterations.
func endless(t *testing.T, pfx []byte) []byte {
	t.Helper()
	var file struct {
		Version  int
		AuthSafe asn1.RawValue
		Mac      struct {
			Digest     asn1.RawValue
			Salt       []byte
			Iterations int
		}
	}
	if _, err := asn1.Unmarshal(pfx, &file); err != nil {
		t.Fatal(err)
	}
	file.Mac.Iterations = 2_000_000_000
	out, err := asn1.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAnExpiredCertificateIsWarnedOf(t *testing.T) {
	key, _ := keyPair()
	c, err := credential.Certificate(pemOf(t, key, selfSigned(key, time.Now().Add(-time.Hour))))
	if err != nil {
		t.Fatal(err)
	}
	if w := c.Warning(time.Now()); !strings.Contains(w, "expired at") {
		t.Errorf("got %q", w)
	}
	if w := c.Warning(time.Now().Add(-90 * time.Minute)); w != "" {
		t.Errorf("while it is valid: %q", w)
	}
	if w := c.Warning(time.Now().Add(-9 * time.Hour)); !strings.Contains(w, "not valid before") {
		t.Errorf("before it is valid: %q", w)
	}
}

func TestNothingPrintsTheSecret(t *testing.T) {
	key, cert := keyPair()
	password, err := credential.Password(secret("clientSecret", "hush-hush"))
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := credential.Certificate(pemOf(t, key, cert))
	if err != nil {
		t.Fatal(err)
	}
	d := key.D.String()
	for _, c := range []*credential.Credential{password, certificate} {
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "credential", c)
		for _, s := range []string{fmt.Sprintf("%v %+v %#v %s", c, *c, *c, c), log.String()} {
			if strings.Contains(s, "hush-hush") || strings.Contains(s, d[:30]) {
				t.Errorf("printed: %s", s)
			}
		}
	}
}

func FuzzCertificate(f *testing.F) {
	key, cert := keyPair()
	pfx, err := pkcs12.Modern2023.Encode(key, cert, nil, "pw")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pfx, "pw")
	f.Add([]byte("-----BEGIN"), "")
	f.Fuzz(func(t *testing.T, file []byte, password string) {
		c, err := credential.Certificate(map[string][]byte{"certificate": file, "password": []byte(password)})
		if (c == nil) == (err == nil) {
			t.Errorf("got %v and %v", c, err)
		}
	})
}

// Package credential is what an application proves itself with: a password or
// a certificate, as a Secret holds it, and the change from one to the next.
//
//	Secret's data ── Password | Certificate ── *Credential ── Form(…)  for the token request
//	                                               └── Rotation: the newest that works
//
// It knows nothing of Kubernetes, and never shows what it holds.
package credential

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/uuid"
)

// assertionType is that of a JWT (RFC 7523, section 2.2).
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// assertionLifetime is what the Azure SDKs use; beginsBefore is for clocks
// that differ.
const (
	assertionLifetime = 10 * time.Minute
	beginsBefore      = 5 * time.Minute
)

// A Credential is a password or a certificate with its key. It is not modified.
type Credential struct {
	password string

	key   *rsa.PrivateKey
	chain []*x509.Certificate // the key's own certificate first

	sum [sha256.Size]byte // of all that it consists of
}

// Form returns the parameters that authenticate clientID at a token endpoint
// (RFC 6749, section 2.3.1, and RFC 7523, section 2.2). The audience is the
// endpoint's URL. An assertion is signed with PS256 and names the certificate
// by its SHA-256, as "Microsoft identity platform application authentication
// certificate credentials" asks for; x5c lets applications that trust a
// subject name and an issuer take a renewed certificate, as v1 did.
func (c *Credential) Form(clientID, audience string, now time.Time) (url.Values, error) {
	if c.key == nil {
		return url.Values{"client_secret": {c.password}}, nil
	}
	hash := sha256.Sum256(c.chain[0].Raw)
	x5c := make([]string, len(c.chain))
	for i, cert := range c.chain {
		x5c[i] = base64.StdEncoding.EncodeToString(cert.Raw)
	}
	options := (&jose.SignerOptions{}).WithType("JWT").WithHeader("x5c", x5c).
		WithHeader("x5t#S256", base64.RawURLEncoding.EncodeToString(hash[:]))
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.PS256, Key: c.key}, options)
	if err != nil {
		return nil, fmt.Errorf("preparing the client assertion: %w", err)
	}
	assertion, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: clientID, Subject: clientID, Audience: jwt.Audience{audience}, ID: uuid.NewString(),
		NotBefore: jwt.NewNumericDate(now.Add(-beginsBefore)), IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(assertionLifetime)),
	}).Serialize()
	if err != nil {
		return nil, fmt.Errorf("signing the client assertion: %w", err)
	}
	return url.Values{"client_assertion": {assertion}, "client_assertion_type": {assertionType}}, nil
}

// Equal reports whether both consist of the same.
func (c *Credential) Equal(o *Credential) bool {
	if c == nil || o == nil {
		return c == o
	}
	return subtle.ConstantTimeCompare(c.sum[:], o.sum[:]) == 1
}

// Warning says what is wrong with a certificate's lifetime at the instant now,
// or is empty.
func (c *Credential) Warning(now time.Time) string {
	if c.key == nil {
		return ""
	}
	switch leaf := c.chain[0]; {
	case now.After(leaf.NotAfter):
		return fmt.Sprintf("the certificate expired at %s: Entra will refuse it; put a new one into the Secret and into the application", leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Sprintf("the certificate is not valid before %s: check it and this node's clock", leaf.NotBefore.UTC().Format(time.RFC3339))
	default:
		return ""
	}
}

// String describes c without what it holds.
func (c Credential) String() string {
	if c.key == nil {
		return "password"
	}
	hash := sha256.Sum256(c.chain[0].Raw)
	return fmt.Sprintf("certificate %X until %s", hash[:8], c.chain[0].NotAfter.UTC().Format(time.RFC3339))
}

// Format makes every fmt verb print the redacted form.
func (c Credential) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// LogValue describes c without what it holds.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

func newPassword(password string) *Credential {
	return &Credential{password: password, sum: sha256.Sum256([]byte("password\x00" + password))}
}

func newCertificate(key crypto.PrivateKey, chain []*x509.Certificate) (*Credential, error) {
	private, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the private key is %T: Entra accepts RSA keys only for the certificates of an application", key)
	}
	// Files hold the chain in any order; the key decides whose it is.
	for i, cert := range chain {
		if private.PublicKey.Equal(cert.PublicKey) {
			chain = append([]*x509.Certificate{cert}, append(chain[:i:i], chain[i+1:]...)...)
			break
		}
		if i == len(chain)-1 {
			return nil, fmt.Errorf("none of the %d certificates belongs to the private key", len(chain))
		}
	}
	h := sha256.New()
	for _, cert := range chain {
		h.Write(cert.Raw)
	}
	c := &Credential{key: private, chain: chain}
	h.Sum(c.sum[:0])
	return c, nil
}

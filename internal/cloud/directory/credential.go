package directory

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// A PasswordCredential is a client secret. Only its SHA-256 is kept: the
// secrets are random and long, so a slow hash would protect nothing more.
type PasswordCredential struct {
	KeyID       string
	DisplayName string
	NotBefore   time.Time `json:",omitzero"` // zero if nobody noted it; has no effect
	Hint        string    // the first three characters, as Graph shows them
	Hash        []byte    // SHA-256
	NotAfter    time.Time
}

// Matches reports whether secret is the one, in constant time. It does not
// look at NotAfter.
func (p PasswordCredential) Matches(secret string) bool {
	h := sha256.Sum256([]byte(secret))
	return len(p.Hash) == len(h) && subtle.ConstantTimeCompare(p.Hash, h[:]) == 1
}

// A KeyCredential is a certificate with which an application signs
// assertions.
type KeyCredential struct {
	KeyID       string
	DisplayName string
	Certificate []byte // DER
	NotBefore   time.Time
	NotAfter    time.Time
}

const (
	maxCredentials   = 50
	secretRandom     = 34
	secretHint       = 3
	secretMark       = "8Q~" // the mark by which secret scanners know Entra's secrets
	minRSABits       = 2048
	secretAlphabet   = hintAlphabet + "._~-"
	hintAlphabet     = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	maxCertificate   = 16 << 10
	credentialsLimit = "application %s has %d credentials of this kind already, remove one first: %w"
)

// AddPassword makes a new client secret for an application and returns it;
// it cannot be read again. notAfter is when it expires.
func AddPassword(tx *state.Tx, appObjectID, displayName string, notAfter time.Time) (string, error) {
	return AddPasswordFrom(tx, appObjectID, displayName, time.Time{}, notAfter)
}

// AddPasswordFrom is AddPassword that also notes since when there is the
// secret.
func AddPasswordFrom(tx *state.Tx, appObjectID, displayName string, notBefore, notAfter time.Time) (string, error) {
	app, err := application(tx, appObjectID)
	if err != nil {
		return "", err
	}
	if notAfter.IsZero() {
		return "", fmt.Errorf("client secret %q needs an expiry: %w", displayName, ErrInvalid)
	}
	if len(app.Passwords) >= maxCredentials {
		return "", fmt.Errorf(credentialsLimit, app.AppID, len(app.Passwords), ErrInvalid)
	}
	// The first character is a letter or digit: a secret that starts with a
	// dash is taken for a flag on a command line.
	secret := randomText(hintAlphabet, secretHint) + secretMark + randomText(secretAlphabet, secretRandom)
	hash := sha256.Sum256([]byte(secret))
	app.Passwords = append(app.Passwords, PasswordCredential{
		KeyID: uuid.NewString(), DisplayName: displayName, Hint: secret[:secretHint], Hash: hash[:], NotBefore: notBefore.UTC(), NotAfter: notAfter.UTC(),
	})
	return secret, putApplication(tx, app)
}

// RemovePassword removes the client secret with this key id. It reports
// false if there was none.
func RemovePassword(tx *state.Tx, appObjectID, keyID string) (bool, error) {
	app, err := application(tx, appObjectID)
	if err != nil {
		return false, err
	}
	for i, p := range app.Passwords {
		if p.KeyID == fold(keyID) {
			app.Passwords = append(app.Passwords[:i], app.Passwords[i+1:]...)
			return true, putApplication(tx, app)
		}
	}
	return false, nil
}

// ExpirePassword lets the client secret with this key id end at an instant.
func ExpirePassword(tx *state.Tx, appObjectID, keyID string, at time.Time) error {
	app, err := application(tx, appObjectID)
	if err != nil {
		return err
	}
	for i := range app.Passwords {
		if app.Passwords[i].KeyID == fold(keyID) {
			app.Passwords[i].NotAfter = at.UTC()
			return putApplication(tx, app)
		}
	}
	return fmt.Errorf("client secret %q of application %s: %w", keyID, app.AppID, ErrNotFound)
}

// RemoveCertificate removes the certificate with this key id.
func RemoveCertificate(tx *state.Tx, appObjectID, keyID string) error {
	app, err := application(tx, appObjectID)
	if err != nil {
		return err
	}
	for i, k := range app.Keys {
		if k.KeyID == fold(keyID) {
			app.Keys = append(app.Keys[:i], app.Keys[i+1:]...)
			return putApplication(tx, app)
		}
	}
	return fmt.Errorf("certificate %q of application %s: %w", keyID, app.AppID, ErrNotFound)
}

// AddCertificate lets an application sign assertions with the key of this
// X.509 certificate (DER; RSA, 2048 bits or more).
func AddCertificate(tx *state.Tx, appObjectID, displayName string, der []byte) (KeyCredential, error) {
	var none KeyCredential
	app, err := application(tx, appObjectID)
	if err != nil {
		return none, err
	}
	if len(der) > maxCertificate {
		return none, fmt.Errorf("certificate %q is larger than %d bytes: %w", displayName, maxCertificate, ErrInvalid)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return none, fmt.Errorf("certificate %q does not parse (%w): %w", displayName, err, ErrInvalid)
	}
	if pub, ok := cert.PublicKey.(*rsa.PublicKey); !ok || pub.N.BitLen() < minRSABits {
		return none, fmt.Errorf("certificate %q must have an RSA key of at least %d bits: %w", displayName, minRSABits, ErrInvalid)
	}
	if len(app.Keys) >= maxCredentials {
		return none, fmt.Errorf(credentialsLimit, app.AppID, len(app.Keys), ErrInvalid)
	}
	for _, k := range app.Keys {
		if string(k.Certificate) == string(der) {
			return none, fmt.Errorf("certificate %q is credential %s: %w", displayName, k.KeyID, ErrExists)
		}
	}
	k := KeyCredential{
		KeyID: uuid.NewString(), DisplayName: displayName, Certificate: der,
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
	}
	app.Keys = append(app.Keys, k)
	return k, putApplication(tx, app)
}

// randomText draws n characters without bias.
func randomText(alphabet string, n int) string {
	limit := byte(256 / len(alphabet) * len(alphabet))
	out := make([]byte, 0, n)
	var buf [64]byte
	for len(out) < n {
		_, _ = rand.Read(buf[:]) // never fails: crypto/rand ends the program instead
		for _, b := range buf {
			if (limit == 0 || b < limit) && len(out) < n {
				out = append(out, alphabet[int(b)%len(alphabet)])
			}
		}
	}
	return string(out)
}

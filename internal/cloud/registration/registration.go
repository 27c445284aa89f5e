// Package registration is what the owner of a tenant does with app registrations, and what Graph will do with them:
// make them, and give them passwords and certificates.
//
//	Ensure -> Application
//	AddPassword, IssueCertificate, AddCertificate -> what proves the application, told once
//	ExpirePassword, RemovePassword, RemoveCertificate -> it does not any more
//
// An application can have several of each at a time, so that one can be replaced before it ends.
package registration

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// A Secret is text that does not print itself. string(s) is the value.
type Secret string

// Format makes every fmt verb print that there is a secret, or none.
func (s Secret) Format(f fmt.State, _ rune) {
	if s != "" {
		_, _ = fmt.Fprint(f, "(secret)")
	}
}

// LogValue does the same for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(s)) }

// An Application is an app registration with its service principal.
type Application struct {
	ObjectID    string
	ClientID    string
	PrincipalID string // of the service principal: what roles are given to
}

// A Password is a client secret.
type Password struct {
	KeyID  string
	Secret Secret
}

// A Certificate is a certificate with its key.
type Certificate struct {
	KeyID string
	DER   []byte
	key   *rsa.PrivateKey
}

// Format hides the key.
func (c Certificate) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "certificate %s (with its key)", c.KeyID)
}

// PEM is the certificate and then its key (PKCS #8), in one file, as az and the SDKs take it.
func (c Certificate) PEM() (Secret, error) {
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return "", fmt.Errorf("encoding the key of certificate %s: %w", c.KeyID, err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.DER})
	return Secret(append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)), nil
}

// PKCS12 is the file that Pod Identity's Secrets hold, made from a PEM file of Certificate.PEM.
func PKCS12(pemFile Secret, password string) ([]byte, error) {
	certificate, rest := pem.Decode([]byte(pemFile))
	key, _ := pem.Decode(rest)
	if certificate == nil || key == nil {
		return nil, fmt.Errorf("making a PKCS#12 file: there is no certificate with its key")
	}
	leaf, err := x509.ParseCertificate(certificate.Bytes)
	if err != nil {
		return nil, fmt.Errorf("making a PKCS#12 file: %w", err)
	}
	private, err := x509.ParsePKCS8PrivateKey(key.Bytes)
	if err != nil {
		return nil, fmt.Errorf("making a PKCS#12 file: %w", err)
	}
	// azidentity and Pod Identity v1 read no newer form than this.
	return pkcs12.LegacyDES.Encode(private, leaf, nil, password)
}

// A Registry is the app registrations of the home tenant. DB must be set.
type Registry struct {
	DB  *state.DB
	Now func() time.Time // nil means time.Now
}

func (r *Registry) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

// Ensure finds an application by its display name, or makes it.
func Ensure(tx *state.Tx, name string) (Application, error) {
	apps, err := directory.Applications(tx)
	if err != nil {
		return Application{}, err
	}
	var app directory.Application
	if i := slices.IndexFunc(apps, func(app directory.Application) bool { return app.DisplayName == name }); i >= 0 {
		app = apps[i]
	} else if app, _, err = directory.CreateApplication(tx, name); err != nil {
		return Application{}, err
	}
	sp, ok, err := directory.ServicePrincipalByAppID(tx, app.AppID)
	if err != nil {
		return Application{}, err
	}
	if !ok {
		return Application{}, fmt.Errorf("the service principal of %s was deleted: %w", name, directory.ErrNotFound)
	}
	return Application{ObjectID: app.ObjectID, ClientID: app.AppID, PrincipalID: sp.ID}, nil
}

// Ensure finds an application by its display name, or makes it.
func (r *Registry) Ensure(name string) (a Application, err error) {
	err = r.DB.Update(func(tx *state.Tx) (err error) { a, err = Ensure(tx, name); return err })
	return a, err
}

// change runs f with the application of a client id.
func (r *Registry) change(clientID string, f func(tx *state.Tx, app directory.Application) error) error {
	return r.DB.Update(func(tx *state.Tx) error {
		app, found, err := directory.ApplicationByAppID(tx, clientID)
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("application %q: %w", clientID, directory.ErrNotFound)
		}
		return f(tx, app)
	})
}

// AddPassword makes a client secret that is good for a lifetime, beside those that there are.
func (r *Registry) AddPassword(clientID, displayName string, lifetime time.Duration) (p Password, err error) {
	return p, r.change(clientID, func(tx *state.Tx, app directory.Application) (err error) {
		p, err = AddPassword(tx, app.ObjectID, displayName, r.now().Add(lifetime))
		return err
	})
}

// AddPassword is Registry.AddPassword in a transaction.
func AddPassword(tx *state.Tx, objectID, displayName string, notAfter time.Time) (Password, error) {
	secret, err := directory.AddPassword(tx, objectID, displayName, notAfter)
	if err != nil {
		return Password{}, err
	}
	app, _, err := directory.ApplicationByID(tx, objectID)
	if err != nil {
		return Password{}, err
	}
	return Password{KeyID: app.Passwords[len(app.Passwords)-1].KeyID, Secret: Secret(secret)}, nil
}

// ExpirePassword lets a client secret expire now: who uses it is told so (AADSTS7000222).
func (r *Registry) ExpirePassword(clientID, keyID string) error {
	return r.change(clientID, func(tx *state.Tx, app directory.Application) error {
		return directory.ExpirePassword(tx, app.ObjectID, keyID, r.now())
	})
}

// RemovePassword removes a client secret: who uses it is told that it is wrong (AADSTS7000215).
func (r *Registry) RemovePassword(clientID, keyID string) error {
	return r.change(clientID, func(tx *state.Tx, app directory.Application) error {
		existed, err := directory.RemovePassword(tx, app.ObjectID, keyID)
		if err == nil && !existed {
			err = fmt.Errorf("client secret %q of application %s: %w", keyID, clientID, directory.ErrNotFound)
		}
		return err
	})
}

// AddCertificate lets an application prove itself with the key of a certificate (DER) and returns its key id.
func (r *Registry) AddCertificate(clientID, displayName string, der []byte) (keyID string, err error) {
	return keyID, r.change(clientID, func(tx *state.Tx, app directory.Application) error {
		k, err := directory.AddCertificate(tx, app.ObjectID, displayName, der)
		keyID = k.KeyID
		return err
	})
}

// IssueCertificate makes a self-signed certificate that is good for a lifetime and registers it.
func (r *Registry) IssueCertificate(clientID, displayName string, lifetime time.Duration) (c Certificate, err error) {
	return c, r.change(clientID, func(tx *state.Tx, app directory.Application) (err error) {
		c, err = IssueCertificate(tx, app.ObjectID, displayName, r.now(), lifetime)
		return err
	})
}

// IssueCertificate is Registry.IssueCertificate in a transaction.
func IssueCertificate(tx *state.Tx, objectID, displayName string, now time.Time, lifetime time.Duration) (Certificate, error) {
	const bits = 2048
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return Certificate{}, fmt.Errorf("making a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return Certificate{}, fmt.Errorf("making a serial number: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: displayName},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return Certificate{}, fmt.Errorf("signing a certificate: %w", err)
	}
	registered, err := directory.AddCertificate(tx, objectID, displayName, der)
	return Certificate{KeyID: registered.KeyID, DER: der, key: key}, err
}

// RemoveCertificate removes a certificate: its key proves nothing any more.
func (r *Registry) RemoveCertificate(clientID, keyID string) error {
	return r.change(clientID, func(tx *state.Tx, app directory.Application) error {
		return directory.RemoveCertificate(tx, app.ObjectID, keyID)
	})
}

package login

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

const (
	bucketKeys     = "signingKeys" // key: kid
	signingBits    = 2048
	certificateAge = 5 * 365 * 24 * time.Hour
	clockSkew      = 5 * time.Minute
	// A replaced key stays published until the last token that it signed
	// has expired.
	retiredAge = managedIdentityLifetime + 2*clockSkew
)

// storedKey is a signing key as the state file holds it.
type storedKey struct {
	Certificate []byte    // DER, self-signed
	PrivateKey  []byte    // PKCS #8
	Created     time.Time // the youngest key signs
	Retired     time.Time // zero while it signs
}

// signingKey is a key ready for use; its kid is the certificate's SHA-1.
type signingKey struct {
	id      string
	private *rsa.PrivateKey
	public  oidc.Key
	stored  storedKey
}

// keyring is an immutable set of keys, the signing one first.
type keyring struct {
	keys []signingKey
}

func (k *keyring) signing() signingKey { return k.keys[0] }

func (k *keyring) find(id string) (*rsa.PublicKey, bool) {
	for _, key := range k.keys {
		if key.id == id {
			return &key.private.PublicKey, true
		}
	}
	return nil, false
}

// RollKeys makes a new signing key. The old ones stay published until their
// tokens have expired; then a later RollKeys forgets them.
func (s *Server) RollKeys() error {
	now := s.now()
	fresh, err := newKey(now)
	if err != nil {
		return err
	}
	var ring *keyring
	err = s.db.Update(func(tx *state.Tx) error {
		old, err := readKeys(tx)
		if err != nil {
			return err
		}
		ring = &keyring{keys: []signingKey{fresh}}
		for _, k := range old.keys {
			if k.stored.Retired.IsZero() {
				k.stored.Retired = now
			}
			if now.Sub(k.stored.Retired) > retiredAge {
				if err := state.Delete(tx, bucketKeys, k.id); err != nil {
					return err
				}
				continue
			}
			ring.keys = append(ring.keys, k)
		}
		for _, k := range ring.keys {
			if err := state.Put(tx, bucketKeys, k.id, k.stored); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("rolling signing keys: %w", err)
	}
	s.keys.Store(ring)
	return nil
}

func (s *Server) loadKeys() error {
	var ring *keyring
	err := s.db.View(func(tx *state.Tx) (err error) {
		ring, err = readKeys(tx)
		return err
	})
	if err != nil {
		return err
	}
	if len(ring.keys) == 0 {
		return s.RollKeys()
	}
	s.keys.Store(ring)
	return nil
}

func readKeys(tx *state.Tx) (*keyring, error) {
	all, err := state.List[storedKey](tx, bucketKeys, "")
	if err != nil {
		return nil, err
	}
	ring := &keyring{}
	for _, st := range all {
		k, err := st.open()
		if err != nil {
			return nil, err
		}
		ring.keys = append(ring.keys, k)
	}
	slices.SortFunc(ring.keys, func(a, b signingKey) int {
		// Keys rolled within one tick of the clock: the one that signs wins.
		if a.stored.Retired.IsZero() != b.stored.Retired.IsZero() {
			if a.stored.Retired.IsZero() {
				return -1
			}
			return 1
		}
		return b.stored.Created.Compare(a.stored.Created)
	})
	return ring, nil
}

func (k storedKey) open() (signingKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(k.PrivateKey)
	if err != nil {
		return signingKey{}, fmt.Errorf("parsing signing key: %w", err)
	}
	private, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return signingKey{}, errors.New("signing key is not an RSA key")
	}
	cert, err := x509.ParseCertificate(k.Certificate)
	if err != nil {
		return signingKey{}, fmt.Errorf("parsing signing certificate: %w", err)
	}
	public, err := oidc.NewCertificateKey(cert)
	if err != nil {
		return signingKey{}, err
	}
	if !private.PublicKey.Equal(cert.PublicKey) {
		return signingKey{}, errors.New("signing key and certificate do not belong together")
	}
	return signingKey{id: public.ID, private: private, public: public, stored: k}, nil
}

func newKey(now time.Time) (signingKey, error) {
	private, err := rsa.GenerateKey(rand.Reader, signingBits)
	if err != nil {
		return signingKey{}, fmt.Errorf("making signing key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return signingKey{}, fmt.Errorf("making serial number: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "accounts.accesscontrol.windows.net"},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(certificateAge), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return signingKey{}, fmt.Errorf("making signing certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return signingKey{}, fmt.Errorf("encoding signing key: %w", err)
	}
	return storedKey{Certificate: der, PrivateKey: pkcs8, Created: now.UTC()}.open()
}

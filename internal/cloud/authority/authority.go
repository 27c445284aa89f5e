// Package authority is the certificate authority of the local cloud: one key that lives in the state file and can sign
// for the cloud's own names only, and the server certificate for all of them, whose key never leaves memory.
package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

const (
	bucketAuthority = "authority" // one key, "ca"
	authorityKey    = "ca"
	authorityAge    = 10 // years
	serverAge       = 90 * 24 * time.Hour
	serverRenew     = 30 * 24 * time.Hour
)

// storedAuthority is the certificate authority as the state file holds it.
type storedAuthority struct {
	Certificate []byte // DER
	PrivateKey  []byte // PKCS #8
}

// An Authority signs the cloud's server certificate. It can sign for the
// cloud's own names only (X.509 name constraints), so that trusting it puts
// no other site at risk. Its certificates follow the wall clock, not
// Config.Now, because the clients that check them do.
type Authority struct {
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	names []string // of the server certificate

	mu     sync.Mutex
	server *tls.Certificate
}

// Open loads the authority of a state file, or makes it. If hosts
// has a name that the stored certificate does not permit, the same key gets
// a new certificate that does.
func Open(db *state.DB, names []string) (*Authority, error) {
	a := &Authority{names: names}
	domains := permittedDomains(names)
	err := db.Update(func(tx *state.Tx) error {
		st, ok, err := state.Get[storedAuthority](tx, bucketAuthority, authorityKey)
		if err != nil {
			return err
		}
		if ok {
			if err := a.load(st); err != nil {
				return err
			}
			if !slices.ContainsFunc(domains, func(d string) bool { return !slices.Contains(a.cert.PermittedDNSDomains, d) }) {
				return nil
			}
			for _, d := range a.cert.PermittedDNSDomains {
				if !slices.Contains(domains, d) {
					domains = append(domains, d)
				}
			}
		}
		if st, err = a.create(domains); err != nil {
			return err
		}
		return state.Put(tx, bucketAuthority, authorityKey, st)
	})
	if err != nil {
		return nil, fmt.Errorf("opening certificate authority: %w", err)
	}
	return a, nil
}

func (a *Authority) load(st storedAuthority) error {
	key, err := x509.ParsePKCS8PrivateKey(st.PrivateKey)
	if err != nil {
		return fmt.Errorf("parsing key: %w", err)
	}
	var ok bool
	if a.key, ok = key.(*ecdsa.PrivateKey); !ok {
		return errors.New("key is not an ECDSA key")
	}
	if a.cert, err = x509.ParseCertificate(st.Certificate); err != nil {
		return fmt.Errorf("parsing certificate: %w", err)
	}
	if !a.key.PublicKey.Equal(a.cert.PublicKey) {
		return errors.New("key and certificate do not belong together")
	}
	return nil
}

// create signs a new certificate, with a new key if there is none yet.
func (a *Authority) create(domains []string) (storedAuthority, error) {
	var err error
	if a.key == nil {
		if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return storedAuthority{}, fmt.Errorf("making key: %w", err)
		}
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return storedAuthority{}, fmt.Errorf("encoding key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: "Lanyard local cloud", Organization: []string{"Lanyard"}},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.AddDate(authorityAge, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         domains,
		ExcludedIPRanges:            []*net.IPNet{{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return storedAuthority{}, fmt.Errorf("signing certificate: %w", err)
	}
	st := storedAuthority{Certificate: der, PrivateKey: pkcs8}
	return st, a.load(st)
}

// Root is the certificate of the authority.
func (a *Authority) Root() *x509.Certificate { return a.cert }

// PEM is the certificate that clients trust.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Certificate is the server certificate for all names. Its key never leaves
// memory; it is made again when the certificate gets old.
func (a *Authority) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server != nil && time.Until(a.server.Leaf.NotAfter) > serverRenew {
		return a.server, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making server key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: a.names[0]}, DNSNames: a.names,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(serverAge),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("signing server certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parsing server certificate: %w", err)
	}
	a.server = &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}
	return a.server, nil
}

// permittedDomains are the name constraints that cover names: a domain
// permits itself and all below it.
func permittedDomains(names []string) []string {
	var domains []string
	for _, n := range names {
		if d := strings.TrimPrefix(n, "*."); !slices.Contains(domains, d) {
			domains = append(domains, d)
		}
	}
	return domains
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:])
}

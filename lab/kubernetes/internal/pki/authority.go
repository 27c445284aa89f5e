// Package pki makes the keys and certificates of one cluster and the
// kubeconfig files that carry them.
//
//	DIR/pki/ca                 signs every server and component certificate
//	DIR/pki/local-accounts-ca  signs admin only: take it out of client-ca.crt and admin is out
//	DIR/pki/front-proxy-ca     signs the aggregator's client certificate
//	DIR/pki/sa.{key,pub}       signs ServiceAccount tokens (RSA, because Entra accepts RS256 only)
//
// Authorities and the ServiceAccount key are kept when they exist: a cluster
// that restarts must still accept the certificates and tokens that it issued.
// Leaf certificates are issued anew on each start, so that they always carry
// the names and addresses of this start.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	authorityLifetime = 10 * 365 * 24 * time.Hour
	leafLifetime      = 2 * 365 * 24 * time.Hour

	// A certificate is valid a little before it was made: clocks differ.
	backdate = time.Hour
)

// An Authority is a certificate authority with its private key.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// CertPEM returns the authority's certificate.
func (a *Authority) CertPEM() []byte { return a.pem }

// OpenAuthority reads the authority NAME.crt and NAME.key in dir, or makes it
// if neither file exists. It refuses half a pair and an authority that has
// expired.
func OpenAuthority(dir, name string, now time.Time) (*Authority, error) {
	certFile, keyFile := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	certPEM, certErr := os.ReadFile(certFile)
	keyPEM, keyErr := os.ReadFile(keyFile)
	if errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist) {
		return newAuthority(dir, name, now)
	}
	if err := errors.Join(certErr, keyErr); err != nil {
		return nil, fmt.Errorf("reading the authority %s: %w (remove both files to make a new one)", name, err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("reading the authority %s: %w", certFile, err)
	}
	if now.After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("the authority %s expired at %s: start with a new directory", certFile, pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%s is not a certificate authority", certFile)
	}
	return &Authority{cert: pair.Leaf, key: key, pem: certPEM}, nil
}

func newAuthority(dir, name string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key of %s: %w", name, err)
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "lanyard-lab-" + name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the authority %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making the authority %s: %w", name, err)
	}
	a := &Authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return a, writePair(dir, name, a.pem, keyPEM)
}

// A Leaf is what a certificate says: DNSNames or IPs make it a server's,
// neither makes it a client's.
type Leaf struct {
	Name          string // of the files, without .crt and .key
	CommonName    string
	Organizations []string // the groups of a client
	DNSNames      []string
	IPs           []net.IP
}

// A Pair is a PEM certificate with its PEM private key.
type Pair struct{ CertPEM, KeyPEM []byte }

// Issue signs a new certificate and writes NAME.crt and NAME.key into dir.
func (a *Authority) Issue(dir string, leaf Leaf, now time.Time) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("making the key of %s: %w", leaf.Name, err)
	}
	serial, err := serialNumber()
	if err != nil {
		return Pair{}, err
	}
	notAfter := now.Add(leafLifetime)
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	usage := x509.ExtKeyUsageClientAuth
	if len(leaf.DNSNames)+len(leaf.IPs) > 0 {
		usage = x509.ExtKeyUsageServerAuth
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: leaf.CommonName, Organization: leaf.Organizations},
		NotBefore:    now.Add(-backdate),
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{usage},
		DNSNames:     leaf.DNSNames,
		IPAddresses:  leaf.IPs,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return Pair{}, fmt.Errorf("issuing %s: %w", leaf.Name, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Pair{}, err
	}
	pair := Pair{CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), KeyPEM: keyPEM}
	return pair, writePair(dir, leaf.Name, pair.CertPEM, pair.KeyPEM)
}

// EnsureSigningKey makes the ServiceAccount signing key sa.key and its public
// half sa.pub in dir, unless they exist. An sa.pub that is there stays as it is:
// during a rotation it holds more than the key that signs.
func EnsureSigningKey(dir string) error {
	private, public := filepath.Join(dir, "sa.key"), filepath.Join(dir, "sa.pub")
	if existing, err := os.ReadFile(private); err == nil {
		block, _ := pem.Decode(existing)
		if block == nil {
			return fmt.Errorf("%s holds no PEM block", private)
		}
		key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
		if err != nil {
			return fmt.Errorf("reading %s: %w", private, err)
		}
		if _, err := os.Stat(public); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return writePublicKey(public, key)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the signing key: %w", err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("making the signing key: %w", err)
	}
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	if err := WriteFile(private, pem.EncodeToMemory(block)); err != nil {
		return err
	}
	return writePublicKey(public, key)
}

func writePublicKey(file string, key *rsa.PrivateKey) error {
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("encoding the public signing key: %w", err)
	}
	return WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// WriteFile replaces file with data, readable by its owner only. A reader sees
// the old content or the new, never a part of it.
func WriteFile(file string, data []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*") // 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	_, err = temp.Write(data)
	err = errors.Join(err, temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", file, err), os.Remove(temp.Name()))
	}
	return nil
}

// writePair writes the key first: a certificate without its key is never found.
func writePair(dir, name string, certPEM, keyPEM []byte) error {
	if err := WriteFile(filepath.Join(dir, name+".key"), keyPEM); err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, name+".crt"), certPEM)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func serialNumber() (*big.Int, error) {
	// RFC 5280 section 4.1.2.2: positive and at most 20 octets.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

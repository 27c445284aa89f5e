package servingcert

import (
	"bytes"
	"crypto"
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
	"time"
)

// Members of the certificate Secret, named as azure-workload-identity names them.
const (
	secretCA     = "ca.crt"
	secretCAKey  = "ca.key"
	secretLeaf   = "tls.crt"
	secretLeafPK = "tls.key"
)

// A Policy says how long certificates live and when they are replaced.
type Policy struct {
	CALifetime  time.Duration // of a certificate authority; 0 means 10 years
	Lifetime    time.Duration // of a serving certificate; 0 means 1 year
	RenewBefore time.Duration // how long before its end a serving certificate is replaced; 0 means 90 days

	// Settle is how long a new authority must have been known before it signs
	// a certificate that replaces a valid one: an API server that has not seen
	// the authority yet would refuse it. 0 means 10 minutes.
	Settle time.Duration
}

func (p Policy) withDefaults() Policy {
	const day = 24 * time.Hour
	for _, d := range []struct {
		value *time.Duration
		zero  time.Duration
	}{{&p.CALifetime, 3650 * day}, {&p.Lifetime, 365 * day}, {&p.RenewBefore, 90 * day}, {&p.Settle, 10 * time.Minute}} {
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	return p
}

// keyMaterial is the content of the certificate Secret. The zero value is that
// of an empty Secret.
type keyMaterial struct {
	authorities []*x509.Certificate // the first one signs; the others are trusted until they expire
	key         crypto.Signer       // of the first authority
	leaf        tls.Certificate     // with Leaf set
}

// parseMaterial reads a Secret.
func parseMaterial(data map[string][]byte) (keyMaterial, error) {
	var m keyMaterial
	for rest := data[secretCA]; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return keyMaterial{}, fmt.Errorf("%s: %w", secretCA, err)
		}
		m.authorities = append(m.authorities, cert)
	}
	if len(m.authorities) == 0 {
		return keyMaterial{}, fmt.Errorf("%s holds no certificate", secretCA)
	}
	pair, err := tls.X509KeyPair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.authorities[0].Raw}), data[secretCAKey])
	if err != nil {
		return keyMaterial{}, fmt.Errorf("%s: %w", secretCAKey, err)
	}
	m.key, _ = pair.PrivateKey.(crypto.Signer) // every key that X509KeyPair accepts is one
	if m.leaf, err = tls.X509KeyPair(data[secretLeaf], data[secretLeafPK]); err != nil {
		return keyMaterial{}, fmt.Errorf("%s: %w", secretLeaf, err)
	}
	return m, nil
}

// data is the reverse of parseMaterial.
func (m keyMaterial) data() (map[string][]byte, error) {
	ca, err := x509.MarshalPKCS8PrivateKey(m.key)
	if err != nil {
		return nil, fmt.Errorf("encoding the authority's key: %w", err)
	}
	leaf, err := x509.MarshalPKCS8PrivateKey(m.leaf.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encoding the serving key: %w", err)
	}
	return map[string][]byte{
		secretCA:     m.bundle(),
		secretCAKey:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: ca}),
		secretLeaf:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.leaf.Certificate[0]}),
		secretLeafPK: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: leaf}),
	}, nil
}

// bundle is what the API server trusts, as PEM.
func (m keyMaterial) bundle() []byte {
	var b bytes.Buffer
	for _, ca := range m.authorities {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}))
	}
	return b.Bytes()
}

// serves reports why the serving certificate is of no use at an instant. One
// that is not valid yet is of use: then it is this machine's clock that is
// behind, and a replacement would be no better.
func (m keyMaterial) serves(now time.Time, names []string) error {
	if m.leaf.Leaf == nil {
		return errors.New("there is none yet")
	}
	roots := x509.NewCertPool()
	for _, ca := range m.authorities {
		roots.AddCert(ca)
	}
	if start := m.leaf.Leaf.NotBefore; now.Before(start) {
		now = start
	}
	for _, name := range names {
		_, err := m.leaf.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: now})
		if err != nil {
			return err
		}
	}
	return nil
}

// renew returns the material that should be in the Secret at an instant, and
// why it differs from m; the reason is empty if it does not.
//
// An authority is replaced so early that every certificate that it may have
// signed ends before it does. Old authorities stay trusted until they expire.
func (p Policy) renew(m keyMaterial, now time.Time, names []string) (keyMaterial, string, error) {
	broken := m.serves(now, names)
	var reason string
	if len(m.authorities) == 0 || !now.Before(p.authorityDue(m)) {
		ca, key, err := p.newAuthority(now)
		if err != nil {
			return keyMaterial{}, "", err
		}
		keep := []*x509.Certificate{ca}
		for _, old := range m.authorities {
			if now.Before(old.NotAfter) {
				keep = append(keep, old)
			}
		}
		m.authorities, m.key, reason = keep, key, "the certificate authority is due"
	}
	settled := !now.Before(m.authorities[0].NotBefore.Add(backdate + p.Settle))
	switch {
	case broken != nil:
		reason = "the serving certificate is of no use: " + broken.Error()
	case settled && !now.Before(p.leafDue(m)):
		reason = "the serving certificate is due"
	default:
		return m, reason, nil
	}
	leaf, err := p.newLeaf(m, now, names)
	if err != nil {
		return keyMaterial{}, "", err
	}
	m.leaf = leaf
	return m, reason, nil
}

// next is the instant at which renew has to be asked again.
func (p Policy) next(m keyMaterial) time.Time {
	at := p.leafDue(m)
	if settled := m.authorities[0].NotBefore.Add(backdate + p.Settle); at.Before(settled) {
		at = settled
	}
	if ca := p.authorityDue(m); ca.Before(at) {
		at = ca
	}
	return at
}

func (p Policy) leafDue(m keyMaterial) time.Time { return m.leaf.Leaf.NotAfter.Add(-p.RenewBefore) }

func (p Policy) authorityDue(m keyMaterial) time.Time {
	return m.authorities[0].NotAfter.Add(-p.Lifetime - p.RenewBefore)
}

// backdate makes a new certificate valid on a machine whose clock is behind.
const backdate = time.Hour

func (p Policy) newAuthority(now time.Time) (*x509.Certificate, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making the authority's key: %w", err)
	}
	cert, err := sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "azure-workload-identity-ca"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(p.CALifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, nil, key.Public(), key)
	return cert, key, err
}

func (p Policy) newLeaf(m keyMaterial, now time.Time, names []string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making the serving key: %w", err)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		NotBefore:   now.Add(-backdate),
		NotAfter:    now.Add(p.Lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if len(names[0]) > 64 { // the longest common name; the alternative names are what counts
		template.Subject = pkix.Name{CommonName: "azure-workload-identity-webhook"}
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	cert, err := sign(template, m.authorities[0], key.Public(), m.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// sign issues a certificate; without a parent it signs itself.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	template.SerialNumber = serial
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading the signed certificate: %w", err)
	}
	return cert, nil
}

package oidc

import (
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
)

// A KeySet is a JSON Web Key Set (RFC 7517, section 5).
type KeySet struct {
	Keys []Key `json:"keys"`
}

// A Key is one RSA JSON Web Key. Members of other key types are ignored;
// such a key has no RSA public key.
type Key struct {
	Type      string   `json:"kty"`
	Use       string   `json:"use,omitempty"`
	ID        string   `json:"kid,omitempty"`
	Algorithm string   `json:"alg,omitempty"`
	X5T       string   `json:"x5t,omitempty"`
	N         string   `json:"n,omitempty"`
	E         string   `json:"e,omitempty"`
	X5C       []string `json:"x5c,omitempty"`
	// CloudInstance and Issuer are Entra's additions.
	CloudInstance string `json:"cloud_instance_name,omitempty"`
	Issuer        string `json:"issuer,omitempty"`
}

const (
	minModulusBits = 2048
	maxModulusBits = 8192 // more makes one verification cost too much
)

// NewKey is the published form of a signing key.
func NewKey(id string, pub *rsa.PublicKey) Key {
	return Key{
		Type: "RSA", Use: "sig", ID: id,
		N: base64.RawURLEncoding.EncodeToString(pub.N.Bytes()),
		E: base64.RawURLEncoding.EncodeToString(big.NewInt(int64(pub.E)).Bytes()),
	}
}

// RSA returns the public key: of 2048 to 8192 bits, meant for signatures.
func (k Key) RSA() (*rsa.PublicKey, error) {
	if k.Type != "RSA" {
		return nil, fmt.Errorf("key %q is of type %q, want RSA", k.ID, k.Type)
	}
	if k.Use != "" && k.Use != "sig" {
		return nil, fmt.Errorf("key %q is for use %q, want sig", k.ID, k.Use)
	}
	n, err := base64.RawURLEncoding.DecodeString(k.N)
	if err != nil {
		return nil, fmt.Errorf("key %q: modulus: %w", k.ID, err)
	}
	e, err := base64.RawURLEncoding.DecodeString(k.E)
	if err != nil {
		return nil, fmt.Errorf("key %q: exponent: %w", k.ID, err)
	}
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(n)}
	if bits := pub.N.BitLen(); bits < minModulusBits || bits > maxModulusBits || pub.N.Bit(0) == 0 {
		return nil, fmt.Errorf("key %q has a modulus of %d bits, want an odd one of %d to %d", k.ID, bits, minModulusBits, maxModulusBits)
	}
	exp := new(big.Int).SetBytes(e)
	if exp.BitLen() > 31 || exp.Int64() < 3 || exp.Bit(0) == 0 {
		return nil, fmt.Errorf("key %q has an unusable public exponent", k.ID)
	}
	pub.E = int(exp.Int64())
	return pub, nil
}

// CertificateID is the name that Entra gives the key of a certificate: the
// base64url SHA-1 of its DER, at once kid and x5t.
func CertificateID(der []byte) string {
	sum := sha1.Sum(der)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// NewCertificateKey is the published form of a certificate's RSA key, with
// kid, x5t and x5c.
func NewCertificateKey(cert *x509.Certificate) (Key, error) {
	pub, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return Key{}, errors.New("certificate has no RSA key")
	}
	k := NewKey(CertificateID(cert.Raw), pub)
	k.X5T = k.ID
	k.X5C = []string{base64.StdEncoding.EncodeToString(cert.Raw)}
	return k, nil
}

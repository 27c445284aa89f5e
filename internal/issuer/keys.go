package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/go-jose/go-jose/v4"

	"github.com/lanyard-id/lanyard/internal/oidc"
)

// MaxKeys is how many keys Entra reads of a set; it does not see the others.
const MaxKeys = 100

// A Key is a public key that tokens are verified with.
type Key struct {
	ID        string // kid; for Kubernetes the hash that KeyID computes
	Algorithm string // RS256, ES256, ES384 or ES512; empty if the set did not say and it is not RSA or EC
	Public    crypto.PublicKey
}

// KeyID is the id that kube-apiserver gives a key: base64url without padding of
// the SHA-256 of its PKIX DER.
func KeyID(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("encoding a public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// NewKey makes a Key with the id that kube-apiserver gives it.
func NewKey(pub crypto.PublicKey) (Key, error) {
	alg, err := algorithm(pub)
	if err != nil {
		return Key{}, err
	}
	id, err := KeyID(pub)
	return Key{ID: id, Algorithm: alg, Public: pub}, err
}

func algorithm(pub crypto.PublicKey) (string, error) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return oidc.RS256, nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return string(jose.ES256), nil
		case elliptic.P384():
			return string(jose.ES384), nil
		case elliptic.P521():
			return string(jose.ES512), nil
		}
		return "", errors.New("an elliptic curve that is none of P-256, P-384 and P-521: Kubernetes cannot sign with it")
	}
	return "", fmt.Errorf("a key of type %T: Kubernetes signs with RSA and ECDSA keys only", pub)
}

// Equal reports whether both are the same key under the same id.
func (k Key) Equal(o Key) bool {
	pub, ok := k.Public.(interface{ Equal(crypto.PublicKey) bool })
	return k.ID == o.ID && ok && pub.Equal(o.Public)
}

// UsableByEntra reports why Entra would not verify with this key: it takes RS256
// and nothing else.
func (k Key) UsableByEntra() error {
	if _, ok := k.Public.(*rsa.PublicKey); !ok || k.Algorithm != "" && k.Algorithm != oidc.RS256 {
		return fmt.Errorf("key %s is for %s, and Entra accepts RS256 only: sign with an RSA key", k.ID, orUnknown(k.Algorithm))
	}
	return nil
}

func orUnknown(s string) string {
	if s == "" {
		return "an unknown algorithm"
	}
	return s
}

// Validate says why Entra could not verify tokens with this key.
func (k Key) Validate() error {
	if k.ID == "" {
		return errors.New("a key has no id (kid): tokens could not name it")
	}
	if err := k.UsableByEntra(); err != nil {
		return err
	}
	pub := k.Public.(*rsa.PublicKey)
	// What oidc reads back is what relying parties read.
	if _, err := oidc.NewKey(k.ID, pub).RSA(); err != nil {
		return err
	}
	return nil
}

// FormatKeys is a JSON Web Key Set of keys, as kube-apiserver has it.
func FormatKeys(keys []Key) ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range keys {
		j := jose.JSONWebKey{Key: k.Public, KeyID: k.ID, Algorithm: k.Algorithm, Use: "sig"}
		if !j.Valid() || !j.IsPublic() {
			return nil, fmt.Errorf("key %s is not a public key: it is not published", k.ID)
		}
		set.Keys = append(set.Keys, j)
	}
	data, err := json.MarshalIndent(set, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the key set: %w", err)
	}
	return data, nil
}

// ErrPrivate is wrapped where a document that is or will be public holds a
// private key.
var ErrPrivate = errors.New("private key in a public document")

// privateMembers are those of RFC 7518, sections 6.2.2, 6.3.2 and 6.4.1.
var privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"}

// ParseKeys reads a JSON Web Key Set. A key of a type that is not RSA or EC has
// no Public. A private member anywhere is ErrPrivate.
func ParseKeys(data []byte) ([]Key, error) {
	if len(data) > MaxDocument {
		return nil, fmt.Errorf("the key set has more than %d bytes", MaxDocument)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("the key set is not JSON: %w", err)
	}
	if set.Keys == nil {
		return nil, errors.New(`the key set has no member "keys"`)
	}
	keys := make([]Key, 0, len(set.Keys))
	for i, raw := range set.Keys {
		k, err := parseKey(raw)
		if err != nil {
			return nil, fmt.Errorf("key %d of the set: %w", i+1, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func parseKey(raw json.RawMessage) (Key, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return Key{}, fmt.Errorf("not an object: %w", err)
	}
	for _, m := range privateMembers {
		if _, there := members[m]; there {
			return Key{}, fmt.Errorf("%w: it has the member %q; whoever has read it can sign tokens, so rotate this key", ErrPrivate, m)
		}
	}
	var head struct {
		ID        string `json:"kid"`
		Algorithm string `json:"alg"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return Key{}, fmt.Errorf("reading its members: %w", err)
	}
	k := Key{ID: head.ID, Algorithm: head.Algorithm}
	var j jose.JSONWebKey
	if err := j.UnmarshalJSON(raw); err != nil || !j.IsPublic() {
		return k, nil // of a kind that nobody here uses
	}
	k.Public = j.Key
	if k.Algorithm == "" {
		k.Algorithm, _ = algorithm(k.Public)
	}
	return k, nil
}

// ReadKeys reads the public keys of PEM files, in which several blocks may be:
// public keys, certificates, or private keys, of which the public half is taken.
// A key that is there twice is returned once.
func ReadKeys(files ...string) ([]Key, error) {
	var keys []Key
	for _, file := range files {
		data, err := readFile(file)
		if err != nil {
			return nil, err
		}
		found, err := ParsePEM(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		keys = Merge(keys, found...)
	}
	return keys, nil
}

func readFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	if len(data) > MaxDocument {
		return nil, fmt.Errorf("reading keys: %s has more than %d bytes", file, MaxDocument)
	}
	return data, nil
}

// ParsePEM reads the keys of all PEM blocks; other blocks, such as parameters of
// a curve, are passed over. Its errors quote nothing of the data.
func ParsePEM(data []byte) ([]Key, error) {
	var keys []Key
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		pub, err := publicOf(block)
		if err != nil {
			return nil, fmt.Errorf("PEM block %q: %w", block.Type, err)
		}
		if pub == nil {
			continue
		}
		k, err := NewKey(pub)
		if err != nil {
			return nil, fmt.Errorf("PEM block %q: %w", block.Type, err)
		}
		if !slices.ContainsFunc(keys, k.Equal) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("it holds no key in PEM form (-----BEGIN PUBLIC KEY-----)")
	}
	return keys, nil
}

func publicOf(block *pem.Block) (crypto.PublicKey, error) {
	switch block.Type {
	case "PUBLIC KEY":
		return x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		return x509.ParsePKCS1PublicKey(block.Bytes)
	case "CERTIFICATE":
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		return cert.PublicKey, nil
	case "RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY":
		private, err := ParsePrivate(block)
		if err != nil {
			return nil, err
		}
		return private.Public(), nil
	case "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("it is encrypted: give the public key")
	}
	return nil, nil
}

// ParsePrivate reads a private key of any of the forms that kube-apiserver
// takes. Its errors quote nothing of the key.
func ParsePrivate(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, errors.New("the private key cannot be read")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	return signer, nil
}

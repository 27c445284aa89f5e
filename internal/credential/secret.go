package credential

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"software.sslmate.com/src/go-pkcs12"
)

// Keys of a Secret's data.
const (
	KeyClientSecret = "clientSecret" // the documented key of a password
	KeyPassword     = "password"     // of a password, or of the PKCS#12 file
	KeyCertificate  = "certificate"  // a PKCS#12 file
	KeyTLSCert      = "tls.crt"      // PEM, as in a Secret of type kubernetes.io/tls
	KeyTLSKey       = "tls.key"
)

// Password reads a password: from the key clientSecret, else password, else
// the only key there is. Pod Identity v1 took any key at random. A line end
// after the password is not part of it.
func Password(data map[string][]byte) (*Credential, error) {
	value, ok := data[KeyClientSecret]
	if !ok {
		value, ok = data[KeyPassword]
	}
	if !ok && len(data) == 1 {
		for _, only := range data {
			value, ok = only, true
		}
	}
	if !ok {
		return nil, fmt.Errorf("the Secret has %s: put the password under the key %s", keys(data), KeyClientSecret)
	}
	password := strings.TrimRight(string(value), "\r\n")
	if password == "" {
		return nil, errors.New("the Secret's password is empty: copy the value of the application's client secret into it")
	}
	return newPassword(password), nil
}

// Certificate reads a certificate with its RSA key: PKCS#12 under the key
// certificate, with its password under the key password if it has one, or PEM
// under tls.crt and tls.key.
func Certificate(data map[string][]byte) (*Credential, error) {
	if pfx, ok := data[KeyCertificate]; ok {
		return fromPKCS12(pfx, string(data[KeyPassword]))
	}
	crt, hasCert := data[KeyTLSCert]
	key, hasKey := data[KeyTLSKey]
	if !hasCert || !hasKey {
		return nil, fmt.Errorf("the Secret has %s: put a PKCS#12 file under the key %s and its password under %s, or PEM under %s and %s",
			keys(data), KeyCertificate, KeyPassword, KeyTLSCert, KeyTLSKey)
	}
	pair, err := tls.X509KeyPair(crt, key)
	if err != nil {
		return nil, fmt.Errorf("reading %s and %s: %w", KeyTLSCert, KeyTLSKey, err)
	}
	chain := make([]*x509.Certificate, len(pair.Certificate))
	for i, der := range pair.Certificate {
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("reading %s: %w", KeyTLSCert, err)
		}
	}
	return newCertificate(pair.PrivateKey, chain)
}

func fromPKCS12(pfx []byte, password string) (c *Credential, err error) {
	// Whoever may create a Secret must not be able to end the program.
	defer func() {
		if recover() != nil {
			c, err = nil, fmt.Errorf("the PKCS#12 file under the key %s is damaged", KeyCertificate)
		}
	}()
	if err := checkIterations(pfx, 0); err != nil {
		return nil, err
	}
	key, leaf, others, err := pkcs12.DecodeChain(pfx, password)
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword) && password != "":
		// A line end after the password is a frequent mistake with "echo".
		if trimmed := strings.TrimRight(password, "\r\n"); trimmed != password {
			return fromPKCS12(pfx, trimmed)
		}
		fallthrough
	case errors.Is(err, pkcs12.ErrIncorrectPassword):
		return nil, fmt.Errorf("the key %s of the Secret is not the password of the PKCS#12 file under the key %s", KeyPassword, KeyCertificate)
	case err != nil:
		return nil, fmt.Errorf("the key %s is no PKCS#12 file with one private key and its certificate (for PEM use %s and %s): %w", KeyCertificate, KeyTLSCert, KeyTLSKey, err)
	}
	return newCertificate(key, append([]*x509.Certificate{leaf}, others...))
}

// maxIterations is above what any known tool writes by default (2,000 to
// 600,000); a file has at most four derivations of one or two rounds.
const maxIterations = 1_000_000

// checkIterations refuses a PKCS#12 file that asks for an endless key
// derivation: it looks for every INTEGER that follows an OCTET STRING, the
// form of salt and count in all of its schemes (RFC 7292 and RFC 8018). What
// is encrypted cannot be looked at, but its own derivation comes first.
func checkIterations(der []byte, depth int) error {
	const maxDepth = 24
	salt := false
	for rest := der; len(rest) > 0 && depth < maxDepth; {
		var v asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &v); err != nil {
			return nil // no ASN.1 here; DecodeChain says what is wrong
		}
		universal := v.Class == asn1.ClassUniversal
		if universal && v.Tag == asn1.TagInteger && salt {
			var n int
			if _, err := asn1.Unmarshal(v.FullBytes, &n); err != nil || n > maxIterations {
				return fmt.Errorf("the PKCS#12 file under the key %s asks for more than %d iterations: export it again with the tool's defaults", KeyCertificate, maxIterations)
			}
		}
		salt = universal && v.Tag == asn1.TagOctetString
		if v.IsCompound || salt && isDER(v.Bytes) {
			if err := checkIterations(v.Bytes, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// isDER tells nested data from a salt or a ciphertext, whose bytes mean nothing.
func isDER(b []byte) bool {
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(b, &v)
	return err == nil && len(rest) == 0 && v.IsCompound
}

func keys(data map[string][]byte) string {
	if len(data) == 0 {
		return "no keys"
	}
	return "the keys " + strings.Join(slices.Sorted(maps.Keys(data)), ", ")
}

// Package issuer publishes what a cluster's token issuer has to publish, so
// that Entra can verify service-account tokens (KEP-1393, OpenID Connect
// Discovery 1.0).
//
//	ReadKeys     PEM files ──┐                             ┌─> Directory   files, for any web server
//	                         ├─> Documents ── Publisher ───┼─> Blob        a container with public read access
//	Cluster      API servers ┘    checked                  └─> Server      https://ISSUER/ by ourselves
//
// Only public keys pass: a document with a private member is refused wherever it
// comes from. Package inspect looks at what is published as Entra does; package
// rotation changes the keys.
package issuer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/internal/oidc"
)

// Where the documents are, below the issuer. Kubernetes serves its keys at the
// same path (KEP-1393).
const (
	ConfigurationPath = ".well-known/openid-configuration"
	KeysPath          = "openid/v1/jwks"
)

// MaxDocument is how large a document may be, in bytes.
const MaxDocument = 1 << 20

// Documents are what an issuer publishes: who it is, and with which keys it
// signs.
type Documents struct {
	Issuer string // byte for byte what tokens have as iss
	Keys   []Key
}

// KeysURL is where the keys of an issuer are published.
func KeysURL(issuer string) string { return strings.TrimSuffix(issuer, "/") + "/" + KeysPath }

// ConfigurationJSON is the discovery document, in the form of the API server's.
func (d Documents) ConfigurationJSON() ([]byte, error) {
	return json.MarshalIndent(oidc.Configuration{
		Issuer:                           d.Issuer,
		JWKSURI:                          KeysURL(d.Issuer),
		ResponseTypesSupported:           []string{"id_token"},
		SubjectTypesSupported:            []string{"public"},
		IDTokenSigningAlgValuesSupported: algorithms(d.Keys),
	}, "", "  ")
}

// KeysJSON is the JSON Web Key Set.
func (d Documents) KeysJSON() ([]byte, error) { return FormatKeys(d.Keys) }

func algorithms(keys []Key) []string {
	var list []string
	for _, k := range keys {
		if !slices.Contains(list, k.Algorithm) {
			list = append(list, k.Algorithm)
		}
	}
	slices.Sort(list)
	return list
}

// Validate says what Entra would not accept. All that is wrong is said at once.
func (d Documents) Validate() error {
	errs := []error{ValidateIssuer(d.Issuer)}
	if len(d.Keys) == 0 {
		errs = append(errs, errors.New("there is no key: no token could be verified"))
	}
	if len(d.Keys) > MaxKeys {
		errs = append(errs, fmt.Errorf("there are %d keys, and Entra reads only the first %d: remove those that no token is signed with any more", len(d.Keys), MaxKeys))
	}
	seen := map[string]Key{}
	for _, k := range d.Keys {
		errs = append(errs, k.Validate())
		if other, twice := seen[k.ID]; twice && !other.Equal(k) {
			errs = append(errs, fmt.Errorf("two different keys have the id %s", k.ID))
		}
		seen[k.ID] = k
	}
	return errors.Join(errs...)
}

// ValidateIssuer says why Entra could never ask this issuer.
func ValidateIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	switch {
	case issuer == "":
		return errors.New("the issuer is not known: give its URL")
	case err != nil || u.Host == "":
		return fmt.Errorf("the issuer %q is not a URL: it must be https://HOST/PATH", issuer)
	case u.Scheme != "https":
		return fmt.Errorf("the issuer %q does not begin with https://: Entra fetches keys over TLS only, so set --service-account-issuer of the API servers to an https URL", issuer)
	case !oidc.ValidIssuer(issuer):
		return fmt.Errorf("the issuer %q has a user, a query or a fragment: it must be https://HOST/PATH and no more", issuer)
	case strings.TrimSpace(issuer) != issuer || len(issuer) > 600:
		return fmt.Errorf("the issuer %.80q has white space at an end or more than 600 characters: no federated credential can name it", issuer)
	}
	return nil
}

// KeyIDs are the ids of keys, in their order.
func KeyIDs(keys []Key) []string {
	ids := make([]string, len(keys))
	for i, k := range keys {
		ids[i] = k.ID
	}
	return ids
}

// ParseDocuments reads a discovery document and a key set, wherever they come
// from. It returns jwks_uri beside them: Documents have it where it belongs.
func ParseDocuments(configuration, keys []byte) (d Documents, jwksURI string, err error) {
	c, err := ParseConfiguration(configuration)
	if err != nil {
		return Documents{}, "", err
	}
	d.Issuer = c.Issuer
	d.Keys, err = ParseKeys(keys)
	return d, c.JWKSURI, err
}

// ParseConfiguration reads a discovery document.
func ParseConfiguration(data []byte) (oidc.Configuration, error) {
	var c oidc.Configuration
	if len(data) > MaxDocument {
		return c, fmt.Errorf("the discovery document has more than %d bytes", MaxDocument)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("the discovery document is not JSON: %w", err)
	}
	if c.Issuer == "" {
		return c, errors.New("the discovery document names no issuer")
	}
	return c, nil
}

// Equal reports whether both publish the same, whatever the order of the keys.
func (d Documents) Equal(o Documents) bool {
	a, b := sorted(d.Keys), sorted(o.Keys)
	return d.Issuer == o.Issuer && slices.EqualFunc(a, b, Key.Equal)
}

func sorted(keys []Key) []Key {
	return slices.SortedFunc(slices.Values(keys), func(a, b Key) int { return strings.Compare(a.ID, b.ID) })
}

// Merge adds those of more that keys lacks, behind them.
func Merge(keys []Key, more ...Key) []Key {
	merged := slices.Clone(keys)
	for _, k := range more {
		if !slices.ContainsFunc(merged, k.Equal) {
			merged = append(merged, k)
		}
	}
	return merged
}

// compact is JSON as it is compared: without white space.
func compact(data []byte) []byte {
	var b bytes.Buffer
	if json.Compact(&b, data) != nil {
		return data
	}
	return b.Bytes()
}

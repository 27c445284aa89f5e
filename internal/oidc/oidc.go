// Package oidc speaks the parts of OpenID Connect that token issuers and
// their relying parties share: the discovery document, JSON Web Key sets,
// and signed tokens in compact form.
//
//	issuer                                 relying party
//	  Sign(claims)  ──────── token ───────>  Parse        shape only, nothing is trusted
//	  Configuration <─ GET .well-known ────  Client.Key   issuer + kid -> public key, cached
//	  KeySet        <─ GET jwks_uri ───────
//	                                         Token.Verify the signature, with a named algorithm
//
// Keys are RSA: that is what Kubernetes, Entra and the public CI issuers
// sign with, and all that Entra accepts. The relying party names the
// algorithm it wants; the token's own header never chooses one.
package oidc

import (
	"net/url"
	"strings"
)

// ConfigurationPath is where an issuer serves its discovery document,
// relative to the issuer URL (OpenID Connect Discovery 1.0, section 4).
const ConfigurationPath = "/.well-known/openid-configuration"

// ConfigurationURL is the address of an issuer's discovery document.
func ConfigurationURL(issuer string) string {
	return strings.TrimSuffix(issuer, "/") + ConfigurationPath
}

// Configuration is the discovery document (OpenID Connect Discovery 1.0,
// section 3), as far as issuers of machine tokens fill it.
type Configuration struct {
	Issuer                           string   `json:"issuer"`
	JWKSURI                          string   `json:"jwks_uri"`
	AuthorizationEndpoint            string   `json:"authorization_endpoint,omitempty"`
	TokenEndpoint                    string   `json:"token_endpoint,omitempty"`
	UserinfoEndpoint                 string   `json:"userinfo_endpoint,omitempty"`
	ResponseTypesSupported           []string `json:"response_types_supported"`
	SubjectTypesSupported            []string `json:"subject_types_supported"`
	IDTokenSigningAlgValuesSupported []string `json:"id_token_signing_alg_values_supported"`
	ScopesSupported                  []string `json:"scopes_supported,omitempty"`
	ClaimsSupported                  []string `json:"claims_supported,omitempty"`
}

// ValidIssuer reports whether s can be an issuer: an https URL with a host
// and nothing but a path besides.
func ValidIssuer(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Hostname() != "" && u.User == nil &&
		u.RawQuery == "" && !u.ForceQuery && u.Fragment == "" && !strings.HasSuffix(s, "#")
}

package login

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

// checkAssertion checks a client_assertion of either kind. One that the
// client issued itself (iss is its client id) is signed with the key of a
// certificate; any other is a federated token.
func (s *Server) checkAssertion(ctx context.Context, c client, req entra.TokenRequest) error {
	switch req.AssertionType {
	case entra.AssertionTypeJWT:
	case "":
		return entra.MissingParameter("client_assertion_type")
	default:
		return entra.InvalidInput("client_assertion_type must be " + entra.AssertionTypeJWT + ".")
	}
	t, parseErr := oidc.Parse(req.Assertion)
	if parseErr == nil {
		if iss, ok := t.Claims.String("iss"); ok && strings.EqualFold(iss, c.principal.AppID) {
			return s.checkCertificate(c, t, iss)
		}
	}
	if len(c.federated) == 0 && len(c.app.Keys) > 0 && parseErr != nil {
		return entra.InvalidToken("").Because(parseErr)
	}
	if len(c.federated) == 0 {
		return entra.NoFederatedCredentials(c.principal.AppID, c.principal.DisplayName)
	}
	if parseErr != nil {
		return entra.InvalidToken("").Because(parseErr)
	}
	return s.checkFederated(ctx, c, t)
}

// An assertion is what a federated token claims.
type assertion struct {
	issuer, subject string
	audience        []string
	keyID           string
	claims          oidc.Object
}

// checkFederated applies the rules for tokens of other issuers: shape,
// match with a federated credential, the issuer's key, signature, time.
func (s *Server) checkFederated(ctx context.Context, c client, t *oidc.Token) error {
	a, err := readAssertion(t)
	if err != nil {
		return err
	}
	if u, err := url.Parse(a.issuer); err == nil && ownHost(u.Hostname()) {
		return entra.OwnTokenAsAssertion()
	}
	if err := matchFederated(c.federated, a); err != nil {
		return err
	}
	pub, err := s.issuerKeys().Key(ctx, a.issuer, a.keyID)
	if errors.Is(err, oidc.ErrKeyNotFound) {
		return entra.IssuerKeyNotFound(a.keyID, a.issuer).Because(err)
	}
	if err != nil {
		return entra.IssuerUnreachable().Because(err)
	}
	if err := t.Verify(oidc.RS256, pub); err != nil {
		return entra.InvalidAssertionSignature("The provided signature value did not match the expected signature value.", a.keyID).Because(err)
	}
	return checkTime(t, s.now())
}

// readAssertion reads the members that decide. The algorithm is RS256;
// Kubernetes writes no typ.
func readAssertion(t *oidc.Token) (assertion, error) {
	a := assertion{claims: t.Claims}
	if err := checkType(t); err != nil {
		return a, err
	}
	if t.Algorithm() != oidc.RS256 {
		return a, entra.InvalidToken("The signing algorithm must be RS256.")
	}
	var ok [4]bool
	a.issuer, ok[0] = t.Claims.String("iss")
	a.subject, ok[1] = t.Claims.String("sub")
	a.audience, ok[2] = t.Claims.Audience()
	a.keyID, ok[3] = t.Header.String("kid")
	for i, name := range []string{"iss", "sub", "aud", "kid"} {
		if !ok[i] || i == 3 && a.keyID == "" {
			return a, entra.InvalidToken("It has no usable '" + name + "'.")
		}
	}
	return a, nil
}

func checkType(t *oidc.Token) error {
	if _, there := t.Header["typ"]; !there {
		return nil
	}
	if typ, _ := t.Header.String("typ"); typ != "JWT" && typ != "http://openid.net/specs/jwt/1.0" {
		return entra.InvalidTokenType()
	}
	return nil
}

// matchFederated reports as an error which of issuer, subject and audience
// fits no credential. All compare byte for byte, and the token must have
// exactly one audience.
func matchFederated(fcs []directory.FederatedCredential, a assertion) error {
	var issuer, subject, folded bool
	for _, fc := range fcs {
		if fc.Issuer != a.issuer {
			continue
		}
		issuer = true
		folded = folded || fc.Expression == "" && strings.EqualFold(fc.Subject, a.subject)
		if !matchSubject(fc, a) {
			continue
		}
		subject = true
		if len(a.audience) == 1 && len(fc.Audiences) == 1 && fc.Audiences[0] == a.audience[0] {
			return nil
		}
	}
	switch {
	case !issuer:
		return entra.IssuerMismatch(a.issuer)
	case !subject && folded:
		return entra.SubjectCaseMismatch(a.subject)
	case !subject:
		return entra.SubjectMismatch(a.subject)
	}
	return entra.AudienceMismatch(strings.Join(a.audience, ", "))
}

// matchSubject compares the subject, or what a flexible credential has instead.
func matchSubject(fc directory.FederatedCredential, a assertion) bool {
	if fc.Expression == "" {
		return fc.Subject == a.subject
	}
	e, err := directory.ParseExpression(fc.Expression)
	return err == nil && e.Matches(a.claims.String)
}

// checkTime applies exp, which must be there, and nbf, which may be, with
// five minutes for clocks that differ.
func checkTime(t *oidc.Token, now time.Time) error {
	exp, ok, err := t.Claims.Time("exp")
	if err != nil || !ok {
		return entra.InvalidToken("It has no usable 'exp'.")
	}
	nbf, _, err := t.Claims.Time("nbf")
	if err != nil {
		return entra.InvalidToken("Its 'nbf' is not a time.")
	}
	start, end := time.Unix(nbf, 0), time.Unix(exp, 0)
	if now.Before(start.Add(-clockSkew)) || !now.Before(end.Add(clockSkew)) {
		return entra.AssertionTime(now, start, end)
	}
	return nil
}

// checkCertificate checks an assertion that the application signed with
// the key of one of its certificates (RFC 7523, section 3).
func (s *Server) checkCertificate(c client, t *oidc.Token, iss string) error {
	now := s.now()
	if err := checkType(t); err != nil {
		return err
	}
	alg := t.Algorithm()
	if alg != oidc.RS256 && alg != oidc.PS256 {
		return entra.InvalidToken("The signing algorithm must be PS256 or RS256.")
	}
	cert, err := findCertificate(c.app.Keys, t.Header)
	if err != nil {
		return err
	}
	thumbprint := sha1.Sum(cert.Raw)
	shown := strings.ToUpper(hex.EncodeToString(thumbprint[:]))
	pub, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return entra.Internal(fmt.Errorf("certificate %s of application %s is not RSA", shown, c.app.AppID))
	}
	if err := t.Verify(alg, pub); err != nil {
		return entra.InvalidAssertionSignature("The provided signature value did not match the expected signature value.", shown).Because(err)
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return entra.InvalidAssertionSignature("The key used is expired.", shown)
	}
	if sub, ok := t.Claims.String("sub"); !ok || sub != iss {
		return entra.AssertionSubject()
	}
	if raw, there := t.Claims["jti"]; there {
		if id, ok := t.Claims.String("jti"); !ok || id == "" {
			return entra.InvalidToken("Its 'jti' is not an identifier.").Because(fmt.Errorf("jti of %d bytes", len(raw)))
		}
	}
	aud, ok := t.Claims.Audience()
	if !ok || len(aud) != 1 || !ownAudience(aud[0], c.tenant) {
		return entra.AssertionAudience()
	}
	return checkTime(t, now)
}

// findCertificate finds the application's certificate that the header
// names by x5t, x5t#S256 or x5c; each that is there must name the same.
// Clients write the hashes in either base64 alphabet, with and without
// padding.
func findCertificate(keys []directory.KeyCredential, header oidc.Object) (*x509.Certificate, error) {
	var chain []string
	if raw, there := header["x5c"]; there {
		if json.Unmarshal(raw, &chain) != nil || len(chain) == 0 {
			return nil, entra.InvalidToken("Its 'x5c' is not a list of certificates.")
		}
	}
	_, hasSHA1 := header["x5t"]
	_, hasSHA256 := header["x5t#S256"]
	if !hasSHA1 && !hasSHA256 && chain == nil {
		return nil, entra.InvalidToken("No certificate thumbprint specified in token header.")
	}
	want1, ok1 := decodeHash(header, "x5t", sha1.Size)
	want256, ok256 := decodeHash(header, "x5t#S256", sha256.Size)
	if hasSHA1 && !ok1 || hasSHA256 && !ok256 {
		return nil, entra.InvalidToken("The certificate thumbprint in the token header is not a hash.")
	}
	for _, k := range keys {
		if h := sha1.Sum(k.Certificate); hasSHA1 && !bytes.Equal(h[:], want1) {
			continue
		}
		if h := sha256.Sum256(k.Certificate); hasSHA256 && !bytes.Equal(h[:], want256) {
			continue
		}
		if chain != nil && chain[0] != base64.StdEncoding.EncodeToString(k.Certificate) {
			continue
		}
		cert, err := x509.ParseCertificate(k.Certificate)
		if err != nil {
			return nil, entra.Internal(fmt.Errorf("certificate %s: %w", k.KeyID, err))
		}
		return cert, nil
	}
	shown := want1
	if !hasSHA1 {
		shown = want256
	}
	return nil, entra.InvalidAssertionSignature("The key was not found.", strings.ToUpper(hex.EncodeToString(shown)))
}

func decodeHash(header oidc.Object, name string, size int) ([]byte, bool) {
	s, _ := header.String(name)
	s = strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(s, "="))
	b, err := base64.RawURLEncoding.DecodeString(s)
	return b, err == nil && len(b) == size
}

// ownAudience reports whether a certificate assertion is meant for this
// tenant here: its token endpoints or issuers, under any of our names, with
// the tenant's id or domain.
func ownAudience(aud string, tenant directory.Tenant) bool {
	u, err := url.Parse(aud)
	if err != nil || u.Scheme != "https" || u.User != nil || !ownHost(u.Hostname()) {
		return false
	}
	name, rest, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	if !strings.EqualFold(name, tenant.ID) && !strings.EqualFold(name, tenant.Domain) {
		return false
	}
	switch strings.ToLower(rest) {
	case "", "v2.0", "oauth2/token", "oauth2/v2.0/token":
		return true
	}
	return false
}

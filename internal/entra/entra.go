// Package entra is the wire format of Entra's token endpoint: what a client
// posts, what it is answered, and the errors with their AADSTS numbers.
//
//	POST /{tenant}/oauth2/v2.0/token   ParseTokenRequest -> TokenRequest
//	                                   WriteToken  <- TokenResponse (v1 strings, v2 integers)
//	                                   WriteError  <- *Error (catalogue.go)
//
// It decides nothing: who may have a token is the server's business.
package entra

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// The grant types and the client assertion type.
const (
	GrantClientCredentials = "client_credentials"
	AssertionTypeJWT       = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

// A Version is the version of a token endpoint: which parameters it reads
// and how it writes numbers. It does not choose the version of the token.
type Version int

// The endpoint versions.
const (
	V1 Version = 1 // /{tenant}/oauth2/token: resource, numbers as strings
	V2 Version = 2 // /{tenant}/oauth2/v2.0/token: scope, numbers as numbers
)

// MaxBody is the largest request body, in bytes, that ParseTokenRequest
// reads.
const MaxBody = 256 << 10

// A TokenRequest is one POST to a token endpoint. Its String and LogValue
// leave out the secret and the assertion.
type TokenRequest struct {
	Version       Version
	GrantType     string
	ClientID      string
	Secret        string // client_secret, from the body or HTTP Basic
	Assertion     string // client_assertion
	AssertionType string
	Scope         string // v2
	Resource      string // v1
	CorrelationID string // client-request-id, which some clients send in the body
}

// String describes r without its secrets.
func (r TokenRequest) String() string {
	return fmt.Sprintf("%s by client %q for %q", r.GrantType, r.ClientID, r.Scope+r.Resource)
}

// Format makes every fmt verb print the redacted form.
func (r TokenRequest) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.String()) }

// LogValue describes r without its secrets.
func (r TokenRequest) LogValue() slog.Value { return slog.StringValue(r.String()) }

// ParseTokenRequest reads a form-encoded token request. Parameters that are
// there twice are refused (RFC 6749, section 3.2), unknown ones ignored.
// Credentials in HTTP Basic are form-decoded (RFC 6749, section 2.3.1). All
// errors are *Error. The body is read even if the answer will be an error.
func ParseTokenRequest(r *http.Request, v Version) (TokenRequest, error) {
	t := TokenRequest{Version: v}
	if r.Method != http.MethodPost {
		return t, MethodNotAllowed(r.Method)
	}
	form, err := readForm(r)
	if err != nil {
		return t, err
	}
	for name, dst := range map[string]*string{
		"grant_type": &t.GrantType, "client_id": &t.ClientID, "client_secret": &t.Secret,
		"client_assertion": &t.Assertion, "client_assertion_type": &t.AssertionType,
		"scope": &t.Scope, "resource": &t.Resource, "client-request-id": &t.CorrelationID,
	} {
		if len(form[name]) > 1 {
			return t, DuplicateParameter(name)
		}
		*dst = form.Get(name)
	}
	if v == V1 {
		t.Scope = ""
	} else {
		t.Resource = ""
	}
	if err := t.basic(r.Header); err != nil {
		return t, err
	}
	if t.GrantType == "" {
		return t, MissingParameter("grant_type")
	}
	return t, nil
}

func readForm(r *http.Request) (url.Values, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
	if err != nil {
		return nil, InvalidInput("The request body could not be read.")
	}
	if len(body) > MaxBody {
		return nil, BodyTooLarge()
	}
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/x-www-form-urlencoded" {
		return nil, nil // as Entra: nothing was posted, so grant_type is missing
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, InvalidInput("The request body is not a well-formed form.")
	}
	return form, nil
}

// basic reads client_secret_basic. A client that authenticates in two ways
// is refused, as is one that names itself differently in both places.
func (t *TokenRequest) basic(h http.Header) error {
	values := h.Values("Authorization")
	if len(values) == 0 {
		return nil
	}
	id, secret, ok := (&http.Request{Header: h}).BasicAuth()
	if !ok || len(values) > 1 {
		return InvalidInput("The Authorization header is not a single, well-formed HTTP Basic credential.")
	}
	var err error
	if id, err = url.QueryUnescape(id); err != nil {
		return InvalidInput("The client id in the Authorization header is not form-encoded.")
	}
	if secret, err = url.QueryUnescape(secret); err != nil {
		return InvalidInput("The client secret in the Authorization header is not form-encoded.")
	}
	if t.Secret != "" || t.Assertion != "" {
		return InvalidInput("The client must authenticate in one way only.")
	}
	if t.ClientID != "" && !strings.EqualFold(t.ClientID, id) {
		return InvalidInput("The client ids in the request body and in the Authorization header differ.")
	}
	t.ClientID, t.Secret = id, secret
	return nil
}

// A TokenResponse is the answer to a client credentials request. Its String
// and LogValue leave out the token.
type TokenResponse struct {
	AccessToken string
	ExpiresIn   time.Duration
	RefreshIn   time.Duration // when to ask again; 0 leaves it out; v2 only
	ExpiresOn   time.Time     // v1 only
	NotBefore   time.Time     // v1 only
	Resource    string        // v1 only
}

// String describes r without the token.
func (r TokenResponse) String() string {
	return fmt.Sprintf("token for %q, expires in %s", r.Resource, r.ExpiresIn)
}

// Format makes every fmt verb print the redacted form.
func (r TokenResponse) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.String()) }

// LogValue describes r without the token.
func (r TokenResponse) LogValue() slog.Value { return slog.StringValue(r.String()) }

// WriteToken writes a 200 in the form of the endpoint's version.
func WriteToken(w http.ResponseWriter, v Version, t TokenResponse) error {
	seconds := int64(t.ExpiresIn / time.Second)
	if v == V1 {
		text := strconv.FormatInt(seconds, 10)
		return writeJSON(w, http.StatusOK, tokenV1{
			TokenType: "Bearer", ExpiresIn: text, ExtExpiresIn: text,
			ExpiresOn: strconv.FormatInt(t.ExpiresOn.Unix(), 10), NotBefore: strconv.FormatInt(t.NotBefore.Unix(), 10),
			Resource: t.Resource, AccessToken: t.AccessToken,
		})
	}
	return writeJSON(w, http.StatusOK, tokenV2{
		TokenType: "Bearer", ExpiresIn: seconds, ExtExpiresIn: seconds,
		RefreshIn: int64(t.RefreshIn / time.Second), AccessToken: t.AccessToken,
	})
}

type tokenV1 struct {
	TokenType    string `json:"token_type"`
	ExpiresIn    string `json:"expires_in"`
	ExtExpiresIn string `json:"ext_expires_in"`
	ExpiresOn    string `json:"expires_on"`
	NotBefore    string `json:"not_before"`
	Resource     string `json:"resource"`
	AccessToken  string `json:"access_token"`
}

type tokenV2 struct {
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"`
	ExtExpiresIn int64  `json:"ext_expires_in"`
	RefreshIn    int64  `json:"refresh_in,omitempty"`
	AccessToken  string `json:"access_token"`
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding response: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		return errors.Join(errors.New("writing response"), err)
	}
	return nil
}

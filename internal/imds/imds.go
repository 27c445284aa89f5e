// Package imds is the wire format of the instance metadata service's token
// endpoint: the one definition that the node agent, the local cloud's metadata
// service and the token proxy share, and the client of a real one.
//
//	server: Classify(URL) -> ParseTokenRequest(request) -> … -> WriteToken | WriteError
//	client: Client.Token -> GET /metadata/identity/oauth2/token
//
// Source: "How to use managed identities for Azure resources on an Azure VM to
// acquire an access token" (Azure documentation) and the requests that the
// Azure SDKs send.
package imds

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/lanyard-id/lanyard/internal/token"
)

// Codes of the error member, as Azure spells them.
const (
	CodeInvalidRequest  = "invalid_request"
	CodeInvalidResource = "invalid_resource"
	CodeUnknown         = "unknown"
)

// DescriptionNoHeader answers a request without the Metadata header. SDKs look
// for this text when they probe whether a metadata service exists.
const DescriptionNoHeader = "Required metadata header not specified"

// DescriptionIdentityNotFound answers a selector that names no identity here.
const DescriptionIdentityNotFound = "Identity not found"

// DescriptionNoResource answers a request without a resource.
const DescriptionNoResource = "Required query variable 'resource' is missing"

const contentType = "application/json; charset=utf-8"

// An Error is an answer of the metadata service that is not a token. Status,
// Code, Description and RetryAfter go to the caller; Err is for the log only.
type Error struct {
	Status      int           // HTTP status; zero means 500
	Code        string        // member "error"; empty means "unknown"
	Description string        // member "error_description"
	RetryAfter  time.Duration // header Retry-After, rounded up to a second; zero: no header
	Err         error         // the cause, never written to the wire; may be nil
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%d %s: %s", e.status(), e.code(), e.Description)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func (e *Error) status() int {
	if e.Status == 0 {
		return http.StatusInternalServerError
	}
	return e.Status
}

func (e *Error) code() string {
	if e.Code == "" {
		return CodeUnknown
	}
	return e.Code
}

// A tokenBody is the body of a 200. Every value is a string and the order is
// that of the real service.
type tokenBody struct {
	AccessToken  string `json:"access_token"`
	ClientID     string `json:"client_id"`
	ExpiresIn    string `json:"expires_in"`
	ExpiresOn    string `json:"expires_on"`
	ExtExpiresIn string `json:"ext_expires_in"`
	NotBefore    string `json:"not_before"`
	Resource     string `json:"resource"`
	TokenType    string `json:"token_type"`
}

// WriteToken answers 200 with t. Lifetimes are whole seconds counted from now,
// never negative; a token without a beginning counts as valid from now.
func WriteToken(w http.ResponseWriter, t token.Token, now time.Time) {
	left := strconv.FormatInt(max(0, int64(t.ExpiresOn.Sub(now)/time.Second)), 10)
	from := t.NotBefore
	if from.IsZero() {
		from = now
	}
	writeJSON(w, http.StatusOK, tokenBody{
		AccessToken:  t.AccessToken,
		ClientID:     t.ClientID,
		ExpiresIn:    left,
		ExpiresOn:    strconv.FormatInt(t.ExpiresOn.Unix(), 10),
		ExtExpiresIn: left,
		NotBefore:    strconv.FormatInt(from.Unix(), 10),
		Resource:     t.Resource,
		TokenType:    "Bearer",
	})
}

type errorBody struct {
	Error       string `json:"error"`
	Description string `json:"error_description"`
}

// WriteError answers e without its cause.
func WriteError(w http.ResponseWriter, e *Error) {
	if e.RetryAfter > 0 {
		seconds := (e.RetryAfter + time.Second - 1) / time.Second
		w.Header().Set("Retry-After", strconv.FormatInt(int64(seconds), 10))
	}
	if e.status() == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", http.MethodGet)
	}
	writeJSON(w, e.status(), errorBody{Error: e.code(), Description: e.Description})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store") // RFC 6749 section 5.1
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // the resource is echoed as the caller wrote it
	_ = enc.Encode(body)     // the client is gone: nobody is left to tell
}

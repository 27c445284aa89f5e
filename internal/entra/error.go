package entra

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// An Error is a refusal as the token endpoint writes it. Text goes to the
// client; Err, the cause, only to the log.
type Error struct {
	Status int    // HTTP status
	Code   int    // the number after AADSTS
	Name   string // OAuth error, such as invalid_client
	Text   string // without the number and the ids that WriteError adds
	Err    error  // nil: the text says it all
}

// Error describes the refusal for the log.
func (e *Error) Error() string {
	s := fmt.Sprintf("AADSTS%d: %s", e.Code, e.Text)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Because returns a copy of e with its cause.
func (e *Error) Because(err error) *Error {
	c := *e
	c.Err = err
	return &c
}

// An Exchange carries the ids of one request and its answer.
type Exchange struct {
	TraceID       string // new for every request
	CorrelationID string // the client's own, if it sent one
	Time          time.Time
}

// ErrorBody is the JSON of a refusal.
type ErrorBody struct {
	Error         string `json:"error"`
	Description   string `json:"error_description"`
	Codes         []int  `json:"error_codes"`
	Timestamp     string `json:"timestamp"`
	TraceID       string `json:"trace_id"`
	CorrelationID string `json:"correlation_id"`
	URI           string `json:"error_uri"`
}

const timestampLayout = "2006-01-02 15:04:05Z"

// WriteHeaders sets the headers that every answer of Entra carries.
func (x Exchange) WriteHeaders(h http.Header) {
	h.Set("Cache-Control", "no-store, no-cache")
	h.Set("Pragma", "no-cache")
	h.Set("Expires", "-1")
	h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("P3P", `CP="DSP CUR OTPi IND OTRi ONL FIN"`)
	h.Set("Client-Request-Id", x.CorrelationID)
	h.Set("x-ms-request-id", x.TraceID)
	h.Set("x-ms-ests-server", "2.1.0 - LANYARD")
}

// WriteError writes the refusal.
func WriteError(w http.ResponseWriter, x Exchange, e *Error) error {
	stamp := x.Time.UTC().Format(timestampLayout)
	w.Header().Set("x-ms-clitelem", fmt.Sprintf("1,%d,0,,", e.Code))
	return writeJSON(w, e.Status, ErrorBody{
		Error: e.Name,
		Description: fmt.Sprintf("AADSTS%d: %s Trace ID: %s Correlation ID: %s Timestamp: %s",
			e.Code, strings.TrimSpace(e.Text), x.TraceID, x.CorrelationID, stamp),
		Codes: []int{e.Code}, Timestamp: stamp, TraceID: x.TraceID, CorrelationID: x.CorrelationID,
		URI: "https://login.microsoftonline.com/error?code=" + strconv.Itoa(e.Code),
	})
}

package blob

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"time"
)

// An Error is an answer that is not a success. Status, Code, Message and Detail go to the caller; Err is for the log only.
type Error struct {
	Status    int
	Code      string
	Message   string
	Detail    string // why a token is refused; may be empty
	Challenge string // WWW-Authenticate, with a 401
	Err       error  // may be nil
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message)
	if e.Detail != "" {
		s += " " + e.Detail
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// answer is the error as it goes over the wire.
func (e *Error) answer(id string, now time.Time) answer {
	a := answer{status: e.Status, header: http.Header{"X-Ms-Error-Code": {e.Code}}}
	if e.Challenge != "" {
		a.header.Set("WWW-Authenticate", e.Challenge)
	}
	if e.Status == http.StatusNotModified {
		return a
	}
	a.xml = struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
		Detail  string `xml:"AuthenticationErrorDetail,omitempty"`
	}{Code: e.Code, Message: fmt.Sprintf("%s\nRequestId:%s\nTime:%s", e.Message, id, now.UTC().Format("2006-01-02T15:04:05.0000000Z")), Detail: e.Detail}
	return a
}

func fault(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

func badRequest(code, format string, args ...any) *Error {
	return fault(http.StatusBadRequest, code, format, args...)
}

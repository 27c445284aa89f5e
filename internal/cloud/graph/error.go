package graph

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
)

// An Error is an answer of Graph that is not a success. Status, Code and Message go to the caller; Err is for the log
// only.
type Error struct {
	Status  int
	Code    string
	Message string
	Err     error // may be nil
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func (e *Error) body(now time.Time, ids requestIDs) any {
	type inner struct {
		Date            string `json:"date"`
		RequestID       string `json:"request-id"`
		ClientRequestID string `json:"client-request-id"`
	}
	type content struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Inner   inner  `json:"innerError"`
	}
	return struct {
		Error content `json:"error"`
	}{content{e.Code, e.Message, inner{now.UTC().Format("2006-01-02T15:04:05"), ids.server, ids.client}}}
}

func fault(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) *Error {
	return fault(http.StatusBadRequest, "Request_BadRequest", format, args...)
}

func notFound(id string) *Error {
	return fault(http.StatusNotFound, "Request_ResourceNotFound", "Resource '%.300s' does not exist or one of its queried reference-property objects are not present.", id)
}

func denied(why string) *Error {
	e := fault(http.StatusForbidden, "Authorization_RequestDenied", "Insufficient privileges to complete the operation.")
	e.Err = errors.New(why)
	return e
}

// conflict says that a value that must be unique is taken.
func conflict(format string, args ...any) *Error {
	return fault(http.StatusConflict, "Request_MultipleObjectsWithSameKeyValue", format, args...)
}

// asFault says a refusal of the directory in Graph's words; the text tells what to change.
func asFault(err error) error {
	var e *Error
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case errors.Is(err, directory.ErrExists):
		e = conflict("Another object with the same value for a unique property already exists: %v.", err)
	case errors.Is(err, directory.ErrInvalid):
		e = badRequest("One or more property values specified are invalid: %v.", err)
	default:
		return err
	}
	e.Err = err
	return e
}

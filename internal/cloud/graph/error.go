package graph

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	wire "github.com/lanyard-id/lanyard/internal/graph"
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
	return wire.ErrorBody{Error: wire.ErrorDetail{Code: e.Code, Message: e.Message, InnerError: &wire.InnerError{
		Date: now.UTC().Format("2006-01-02T15:04:05"), RequestID: ids.server, ClientRequestID: ids.client,
	}}}
}

func fault(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) *Error {
	return fault(http.StatusBadRequest, wire.CodeBadRequest, format, args...)
}

func notFound(id string) *Error {
	return fault(http.StatusNotFound, wire.CodeNotFound, "Resource '%.300s' does not exist or one of its queried reference-property objects are not present.", id)
}

func denied(why string) *Error {
	e := fault(http.StatusForbidden, wire.CodeDenied, "Insufficient privileges to complete the operation.")
	e.Err = errors.New(why)
	return e
}

// conflict says that a value that must be unique is taken.
func conflict(format string, args ...any) *Error {
	return fault(http.StatusConflict, wire.CodeMultipleObjects, format, args...)
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

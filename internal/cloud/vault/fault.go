package vault

import (
	"fmt"
	"net/http"
)

// An Error is an answer of a vault that is not a success. Status, Code, Inner and Message go to the caller; Err is for
// the log only.
type Error struct {
	Status    int
	Code      string
	Inner     string // innererror.code; may be empty
	Message   string
	Challenge string // WWW-Authenticate, with a 401
	Err       error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%d %s", e.Status, e.Code)
	if e.Inner != "" {
		s += "/" + e.Inner
	}
	s += ": " + e.Message
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func (e *Error) body() any {
	type inner struct {
		Code string `json:"code"`
	}
	type body struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Inner   *inner `json:"innererror,omitempty"`
	}
	b := body{Code: e.Code, Message: e.Message}
	if e.Inner != "" {
		b.Inner = &inner{e.Inner}
	}
	return struct {
		Error body `json:"error"`
	}{b}
}

func fault(status int, code, inner, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Inner: inner, Message: fmt.Sprintf(format, args...)}
}

func badParameter(format string, args ...any) *Error {
	return fault(http.StatusBadRequest, "BadParameter", "", format, args...)
}

func notFound(name string) *Error {
	return fault(http.StatusNotFound, "SecretNotFound", "",
		"A secret with (name/id) %.300s was not found in this key vault. If you recently deleted this secret you may be able to recover it using the correct recovery command. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125182", name)
}

func deletedNotFound(name string) *Error {
	return fault(http.StatusNotFound, "SecretNotFound", "", "Deleted Secret not found: %s", name)
}

func conflictDeleted(name string) *Error {
	return fault(http.StatusConflict, "Conflict", "ObjectIsDeletedButRecoverable",
		"Secret %s is currently in a deleted but recoverable state, and its name cannot be reused; in this state, the secret can only be recovered or purged.", name)
}

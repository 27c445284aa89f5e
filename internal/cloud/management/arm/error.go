package arm

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azrbac"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/management/budget"
)

// An Error is an Answer of Resource Manager that is not a success. Status, Code and Message go to the caller; Err is
// for the log only.
type Error struct {
	Status    int
	Code      string
	Message   string
	Challenge string      // WWW-Authenticate, with a 401
	Header    http.Header // further headers; may be nil
	Err       error       // may be nil
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// answer is the error as it goes over the wire.
func (e *Error) answer() Answer {
	type inner struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	a := Answer{Status: e.Status, Header: e.Header, Body: struct {
		Error inner `json:"error"`
	}{inner{e.Code, e.Message}}}
	if e.Challenge != "" {
		a.Header = http.Header{"Www-Authenticate": {e.Challenge}}
	}
	return a
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Fault makes an Error.
func Fault(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// BadRequest is a 400 with the code of the same name.
func BadRequest(format string, args ...any) *Error {
	return Fault(http.StatusBadRequest, "BadRequest", format, args...)
}

// InvalidBody says that the content is not what it should be.
func InvalidBody(err error) *Error {
	e := Fault(http.StatusBadRequest, "InvalidRequestContent", "The request content was invalid and could not be deserialized: '%v'.", err)
	e.Err = err
	return e
}

// NotAllowed refuses a method.
func NotAllowed(method string) *Error {
	return Fault(http.StatusMethodNotAllowed, "MethodNotAllowed", "The requested resource does not support http method '%s'.", method)
}

// Unauthorized refuses a caller that no role allows what it asks for.
func Unauthorized(clientID, objectID, action, scope string, d azrbac.Decision) *Error {
	e := Fault(http.StatusForbidden, "AuthorizationFailed",
		"The client '%s' with object id '%s' does not have authorization to perform action '%s' over scope '%s' or the scope is invalid. If access was recently granted, please refresh your credentials.",
		clientID, objectID, action, scope)
	e.Err = fmt.Errorf("denied: %s", d.Reason)
	return e
}

// LinkedUnauthorized refuses a caller that no role allows what its request implies on other resources.
func LinkedUnauthorized(clientID, objectID, action, scope, linkedAction string, linked []string, d azrbac.Decision) *Error {
	e := Fault(http.StatusForbidden, "LinkedAuthorizationFailed",
		"The client '%s' with object id '%s' has permission to perform action '%s' on scope '%s'; however, it does not have permission to perform action(s) '%s' on the linked scope(s) '%s' (respectively) or the linked scope(s) are invalid.",
		clientID, objectID, action, scope, linkedAction, strings.Join(linked, "','"))
	e.Err = fmt.Errorf("denied: %s", d.Reason)
	return e
}

// SubscriptionNotFound says so.
func SubscriptionNotFound(id string) *Error {
	return Fault(http.StatusNotFound, "SubscriptionNotFound", "The subscription '%s' could not be found.", id)
}

// GroupNotFound says so.
func GroupNotFound(name string) *Error {
	return Fault(http.StatusNotFound, "ResourceGroupNotFound", "Resource group '%s' could not be found.", name)
}

// ResourceNotFound says so.
func ResourceNotFound(id azure.ResourceID) *Error {
	return Fault(http.StatusNotFound, "ResourceNotFound",
		"The Resource '%s/%s' under resource group '%s' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
		id.Provider, typesAndNames(id), id.ResourceGroup)
}

// typesAndNames writes "vaults/v/secrets/s", as messages name a resource.
func typesAndNames(id azure.ResourceID) string {
	parts := make([]string, 0, 2*len(id.Types))
	for i, t := range id.Types {
		parts = append(parts, t, id.Names[i])
	}
	return strings.Join(parts, "/")
}

// BadRequestCode is a 400 with a code of its own.
func BadRequestCode(code, format string, args ...any) *Error {
	return Fault(http.StatusBadRequest, code, format, args...)
}

func throttled(b budget.Exhausted) *Error {
	code := "SubscriptionRequestsThrottled"
	if b.Scope == "tenant" {
		code = "TenantRequestsThrottled"
	}
	e := Fault(http.StatusTooManyRequests, code, "Number of requests for %s '%s' and operation '%s' exceeded the limit of '%d' for time interval '01:00:00'. Please try again after '%d' seconds.",
		b.Scope, b.ID, b.Kind, b.Limit, b.Wait)
	e.Header = http.Header{"Retry-After": {strconv.Itoa(b.Wait)}}
	return e
}

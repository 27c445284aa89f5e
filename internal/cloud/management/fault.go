package management

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azrbac"
	"github.com/lanyard-id/lanyard/internal/azure"
)

// An Error is an answer of Resource Manager that is not a success. Status, Code and Message go to the caller; Err is
// for the log only.
type Error struct {
	Status    int
	Code      string
	Message   string
	Challenge string // WWW-Authenticate, with a 401
	Err       error  // may be nil
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

func fault(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) *Error {
	return fault(http.StatusBadRequest, "BadRequest", format, args...)
}

func invalidBody(err error) *Error {
	e := fault(http.StatusBadRequest, "InvalidRequestContent", "The request content was invalid and could not be deserialized: '%v'.", err)
	e.Err = err
	return e
}

func notAllowed(method string) *Error {
	return fault(http.StatusMethodNotAllowed, "MethodNotAllowed", "The requested resource does not support http method '%s'.", method)
}

func unauthorized(clientID, objectID, action, scope string, d azrbac.Decision) *Error {
	e := fault(http.StatusForbidden, "AuthorizationFailed",
		"The client '%s' with object id '%s' does not have authorization to perform action '%s' over scope '%s' or the scope is invalid. If access was recently granted, please refresh your credentials.",
		clientID, objectID, action, scope)
	e.Err = fmt.Errorf("denied: %s", d.Reason)
	return e
}

func linkedUnauthorized(clientID, objectID, action, scope, linkedAction string, linked []string, d azrbac.Decision) *Error {
	e := fault(http.StatusForbidden, "LinkedAuthorizationFailed",
		"The client '%s' with object id '%s' has permission to perform action '%s' on scope '%s'; however, it does not have permission to perform action(s) '%s' on the linked scope(s) '%s' (respectively) or the linked scope(s) are invalid.",
		clientID, objectID, action, scope, linkedAction, strings.Join(linked, "','"))
	e.Err = fmt.Errorf("denied: %s", d.Reason)
	return e
}

func subscriptionNotFound(id string) *Error {
	return fault(http.StatusNotFound, "SubscriptionNotFound", "The subscription '%s' could not be found.", id)
}

func groupNotFound(name string) *Error {
	return fault(http.StatusNotFound, "ResourceGroupNotFound", "Resource group '%s' could not be found.", name)
}

func resourceNotFound(id azure.ResourceID) *Error {
	return fault(http.StatusNotFound, "ResourceNotFound",
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

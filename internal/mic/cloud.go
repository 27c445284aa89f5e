package mic

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// A Cloud changes which user-assigned identities a machine has. A machine is a
// virtual machine or a scale set. Errors are *CloudError where the cloud
// answered.
type Cloud interface {
	// Identities returns the user-assigned identities of the machine.
	Identities(ctx context.Context, machine azure.ResourceID) ([]azure.ResourceID, error)
	// Update adds and removes identities and leaves all others alone. It
	// returns when the change is done; either all of it is or nothing.
	Update(ctx context.Context, machine azure.ResourceID, add, remove []azure.ResourceID) error
}

// A CloudError is a refusal by the cloud.
type CloudError struct {
	Status     int    // HTTP status
	Code       string // Azure's code, for example LinkedAuthorizationFailed
	Message    string // Azure's message
	RetryAfter time.Duration
	Err        error // the cause; may be nil
}

func (e *CloudError) Error() string {
	return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message)
}

// Unwrap returns the cause.
func (e *CloudError) Unwrap() error { return e.Err }

const (
	codeAuthorizationFailed = "AuthorizationFailed"       // the machine may not be changed
	codeLinkedAuthorization = "LinkedAuthorizationFailed" // an identity may not be used
	codeFailedIdentity      = "FailedIdentityOperation"   // an identity does not exist
)

// blamesIdentity reports whether err is about an identity in the request rather
// than the machine or the moment, so that other identities may still work.
func blamesIdentity(err error) bool {
	var e *CloudError
	if !errors.As(err, &e) {
		return false
	}
	switch e.Status {
	case http.StatusBadRequest:
		return true
	case http.StatusForbidden:
		return e.Code == codeLinkedAuthorization
	default:
		return e.Code == codeFailedIdentity || e.Code == codeLinkedAuthorization
	}
}

// machineGone reports whether err says that the machine does not exist.
func machineGone(err error) bool {
	var e *CloudError
	return errors.As(err, &e) && e.Status == http.StatusNotFound && !blamesIdentity(err)
}

// retryAfter is how long the cloud asks to be left alone; zero if it does not say.
func retryAfter(err error) time.Duration {
	var e *CloudError
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// explain says what an error means to the person who has to fix it. The
// assignee is the client id that the controller acts as, empty if unknown.
func explain(err error, machine, identity azure.ResourceID, assignee string) string {
	var e *CloudError
	if !errors.As(err, &e) {
		return fmt.Sprintf("machine %s: %v", machine, err)
	}
	if assignee == "" {
		assignee = "CLIENT_ID_OF_MIC"
	}
	const grant = "%s needs the role %q there; fix it with: az role assignment create --role %q --assignee %s --scope %s"
	switch {
	case e.Code == codeLinkedAuthorization:
		return fmt.Sprintf("mic may not assign the identity %s: "+grant, identity, "it", "Managed Identity Operator", "Managed Identity Operator", assignee, identity)
	case e.Status == http.StatusForbidden:
		scope := azure.Group(machine.SubscriptionID, machine.ResourceGroup)
		return fmt.Sprintf("mic may not change the machine %s: "+grant, machine, "it", "Virtual Machine Contributor", "Virtual Machine Contributor", assignee, scope)
	case e.Status == http.StatusUnauthorized:
		return fmt.Sprintf("the credential of mic is refused: check TENANT_ID, CLIENT_ID and CLIENT_SECRET (%s)", e.Message)
	case machineGone(err):
		return fmt.Sprintf("the machine %s does not exist", machine)
	case blamesIdentity(err):
		return fmt.Sprintf("the identity %s cannot be assigned to %s; check that it exists with: az identity show --ids %s (%s: %s)", identity, machine, identity, e.Code, e.Message)
	default:
		return fmt.Sprintf("machine %s: %v", machine, e)
	}
}

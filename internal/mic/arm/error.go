package arm

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/azure"
)

// An Error is a refusal by Azure.
type Error = arm.Error

const (
	codeLinkedAuthorization = "LinkedAuthorizationFailed" // an identity may not be used
	codeFailedIdentity      = "FailedIdentityOperation"   // an identity does not exist
	codeDeleting            = "Deleting"                  // ours: the machine is being deleted
)

// BlamesIdentity reports whether err is about an identity in the request rather
// than the machine or the moment, so that other identities may still work.
func BlamesIdentity(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	return e.Status == http.StatusBadRequest || e.Code == codeFailedIdentity || e.Code == codeLinkedAuthorization
}

// Blamed returns, by index, those of ids that the message of err quotes. Azure
// quotes them in any case, within any punctuation.
func Blamed(err error, ids []azure.ResourceID) []int {
	var e *Error
	if !BlamesIdentity(err) || !errors.As(err, &e) {
		return nil
	}
	text := azure.Fold(e.Message)
	var out []int
	for i, id := range ids {
		if quotes(text, id.Key()) {
			out = append(out, i)
		}
	}
	return out
}

// quotes reports whether text holds id and not only one of which it is the beginning.
func quotes(text, id string) bool {
	for {
		_, after, ok := strings.Cut(text, id)
		if !ok {
			return false
		}
		if after == "" || !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_/", rune(after[0])) {
			return true
		}
		text = after
	}
}

// Gone reports whether err says that the machine does not exist, or not much longer.
func Gone(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Status == http.StatusNotFound && !BlamesIdentity(err) || e.Code == codeDeleting)
}

// IdentityGone reports whether err says that the identity does not exist.
func IdentityGone(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == codeFailedIdentity
}

// Throttled reports whether err says that the caller makes too many requests,
// which concerns every machine of the subscription.
func Throttled(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusTooManyRequests
}

// RetryAfter is how long Azure asks to be left alone; zero if it does not say.
func RetryAfter(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// Reasons that Explain returns: words for conditions.
const (
	ReasonNotGranted        = "NotGranted"        // a role is missing
	ReasonIdentityRefused   = "IdentityRefused"   // Azure does not take the identity
	ReasonCredentialRefused = "CredentialRefused" // mic cannot sign in
	ReasonMachineGone       = "MachineGone"
	ReasonThrottled         = "Throttled"
	ReasonCloudRefused      = "CloudRefused" // anything else
)

// Explain says what an error means to the person who has to fix it. The
// assignee is the client id that the controller acts as, empty if unknown.
func Explain(err error, machine, identity azure.ResourceID, assignee string) (reason, text string) {
	var e *Error
	if !errors.As(err, &e) {
		return ReasonCloudRefused, fmt.Sprintf("machine %s: %v", machine, err)
	}
	if assignee == "" {
		assignee = "CLIENT_ID_OF_MIC"
	}
	const grant = "it needs the role %q there; fix it with: az role assignment create --role %[1]q --assignee %s --scope %s"
	switch {
	case e.Code == codeLinkedAuthorization:
		return ReasonNotGranted, fmt.Sprintf("mic may not assign the identity %s: ", identity) + fmt.Sprintf(grant, "Managed Identity Operator", assignee, identity)
	case e.Status == http.StatusForbidden:
		return ReasonNotGranted, fmt.Sprintf("mic may not change the machine %s: ", machine) + fmt.Sprintf(grant, "Virtual Machine Contributor", assignee, azure.Group(machine.SubscriptionID, machine.ResourceGroup))
	case e.Status == http.StatusUnauthorized:
		return ReasonCredentialRefused, fmt.Sprintf("the credential of mic is refused: check TENANT_ID, CLIENT_ID and CLIENT_SECRET, or the file of --cloudconfig (%s)", e.Message)
	case e.Code == codeDeleting:
		return ReasonMachineGone, fmt.Sprintf("the machine %s is being deleted", machine)
	case Gone(err):
		return ReasonMachineGone, fmt.Sprintf("the machine %s does not exist", machine)
	case BlamesIdentity(err):
		return ReasonIdentityRefused, fmt.Sprintf("the identity %s cannot be assigned to %s; check that it exists with: az identity show --ids %s (%s: %s)", identity, machine, identity, e.Code, e.Message)
	case Throttled(err):
		return ReasonThrottled, fmt.Sprintf("Azure throttles requests of the subscription %s; mic waits as long as it was told", machine.SubscriptionID)
	default:
		return ReasonCloudRefused, fmt.Sprintf("machine %s: %v", machine, e)
	}
}

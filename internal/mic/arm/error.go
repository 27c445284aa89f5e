package arm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// An Error is a refusal by Azure.
type Error struct {
	Status     int           // HTTP status
	Code       string        // Azure's code, for example LinkedAuthorizationFailed
	Message    string        // Azure's message
	RetryAfter time.Duration // zero if Azure does not say
	Err        error         // the cause; may be nil
}

func (e *Error) Error() string {
	return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

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

// asError turns the SDK's errors into an Error.
func asError(err error) error {
	if err == nil {
		return nil
	}
	var auth *azidentity.AuthenticationFailedError
	if errors.As(err, &auth) {
		text, _, _ := strings.Cut(err.Error(), "\n")
		return &Error{Status: http.StatusUnauthorized, Code: "AuthenticationFailed", Message: text + describe(auth.RawResponse), Err: err}
	}
	var r *azcore.ResponseError
	if !errors.As(err, &r) {
		return err
	}
	e := &Error{Status: r.StatusCode, Code: r.ErrorCode, Err: err}
	if r.RawResponse != nil {
		e.RetryAfter = wait(r.RawResponse.Header, time.Now())
		if body, err := runtime.Payload(r.RawResponse); err == nil {
			var b struct {
				Error struct {
					Code    string `json:"code"`
					Message string `json:"message"`
				} `json:"error"`
			}
			if json.Unmarshal(body, &b) == nil {
				e.Message = b.Error.Message
				if b.Error.Code != "" {
					e.Code = b.Error.Code
				}
			}
		}
	}
	if e.Message == "" {
		e.Message = http.StatusText(e.Status)
	}
	return e
}

// describe returns Entra's description of why it refused a credential.
func describe(r *http.Response) string {
	if r == nil {
		return ""
	}
	body, err := runtime.Payload(r)
	var b struct {
		Description string `json:"error_description"`
	}
	if err != nil || json.Unmarshal(body, &b) != nil {
		return ""
	}
	first, _, _ := strings.Cut(b.Description, "\n")
	return ": " + strings.TrimSpace(first)
}

// wait reads Retry-After, seconds or a date (RFC 9110 section 10.2.3), and
// Azure's headers with milliseconds. At most an hour.
func wait(h http.Header, now time.Time) time.Duration {
	for _, x := range []struct {
		name string
		unit time.Duration
	}{{"Retry-After-Ms", time.Millisecond}, {"X-Ms-Retry-After-Ms", time.Millisecond}, {"Retry-After", time.Second}} {
		if n, err := strconv.Atoi(h.Get(x.name)); err == nil && n > 0 {
			return time.Duration(min(n, int(time.Hour/x.unit))) * x.unit
		}
	}
	if at, err := http.ParseTime(h.Get("Retry-After")); err == nil {
		return min(max(at.Sub(now), 0), time.Hour)
	}
	return 0
}

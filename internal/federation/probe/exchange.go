package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/token"
)

// An Exchanger gets a token of an identity for an assertion; an *entra.Client is one.
type Exchanger interface {
	Token(ctx context.Context, app entra.Application, cred entra.Credential, resource string) (token.Token, error)
}

// Reasons of the condition Usable that come from Entra.
const (
	reasonPropagating  = "Propagating"         // Entra does not know the credential yet
	reasonNoMatch      = "NoMatch"             // nor after a time in which it should
	reasonNoApp        = "ApplicationNotFound" // AADSTS700016
	reasonNoTenant     = "TenantNotFound"      // AADSTS90002
	reasonIssuer       = "IssuerUnreachable"   // Entra cannot read the issuer's documents
	reasonKey          = "KeyUnknown"          // nor a key in them
	reasonThrottled    = "Throttled"
	reasonUnreachable  = "EntraUnreachable"
	reasonRefused      = "ExchangeRefused"
	reasonTokenRefused = "TokenRefused" // the API server made no token
)

// Waits between two attempts.
const (
	slow = 15 * time.Minute // what does not change by itself
	most = 5 * time.Minute  // what does
	// patience is how long a credential may be unknown until it is more likely
	// wrong than young. Entra says: a few minutes.
	patience = 15 * time.Minute
)

// numbers after AADSTS, by what they mean for a credential that exists.
var (
	unknown     = []int{70021, 700211, 700212, 700213, 7002131, 7002138, 70025}
	unreachable = []int{90061, 50166, 700210, 7000274}
	keys        = []int{7000272, 7000271, 700027, 50013}
)

// A finding is what one attempt says.
type finding struct {
	usable  bool
	reason  string
	message string
	wait    time.Duration // until the next attempt; at least this
	grow    bool          // the wait doubles from attempt to attempt
}

// judge says what an exchange's error means. age is that of the credential.
func judge(err error, age time.Duration) finding {
	if err == nil {
		return finding{usable: true}
	}
	var r *entra.Refusal
	if !errors.As(err, &r) {
		if errors.Is(err, entra.ErrUnusable) {
			return finding{reason: reasonRefused, message: err.Error(), wait: slow}
		}
		return finding{reason: reasonUnreachable, message: err.Error(), grow: true}
	}
	has := func(codes []int) bool {
		return slices.ContainsFunc(r.Codes, func(n int) bool { return slices.Contains(codes, n) })
	}
	switch {
	case r.Status == 429:
		return finding{reason: reasonThrottled, message: r.Error(), wait: r.RetryAfter, grow: true}
	case has(unknown) && age < patience:
		return finding{reason: reasonPropagating, message: "Entra does not know the credential yet, which is usual for some minutes: " + r.Error(), grow: true}
	case has(unknown):
		return finding{reason: reasonNoMatch, message: "Entra still does not know the credential: compare its issuer, subject and audience in Azure with status: " + r.Error(), wait: most}
	case has([]int{700016}):
		return finding{reason: reasonNoApp, message: "the client id is not known in the tenant, or has no service principal there: " + r.Error(), wait: most}
	case has([]int{90002, 900021, 900023}):
		return finding{reason: reasonNoTenant, message: "the tenant does not exist: correct tenantID: " + r.Error(), wait: slow}
	case has(unreachable):
		return finding{reason: reasonIssuer, message: "Entra cannot read the issuer's discovery document or keys: publish them where the issuer's URL points: " + r.Error(), wait: most}
	case has(keys):
		return finding{reason: reasonKey, message: "Entra does not find the key of the cluster's tokens at the issuer: publish the current keys: " + r.Error(), wait: most}
	case r.Transient():
		return finding{reason: reasonUnreachable, message: r.Error(), wait: r.RetryAfter, grow: true}
	default:
		return finding{reason: reasonRefused, message: fmt.Sprintf("Entra refuses the exchange: %v", r), wait: most}
	}
}

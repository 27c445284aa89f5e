package source

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/imds"
)

// errUnreadable is wrapped when a Secret does not hold what its identity needs.
var errUnreadable = errors.New("the credential cannot be read")

// refusal turns an error on the way to Entra into what the caller is told,
// with v1's statuses: 403 if asking again does not help, otherwise 503.
func refusal(g grant, err error) error {
	if errors.Is(err, errUnreadable) {
		return &imds.Error{Status: http.StatusServiceUnavailable, Code: imds.CodeInvalidRequest, Description: err.Error(), Err: err}
	}
	return imds.FromEntra(err, g.clientID, http.StatusForbidden)
}

// badCredential reports whether an error may go away with another credential.
func badCredential(err error) bool {
	r, ok := errors.AsType[*entra.Refusal](err)
	return ok && r.BadCredential()
}

// unusable is v1's status for an identity that is not complete: it may become
// so, and SDKs ask again.
func unusable(format string, args ...any) error {
	return &imds.Error{Status: http.StatusServiceUnavailable, Code: imds.CodeInvalidRequest, Description: fmt.Sprintf(format, args...)}
}

func forbidden(format string, args ...any) error {
	return &imds.Error{Status: http.StatusForbidden, Code: imds.CodeInvalidRequest, Description: fmt.Sprintf(format, args...)}
}

func missing(secret types.NamespacedName) error {
	return &imds.Error{Status: http.StatusServiceUnavailable, Code: imds.CodeInvalidRequest, RetryAfter: time.Second, Description: fmt.Sprintf("Secret %s does not exist: create it, or correct spec.clientPassword of the AzureIdentity", secret)}
}

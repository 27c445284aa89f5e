package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

// judge says what an error of an upstream means for its keys.
func judge(err error) token.Failure {
	e, ok := errors.AsType[*imds.Error](err)
	if !ok {
		return token.Failure{}
	}
	switch e.Status {
	case http.StatusTooManyRequests:
		return token.Failure{RetryAfter: e.RetryAfter, Everyone: true}
	case http.StatusServiceUnavailable: // with Retry-After it speaks of the whole service
		return token.Failure{RetryAfter: e.RetryAfter, Everyone: e.RetryAfter > 0}
	case http.StatusNotFound, http.StatusRequestTimeout, http.StatusGone: // the metadata service while it is updated
		return token.Failure{RetryAfter: e.RetryAfter}
	}
	return token.Failure{RetryAfter: e.RetryAfter, Permanent: e.Status < 500}
}

// errUnreadable is wrapped when a Secret does not hold what its identity needs.
var errUnreadable = errors.New("the credential cannot be read")

// refusal turns an error on the way to Entra into what the caller is told,
// with v1's statuses: 403 if asking again does not help, otherwise 503. The
// text of Entra is passed on: it holds no secret, and people search for it.
func refusal(g grant, err error) error {
	e := &imds.Error{Status: http.StatusServiceUnavailable, Code: imds.CodeUnknown, Err: err}
	r, refused := errors.AsType[*entra.Refusal](err)
	switch {
	case refused && !r.Transient():
		e.Status, e.Code, e.Description = http.StatusForbidden, cmp.Or(r.Name, imds.CodeUnknown), cmp.Or(r.Text, r.Error())
	case refused:
		if r.Status == http.StatusTooManyRequests {
			e.Status = r.Status
		}
		e.Code, e.Description, e.RetryAfter = cmp.Or(r.Name, imds.CodeUnknown), cmp.Or(r.Text, r.Error()), r.RetryAfter
	case errors.Is(err, entra.ErrUnusable):
		e.Status, e.Code, e.Description = http.StatusForbidden, imds.CodeInvalidRequest, err.Error()
	case errors.Is(err, errUnreadable):
		e.Code, e.Description = imds.CodeInvalidRequest, err.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		e.Description = "Entra did not answer in time"
	default:
		e.Description, e.RetryAfter = "Entra cannot be reached for client "+g.clientID, time.Second
	}
	return e
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

// answer turns an error of a cache into what the caller is told: the
// upstream's refusal as it came, 429 if the upstream throttles, otherwise 503;
// both with the time to ask again, which SDKs honour.
func answer(err error) error {
	u, ok := errors.AsType[*token.Unavailable](err)
	if !ok {
		return err
	}
	e := &imds.Error{Status: http.StatusServiceUnavailable, Code: imds.CodeUnknown, RetryAfter: u.RetryAfter, Err: u.Err, Description: "no token could be had yet: " + u.Err.Error()}
	if cause, ok := errors.AsType[*imds.Error](u.Err); ok {
		e.Description = fmt.Sprintf("no token could be had yet: the upstream answered %d: %s", cause.Status, cause.Description)
		if cause.Status == http.StatusTooManyRequests {
			e.Status = cause.Status
		}
	} else if errors.Is(u.Err, context.DeadlineExceeded) {
		e.Description = "no token could be had yet: the upstream did not answer in time"
	}
	return e
}

package imds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/token"
)

// FromEntra turns an error of an entra.Client into what the caller is told: the
// status permanent if asking again does not help, 429 if Entra throttles, else
// 503. The text of Entra is passed on: it holds no secret, and people search
// for it.
func FromEntra(err error, clientID string, permanent int) *Error {
	e := &Error{Status: http.StatusServiceUnavailable, Code: CodeUnknown, Err: err}
	r, refused := errors.AsType[*entra.Refusal](err)
	switch {
	case refused:
		e.Code, e.Description, e.RetryAfter = cmp.Or(r.Name, CodeUnknown), cmp.Or(r.Text, r.Error()), r.RetryAfter
		if !r.Transient() {
			e.Status, e.RetryAfter = permanent, 0
		} else if r.Status == http.StatusTooManyRequests {
			e.Status = r.Status
		}
	case errors.Is(err, entra.ErrUnusable):
		e.Status, e.Code, e.Description = permanent, CodeInvalidRequest, err.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		e.Description = "Entra did not answer in time"
	default:
		e.Description, e.RetryAfter = "Entra cannot be reached for client "+clientID, time.Second
	}
	return e
}

// Judge says what an *Error of an upstream means for its keys in a token.Cache.
func Judge(err error) token.Failure {
	e, ok := errors.AsType[*Error](err)
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

// FromCache turns an error of a token.Cache into what the caller is told: the
// upstream's refusal as it came, 429 if the upstream throttles, otherwise 503;
// both with the time to ask again, which SDKs honour.
func FromCache(err error) error {
	u, ok := errors.AsType[*token.Unavailable](err)
	if !ok {
		return err
	}
	e := &Error{Status: http.StatusServiceUnavailable, Code: CodeUnknown, RetryAfter: u.RetryAfter, Err: u.Err, Description: "no token could be had yet: " + u.Err.Error()}
	if cause, ok := errors.AsType[*Error](u.Err); ok {
		e.Description = fmt.Sprintf("no token could be had yet: the upstream answered %d: %s", cause.Status, cause.Description)
		if cause.Status == http.StatusTooManyRequests {
			e.Status = cause.Status
		}
	} else if errors.Is(u.Err, context.DeadlineExceeded) {
		e.Description = "no token could be had yet: the upstream did not answer in time"
	}
	return e
}

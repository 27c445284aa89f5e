package source

import (
	"context"
	"errors"
	"fmt"
	"net/http"

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
	case http.StatusServiceUnavailable:
		return token.Failure{RetryAfter: e.RetryAfter, Everyone: e.RetryAfter > 0}
	case http.StatusNotFound, http.StatusRequestTimeout, http.StatusGone: // the metadata service while it is updated
		return token.Failure{RetryAfter: e.RetryAfter}
	}
	return token.Failure{RetryAfter: e.RetryAfter, Permanent: e.Status < 500}
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

package imds_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

func TestWhatEntraRefusesAndWhatThatMeansForTheCache(t *testing.T) {
	const permanent = 403
	for name, tt := range map[string]struct {
		err     error
		status  int
		want    string
		retry   time.Duration
		failure token.Failure
	}{
		"for good":        {&entra.Refusal{Status: 400, Name: "unauthorized_client", Text: "AADSTS700016: no such application", RetryAfter: time.Minute}, permanent, "AADSTS700016: no such application", 0, token.Failure{Permanent: true}},
		"throttled":       {&entra.Refusal{Status: 429, RetryAfter: 7 * time.Second}, 429, "Entra answered 429", 7 * time.Second, token.Failure{RetryAfter: 7 * time.Second, Everyone: true}},
		"out of order":    {&entra.Refusal{Status: 502}, 503, "Entra answered 502", 0, token.Failure{}},
		"a bad question":  {fmt.Errorf("%w: the tenant is empty", entra.ErrUnusable), permanent, "the tenant is empty", 0, token.Failure{Permanent: true}},
		"too slow":        {context.DeadlineExceeded, 503, "did not answer in time", 0, token.Failure{}},
		"cannot be asked": {errors.New("no route to host"), 503, "Entra cannot be reached for client app", time.Second, token.Failure{RetryAfter: time.Second, Everyone: true}},
	} {
		t.Run(name, func(t *testing.T) {
			e := imds.FromEntra(tt.err, "app", permanent)
			if e.Status != tt.status || !strings.Contains(e.Description, tt.want) || e.RetryAfter != tt.retry || !errors.Is(e, tt.err) {
				t.Errorf("got %v after %s, want %d, %q, %s", e, e.RetryAfter, tt.status, tt.want, tt.retry)
			}
			if f := imds.Judge(e); f != tt.failure {
				t.Errorf("judged %+v, want %+v", f, tt.failure)
			}
		})
	}
	if f := imds.Judge(errors.New("another error")); f != (token.Failure{}) {
		t.Errorf("judged %+v", f)
	}
}

func TestWhatTheCacheCannotGive(t *testing.T) {
	throttled := &imds.Error{Status: 429, Description: "slowly"}
	for name, tt := range map[string]struct {
		err    error
		status int
		want   string
	}{
		"the upstream's own refusal": {&imds.Error{Status: 400, Description: "no"}, 400, "no"},
		"a throttled upstream":       {&token.Unavailable{RetryAfter: time.Second, Err: throttled}, 429, "answered 429: slowly"},
		"a slow upstream":            {&token.Unavailable{RetryAfter: time.Second, Err: context.DeadlineExceeded}, 503, "did not answer in time"},
		"one that is still asked":    {&token.Unavailable{RetryAfter: time.Second, Err: token.ErrPending}, 503, token.ErrPending.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			e, ok := errors.AsType[*imds.Error](imds.FromCache(tt.err))
			if !ok || e.Status != tt.status || !strings.Contains(e.Description, tt.want) {
				t.Errorf("got %v, want %d and %q", e, tt.status, tt.want)
			}
		})
	}
	if err := imds.FromCache(context.Canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

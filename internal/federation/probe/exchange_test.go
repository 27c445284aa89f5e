package probe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/entra"
)

func TestJudge(t *testing.T) {
	refused := func(status int, name string, codes ...int) error {
		return fmt.Errorf("asking: %w", &entra.Refusal{Status: status, Name: name, Codes: codes, RetryAfter: 7 * time.Second})
	}
	for name, tc := range map[string]struct {
		err    error
		age    time.Duration
		reason string
		grows  bool
		wait   time.Duration
	}{
		"accepted":                       {nil, 0, "", false, 0},
		"a young credential, old number": {refused(400, "invalid_request", 70021), time.Minute, reasonPropagating, true, 0},
		"a young credential, issuer":     {refused(401, "invalid_client", 700211), time.Minute, reasonPropagating, true, 0},
		"a young credential, subject":    {refused(401, "invalid_client", 700213), time.Minute, reasonPropagating, true, 0},
		"the first one of an identity":   {refused(401, "invalid_client", 70025), time.Minute, reasonPropagating, true, 0},
		"an old credential":              {refused(401, "invalid_client", 700213), time.Hour, reasonNoMatch, false, most},
		"an application that is not":     {refused(400, "unauthorized_client", 700016), 0, reasonNoApp, false, most},
		"a tenant that is not":           {refused(400, "invalid_request", 90002), 0, reasonNoTenant, false, slow},
		"an issuer behind a wall":        {refused(400, "invalid_request", 90061), 0, reasonIssuer, false, most},
		"a key that is not published":    {refused(401, "invalid_client", 7000272), 0, reasonKey, false, most},
		"throttled":                      {refused(http.StatusTooManyRequests, ""), 0, reasonThrottled, true, 7 * time.Second},
		"out of order":                   {refused(503, ""), 0, reasonUnreachable, true, 7 * time.Second},
		"anything else":                  {refused(401, "invalid_client", 700222), 0, reasonRefused, false, most},
		"no answer":                      {errors.New("dial tcp: refused"), 0, reasonUnreachable, true, 0},
		"nothing to send":                {fmt.Errorf("%w: the tenant", entra.ErrUnusable), 0, reasonRefused, false, slow},
		"too late":                       {context.DeadlineExceeded, 0, reasonUnreachable, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := judge(tc.err, tc.age)
			if got.reason != tc.reason || got.grow != tc.grows || got.wait != tc.wait || got.usable != (tc.err == nil) || !got.usable && got.message == "" {
				t.Errorf("%+v, want %s", got, tc.reason)
			}
		})
	}
}

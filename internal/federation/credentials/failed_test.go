package credentials

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/federated"
)

// How long Azure is left alone after a storm of ten minutes and more. A tenth is
// added by chance.
func TestHowLongAzureIsLeftAloneInAStorm(t *testing.T) {
	for name, tc := range map[string]struct {
		err         error
		least, most time.Duration
	}{
		"it names a minute":                {&federated.Throttled{RetryAfter: time.Minute}, time.Minute, time.Minute},
		"it names five minutes":            {&federated.Throttled{RetryAfter: 5 * time.Minute}, 5 * time.Minute, 5 * time.Minute},
		"it names a second, all the time":  {&federated.Throttled{RetryAfter: time.Second}, time.Minute, time.Minute},
		"it names no time":                 {&federated.Throttled{}, 10 * time.Minute, 10 * time.Minute},
		"it fails":                         {errors.New("500"), 10 * time.Minute, 10 * time.Minute},
		"it refuses the controller's role": {fmt.Errorf("%w: 403", federated.ErrForbidden), 10 * time.Minute, 10 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			start := now
			c := &Controller{Interval: 10 * time.Minute, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler)}
			b := &batch{target: &target{}}
			attempts := 0
			for ; now.Sub(start) < 30*time.Minute; attempts++ {
				if err := c.failed(t.Context(), b, asked(tc.err)); err != nil {
					t.Fatal(err)
				}
				if b.wait = 0; !b.until.After(now) {
					t.Fatalf("attempt %d is followed by another at once", attempts)
				}
				if left := b.until.Sub(now); left > tc.most+tc.most/10 {
					t.Errorf("after attempt %d it is left alone for %s", attempts, left)
				}
				last := b.until.Sub(now)
				if now = b.until; now.Sub(start) >= 30*time.Minute && last < tc.least {
					t.Errorf("at last it is left alone for %s", last)
				}
			}
			if attempts > 40 {
				t.Errorf("it was asked %d times in half an hour", attempts)
			}
		})
	}
}

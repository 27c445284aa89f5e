package token

import (
	"testing"
	"time"
)

func TestRefreshAfter(t *testing.T) {
	for _, c := range []struct {
		name             string
		lifetime         time.Duration
		earliest, latest time.Duration // for the smallest and the largest random number
	}{
		{"an hour of Entra", time.Hour, 30 * time.Minute, 48 * time.Minute},
		{"a day of the metadata service", 24 * time.Hour, 12 * time.Hour, 1152 * time.Minute},
		{"five minutes are left of twenty", 20 * time.Minute, 10 * time.Minute, 15 * time.Minute},
		{"no five minutes in the second half", 6 * time.Minute, 3 * time.Minute, 3 * time.Minute},
		{"never more often than in five seconds", 4 * time.Second, 5 * time.Second, 5 * time.Second},
		{"a token that is over", -time.Hour, 5 * time.Second, 5 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			const almost = 0.9999999999
			if got := refreshAfter(c.lifetime, 0).Round(time.Second); got != c.earliest {
				t.Errorf("earliest %s, want %s", got, c.earliest)
			}
			if got := refreshAfter(c.lifetime, almost).Round(time.Second); got != c.latest {
				t.Errorf("latest %s, want %s", got, c.latest)
			}
		})
	}
}

func TestRest(t *testing.T) {
	for n := 1; n < 100; n++ {
		if d := rest(Failure{}, n, 0); d < 750*time.Millisecond || d > 10*time.Second {
			t.Errorf("failure %d: %s", n, d)
		}
		if d := rest(Failure{RetryAfter: 20 * time.Second}, n, 0); d < 20*time.Second {
			t.Errorf("failure %d: %s before Retry-After", n, d)
		}
		if d := rest(Failure{Permanent: true}, n, 0); d < 2*time.Second || d > time.Minute {
			t.Errorf("refusal %d: %s", n, d)
		}
	}
}

package token

import (
	"math/rand/v2"
	"time"
)

const (
	// justFetched is how long an answer serves whatever its expiry: what an
	// upstream says now is the best there is, even if this node's clock thinks
	// that it is over. It also keeps such a token from being asked for in a loop.
	justFetched = time.Second
	// clockStep is how far the wall clock may go back before a token is renewed.
	clockStep = time.Minute
	// shortestRefresh bounds how often a token is asked for again; a metadata
	// service returns the same token until it renews its own.
	shortestRefresh = 5 * time.Second
	// longestPause bounds what an upstream's Retry-After is taken for.
	longestPause = 2 * time.Minute
	// margin is what should be left of a longer lifetime at the refresh.
	margin = 5 * time.Minute
)

// A held token is one in memory. It is not modified.
type held struct {
	token   Token
	renewal uint64

	expires      time.Time     // by the wall clock
	fetchedWall  time.Time     // by the wall clock
	fetched      time.Time     // by the monotonic clock
	lifetime     time.Duration // left when it came
	refreshAfter time.Duration // age from which on it is due
}

func newHeld(f *flight, wall, mono time.Time) *held {
	h := &held{token: f.token, renewal: f.renewal, expires: f.token.ExpiresOn.Round(0), fetchedWall: wall, fetched: mono}
	h.lifetime = h.expires.Sub(wall)
	h.refreshAfter = refreshAfter(h.lifetime, rand.Float64())
	return h
}

// refreshAfter places the refresh at 50 to 80 % of a lifetime, by a random
// number in [0,1), and at least five minutes before the end if there are that
// many in its second half. If the upstream returns the same token again, the
// next refresh halves what is left, so that a token is asked for some twenty
// times at most.
func refreshAfter(lifetime time.Duration, random float64) time.Duration {
	after := time.Duration(float64(lifetime) * (0.5 + 0.3*random))
	if latest := lifetime - margin; after > latest {
		after = max(latest, lifetime/2)
	}
	return max(after, shortestRefresh)
}

// usable reports whether h may be handed out. The wall clock decides; the
// monotonic one too, because the end was computed with a wall clock that may
// have been wrong then.
func (h *held) usable(wall, mono time.Time) bool {
	age := mono.Sub(h.fetched)
	return age < justFetched || age < h.lifetime && wall.Before(h.expires)
}

// due reports whether h should be replaced.
func (h *held) due(wall, mono time.Time) bool {
	age := wall.Sub(h.fetchedWall)
	return age >= h.refreshAfter || age < -clockStep || mono.Sub(h.fetched) >= h.refreshAfter
}

// rest is how long a key rests after its n-th failure in a row.
func rest(f Failure, n int, refusedMax time.Duration) time.Duration {
	first, most := time.Second, 10*time.Second
	if f.Permanent {
		first, most = 2*time.Second, refusedMax
		if most == 0 {
			most = time.Minute
		}
	}
	d := min(most, first<<min(n-1, 10))
	if f.Permanent {
		return d
	}
	return max(f.RetryAfter, d*3/4+rand.N(d/4))
}

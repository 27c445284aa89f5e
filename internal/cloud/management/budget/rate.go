package budget

import (
	"math"
	"sync"
	"time"
)

// A Rate is how many requests a second a provider takes of one tenant, of one subscription and about one resource.
// 0 means any number.
type Rate struct{ Tenant, Subscription, Resource float64 }

// burst is for how many seconds of a rate requests can come at once.
const burst = 20

// Rates counts requests against rates. The zero value has seen none.
type Rates struct {
	mu      sync.Mutex
	buckets map[string]bucket
}

// A bucket fills with its rate up to burst seconds of it.
type bucket struct {
	tokens float64
	at     time.Time
}

// Take counts a request of a kind, such as the PUT of a type. If it is one too many it returns how many seconds to wait
// and which scope has no more, and counts nothing.
func (r *Rates) Take(kind, tenant, subscription, resource string, rate Rate, now time.Time) (scope string, wait int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.buckets == nil || len(r.buckets) >= maxBudgets {
		r.buckets = map[string]bucket{}
	}
	scopes := []struct {
		name, key string
		rate      float64
	}{{"tenant", tenant, rate.Tenant}, {"subscription", subscription, rate.Subscription}, {"resource", resource, rate.Resource}}
	left := map[string]bucket{}
	for _, s := range scopes {
		if s.rate == 0 || s.key == "" {
			continue
		}
		size := math.Max(1, s.rate*burst)
		key := kind + "|" + s.name + "|" + s.key
		b, ok := r.buckets[key]
		if !ok || now.Before(b.at) {
			b = bucket{size, now}
		}
		b.tokens, b.at = math.Min(size, b.tokens+now.Sub(b.at).Seconds()*s.rate), now
		if b.tokens < 1 {
			return s.name, int(math.Ceil((1 - b.tokens) / s.rate))
		}
		b.tokens--
		left[key] = b
	}
	for key, b := range left {
		r.buckets[key] = b
	}
	return "", 0
}

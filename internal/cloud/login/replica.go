package login

import (
	"sync"
	"time"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
)

// A replica is how the token endpoint sees federated credentials: late, on
// demand. A change counts propagation after it was made. A request that comes
// too early makes the endpoint remember what it saw for some time, as Entra's
// caches do: the request itself delays the credential.
//
//	change ── propagation ──> counts
//	   └─ request: the old list, remembered until request + cache
//
// Source: https://learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations
type replica struct {
	mu      sync.Mutex
	changes map[string][]change // by parent, oldest first
	seen    map[string]seen     // by parent
}

// A change has been made and may not count yet.
type change struct {
	at     time.Time
	before []directory.FederatedCredential
}

// seen is an old list that a request has met.
type seen struct {
	list  []directory.FederatedCredential
	until time.Time
}

// Propagation is how late federated credentials count. The zero value is at
// once.
type Propagation struct {
	Delay time.Duration // from a change until it counts
	Cache time.Duration // how long a request that came too early is remembered
}

// changed notes a change that is made now. Those that count by now are
// forgotten.
func (r *replica) changed(parent string, before []directory.FederatedCredential, now time.Time, p Propagation) {
	if p.Delay <= 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changes == nil {
		r.changes, r.seen = map[string][]change{}, map[string]seen{}
	}
	r.expire(parent, now, p)
	r.changes[parent] = append(r.changes[parent], change{now, before})
}

// expire forgets the changes of a parent that count.
func (r *replica) expire(parent string, now time.Time, p Propagation) {
	all := r.changes[parent]
	for len(all) > 0 && now.Sub(all[0].at) >= p.Delay {
		all = all[1:]
	}
	if len(all) == 0 {
		delete(r.changes, parent)
		return
	}
	r.changes[parent] = all
}

// see returns the credentials that count, of a parent that really has current.
func (r *replica) see(parent string, current []directory.FederatedCredential, now time.Time, p Propagation) []directory.FederatedCredential {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Delay <= 0 {
		delete(r.changes, parent)
		delete(r.seen, parent)
		return current
	}
	if s, ok := r.seen[parent]; ok && now.Before(s.until) {
		return s.list
	}
	delete(r.seen, parent)
	r.expire(parent, now, p)
	pending := r.changes[parent]
	if len(pending) == 0 {
		return current
	}
	old := pending[0].before
	if p.Cache > 0 {
		r.seen[parent] = seen{old, now.Add(p.Cache)}
	}
	return old
}

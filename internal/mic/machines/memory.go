package machines

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/resourceversion"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/mic/arm"
	"github.com/lanyard-id/lanyard/internal/mic/assigned"
)

// A memory is what the controller knows about a machine besides what is in the
// cluster. All of it may be lost at any time: then the machine is asked again.
// Only one reconcile of a machine runs at a time; the mutex guards what events
// touch.
type memory struct {
	mu          sync.Mutex
	first, last time.Time // events since the last batch

	seen    bool                // the cluster has or had a node on it
	backed  map[string]bool     // keys of the identities that a binding led to here
	put     map[string]placed   // those of them that mic put there, by key
	there   map[string]bool     // keys of the identities that it has; nil if not known
	checked time.Time           // when there was read
	until   time.Time           // when it may be asked again after a failure
	delay   time.Duration       // the last one after a failure
	refused map[string]*refusal // identities that the cloud does not take, by key

	written sync.Map // UID -> *v1.AzureAssignedIdentity as this controller last wrote it
}

// A placed identity is on the machine because of mic. Should all assignments of it
// vanish, forced by hand or deleted while one was to take over the finalizer, it
// is still taken away.
type placed struct {
	machine, identity azure.ResourceID
	pinned            bool
}

// latest returns an assignment as it was last written, if the cache has not heard
// of that yet.
func (m *memory) latest(a *v1.AzureAssignedIdentity) *v1.AzureAssignedIdentity {
	x, ok := m.written.Load(a.UID)
	if !ok {
		return a
	}
	w := x.(*v1.AzureAssignedIdentity)
	if order, err := resourceversion.CompareResourceVersion(a.ResourceVersion, w.ResourceVersion); err == nil && order < 0 {
		return w
	}
	m.written.Delete(a.UID)
	return a
}

// machine is the one that there is something to do about; ok is false if nothing
// is left of it.
func (m *memory) machine(items []v1.AzureAssignedIdentity) (id azure.ResourceID, ok bool) {
	for i := range items {
		if id, ok := assigned.Machine(&items[i]); ok {
			return id, true
		}
	}
	for _, p := range m.put {
		if !p.pinned {
			return p.machine, true
		}
	}
	return id, false
}

// A refusal is an identity's own back-off.
type refusal struct {
	err   error
	until time.Time
	delay time.Duration
}

func (c *Controller) remember(key string) *memory {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.machines[key]
	if m == nil {
		if c.machines == nil {
			c.machines = map[string]*memory{}
		}
		m = &memory{}
		c.machines[key] = m
	}
	return m
}

func (c *Controller) forget(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.machines[key]; m != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.first.IsZero() {
			delete(c.machines, key)
		}
	}
}

// touch notes an event.
func (m *memory) touch(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.first.IsZero() {
		m.first = now
	}
	m.last = now
}

// gathering returns how long to wait for more events; zero ends the gathering.
func (m *memory) gathering(now time.Time, coming bool) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.first.IsZero() {
		return 0
	}
	wait := m.last.Add(gatherIdle).Sub(now)
	if coming {
		wait = max(wait, gatherIdle/2)
	}
	if wait = min(wait, m.first.Add(gatherMost).Sub(now)); wait > 0 {
		return wait
	}
	m.first, m.last = time.Time{}, time.Time{}
	return 0
}

// due reports whether a machine that waits for nothing is to be compared with
// the cloud, and otherwise when; zero means never.
func (m *memory) due(now time.Time, recheck time.Duration) (wait time.Duration, due bool) {
	if m.there == nil {
		return 0, true // not known since the start, or since a failure
	}
	if recheck == 0 {
		return 0, false
	}
	wait = recheck - now.Sub(m.checked)
	return wait, wait <= 0
}

// note keeps how an attempt went and returns how long to wait before the next;
// zero means as long as usual.
func (m *memory) note(now time.Time, err error, b *batch) (wait time.Duration) {
	if err == nil {
		m.place(b)
	}
	if err != nil {
		m.there = nil
		m.delay = next(m.delay)
		wait = max(arm.RetryAfter(err), m.delay)
		m.until = now.Add(wait)
		return wait
	}
	m.delay, m.until = 0, time.Time{}
	for _, e := range b.entries {
		key := e.id.Key()
		switch r := m.refused[key]; {
		case e.err == nil || !arm.BlamesIdentity(e.err) && !arm.Gone(e.err):
			delete(m.refused, key)
			continue
		case !e.deferred:
			if r == nil {
				r = &refusal{}
				if m.refused == nil {
					m.refused = map[string]*refusal{}
				}
				m.refused[key] = r
			}
			r.err, r.delay = e.err, next(r.delay)
			r.until = now.Add(max(arm.RetryAfter(e.err), r.delay))
		}
		if left := m.refused[key].until.Sub(now); wait == 0 || left < wait {
			wait = left
		}
	}
	return wait
}

// place remembers what mic put on the machine.
func (m *memory) place(b *batch) {
	for _, e := range b.entries {
		key := e.id.Key()
		switch {
		case !m.there[key] || e.left && e.err != nil:
			delete(m.put, key)
		case e.added && m.backed[key]:
			if m.put == nil {
				m.put = map[string]placed{}
			}
			m.put[key] = placed{b.machine, e.id, e.pinned}
		}
	}
}

func next(delay time.Duration) time.Duration {
	return min(max(2*delay, backoffFirst), backoffMost)
}

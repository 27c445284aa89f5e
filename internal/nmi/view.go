package nmi

import (
	"sync"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
)

// A View is a pod and all that its identities depend on. When any of it changes
// a Node makes another View, so what this one remembers is never out of date.
// The fields must not be modified. A View must not be copied.
type View struct {
	Pod        binding.Pod
	World      binding.World
	Exceptions []*v1.AzurePodIdentityException // of the pod's namespace

	mu     sync.RWMutex
	chosen map[binding.Selector]choice
}

// A choice is what binding.Select chose at an instant.
type choice struct {
	bound binding.Bound
	at    time.Time
}

const (
	// maxChoices bounds what a pod can make its view remember: an id may be
	// written in many ways.
	maxChoices = 16
	// choiceHolds is how long a choice is taken for granted: nothing that it
	// depends on changes, unless the clock is set.
	choiceHolds = time.Minute
)

// Select is binding.Select. It remembers its choices, but not where the time
// decides, and no refusals.
func (v *View) Select(sel binding.Selector, now time.Time) (binding.Bound, error) {
	v.mu.RLock()
	c, known := v.chosen[sel]
	v.mu.RUnlock()
	if age := now.Sub(c.at); known && age >= 0 && age < choiceHolds {
		return c.bound, nil
	}
	b, err := binding.Select(v.Pod, v.World, sel, now)
	if err != nil {
		return b, err
	}
	all, _ := binding.Of(v.Pod, v.World)
	if _, next := binding.Active(all, now); !next.IsZero() {
		return b, nil // some binding opens or closes
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.chosen == nil || len(v.chosen) >= maxChoices {
		v.chosen = map[binding.Selector]choice{}
	}
	v.chosen[sel] = choice{b, now}
	return b, nil
}

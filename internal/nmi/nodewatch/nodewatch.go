// Package nodewatch is what Kubernetes tells a node agent: the pods of its
// node, and of everything else what their identities depend on.
//
//	API server ── watches ──> slim objects
//	                      ──> indexes: pod by address, name, UID; what concerns a pod
//	                      ──> the pod's view, made at the first question, dropped
//	                          when something that concerns this pod changes
//	                      ──> whoever waits for this pod, and nobody else
//
// A question is answered from memory, without the API server: while that is
// away, the last known state holds.
package nodewatch

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/nmi"
)

// A Config says which node a Watcher is for. Kubernetes and Node must be set.
type Config struct {
	Kubernetes      *rest.Config
	Node            string
	ForceNamespaced bool // limit every binding to pods of its own namespace
	Managed         bool // identities are on the machine already: no assignment is looked for
	// Arrivals tells which port an address is behind; nil means that an
	// address is taken for its pod without that proof.
	Arrivals nmi.Arrivals
	// Changed is told of a pod of this node after what it is entitled to may
	// have changed; one call at a time, the changes of a moment in one. May be nil.
	Changed func(ctx context.Context, pod binding.Pod, hostNetwork bool)
	// Trouble is told of a failing watch. May be nil.
	Trouble func(ctx context.Context, err error)
	// Began is when Arrivals had looked at all ports for the first time: those
	// that it saw by then may be older.
	Began time.Time
	Now   func() time.Time // nil means time.Now
}

// A Watcher is an nmi.Node.
type Watcher struct {
	config    Config
	calendars binding.Calendars

	mu sync.RWMutex
	indexes
	waiters map[*waiter]struct{}
	changed map[*entry]struct{} // pods that Config.Changed is yet to be told of
	hasMore chan struct{}       // capacity 1

	shelves  []*shelf
	requests *shelf // filled if the cluster has the kind
}

// New prepares a Watcher. It knows nothing before Run has synced.
func New(c Config) (*Watcher, error) {
	w := empty(c)
	h, err := rest.HTTPClientFor(c.Kubernetes)
	if err != nil {
		return nil, fmt.Errorf("talking to the API server: %w", err)
	}
	core, err := API(c.Kubernetes, h, corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	own, err := API(c.Kubernetes, h, v1.GroupVersion())
	if err != nil {
		return nil, err
	}
	access, err := API(c.Kubernetes, h, lanyard.GroupVersion())
	if err != nil {
		return nil, err
	}
	kinds := []kind{
		{core, "pods", &corev1.Pod{}, func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", c.Node).String()
		}},
		{own, "azureidentitybindings", &v1.AzureIdentityBinding{}, nil},
		{own, "azureidentities", &v1.AzureIdentity{}, nil},
		{own, "azurepodidentityexceptions", &v1.AzurePodIdentityException{}, nil},
	}
	if !c.Managed {
		kinds = append(kinds, kind{own, "azureassignedidentities", &v1.AzureAssignedIdentity{}, func(o *metav1.ListOptions) {
			o.LabelSelector = labels.SelectorFromSet(labels.Set{v1.NodeLabel: binding.NodeLabelValue(c.Node)}).String()
		}})
	}
	for _, k := range kinds {
		w.shelves = append(w.shelves, w.shelf(k))
	}
	w.requests = w.shelf(kind{access, lanyard.ResourceAccessRequests, &lanyard.AccessRequest{}, nil})
	return w, nil
}

func empty(c Config) *Watcher {
	return &Watcher{config: c, indexes: newIndexes(), waiters: map[*waiter]struct{}{}, changed: map[*entry]struct{}{}, hasMore: make(chan struct{}, 1)}
}

// requestsInterval is how often it is looked whether the cluster has the kind
// AccessRequest, which one that runs v1's manifests does not.
const requestsInterval = 30 * time.Second

// Run watches until the context ends.
func (w *Watcher) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { w.tell(ctx) })
	running.Go(func() { w.follow(ctx) })
	for _, s := range w.shelves {
		running.Go(func() { s.run(ctx) })
	}
	w.watchRequests(ctx)
	return nil
}

func (w *Watcher) watchRequests(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		_, err := w.requests.api.Get().AbsPath("/apis", lanyard.GroupVersion().String()).DoRaw(ctx)
		if err == nil {
			w.requests.run(ctx)
			return
		}
		if !apierrors.IsNotFound(err) && w.config.Trouble != nil && ctx.Err() == nil {
			w.config.Trouble(ctx, err)
		}
		timer.Reset(requestsInterval)
	}
}

// Synced waits until what every request needs is known and reports whether it
// is. AccessRequests may be beyond this agent's rights, as after an upgrade:
// then bindings on request stay closed, and all others are served.
func (w *Watcher) Synced(ctx context.Context) bool {
	for _, s := range w.shelves {
		select {
		case <-s.filled:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// tell tells Config.Changed of the pods that changed.
func (w *Watcher) tell(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.hasMore:
		}
		w.mu.Lock()
		changed := w.changed
		w.changed = map[*entry]struct{}{}
		w.mu.Unlock()
		if w.config.Changed == nil {
			continue
		}
		for e := range changed {
			if ctx.Err() == nil {
				w.config.Changed(ctx, e.pod, e.hostNetwork)
			}
		}
	}
}

// A waiter is a request that waits.
type waiter struct {
	who    nmi.Who
	change chan struct{} // capacity 1
}

func (x *waiter) wake() {
	select {
	case x.change <- struct{}{}:
	default:
	}
}

// Changes implements nmi.Node.
func (w *Watcher) Changes(who nmi.Who) (<-chan struct{}, func()) {
	x := &waiter{who, make(chan struct{}, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiters[x] = struct{}{}
	return x.change, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.waiters, x)
	}
}

// wake needs the lock.
func (w *Watcher) wake(of map[*entry]struct{}) {
	for x := range w.waiters {
		for e := range of {
			if e.is(x.who) {
				x.wake()
				break
			}
		}
	}
}

// Pod implements nmi.Node. A pod in the node's own network has no address to
// itself, and one that has ended has none any more: its address may be
// another's already.
func (w *Watcher) Pod(who nmi.Who) (binding.Pod, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if !who.Address.IsValid() {
		e := w.byName[name{who.Namespace, who.Name}]
		if who.UID != "" {
			e = w.byUID[who.UID]
		}
		if e == nil || e.ended {
			return binding.Pod{}, &nmi.UnknownPodError{Who: who, Why: "no such pod runs on this node", Wait: true}
		}
		return e.pod, nil
	}
	now := w.now()
	var found *entry
	alive, behind := 0, 0
	why := "no running pod outside the host network has it"
	for _, e := range w.byAddress[who.Address] {
		// A pod whose time to end is over has ended, even if the API server does
		// not say so yet: its address may be another's already.
		if e.gone(now) {
			continue
		}
		alive++
		if doubt := w.behind(e, who.Address); doubt != "" {
			why = doubt
			continue
		}
		found = e
		behind++
	}
	switch behind {
	case 1:
		return found.pod, nil
	case 0:
	default:
		why = fmt.Sprintf("%d running pods have it", alive)
	}
	return binding.Pod{}, &nmi.UnknownPodError{Who: who, Why: why, Wait: true}
}

// View implements nmi.Node.
func (w *Watcher) View(pod binding.Pod) *nmi.View {
	w.mu.RLock()
	defer w.mu.RUnlock()
	e := w.byUID[pod.UID]
	if e == nil {
		return w.look(pod)
	}
	v := e.view.Load()
	if v == nil {
		// Of the pod as it is now: the caller's may be from before a change.
		v = w.look(e.pod)
		e.view.Store(v) // under the read lock: a change that drops it comes after
	}
	return v
}

func (w *Watcher) now() time.Time {
	if w.config.Now != nil {
		return w.config.Now()
	}
	return time.Now()
}

// A name is a namespace and a name.
type name struct{ namespace, name string }

// An entry is a pod of this node. It is replaced when the pod changes; view
// and ties are what it remembers.
type entry struct {
	pod         binding.Pod
	addresses   []netip.Addr // that belong to the pod alone
	hostNetwork bool
	ended       bool
	ends        time.Time // when its time is over; zero if it is not being deleted
	facts       facts
	view        atomic.Pointer[nmi.View]
}

func (e *entry) gone(now time.Time) bool {
	return e.ended || !e.ends.IsZero() && e.ends.Before(now)
}

func (e *entry) is(who nmi.Who) bool {
	switch {
	case who.Address.IsValid():
		for _, a := range e.addresses {
			if a == who.Address {
				return true
			}
		}
		return false
	case who.UID != "":
		return e.pod.UID == who.UID
	default:
		return e.pod.Namespace == who.Namespace && e.pod.Name == who.Name
	}
}

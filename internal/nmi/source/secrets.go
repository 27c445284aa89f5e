package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

const (
	maxSecrets = 1024            // in use on one node
	fairShare  = 256             // of one namespace's
	secretIdle = 2 * time.Hour   // an SDK that holds a token asks once an hour
	rereadEach = time.Second     // where the watch is forbidden
	rewatch    = 5 * time.Second // until a forbidden watch is tried again: RBAC may be on its way
	maxRewatch = 5 * time.Minute // after it was forbidden again and again
	rereadWait = 300 * time.Millisecond
)

// secrets are the Secrets in use, each with its own watch: the agent may be
// allowed to read but a few, and holds no others in memory.
type secrets struct {
	api     rest.Interface
	changed func(name types.NamespacedName, gone bool)
	observe func(Operation)

	mu      sync.RWMutex
	used    map[types.NamespacedName]*secret
	closed  bool
	running sync.WaitGroup
}

// A reading is what is known of a Secret. It is not modified.
type reading struct {
	version string // changes with the Secret
	data    map[string][]byte
	gone    bool
}

// A secret is one that is followed. It is the store of its own reflector.
type secret struct {
	name   types.NamespacedName
	owner  *secrets
	cancel context.CancelFunc

	known   chan struct{} // closed when there is a reading, or none by watching
	once    sync.Once
	last    atomic.Pointer[reading]
	polled  atomic.Bool  // the watch is forbidden
	readAt  atomic.Int64 // when it was read for the last time, in nanoseconds of Unix time
	usedAt  atomic.Int64
	reading sync.Mutex // one GET at a time
}

// follow returns the secret and begins to watch it if it is not watched yet.
func (s *secrets) follow(ctx context.Context, name types.NamespacedName) (*secret, error) {
	now := time.Now().UnixNano()
	s.mu.RLock()
	w := s.used[name]
	s.mu.RUnlock()
	if w != nil {
		w.usedAt.Store(now)
		return w, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w = s.used[name]
	switch {
	case w != nil:
	case s.closed:
		return nil, errors.New("the agent ends")
	case len(s.used) >= maxSecrets:
		return nil, fmt.Errorf("%d Secrets are in use on this node already", len(s.used))
	case s.of(name.Namespace) >= fairShare:
		return nil, fmt.Errorf("%d Secrets of namespace %s are in use on this node already", fairShare, name.Namespace)
	default:
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		w = &secret{name: name, owner: s, cancel: cancel, known: make(chan struct{})}
		if s.used == nil {
			s.used = map[types.NamespacedName]*secret{}
		}
		s.used[name] = w
		s.running.Go(func() { w.run(ctx) })
	}
	w.usedAt.Store(now)
	return w, nil
}

// of counts the Secrets of a namespace. s.mu is held.
func (s *secrets) of(namespace string) int {
	n := 0
	for name := range s.used {
		if name.Namespace == namespace {
			n++
		}
	}
	return n
}

// close ends all watches.
func (s *secrets) close() {
	s.mu.Lock()
	s.closed = true
	for _, w := range s.used {
		w.cancel()
	}
	s.mu.Unlock()
	s.running.Wait()
}

// drop ends the watches that nobody used for some time.
func (s *secrets) drop(idle time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, w := range s.used {
		if time.Now().UnixNano()-w.usedAt.Load() > int64(idle) {
			w.cancel()
			delete(s.used, name)
		}
	}
}

// run watches until ctx ends. A watch that is forbidden is given up for a
// while: reads take its place.
func (w *secret) run(ctx context.Context) {
	for pause := rewatch; ctx.Err() == nil; pause = min(2*pause, maxRewatch) {
		watching, stop := context.WithCancel(ctx)
		cache.NewReflectorWithOptions(w.listWatch(stop), &corev1.Secret{}, w, cache.ReflectorOptions{Name: "secret"}).RunWithContext(watching)
		stop()
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (w *secret) listWatch(stop context.CancelFunc) *cache.ListWatch {
	all := cache.NewFilteredListWatchFromClient(w.owner.api, "secrets", w.name.Namespace, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, w.name.Name).String()
	})
	check := func(err error) error {
		if apierrors.IsForbidden(err) || apierrors.IsMethodNotSupported(err) {
			w.polled.Store(true)
			w.once.Do(func() { close(w.known) })
			stop()
		}
		return err
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := all.ListWithContext(ctx, o)
			return list, check(err)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			changes, err := all.WatchWithContext(ctx, o)
			return changes, check(err)
		},
	}
}

// Add takes a Secret that is new. Add, Update, Delete, Replace and Resync are
// for the reflector, whose store w is.
func (w *secret) Add(obj any) error { return w.Update(obj) }

// Resync does nothing: see Add.
func (w *secret) Resync() error { return nil }

// Delete takes a Secret that is gone.
func (w *secret) Delete(any) error {
	w.polled.Store(false)
	w.set(&reading{gone: true})
	return nil
}

// Update takes a Secret that changed.
func (w *secret) Update(obj any) error {
	found, ok := obj.(*corev1.Secret)
	if !ok || found.Name != w.name.Name { // a server that ignores the field selector
		return nil
	}
	w.polled.Store(false)
	w.set(read(found))
	return nil
}

// Replace takes the whole list: the Secret or nothing.
func (w *secret) Replace(objs []any, _ string) error {
	i := slices.IndexFunc(objs, func(obj any) bool {
		found, ok := obj.(*corev1.Secret)
		return ok && found.Name == w.name.Name
	})
	if i < 0 {
		return w.Delete(nil)
	}
	return w.Update(objs[i])
}

func read(s *corev1.Secret) *reading {
	return &reading{version: string(s.UID) + "/" + s.ResourceVersion, data: s.Data}
}

// set enters a reading and tells the owner if it changed anything.
func (w *secret) set(r *reading) {
	before := w.last.Swap(r)
	w.once.Do(func() { close(w.known) })
	if before == nil || before.gone == r.gone && maps.EqualFunc(before.data, r.data, slices.Equal) {
		return
	}
	w.owner.changed(w.name, r.gone)
}

// current returns what is known now, or nil. Where the watch is forbidden it
// reads at most once a second, and waits for that only briefly: the API server
// may be away.
func (w *secret) current(ctx context.Context) *reading {
	if w.polled.Load() && time.Now().UnixNano()-w.readAt.Load() >= int64(rereadEach) {
		ctx, cancel := context.WithTimeout(ctx, rereadWait)
		defer cancel()
		_ = w.get(ctx) // what is known stays
	}
	return w.last.Load()
}

// wait returns nil when there is a reading; it waits for the first.
func (w *secret) wait(ctx context.Context) error {
	select {
	case <-w.known:
	case <-ctx.Done():
		return fmt.Errorf("reading Secret %s: %w", w.name, ctx.Err())
	}
	if w.last.Load() != nil {
		return nil
	}
	return w.get(ctx)
}

// get reads the Secret, unless another caller did so within the second.
func (w *secret) get(ctx context.Context) error {
	w.reading.Lock()
	defer w.reading.Unlock()
	if w.last.Load() != nil && time.Now().UnixNano()-w.readAt.Load() < int64(rereadEach) {
		return nil
	}
	w.readAt.Store(time.Now().UnixNano())
	start := time.Now()
	found := &corev1.Secret{}
	err := w.owner.api.Get().Namespace(w.name.Namespace).Resource("secrets").Name(w.name.Name).Do(ctx).Into(found)
	w.owner.observe(Operation{Type: OperationSecret, Took: time.Since(start), Err: err})
	switch {
	case !w.polled.Load() && w.last.Load() != nil:
		return nil // the watch works again, and knows better
	case apierrors.IsNotFound(err):
		w.set(&reading{gone: true})
		return nil
	case err != nil:
		return fmt.Errorf("reading Secret %s: %w", w.name, err)
	}
	w.set(read(found))
	return nil
}

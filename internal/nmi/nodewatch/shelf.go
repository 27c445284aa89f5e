package nodewatch

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
)

// A kind is what is watched.
type kind struct {
	api      rest.Interface
	resource string
	example  runtime.Object
	only     func(*metav1.ListOptions) // nil means all
}

// A shelf is the store of one kind's reflector: the Watcher's own indexes. An
// informer would keep all objects a second time.
type shelf struct {
	kind
	w *Watcher

	filled chan struct{} // closed when there has been a list
	once   sync.Once
	names  map[name]any // what is there; only the reflector's goroutine touches it
}

func (w *Watcher) shelf(k kind) *shelf {
	return &shelf{kind: k, w: w, filled: make(chan struct{}), names: map[name]any{}}
}

// run watches until the context ends.
func (s *shelf) run(ctx context.Context) {
	only := s.only
	if only == nil {
		only = func(*metav1.ListOptions) {}
	}
	all := toolscache.NewFilteredListWatchFromClient(s.api, s.resource, metav1.NamespaceAll, only)
	told := func(ctx context.Context, err error) error {
		if err != nil && ctx.Err() == nil && s.w.config.Trouble != nil {
			s.w.config.Trouble(ctx, err)
		}
		return err
	}
	lw := &toolscache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := all.ListWithContext(ctx, o)
			return list, told(ctx, err)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			changes, err := all.WatchWithContext(ctx, o)
			return changes, told(ctx, err)
		},
	}
	toolscache.NewReflectorWithOptions(lw, s.example, s, toolscache.ReflectorOptions{Name: s.resource}).RunWithContext(ctx)
}

// Transformer implements toolscache.TransformingStore: a list is slim before
// all of it has come.
func (s *shelf) Transformer() toolscache.TransformFunc { return slim }

// Add takes an object that is new. Add, Update, Delete, Replace and Resync are
// for the reflector.
func (s *shelf) Add(obj any) error { return s.Update(obj) }

// Resync does nothing: see Add.
func (s *shelf) Resync() error { return nil }

// Update takes an object that changed.
func (s *shelf) Update(obj any) error {
	o, n, err := slimmedOf(obj)
	if err != nil {
		return err
	}
	s.names[n] = o
	s.w.put(o)
	return nil
}

// Delete takes an object that is gone.
func (s *shelf) Delete(obj any) error {
	o, n, err := slimmedOf(obj)
	if err != nil {
		return err
	}
	delete(s.names, n)
	s.w.remove(o)
	return nil
}

// Replace takes all objects that there are.
func (s *shelf) Replace(objs []any, _ string) error {
	there := make(map[name]any, len(objs))
	for _, obj := range objs {
		o, n, err := slimmedOf(obj)
		if err != nil {
			return err
		}
		there[n] = o
	}
	for n, o := range s.names {
		if there[n] == nil {
			s.w.remove(o)
		}
	}
	for _, o := range there {
		s.w.put(o)
	}
	s.names = there
	s.once.Do(func() { close(s.filled) })
	return nil
}

func slimmedOf(obj any) (any, name, error) {
	o, err := slim(obj)
	if err != nil {
		return nil, name{}, err
	}
	m, err := meta.Accessor(o)
	if err != nil {
		return nil, name{}, err
	}
	return o, nameOf(m), nil
}

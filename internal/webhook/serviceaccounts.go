package webhook

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

// An AccountCache knows the service accounts of the cluster that carry
// labels or annotations of azure.workload.identity/, and of those nothing else. One that
// it does not know is read from the API server, so that an account created in
// the same breath as its pod is found.
type AccountCache struct {
	Client metadata.Interface // must be set

	mu        sync.RWMutex
	annotated map[types.NamespacedName]mutation.ServiceAccount
	synced    bool
}

// Run keeps the cache until the context ends. While the API server does not
// answer it tries again, at most 5 seconds apart.
func (c *AccountCache) Run(ctx context.Context) error {
	accounts := c.Client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"})
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return accounts.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return accounts.Watch(ctx, o)
		},
	}
	cache.NewReflectorWithOptions(lw, &metav1.PartialObjectMetadata{}, accountStore{c}, cache.ReflectorOptions{
		Name: "serviceaccounts",
		// More impatient than client-go's: readiness waits for it.
		Backoff: &wait.Backoff{Duration: 250 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: 5 * time.Second},
	}).RunWithContext(ctx)
	return nil
}

// Ready reports whether the cache has seen the cluster.
func (c *AccountCache) Ready() error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.synced {
		return errors.New("service accounts are not listed yet")
	}
	return nil
}

// Len is the number of annotated service accounts.
func (c *AccountCache) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.annotated)
}

// ServiceAccount implements ServiceAccounts.
func (c *AccountCache) ServiceAccount(ctx context.Context, namespace, name string) (mutation.ServiceAccount, error) {
	key := types.NamespacedName{Namespace: namespace, Name: name}
	c.mu.RLock()
	known, ok := c.annotated[key]
	c.mu.RUnlock()
	if ok {
		return known, nil
	}
	account, err := c.Client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}).
		Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return mutation.ServiceAccount{}, fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	if err != nil {
		return mutation.ServiceAccount{}, fmt.Errorf("getting service account %s: %w", key, err)
	}
	return mutation.ServiceAccount{Labels: own(account.Labels), Annotations: own(account.Annotations)}, nil
}

// own keeps the labels or annotations of the contract; nil if there is none.
func own(all map[string]string) map[string]string {
	var own map[string]string
	for k, v := range all {
		if strings.HasPrefix(k, workloadidentity.Prefix) {
			if own == nil {
				own = map[string]string{}
			}
			own[strings.Clone(k)] = strings.Clone(v) // not the whole response's memory
		}
	}
	return own
}

// accountStore is where the reflector puts what it sees.
type accountStore struct{ c *AccountCache }

func (s accountStore) Add(o any) error {
	m, ok := o.(*metav1.PartialObjectMetadata)
	if !ok {
		return fmt.Errorf("a service account is %T", o)
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.put(m)
	return nil
}

// put notes one account; the lock is held.
func (s accountStore) put(m *metav1.PartialObjectMetadata) {
	key := types.NamespacedName{Namespace: m.Namespace, Name: m.Name}
	account := mutation.ServiceAccount{Labels: own(m.Labels), Annotations: own(m.Annotations)}
	if account.Labels == nil && account.Annotations == nil {
		delete(s.c.annotated, key)
		return
	}
	if s.c.annotated == nil {
		s.c.annotated = map[types.NamespacedName]mutation.ServiceAccount{}
	}
	s.c.annotated[key] = account
}

func (s accountStore) Update(o any) error { return s.Add(o) }

func (s accountStore) Delete(o any) error {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = gone.Obj
	}
	m, ok := o.(*metav1.PartialObjectMetadata)
	if !ok {
		return fmt.Errorf("a deleted service account is %T", o)
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	delete(s.c.annotated, types.NamespacedName{Namespace: m.Namespace, Name: m.Name})
	return nil
}

func (s accountStore) Replace(all []any, _ string) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.c.annotated = nil
	for _, o := range all {
		if m, ok := o.(*metav1.PartialObjectMetadata); ok {
			s.put(m)
		}
	}
	s.c.synced = true
	return nil
}

func (accountStore) Resync() error { return nil }

// Transformer strips the objects that the reflector holds while it lists.
func (accountStore) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		m, ok := o.(*metav1.PartialObjectMetadata)
		if !ok {
			return o, nil
		}
		return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Namespace: m.Namespace, Name: m.Name, ResourceVersion: m.ResourceVersion, Labels: own(m.Labels), Annotations: own(m.Annotations),
		}}, nil
	}
}

package nmi

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
)

// Names of the cache's indexes.
const (
	podsByIP           = "ip"       // status.podIPs
	bindingsBySelector = "selector" // spec.selector
	assignedByPod      = "pod"      // namespace/name of the pod
)

// A Watcher is the Node that Kubernetes shows: caches of this node's pods and
// of what their identities depend on.
type Watcher struct {
	cache           cache.Cache
	forceNamespaced bool
	now             func() time.Time

	mu      sync.Mutex
	changed chan struct{}
}

// A WatcherConfig says which node a Watcher is for.
type WatcherConfig struct {
	Kubernetes      *rest.Config
	Node            string
	ForceNamespaced bool // limit every binding to pods of its own namespace
}

// Scheme returns the types that a Watcher reads and a Recorder refers to.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := scheme.AddToScheme(s); err != nil {
		return nil, err
	}
	return s, v1.AddToScheme(s)
}

// NewWatcher prepares a Watcher. It knows nothing before Run has synced.
func NewWatcher(ctx context.Context, c WatcherConfig) (*Watcher, error) {
	s, err := Scheme()
	if err != nil {
		return nil, err
	}
	w := &Watcher{forceNamespaced: c.ForceNamespaced, now: time.Now, changed: make(chan struct{})}
	w.cache, err = cache.New(c.Kubernetes, cache.Options{
		Scheme: s,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:                   {Field: fields.OneTermEqualSelector("spec.nodeName", c.Node), Transform: slimPod},
			&v1.AzureAssignedIdentity{}:     {Label: labels.SelectorFromSet(labels.Set{v1.NodeLabel: binding.NodeLabelValue(c.Node)}), Transform: slim},
			&v1.AzureIdentityBinding{}:      {Transform: slim},
			&v1.AzureIdentity{}:             {Transform: slim},
			&v1.AzurePodIdentityException{}: {Transform: slim},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the caches: %w", err)
	}
	return w, w.index(ctx)
}

func (w *Watcher) index(ctx context.Context) error {
	for _, i := range []struct {
		object client.Object
		name   string
		keys   func(client.Object) []string
	}{
		{&corev1.Pod{}, podsByIP, func(o client.Object) []string { return addresses(o.(*corev1.Pod)) }},
		{&v1.AzureIdentityBinding{}, bindingsBySelector, func(o client.Object) []string {
			return []string{o.(*v1.AzureIdentityBinding).Spec.Selector}
		}},
		{&v1.AzureAssignedIdentity{}, assignedByPod, func(o client.Object) []string {
			spec := o.(*v1.AzureAssignedIdentity).Spec
			return []string{spec.PodNamespace + "/" + spec.Pod}
		}},
		{&v1.AzureIdentity{}, "", nil},
		{&v1.AzurePodIdentityException{}, "", nil},
	} {
		if i.name != "" {
			if err := w.cache.IndexField(ctx, i.object, i.name, i.keys); err != nil {
				return fmt.Errorf("indexing: %w", err)
			}
		}
		informer, err := w.cache.GetInformer(ctx, i.object, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watching: %w", err)
		}
		if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { w.change() },
			UpdateFunc: func(any, any) { w.change() },
			DeleteFunc: func(any) { w.change() },
		}); err != nil {
			return fmt.Errorf("watching: %w", err)
		}
	}
	return nil
}

// Run watches until the context ends.
func (w *Watcher) Run(ctx context.Context) error { return w.cache.Start(ctx) }

// Synced waits until the caches are filled and reports whether they are.
func (w *Watcher) Synced(ctx context.Context) bool { return w.cache.WaitForCacheSync(ctx) }

// Changed implements Node.
func (w *Watcher) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

func (w *Watcher) change() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.changed)
	w.changed = make(chan struct{})
}

// PodByIP implements Node. A pod in the node's own network has no address to
// itself, and one that has ended has none any more: its address may be
// another's already.
func (w *Watcher) PodByIP(ctx context.Context, ip netip.Addr) (binding.Pod, error) {
	var pods corev1.PodList
	if err := w.cache.List(ctx, &pods, client.MatchingFields{podsByIP: ip.String()}, client.UnsafeDisableDeepCopy); err != nil {
		return binding.Pod{}, fmt.Errorf("looking for the pod with the address %s: %w", ip, err)
	}
	// A pod whose time to end is over has ended, even if the API server does
	// not say so yet: its address may be another's already.
	now := w.now()
	alive := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool {
		return p.DeletionTimestamp != nil && p.DeletionTimestamp.Time.Before(now)
	})
	switch len(alive) {
	case 1:
		return podOf(&alive[0]), nil
	case 0:
		return binding.Pod{}, &UnknownPodError{IP: ip, Why: "no running pod outside the host network has it", Wait: true}
	default:
		return binding.Pod{}, &UnknownPodError{IP: ip, Why: fmt.Sprintf("%d running pods have it", len(alive)), Wait: true}
	}
}

// addresses are those that belong to the pod alone.
func addresses(p *corev1.Pod) []string {
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	var all []string
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			all = append(all, a.Unmap().String())
		}
	}
	return all
}

func podOf(p *corev1.Pod) binding.Pod {
	return binding.Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName,
		ServiceAccount: p.Spec.ServiceAccountName, Labels: p.Labels,
	}
}

// World implements Node.
func (w *Watcher) World(ctx context.Context, pod binding.Pod) (binding.World, []*v1.AzurePodIdentityException, error) {
	world := binding.World{ForceNamespaced: w.forceNamespaced}
	var bindings v1.AzureIdentityBindingList
	if err := w.cache.List(ctx, &bindings, client.MatchingFields{bindingsBySelector: pod.Labels[v1.BindingLabel]}, client.UnsafeDisableDeepCopy); err != nil {
		return world, nil, err
	}
	world.Bindings = pointers(bindings.Items)
	var assigned v1.AzureAssignedIdentityList
	if err := w.cache.List(ctx, &assigned, client.MatchingFields{assignedByPod: pod.Namespace + "/" + pod.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return world, nil, err
	}
	world.Assigned = pointers(assigned.Items)
	world.Identity = func(namespace, name string) *v1.AzureIdentity {
		var id v1.AzureIdentity
		if err := w.cache.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &id); err != nil {
			return nil
		}
		return &id
	}
	var exceptions v1.AzurePodIdentityExceptionList
	if err := w.cache.List(ctx, &exceptions, client.InNamespace(pod.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return world, nil, err
	}
	return world, pointers(exceptions.Items), nil
}

func pointers[T any](items []T) []*T {
	all := make([]*T, len(items))
	for i := range items {
		all[i] = &items[i]
	}
	return all
}

// slim drops what is not read before an object enters the cache, and reads
// old spellings.
func slim(obj any) (any, error) {
	if o, ok := obj.(client.Object); ok {
		o.SetManagedFields(nil)
	}
	switch o := obj.(type) {
	case *v1.AzureIdentity:
		o.Normalize()
	case *v1.AzureIdentityBinding:
		o.Normalize()
	case *v1.AzurePodIdentityException:
		o.Normalize()
	}
	return obj, nil
}

// slimPod keeps of a pod what addresses and podOf read.
func slimPod(obj any) (any, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	p.ManagedFields, p.Annotations = nil, nil
	p.Spec = corev1.PodSpec{NodeName: p.Spec.NodeName, ServiceAccountName: p.Spec.ServiceAccountName, HostNetwork: p.Spec.HostNetwork}
	p.Status = corev1.PodStatus{Phase: p.Status.Phase, PodIPs: p.Status.PodIPs}
	return p, nil
}

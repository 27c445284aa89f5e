package nodewatch

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/nmi"
)

type named[T any] = map[name]T

// indexes are guarded by Watcher.mu; the objects in them are never modified.
type indexes struct {
	byUID     map[string]*entry
	byName    map[name]*entry
	byAddress map[netip.Addr][]*entry

	bindings    named[*packedBinding]
	bySelector  map[string][]*packedBinding // those that have one
	byNamespace map[string][]*packedBinding // those without
	identities  named[*packedIdentity]
	assigned    map[name]named[*v1.AzureAssignedIdentity]       // by pod
	exceptions  map[string]named[*v1.AzurePodIdentityException] // by namespace
	asked       map[name]named[*lanyard.AccessRequest]          // by binding
}

func newIndexes() indexes {
	return indexes{
		byUID: map[string]*entry{}, byName: map[name]*entry{}, byAddress: map[netip.Addr][]*entry{},
		bindings: named[*packedBinding]{}, bySelector: map[string][]*packedBinding{}, byNamespace: map[string][]*packedBinding{},
		identities: named[*packedIdentity]{}, assigned: map[name]named[*v1.AzureAssignedIdentity]{},
		exceptions: map[string]named[*v1.AzurePodIdentityException]{}, asked: map[name]named[*lanyard.AccessRequest]{},
	}
}

// set and unset keep an index of indexes free of empty ones.
func set[K comparable, T any](index map[K]named[T], k K, n name, o T) {
	if index[k] == nil {
		index[k] = named[T]{}
	}
	index[k][n] = o
}

func unset[K comparable, T any](index map[K]named[T], k K, n name) {
	if delete(index[k], n); len(index[k]) == 0 {
		delete(index, k)
	}
}

// may is wider than binding.Matches: it is what the indexes can tell.
func may(b *packedBinding, pod binding.Pod) bool {
	if b.selector != "" {
		return b.selector == pod.Labels[v1.BindingLabel]
	}
	return b.namespace == pod.Namespace
}

// look makes the view of a pod. It needs the lock for reading.
func (w *Watcher) look(pod binding.Pod) *nmi.View {
	matching := slices.Clone(w.byNamespace[pod.Namespace])
	if label := pod.Labels[v1.BindingLabel]; label != "" {
		matching = append(matching, w.bySelector[label]...)
	}
	bindings := make([]*v1.AzureIdentityBinding, 0, len(matching))
	identities := map[name]*v1.AzureIdentity{}
	var requests []*lanyard.AccessRequest
	for _, b := range matching {
		bindings = append(bindings, b.unpack())
		n := name{b.namespace, b.identity}
		if id := w.identities[n].unpack(); id != nil {
			identities[n] = id
		}
		requests = slices.AppendSeq(requests, maps.Values(w.asked[b.name]))
	}
	return &nmi.View{
		Pod: pod,
		World: binding.World{
			Bindings: bindings, Assigned: slices.Collect(maps.Values(w.assigned[name{pod.Namespace, pod.Name}])), Requests: requests,
			Identity:        func(ns, n string) *v1.AzureIdentity { return identities[name{ns, n}] },
			Calendars:       &w.calendars,
			ForceNamespaced: w.config.ForceNamespaced, Managed: w.config.Managed,
		},
		Exceptions: slices.Collect(maps.Values(w.exceptions[pod.Namespace])),
	}
}

// touch drops the views of the pods that a change concerns and wakes who waits
// for them. It needs the lock.
func (w *Watcher) touch(concerns func(binding.Pod) bool) {
	of := map[*entry]struct{}{}
	for _, e := range w.byUID {
		if concerns(e.pod) {
			of[e] = struct{}{}
		}
	}
	w.touched(of)
}

func (w *Watcher) touched(of map[*entry]struct{}) {
	if len(of) == 0 {
		return
	}
	for e := range of {
		e.view.Store(nil)
		w.changed[e] = struct{}{}
	}
	w.wake(of)
	select {
	case w.hasMore <- struct{}{}:
	default:
	}
}

func nameOf(o metav1.Object) name { return name{o.GetNamespace(), o.GetName()} }

// put takes an object that is new or changed.
func (w *Watcher) put(obj any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch o := obj.(type) {
	case *corev1.Pod:
		w.putPod(o)
	case *packedBinding:
		w.putBinding(o)
	case *packedIdentity:
		w.identities[o.name] = o
		w.touchIdentity(o.name)
	case *v1.AzureAssignedIdentity:
		pod := name{o.Spec.PodNamespace, o.Spec.Pod}
		set(w.assigned, pod, nameOf(o), o)
		w.touch(func(p binding.Pod) bool { return p.Namespace == pod.namespace && p.Name == pod.name })
	case *v1.AzurePodIdentityException:
		set(w.exceptions, o.Namespace, nameOf(o), o)
		w.touch(func(p binding.Pod) bool { return p.Namespace == o.Namespace })
	case *lanyard.AccessRequest:
		set(w.asked, name{o.Namespace, o.Spec.Binding}, nameOf(o), o)
		w.touchRequest(o)
	}
}

// remove takes an object that is no more.
func (w *Watcher) remove(obj any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch o := obj.(type) {
	case *corev1.Pod:
		w.removePod(o.UID)
	case *packedBinding:
		w.unindex(o)
		w.touch(func(p binding.Pod) bool { return may(o, p) })
	case *packedIdentity:
		delete(w.identities, o.name)
		w.touchIdentity(o.name)
	case *v1.AzureAssignedIdentity:
		pod := name{o.Spec.PodNamespace, o.Spec.Pod}
		unset(w.assigned, pod, nameOf(o))
		w.touch(func(p binding.Pod) bool { return p.Namespace == pod.namespace && p.Name == pod.name })
	case *v1.AzurePodIdentityException:
		unset(w.exceptions, o.Namespace, nameOf(o))
		w.touch(func(p binding.Pod) bool { return p.Namespace == o.Namespace })
	case *lanyard.AccessRequest:
		unset(w.asked, name{o.Namespace, o.Spec.Binding}, nameOf(o))
		w.touchRequest(o)
	}
}

func (w *Watcher) touchIdentity(id name) {
	leads := func(b *packedBinding) bool { return b.identity == id.name && b.namespace == id.namespace }
	w.touch(func(p binding.Pod) bool {
		return slices.ContainsFunc(w.bySelector[p.Labels[v1.BindingLabel]], leads) || slices.ContainsFunc(w.byNamespace[p.Namespace], leads)
	})
}

func (w *Watcher) touchRequest(r *lanyard.AccessRequest) {
	if b := w.bindings[name{r.Namespace, r.Spec.Binding}]; b != nil {
		w.touch(func(p binding.Pod) bool { return may(b, p) })
	}
}

func (w *Watcher) putBinding(b *packedBinding) {
	old := w.bindings[b.name]
	if old != nil {
		w.unindex(old)
	}
	w.bindings[b.name] = b
	if b.selector != "" {
		w.bySelector[b.selector] = append(w.bySelector[b.selector], b)
	} else {
		w.byNamespace[b.namespace] = append(w.byNamespace[b.namespace], b)
	}
	w.touch(func(p binding.Pod) bool { return may(b, p) || old != nil && may(old, p) })
}

func (w *Watcher) unindex(b *packedBinding) {
	delete(w.bindings, b.name)
	if b.selector != "" {
		drop(w.bySelector, b.selector, b.name)
	} else {
		drop(w.byNamespace, b.namespace, b.name)
	}
}

// drop keeps an index free of empty lists. Most have one element: a map each
// would be most of what a large cluster's bindings take.
func drop[K comparable](index map[K][]*packedBinding, k K, n name) {
	left := slices.DeleteFunc(index[k], func(b *packedBinding) bool { return b.name == n })
	if len(left) == 0 {
		delete(index, k)
		return
	}
	index[k] = left
}

func (w *Watcher) putPod(p *corev1.Pod) {
	e := entryOf(p)
	old := w.byUID[e.pod.UID]
	w.remember(e, old, p)
	if old != nil {
		w.forget(old)
	}
	if former := w.byName[name{e.pod.Namespace, e.pod.Name}]; former != nil && former.pod.UID != e.pod.UID {
		w.forget(former) // its deletion was missed
	}
	w.byUID[e.pod.UID] = e
	w.byName[name{e.pod.Namespace, e.pod.Name}] = e
	for _, a := range e.addresses {
		w.byAddress[a] = append(w.byAddress[a], e)
	}
	of := map[*entry]struct{}{e: {}}
	if old != nil {
		delete(w.changed, old)
		of[old] = struct{}{} // who waits by an address that it had
	}
	w.touched(of)
	delete(w.changed, old)
}

func (w *Watcher) removePod(uid types.UID) {
	if e := w.byUID[string(uid)]; e != nil {
		w.forget(e)
		delete(w.changed, e)
		w.wake(map[*entry]struct{}{e: {}})
	}
}

func (w *Watcher) forget(e *entry) {
	delete(w.byUID, e.pod.UID)
	if n := (name{e.pod.Namespace, e.pod.Name}); w.byName[n] == e {
		delete(w.byName, n)
	}
	for _, a := range e.addresses {
		w.byAddress[a] = slices.DeleteFunc(w.byAddress[a], func(x *entry) bool { return x == e })
		if len(w.byAddress[a]) == 0 {
			delete(w.byAddress, a)
		}
	}
}

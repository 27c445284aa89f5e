package pods

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/mic/assigned"
)

// workers write to the API server only, which takes a few milliseconds each.
const workers = 32

// SetUp registers the controller.
func (c *Controller) SetUp(m manager.Manager) error {
	b := builder.ControllerManagedBy(m).
		Named("pods").
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Watches(&corev1.Pod{}, c.podHandler()).
		Watches(&v1.AzureIdentityBinding{}, handler.EnqueueRequestsFromMapFunc(c.podsOfBinding), builder.WithPredicates(predicate.Funcs{UpdateFunc: specChanged})).
		Watches(&v1.AzureIdentity{}, handler.EnqueueRequestsFromMapFunc(c.podsOfIdentity), builder.WithPredicates(predicate.Funcs{UpdateFunc: specChanged})).
		Watches(&v1.AzureAssignedIdentity{}, handler.EnqueueRequestsFromMapFunc(c.podOfAssigned), builder.WithPredicates(predicate.Funcs{CreateFunc: c.assignedCame, UpdateFunc: c.assignedChanged, DeleteFunc: c.assignedGone})).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(c.podsOfNode), builder.WithPredicates(predicate.Funcs{UpdateFunc: nodeChanged}))
	if c.Requests {
		b = b.Watches(&lanyard.AccessRequest{}, handler.EnqueueRequestsFromMapFunc(c.podsOfRequest))
	}
	return b.Complete(c)
}

func podChanged(e event.UpdateEvent) bool {
	was, is := e.ObjectOld.(*corev1.Pod), e.ObjectNew.(*corev1.Pod)
	return was.UID != is.UID || was.Spec.NodeName != is.Spec.NodeName || Ended(was) != Ended(is) || !maps.Equal(was.Labels, is.Labels)
}

// specChanged passes changes of what people write: the generation counts those
// of the spec, and annotations choose the behaviour.
func specChanged(e event.UpdateEvent) bool {
	return e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() || e.ObjectOld.GetUID() != e.ObjectNew.GetUID() ||
		e.ObjectOld.GetDeletionTimestamp().IsZero() != e.ObjectNew.GetDeletionTimestamp().IsZero() ||
		!maps.Equal(e.ObjectOld.GetAnnotations(), e.ObjectNew.GetAnnotations())
}

func (c *Controller) assignedCame(e event.CreateEvent) bool {
	c.holds(e.Object.(*v1.AzureAssignedIdentity))
	return true
}

// assignedChanged drops what the machines' controller writes, which concerns no pod.
func (c *Controller) assignedChanged(e event.UpdateEvent) bool {
	was, is := e.ObjectOld.(*v1.AzureAssignedIdentity), e.ObjectNew.(*v1.AzureAssignedIdentity)
	c.holds(is)
	return was.UID != is.UID || was.DeletionTimestamp.IsZero() != is.DeletionTimestamp.IsZero() ||
		assigned.MachineKey(was) != assigned.MachineKey(is) || !equality.Semantic.DeepEqual(was.Spec, is.Spec)
}

// assignedGone drops what was noted about it.
func (c *Controller) assignedGone(e event.DeleteEvent) bool {
	uid := e.Object.GetUID()
	c.ours.Delete(uid)
	c.deleted.Delete(uid)
	c.holders.CompareAndDelete(assigned.PlacementOf(e.Object.(*v1.AzureAssignedIdentity)), uid)
	return true
}

func nodeChanged(e event.UpdateEvent) bool {
	return e.ObjectOld.(*corev1.Node).Spec.ProviderID != e.ObjectNew.(*corev1.Node).Spec.ProviderID
}

// A madeKey names the assignment of an identity to a pod.
type madeKey struct{ pod, identity types.NamespacedName }

func (c *Controller) podOfAssigned(_ context.Context, o client.Object) []reconcile.Request {
	a := o.(*v1.AzureAssignedIdentity)
	if ref := a.Spec.AzureIdentityRef; ref != nil {
		c.made.Delete(madeKey{assigned.Pod(a), types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}})
	}
	return []reconcile.Request{{NamespacedName: assigned.Pod(a)}}
}

func (c *Controller) podsOfBinding(ctx context.Context, o client.Object) []reconcile.Request {
	found, err := Reached(ctx, c.Client, o.(*v1.AzureIdentityBinding))
	if err != nil {
		c.lost(ctx, o, err)
	}
	var out []reconcile.Request
	for i := range found {
		out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&found[i])})
	}
	return out
}

// Reached returns the pods that match a binding. They belong to the cache and
// must not be modified.
func Reached(ctx context.Context, r client.Reader, b *v1.AzureIdentityBinding) ([]corev1.Pod, error) {
	where := client.ListOption(client.InNamespace(b.Namespace))
	if b.Spec.Selector != "" {
		where = client.MatchingFields{assigned.PodsByLabel: b.Spec.Selector}
	} else if len(binding.Keys(b)) == 0 {
		return nil, nil
	}
	var list corev1.PodList
	if err := r.List(ctx, &list, where, client.UnsafeDisableDeepCopy); err != nil {
		return nil, err
	}
	out := list.Items[:0]
	for _, p := range list.Items {
		if binding.Matches(b, Describe(&p)) {
			out = append(out, p)
		}
	}
	return out, nil
}

func (c *Controller) podsOfIdentity(ctx context.Context, o client.Object) []reconcile.Request {
	var list v1.AzureIdentityBindingList
	if err := c.Client.List(ctx, &list, client.MatchingFields{assigned.BindingsByIdentity: o.GetNamespace() + "/" + o.GetName()}, client.UnsafeDisableDeepCopy); err != nil {
		c.lost(ctx, o, err)
		return nil
	}
	var out []reconcile.Request
	for i := range list.Items {
		out = append(out, c.podsOfBinding(ctx, &list.Items[i])...)
	}
	return out
}

func (c *Controller) podsOfRequest(ctx context.Context, o client.Object) []reconcile.Request {
	var b v1.AzureIdentityBinding
	if err := c.Client.Get(ctx, types.NamespacedName{Namespace: o.GetNamespace(), Name: o.(*lanyard.AccessRequest).Spec.Binding}, &b, client.UnsafeDisableDeepCopy); err != nil {
		if client.IgnoreNotFound(err) != nil {
			c.lost(ctx, o, err)
		}
		return nil
	}
	return c.podsOfBinding(ctx, &b)
}

func (c *Controller) podsOfNode(ctx context.Context, o client.Object) []reconcile.Request {
	keys := sets.New[types.NamespacedName]()
	var pods corev1.PodList
	if err := c.Client.List(ctx, &pods, client.MatchingFields{assigned.PodsByNode: o.GetName()}, client.UnsafeDisableDeepCopy); err != nil {
		c.lost(ctx, o, err)
	}
	for i := range pods.Items {
		keys.Insert(client.ObjectKeyFromObject(&pods.Items[i]))
	}
	var list v1.AzureAssignedIdentityList
	if err := c.Client.List(ctx, &list, client.MatchingFields{assigned.AssignedByNode: o.GetName()}, client.UnsafeDisableDeepCopy); err != nil {
		c.lost(ctx, o, err)
	}
	for i := range list.Items {
		keys.Insert(assigned.Pod(&list.Items[i]))
	}
	var out []reconcile.Request
	for k := range keys {
		out = append(out, reconcile.Request{NamespacedName: k})
	}
	return out
}

// lost reports an event that could not be mapped. Reading the cache only fails
// when it is being stopped.
func (c *Controller) lost(ctx context.Context, o client.Object, err error) {
	c.logger().ErrorContext(ctx, "mapping a change to pods", "object", o.GetName(), "err", err)
}

package report

import (
	"context"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/mic/assigned"
	"github.com/lanyard-id/lanyard/internal/mic/pods"
)

// SetUp registers the two controllers.
func (c *Controller) SetUp(m manager.Manager) error {
	b := builder.ControllerManagedBy(m).
		Named("report-bindings").
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		Watches(&v1.AzureIdentityBinding{}, c.changes(at(0), specChanged, self)).
		Watches(&v1.AzureIdentity{}, c.changes(at(0), specChanged, c.bindingsOfIdentity)).
		Watches(&v1.AzureAssignedIdentity{}, c.changes(c.assignedDelay, assignedChanged, bindingOfAssigned)).
		Watches(&corev1.Pod{}, c.changes(at(c.Delay), podChanged, c.bindingsOfHostNetworkPod))
	if c.Requests {
		b = b.Watches(&lanyard.AccessRequest{}, c.changes(at(0), always, bindingOfRequest))
	}
	if err := b.Complete(reconcile.Func(c.binding)); err != nil {
		return err
	}
	return builder.ControllerManagedBy(m).
		Named("report-identities").
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		Watches(&v1.AzureIdentity{}, c.changes(at(0), specChanged, self)).
		Watches(&v1.AzureAssignedIdentity{}, c.changes(c.assignedDelay, assignedChanged, identityOfAssigned)).
		Complete(reconcile.Func(c.identity))
}

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// patience is how many delays a change waits that only changes numbers.
const patience = 8

func at(d time.Duration) func(client.Object) time.Duration {
	return func(client.Object) time.Duration { return d }
}

// assignedDelay is short for what somebody has to repair or has repaired: a
// rollout of many pods must not cost a request for each.
func (c *Controller) assignedDelay(o client.Object) time.Duration {
	if len(o.(*v1.AzureAssignedIdentity).Status.Conditions) > 0 {
		return c.Delay
	}
	return patience * c.Delay
}

// changes queues what objects concern, after a delay in which more may come.
func (c *Controller) changes(delay func(client.Object) time.Duration, matters func(was, is client.Object) bool, concerned func(context.Context, client.Object) []types.NamespacedName) handler.EventHandler {
	add := func(ctx context.Context, q queue, objects ...client.Object) {
		for _, o := range objects {
			for _, key := range concerned(ctx, o) {
				q.AddAfter(reconcile.Request{NamespacedName: key}, delay(o))
			}
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { add(ctx, q, e.Object) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { add(ctx, q, e.Object) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			if matters(e.ObjectOld, e.ObjectNew) {
				add(ctx, q, e.ObjectOld, e.ObjectNew)
			}
		},
	}
}

func always(_, _ client.Object) bool { return true }

func specChanged(was, is client.Object) bool {
	return was.GetGeneration() != is.GetGeneration() || was.GetUID() != is.GetUID() || was.GetDeletionTimestamp().IsZero() != is.GetDeletionTimestamp().IsZero()
}

// assignedChanged relies on the status being counted by the generation: the kind
// has no status subresource.
func assignedChanged(was, is client.Object) bool { return specChanged(was, is) }

func podChanged(was, is client.Object) bool {
	return !maps.Equal(was.GetLabels(), is.GetLabels()) || pods.Ended(was.(*corev1.Pod)) != pods.Ended(is.(*corev1.Pod))
}

func self(_ context.Context, o client.Object) []types.NamespacedName {
	return []types.NamespacedName{client.ObjectKeyFromObject(o)}
}

func bindingOfAssigned(_ context.Context, o client.Object) []types.NamespacedName {
	if ref := o.(*v1.AzureAssignedIdentity).Spec.AzureBindingRef; ref != nil {
		return []types.NamespacedName{{Namespace: ref.Namespace, Name: ref.Name}}
	}
	return nil
}

func identityOfAssigned(_ context.Context, o client.Object) []types.NamespacedName {
	if ref := o.(*v1.AzureAssignedIdentity).Spec.AzureIdentityRef; ref != nil {
		return []types.NamespacedName{{Namespace: ref.Namespace, Name: ref.Name}}
	}
	return nil
}

func bindingOfRequest(_ context.Context, o client.Object) []types.NamespacedName {
	return []types.NamespacedName{{Namespace: o.GetNamespace(), Name: o.(*lanyard.AccessRequest).Spec.Binding}}
}

func (c *Controller) bindingsOfIdentity(ctx context.Context, o client.Object) []types.NamespacedName {
	return c.bindings(ctx, assigned.BindingsByIdentity, o.GetNamespace()+"/"+o.GetName(), func(*v1.AzureIdentityBinding) bool { return true })
}

// bindingsOfHostNetworkPod passes over other pods: what is told of them is told
// by their assignments.
func (c *Controller) bindingsOfHostNetworkPod(ctx context.Context, o client.Object) []types.NamespacedName {
	p := o.(*corev1.Pod)
	if !p.Spec.HostNetwork {
		return nil
	}
	var out []types.NamespacedName
	pod := pods.Describe(p)
	for _, key := range binding.PodKeys(pod) {
		out = append(out, c.bindings(ctx, assigned.BindingsByKey, key, func(b *v1.AzureIdentityBinding) bool { return binding.Matches(b, pod) })...)
	}
	return out
}

func (c *Controller) bindings(ctx context.Context, index, key string, which func(*v1.AzureIdentityBinding) bool) (out []types.NamespacedName) {
	var list v1.AzureIdentityBindingList
	if err := c.Client.List(ctx, &list, client.MatchingFields{index: key}, client.UnsafeDisableDeepCopy); err != nil {
		c.logger().ErrorContext(ctx, "mapping a change to bindings", "key", key, "err", err) // only when the cache is being stopped
	}
	for i := range list.Items {
		if which(&list.Items[i]) {
			out = append(out, client.ObjectKeyFromObject(&list.Items[i]))
		}
	}
	return out
}

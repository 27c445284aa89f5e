package mic

import (
	"context"

	corev1 "k8s.io/api/core/v1"
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
)

// Concurrency of the controllers. Pods cost API writes only; each worker of a
// machine may wait for Azure for minutes, so there are as many as scale sets and
// machines are likely to change at once.
const (
	podWorkers     = 16
	machineWorkers = 64
)

func (c *Pods) setUp(m manager.Manager) error {
	return builder.ControllerManagedBy(m).
		Named("pods").
		WithOptions(controller.Options{MaxConcurrentReconciles: podWorkers}).
		For(&corev1.Pod{}, builder.WithPredicates(predicate.Funcs{UpdateFunc: podChanged})).
		Watches(&v1.AzureIdentityBinding{}, handler.EnqueueRequestsFromMapFunc(c.podsOfBinding)).
		Watches(&v1.AzureIdentity{}, handler.EnqueueRequestsFromMapFunc(c.podsOfIdentity)).
		Watches(&v1.AzureAssignedIdentity{}, handler.EnqueueRequestsFromMapFunc(podOfAssigned)).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(c.podsOfNode), builder.WithPredicates(predicate.Funcs{UpdateFunc: nodeChanged})).
		Complete(c)
}

func podChanged(e event.UpdateEvent) bool {
	was, is := e.ObjectOld.(*corev1.Pod), e.ObjectNew.(*corev1.Pod)
	return was.UID != is.UID || was.Spec.NodeName != is.Spec.NodeName || was.Status.Phase != is.Status.Phase ||
		was.Labels[v1.BindingLabel] != is.Labels[v1.BindingLabel]
}

func nodeChanged(e event.UpdateEvent) bool {
	return e.ObjectOld.(*corev1.Node).Spec.ProviderID != e.ObjectNew.(*corev1.Node).Spec.ProviderID
}

func podOfAssigned(_ context.Context, o client.Object) []reconcile.Request {
	return []reconcile.Request{{NamespacedName: podOf(o.(*v1.AzureAssignedIdentity))}}
}

func (c *Pods) podsOfBinding(ctx context.Context, o client.Object) []reconcile.Request {
	return c.podsWith(ctx, sets.New(o.(*v1.AzureIdentityBinding).Spec.Selector))
}

func (c *Pods) podsOfIdentity(ctx context.Context, o client.Object) []reconcile.Request {
	var list v1.AzureIdentityBindingList
	if err := c.Client.List(ctx, &list, client.MatchingFields{bindingsByIdentity: o.GetNamespace() + "/" + o.GetName()}); err != nil {
		c.lost(ctx, o, err)
		return nil
	}
	selectors := sets.New[string]()
	for i := range list.Items {
		selectors.Insert(list.Items[i].Spec.Selector)
	}
	return c.podsWith(ctx, selectors)
}

func (c *Pods) podsWith(ctx context.Context, labels sets.Set[string]) []reconcile.Request {
	var out []reconcile.Request
	for label := range labels {
		if label == "" {
			continue
		}
		var list corev1.PodList
		if err := c.Client.List(ctx, &list, client.MatchingFields{podsByLabel: label}); err != nil {
			c.lost(ctx, nil, err)
			continue
		}
		for i := range list.Items {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return out
}

func (c *Pods) podsOfNode(ctx context.Context, o client.Object) []reconcile.Request {
	keys := sets.New[types.NamespacedName]()
	var pods corev1.PodList
	if err := c.Client.List(ctx, &pods, client.MatchingFields{podsByNode: o.GetName()}); err != nil {
		c.lost(ctx, o, err)
	}
	for i := range pods.Items {
		keys.Insert(client.ObjectKeyFromObject(&pods.Items[i]))
	}
	var assigned v1.AzureAssignedIdentityList
	if err := c.Client.List(ctx, &assigned, client.MatchingFields{assignedByNode: o.GetName()}); err != nil {
		c.lost(ctx, o, err)
	}
	for i := range assigned.Items {
		keys.Insert(podOf(&assigned.Items[i]))
	}
	var out []reconcile.Request
	for k := range keys {
		out = append(out, reconcile.Request{NamespacedName: k})
	}
	return out
}

// lost reports an event that could not be mapped. Reading the cache only fails
// when it is being stopped.
func (c *Pods) lost(ctx context.Context, o client.Object, err error) {
	name := ""
	if o != nil {
		name = o.GetName()
	}
	logger(c.Logger).ErrorContext(ctx, "mapping a change to pods", "object", name, "err", err)
}

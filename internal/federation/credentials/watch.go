package credentials

import (
	"context"
	"maps"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/federation/record"
)

// workers is how many identities are worked on at a time: enough that slow ones
// do not hold up the others, few enough for what Azure allows per subscription.
const workers = 8

// SetUp registers the controller.
func (c *Controller) SetUp(m manager.Manager) error {
	queue := func(list func(context.Context, client.Object) []client.ListOption) handler.EventHandler {
		return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			return c.keys(ctx, list(ctx, o)...)
		})
	}
	all := func(context.Context, client.Object) []client.ListOption { return nil }
	b := builder.ControllerManagedBy(m).
		Named("credentials").
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Watches(&lanyard.FederatedIdentity{}, handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
			return []reconcile.Request{request(o.(*lanyard.FederatedIdentity))}
		})).
		Watches(&lanyard.FederationPolicy{}, queue(all)).
		WatchesMetadata(record.Account(), queue(func(_ context.Context, o client.Object) []client.ListOption {
			return []client.ListOption{client.InNamespace(o.GetNamespace()), client.MatchingFields{record.IndexServiceAccount: o.GetName()}}
		}), builder.WithPredicates(comesAndGoes())).
		WatchesMetadata(record.Namespace(), queue(func(_ context.Context, o client.Object) []client.ListOption {
			return []client.ListOption{client.InNamespace(o.GetName())}
		}), builder.WithPredicates(relabelled()))
	if c.Changed != nil {
		b = b.WatchesRawSource(source.TypedChannel(c.Changed, handler.TypedFuncs[client.Object, reconcile.Request]{
			GenericFunc: func(ctx context.Context, _ event.GenericEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
				for _, r := range c.keys(ctx) {
					q.Add(r)
				}
			},
		}))
	}
	return b.Complete(c)
}

func request(f *lanyard.FederatedIdentity) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Name: record.IdentityKey(f)}}
}

// keys are the identities of the FederatedIdentities that options choose.
func (c *Controller) keys(ctx context.Context, options ...client.ListOption) []reconcile.Request {
	var list lanyard.FederatedIdentityList
	if err := c.Client.List(ctx, &list, append(options, client.UnsafeDisableDeepCopy)...); err != nil {
		c.logger().ErrorContext(ctx, "finding what a change concerns", "err", err)
	}
	seen := map[reconcile.Request]bool{}
	for i := range list.Items {
		seen[request(&list.Items[i])] = true
	}
	out := make([]reconcile.Request, 0, len(seen))
	for r := range maps.Keys(seen) {
		out = append(out, r)
	}
	return out
}

func comesAndGoes() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() || e.ObjectOld.GetDeletionTimestamp().IsZero() != e.ObjectNew.GetDeletionTimestamp().IsZero()
	}}
}

func relabelled() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !maps.Equal(e.ObjectOld.GetLabels(), e.ObjectNew.GetLabels())
	}}
}

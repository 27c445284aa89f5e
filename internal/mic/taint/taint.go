// Package taint opens new nodes for pods when nmi runs there.
//
// Before nmi redirects the metadata address, a pod would reach the node's own
// identities. So nodes are made with a taint (az aks nodepool add --node-taints
// lanyard.id/nmi-not-ready=true:NoSchedule) that only nmi tolerates:
//
//	node with the taint, pod of nmi ── watches ──> name of the node
//	    a pod of nmi is Ready there   the taint goes
//
// Pods of nmi are those with its labels in its own namespace: the same labels
// elsewhere prove nothing. Nor does a pod that a former node of the same name has
// left behind: it, or its readiness, must be younger than the node.
package taint

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/lanyard-id/lanyard/internal/mic/assigned"
)

// A Controller removes the taint. All fields but Logger must be set.
type Controller struct {
	Client client.Client
	Key    string // of the taint, whatever its value and effect
	Agents Agents
	Logger *slog.Logger // nil means slog.Default
}

// Agents says which pods are nmi's.
type Agents struct {
	Namespace string
	Selectors []labels.Selector // any of them
}

// Include reports whether a pod is one of nmi's.
func (a Agents) Include(p *corev1.Pod) bool {
	return p.Namespace == a.Namespace && slices.ContainsFunc(a.Selectors, func(s labels.Selector) bool { return s.Matches(labels.Set(p.Labels)) })
}

// SetUp registers the controller.
func (c *Controller) SetUp(m manager.Manager) error {
	return builder.ControllerManagedBy(m).
		Named("taint").
		For(&corev1.Node{}, builder.WithPredicates(predicate.NewPredicateFuncs(func(o client.Object) bool { return c.tainted(o.(*corev1.Node)) }))).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
			if p := o.(*corev1.Pod); p.Spec.NodeName != "" && c.ready(p, nil) {
				return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: p.Spec.NodeName}}}
			}
			return nil
		})).
		Complete(c)
}

// Reconcile looks at one node.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var n corev1.Node
	if err := c.Client.Get(ctx, req.NamespacedName, &n); err != nil || !c.tainted(&n) {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	var list corev1.PodList
	if err := c.Client.List(ctx, &list, client.MatchingFields{assigned.PodsByNode: n.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return reconcile.Result{}, fmt.Errorf("listing the pods of node %s: %w", n.Name, err)
	}
	if !slices.ContainsFunc(list.Items, func(p corev1.Pod) bool { return c.ready(&p, &n) }) {
		return reconcile.Result{}, nil // its readiness brings us back
	}
	next := n.DeepCopy()
	next.Spec.Taints = slices.DeleteFunc(next.Spec.Taints, func(t corev1.Taint) bool { return t.Key == c.Key })
	// The list is replaced as a whole: only if nobody else changed it.
	if err := c.Client.Patch(ctx, next, client.MergeFromWithOptions(&n, client.MergeFromWithOptimisticLock{})); client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("removing the taint %s of node %s: %w", c.Key, n.Name, err)
	}
	c.logger().InfoContext(ctx, "nmi is ready: the node is open for pods", "node", n.Name, "taint", c.Key)
	return reconcile.Result{}, nil
}

func (c *Controller) tainted(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == c.Key })
}

// ready reports whether a pod of nmi is; a nil node is as old as any.
func (c *Controller) ready(p *corev1.Pod, n *corev1.Node) bool {
	return c.Agents.Include(p) && p.DeletionTimestamp.IsZero() && slices.ContainsFunc(p.Status.Conditions, func(x corev1.PodCondition) bool {
		return x.Type == corev1.PodReady && x.Status == corev1.ConditionTrue &&
			(n == nil || !p.CreationTimestamp.Before(&n.CreationTimestamp) || !x.LastTransitionTime.Before(&n.CreationTimestamp))
	})
}

func (c *Controller) logger() *slog.Logger {
	if c.Logger != nil {
		return c.Logger
	}
	return slog.Default()
}

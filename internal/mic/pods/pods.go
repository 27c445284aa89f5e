// Package pods keeps one AzureAssignedIdentity per pod and identity that the pod
// may use.
//
//	pod, binding, identity, access request, node, assignment ── watches ──> key of the pod
//	    binding.Of      what the pod is entitled to
//	    binding.Active  what of it is open now, or will be within the lead time
//	    keep, want      assignments that go, change and come
//	    RequeueAfter    when something opens or closes next
//
// A pod whose identity is on its machine already, because another pod uses it
// there, is Assigned with the one request that creates the assignment.
package pods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/mic/assigned"
	"github.com/lanyard-id/lanyard/internal/mic/metrics"
)

// longestWait bounds how long a window's next change is waited for: the clock of
// a machine may be set in the meantime.
const longestWait = time.Hour

// A Controller keeps the assignments of pods. All fields but those with a
// comment must be set before SetUp.
type Controller struct {
	Client          client.Client
	Live            client.Reader // reads past the cache
	Events          events.EventRecorder
	ForceNamespaced bool             // every binding is only for pods of its own namespace
	Requests        bool             // AccessRequests exist in this cluster and may be read
	WindowLead      time.Duration    // how long before it opens an identity is put on the machine
	Metrics         *metrics.Metrics // nil: not counted
	Now             func() time.Time // nil means time.Now
	Logger          *slog.Logger     // nil means slog.Default

	calendars binding.Calendars
	arrivals  arrivals
	ours      sync.Map // UIDs of assignments that a binding backed at some time
	deleted   sync.Map // UIDs of those whose deletion was asked for
	made      sync.Map // madeKey of those that were created and that the cache has not heard of
	holders   sync.Map // placement -> UID of an assignment with the finalizer; empty while it is being made
}

// Reconcile brings the assignments of one pod in line. A pod that is gone loses
// all of them.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	defer c.arrivals.done(req.NamespacedName)
	pod, bound, next, err := c.desired(ctx, req.NamespacedName)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("reading pod %s: %w", req, err)
	}
	var have v1.AzureAssignedIdentityList
	if err := c.Client.List(ctx, &have, client.MatchingFields{assigned.AssignedByPod: req.String()}, client.UnsafeDisableDeepCopy); err != nil {
		return reconcile.Result{}, fmt.Errorf("listing the assignments of pod %s: %w", req, err)
	}
	if len(bound)+len(have.Items) == 0 {
		return wait(next, c.now()), nil
	}
	at, err := c.place(ctx, pod.Node)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("reading node %s: %w", pod.Node, err)
	}
	var errs []error
	for i := range have.Items {
		errs = append(errs, c.keep(ctx, pod, &have.Items[i], bound, at))
	}
	for _, b := range bound {
		errs = append(errs, c.want(ctx, pod, b, have.Items, at))
	}
	now := c.now()
	for i, err := range errs {
		if left := behind(0); errors.As(err, &left) {
			errs[i] = nil
			if at := now.Add(time.Duration(left)); next.IsZero() || at.Before(next) {
				next = at
			}
		}
	}
	return wait(next, now), errors.Join(errs...)
}

func wait(next, now time.Time) reconcile.Result {
	if next.IsZero() {
		return reconcile.Result{}
	}
	return reconcile.Result{RequeueAfter: min(max(next.Sub(now), time.Millisecond), longestWait)}
}

// desired returns the pod, the identities that it should have now, each once,
// and when that changes; zero means not before something else does. A pod that
// is not scheduled, has ended or is gone should have none.
func (c *Controller) desired(ctx context.Context, key types.NamespacedName) (pod binding.Pod, bound []binding.Bound, next time.Time, err error) {
	pod = binding.Pod{Namespace: key.Namespace, Name: key.Name}
	var p corev1.Pod
	if err := c.Client.Get(ctx, key, &p, client.UnsafeDisableDeepCopy); err != nil {
		return pod, nil, next, client.IgnoreNotFound(err)
	}
	pod = Describe(&p)
	if pod.Node == "" || Ended(&p) {
		return pod, nil, next, nil
	}
	w, err := c.world(ctx, pod)
	if err != nil || len(w.Bindings) == 0 {
		return pod, nil, next, err
	}
	var lookup error
	w.Identity = func(namespace, name string) *v1.AzureIdentity {
		var id v1.AzureIdentity
		if err := c.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, &id, client.UnsafeDisableDeepCopy); err != nil {
			lookup = errors.Join(lookup, client.IgnoreNotFound(err))
			return nil
		}
		return &id
	}
	all, _ := binding.Of(pod, w)
	if lookup != nil {
		return pod, nil, next, lookup
	}
	now := c.now()
	bound, next = binding.Active(all, now)
	if c.WindowLead > 0 {
		soon, after := binding.Active(all, now.Add(c.WindowLead))
		if after = after.Add(-c.WindowLead); !after.Before(now) && (next.IsZero() || after.Before(next)) {
			next = after
		}
		bound = slices.Clone(bound)
		for _, s := range soon {
			if !slices.ContainsFunc(bound, func(b binding.Bound) bool { return same(b.Identity, s.Identity) }) {
				bound = append(bound, s)
			}
		}
	}
	// What is written wrongly is told by its condition.
	bound = slices.DeleteFunc(bound, func(b binding.Bound) bool { return binding.Valid(b.Identity) != nil })
	return pod, bound, next, nil
}

// world holds what may concern the pod; the identities are left to the caller.
func (c *Controller) world(ctx context.Context, pod binding.Pod) (binding.World, error) {
	w := binding.World{ForceNamespaced: c.ForceNamespaced, Calendars: &c.calendars}
	for _, key := range binding.PodKeys(pod) {
		var list v1.AzureIdentityBindingList
		if err := c.Client.List(ctx, &list, client.MatchingFields{assigned.BindingsByKey: key}, client.UnsafeDisableDeepCopy); err != nil {
			return w, err
		}
		for i := range list.Items {
			b := &list.Items[i]
			w.Bindings = append(w.Bindings, b)
			if !c.Requests || b.Spec.Access != v1.AccessOnRequest {
				continue
			}
			var requests lanyard.AccessRequestList
			if err := c.Client.List(ctx, &requests, client.InNamespace(b.Namespace), client.MatchingFields{assigned.RequestsByBinding: b.Name}, client.UnsafeDisableDeepCopy); err != nil {
				return w, err
			}
			for i := range requests.Items {
				w.Requests = append(w.Requests, &requests.Items[i])
			}
		}
	}
	return w, nil
}

// Entitled reports whether the assignment's pod is there, on a node that stands
// for the noted machine, and has a binding that leads to the identity.
func (c *Controller) Entitled(ctx context.Context, a *v1.AzureAssignedIdentity) (bool, error) {
	pod, bound, _, err := c.desired(ctx, assigned.Pod(a))
	if err != nil || len(bound) == 0 || pod.Node != a.Spec.NodeName {
		return false, err
	}
	at, err := c.place(ctx, pod.Node)
	if err != nil || at.why != nil || at.machine.Key() != assigned.MachineKey(a) {
		return false, err
	}
	for _, b := range bound {
		if binding.Concerns(a, pod, b.Identity) && !outdated(a, pod, b, at) {
			return true, nil
		}
	}
	return false, nil
}

// A place is the machine of a node. That a node is not there or no machine of
// Azure is not a failure but told in why.
type place struct {
	machine azure.ResourceID
	why     error
}

func (c *Controller) place(ctx context.Context, node string) (place, error) {
	if node == "" {
		return place{why: errors.New("the pod is not scheduled")}, nil
	}
	var n corev1.Node
	if err := c.Client.Get(ctx, types.NamespacedName{Name: node}, &n, client.UnsafeDisableDeepCopy); err != nil {
		return place{why: fmt.Errorf("node %s does not exist", node)}, client.IgnoreNotFound(err)
	}
	machine, why := assigned.MachineOfNode(&n)
	return place{machine, why}, nil
}

// Describe is what the rules need to know about a pod.
func Describe(p *corev1.Pod) binding.Pod {
	return binding.Pod{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName, ServiceAccount: p.Spec.ServiceAccountName, Labels: p.Labels}
}

// Ended reports whether no container of the pod runs or will run any more.
func Ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func same(a, b *v1.AzureIdentity) bool { return a.Namespace == b.Namespace && a.Name == b.Name }

func (c *Controller) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Controller) logger() *slog.Logger {
	if c.Logger != nil {
		return c.Logger
	}
	return slog.Default()
}

// Package machines makes each virtual machine and scale set carry the identities
// that its assignments want.
//
//	AzureAssignedIdentity ── watch ──> key of the machine, gathered for a moment
//	    entries          the assignments by identity: who wants it, who lets it go
//	    Entitlements     assignments that no binding backs are passed over
//	    Cloud.Identities what the machine has, if that is not known
//	    claim            one note in the cluster of what is about to be added, and
//	                     for each identity a finalizer on one assignment that wants it
//	    Cloud.Update     one request for all that differs
//	    finish           status Assigned, or a condition that says why not
//
// One machine is handled once at a time; what changes meanwhile is the next
// batch. A machine that is slow, broken or throttled has its own back-off and
// delays no other; so has an identity that Azure refuses.
//
// What mic may do to a machine is bounded by what cannot be forged by writing an
// AzureAssignedIdentity. An identity is added only if, at that moment, a pod
// exists whose bindings lead to it and whose node stands for that machine by its
// spec.providerID. An identity is removed only from a machine for which the
// cluster has, or in the life of this process had, a node; only if an
// AzureIdentity of the cluster names it, or in the life of this process a binding
// led a pod of that machine to it; only if the notes say that mic put it there;
// and never if it is pinned.
package machines

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/mic/arm"
	"github.com/lanyard-id/lanyard/internal/mic/assigned"
	"github.com/lanyard-id/lanyard/internal/mic/metrics"
)

const (
	// workers is how many machines may wait for Azure at the same time. One that
	// waits costs little more than a stack.
	workers = 256
	// gatherIdle and gatherMost bound how long changes are gathered: until none
	// came for a moment and none is announced, but not for ever.
	gatherIdle = 50 * time.Millisecond
	gatherMost = time.Second
	// backoffFirst and backoffMost bound how long a machine or an identity that
	// fails is left alone, if Azure does not say.
	backoffFirst = 250 * time.Millisecond
	backoffMost  = 2 * time.Minute
	// throttledLeast is how long a subscription is left alone that throttles and
	// does not say for how long.
	throttledLeast = 5 * time.Second
)

// A Cloud changes which user-assigned identities a machine has. Errors are
// *arm.Error where the cloud answered.
type Cloud interface {
	// Identities returns the user-assigned identities of the machine.
	Identities(ctx context.Context, machine azure.ResourceID) ([]azure.ResourceID, error)
	// Update adds and removes identities and leaves all others alone. It returns
	// when the change is done; after an error, part of it may be.
	Update(ctx context.Context, machine azure.ResourceID, add, remove []azure.ResourceID) error
}

// Entitlements tell whether an assignment is backed.
type Entitlements interface {
	// Entitled reports whether the assignment's pod is there, on a node that
	// stands for the noted machine, and has a binding that leads to the identity.
	Entitled(ctx context.Context, a *v1.AzureAssignedIdentity) (bool, error)
	// Coming reports whether assignments for the machine of this key are about to
	// be written.
	Coming(machine string) bool
}

// A Controller keeps the machines. All fields but those with a comment must be
// set before SetUp.
type Controller struct {
	Client             client.Client
	Cloud              Cloud
	Entitlements       Entitlements
	Events             events.EventRecorder
	Assignee           func() string    // client id that Cloud acts as; empty if unknown
	ImmutableClientIDs []string         // identities that stay whatever happens
	Recheck            time.Duration    // how often a machine in order is compared with the cloud; zero: never again
	Metrics            *metrics.Metrics // nil: not counted
	Now                func() time.Time // nil means time.Now
	Logger             *slog.Logger     // nil means slog.Default

	mu        sync.Mutex
	machines  map[string]*memory
	throttled map[string]time.Time // by subscription: until when
}

// SetUp registers the controller.
func (c *Controller) SetUp(m manager.Manager) error {
	return builder.ControllerManagedBy(m).
		Named("machines").
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Watches(&v1.AzureAssignedIdentity{}, handler.Funcs{
			CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { c.gather(q, e.Object) },
			UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) {
				if changed(e.ObjectOld.(*v1.AzureAssignedIdentity), e.ObjectNew.(*v1.AzureAssignedIdentity)) {
					c.gather(q, e.ObjectOld, e.ObjectNew)
				}
			},
			DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { c.gather(q, e.Object) },
		}).
		Complete(c)
}

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// changed passes what others do to an assignment and drops the controller's own
// notes: an error text that differs each time would otherwise drive it in circles.
func changed(was, is *v1.AzureAssignedIdentity) bool {
	return was.DeletionTimestamp.IsZero() != is.DeletionTimestamp.IsZero() ||
		was.Annotations[assigned.MachineAnnotation] != is.Annotations[assigned.MachineAnnotation] ||
		was.Status.Status == v1.AssignedIDAssigned && is.Status.Status != v1.AssignedIDAssigned ||
		!equality.Semantic.DeepEqual(was.Spec, is.Spec)
}

// gather queues the machines of assignments, a little later.
func (c *Controller) gather(q queue, objects ...client.Object) {
	for _, o := range objects {
		key := assigned.MachineKey(o.(*v1.AzureAssignedIdentity))
		if key == "" {
			continue
		}
		c.remember(key).touch(c.now())
		q.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Name: key}}, gatherIdle)
	}
}

// Reconcile brings one machine in line; req.Name is its key.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	m := c.remember(req.Name)
	if wait := m.gathering(c.now(), c.Entitlements.Coming(req.Name)); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	var list v1.AzureAssignedIdentityList
	if err := c.Client.List(ctx, &list, client.MatchingFields{assigned.AssignedByMachine: req.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return reconcile.Result{}, fmt.Errorf("listing the assignments of %s: %w", req.Name, err)
	}
	machine, ok := m.machine(list.Items)
	if !ok {
		c.forget(req.Name)
		return reconcile.Result{}, nil
	}
	if wait := max(m.until.Sub(c.now()), c.throttle(machine).Sub(c.now())); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	b := c.batch(machine, m, list.Items)
	if wait, due := m.due(c.now(), c.Recheck); !b.pending && !due {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	defer c.Metrics.Cycle(time.Now())
	if err := c.drop(ctx, b); err != nil {
		return reconcile.Result{}, err
	}
	known, err := c.known(ctx, req.Name, m)
	if err != nil {
		return reconcile.Result{}, err
	}
	if !known {
		return reconcile.Result{}, c.abandon(ctx, b)
	}
	return c.settle(ctx, b)
}

// settle does what Reconcile found to be due.
func (c *Controller) settle(ctx context.Context, b *batch) (reconcile.Result, error) {
	m := b.memory
	err := c.apply(ctx, b)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return reconcile.Result{RequeueAfter: gatherIdle}, nil // an assignment has changed or gone: nothing was done yet
	}
	if wait := m.note(c.now(), err, b); err != nil || wait > 0 {
		if arm.Throttled(err) {
			wait = max(wait, throttledLeast)
			c.hold(b.machine, c.now().Add(wait))
		}
		if err != nil {
			c.logger().WarnContext(ctx, "machine not brought in line", "machine", b.machine.String(), "wait", wait, "err", err)
		}
		return reconcile.Result{RequeueAfter: max(wait, time.Millisecond)}, c.finish(ctx, b, err)
	}
	if err := c.finish(ctx, b, nil); err != nil {
		return reconcile.Result{}, err
	}
	if b.more {
		return reconcile.Result{RequeueAfter: time.Millisecond}, nil
	}
	return reconcile.Result{RequeueAfter: spread(c.Recheck)}, nil
}

// drop takes out of the batch what no binding backs, and judges the rest.
func (c *Controller) drop(ctx context.Context, b *batch) error {
	for _, e := range b.entries {
		kept := e.wanted[:0]
		for _, a := range e.wanted {
			ok, err := c.Entitlements.Entitled(ctx, a)
			if err != nil {
				return fmt.Errorf("judging AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
			}
			if ok {
				kept = append(kept, a)
			}
		}
		e.wanted, e.held = kept, slices.ContainsFunc(kept, holds)
		if err := c.judge(ctx, b.memory, e); err != nil {
			return err
		}
	}
	return nil
}

// judge notes whether an identity is any of the cluster's: assignments, which
// may be forged, prove nothing.
func (c *Controller) judge(ctx context.Context, m *memory, e *entry) error {
	key := e.id.Key()
	if len(e.wanted) > 0 {
		if m.backed == nil {
			m.backed = map[string]bool{}
		}
		m.backed[key] = true
		return nil
	}
	if m.backed[key] || e.id.IsRoot() {
		return nil
	}
	var list v1.AzureIdentityList
	if err := c.Client.List(ctx, &list, client.MatchingFields{assigned.IdentitiesByID: key}, client.UnsafeDisableDeepCopy, client.Limit(1)); err != nil {
		return fmt.Errorf("looking for the AzureIdentity of %s: %w", e.id, err)
	}
	e.foreign = len(list.Items) == 0
	return nil
}

// known reports whether the cluster has or had a node on the machine.
func (c *Controller) known(ctx context.Context, key string, m *memory) (bool, error) {
	if m.seen {
		return true, nil
	}
	var nodes corev1.NodeList
	if err := c.Client.List(ctx, &nodes, client.MatchingFields{assigned.NodesByMachine: key}, client.UnsafeDisableDeepCopy, client.Limit(1)); err != nil {
		return false, fmt.Errorf("looking for nodes on %s: %w", key, err)
	}
	m.seen = len(nodes.Items) > 0
	return m.seen, nil
}

// abandon lets go what is on a machine that the cluster knows nothing of: it is
// somebody else's, or its last node went while no controller ran.
func (c *Controller) abandon(ctx context.Context, b *batch) error {
	var errs []error
	for _, e := range b.entries {
		for _, a := range e.leaving {
			note := fmt.Sprintf("no node of this cluster is on the machine %s: it is left alone", b.machine)
			if e.added && !e.id.IsRoot() {
				note += fmt.Sprintf(". If it is yours: %s", removal(b.machine, e.id))
			}
			c.event(a, corev1.EventTypeWarning, eventMachineUnknown, "Unassign", note)
			errs = append(errs, c.release(ctx, b, a))
		}
	}
	return errors.Join(errs...)
}

// throttle is until when the machine's subscription is to be left alone.
func (c *Controller) throttle(machine azure.ResourceID) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.throttled[azure.Fold(machine.SubscriptionID)]
}

func (c *Controller) hold(machine azure.ResourceID, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.throttled == nil {
		c.throttled = map[string]time.Time{}
	}
	c.throttled[azure.Fold(machine.SubscriptionID)] = until
}

// spread varies a time so that what began together does not stay together.
func spread(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d + rand.N(d/5+1)
}

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

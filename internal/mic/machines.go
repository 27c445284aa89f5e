package mic

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/binding"
)

// Reasons of events on bindings, as Pod Identity v1 wrote them.
const (
	eventApplied     = "binding applied"
	eventRemoved     = "binding removed"
	eventApplyError  = "binding apply error"
	eventRemoveError = "binding remove error"
)

// Machines makes the identities of each machine those that its assignments
// want. All fields are read only after setUp; all but those with a comment must
// be set.
type Machines struct {
	Client             client.Client
	Cloud              Cloud
	Events             events.EventRecorder
	Assignee           string           // client id that the controller acts as; empty if unknown
	ImmutableClientIDs []string         // identities that stay whatever happens
	Recheck            time.Duration    // zero: never
	Now                func() time.Time // nil means time.Now
	Logger             *slog.Logger     // nil means slog.Default

	mu      sync.Mutex
	checked map[string]time.Time // when a machine was last compared with the cloud
}

func (c *Machines) setUp(m manager.Manager) error {
	return builder.ControllerManagedBy(m).
		Named("machines").
		WithOptions(controller.Options{MaxConcurrentReconciles: machineWorkers}).
		Watches(&v1.AzureAssignedIdentity{}, handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
			if key := machineOfAssigned(o.(*v1.AzureAssignedIdentity)); key != "" {
				return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: key}}}
			}
			return nil
		}), builder.WithPredicates(predicate.Funcs{UpdateFunc: assignedChanged})).
		Complete(c)
}

// assignedChanged passes what others do to an assignment and drops the
// controller's own notes: an error text that differs each time would otherwise
// drive it in circles.
func assignedChanged(e event.UpdateEvent) bool {
	was, is := e.ObjectOld.(*v1.AzureAssignedIdentity), e.ObjectNew.(*v1.AzureAssignedIdentity)
	return was.DeletionTimestamp.IsZero() != is.DeletionTimestamp.IsZero() ||
		was.Annotations[annotationMachine] != is.Annotations[annotationMachine] ||
		was.Status.Status == v1.AssignedIDAssigned && is.Status.Status != v1.AssignedIDAssigned ||
		!equality.Semantic.DeepEqual(was.Spec, is.Spec)
}

// An entry is one identity on one machine, with the assignments that want it
// and those that let it go.
type entry struct {
	id      azure.ResourceID
	wanted  []*v1.AzureAssignedIdentity
	leaving []*v1.AzureAssignedIdentity
	added   bool // mic put it there
	pinned  bool // it is never taken away
	err     error
}

// Reconcile brings one machine in line; req.Name is its key.
func (c *Machines) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var list v1.AzureAssignedIdentityList
	if err := c.Client.List(ctx, &list, client.MatchingFields{assignedByMachine: req.Name}); err != nil {
		return reconcile.Result{}, fmt.Errorf("listing the assignments of %s: %w", req.Name, err)
	}
	if len(list.Items) == 0 {
		c.forget(req.Name)
		return reconcile.Result{}, nil
	}
	machine, err := azure.ParseResourceID(list.Items[0].Annotations[annotationMachine])
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("assignment %s: %w", list.Items[0].Name, err)
	}
	entries, pending := c.entries(list.Items)
	if wait, due := c.due(req.Name); !pending && !due {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	if err := c.apply(ctx, machine, entries); err != nil {
		if wait := retryAfter(err); wait > 0 {
			logger(c.Logger).WarnContext(ctx, "the cloud asks to wait", "machine", machine.String(), "wait", wait, "err", err)
			return reconcile.Result{RequeueAfter: wait}, nil
		}
		return reconcile.Result{}, err
	}
	c.note(req.Name)
	return reconcile.Result{RequeueAfter: c.Recheck}, nil
}

// entries groups assignments by identity, in a stable order, and reports
// whether any of them waits for something.
func (c *Machines) entries(items []v1.AzureAssignedIdentity) (out []*entry, pending bool) {
	byKey := map[string]*entry{}
	for i := range items {
		a := &items[i]
		ref := a.Spec.AzureIdentityRef
		if ref == nil {
			ref = &v1.AzureIdentity{}
		}
		id, err := binding.ManagedIdentity(ref)
		if err != nil && a.DeletionTimestamp.IsZero() {
			continue // never created by this controller
		}
		// One that names no identity (id is the root) has only to be let go.
		e := byKey[id.Key()]
		if e == nil {
			e = &entry{id: id}
			byKey[id.Key()] = e
			out = append(out, e)
		}
		if a.DeletionTimestamp.IsZero() {
			e.wanted = append(e.wanted, a)
			pending = pending || a.Status.Status != v1.AssignedIDAssigned || a.Annotations[annotationAdded] == ""
		} else if controllerutil.ContainsFinalizer(a, v1.AssignedFinalizer) {
			e.leaving = append(e.leaving, a)
			pending = true
		}
		switch a.Annotations[annotationAdded] {
		case "true":
			e.added = true
		case "": // of Pod Identity v1, which put it there if it got that far
			e.added = e.added || a.Status.Status != v1.AssignedIDCreated
		}
		e.pinned = e.pinned || slices.ContainsFunc(c.ImmutableClientIDs, func(id string) bool {
			return azure.Fold(id) == azure.Fold(ref.Spec.ClientID)
		})
	}
	slices.SortFunc(out, func(a, b *entry) int { return cmp.Compare(a.id.Key(), b.id.Key()) })
	return out, pending
}

// apply compares with the cloud, changes what differs and writes down how it
// went. The error is of the machine, or the first of an identity.
func (c *Machines) apply(ctx context.Context, machine azure.ResourceID, entries []*entry) error {
	has, err := c.Cloud.Identities(ctx, machine)
	gone := machineGone(err)
	if err != nil && !gone {
		return c.finish(ctx, machine, entries, err)
	}
	there := make(map[string]bool, len(has))
	for _, id := range has {
		there[id.Key()] = true
	}
	var add, remove []*entry
	for _, e := range entries {
		switch on := there[e.id.Key()]; {
		case len(e.wanted) > 0 && !on && !gone:
			add = append(add, e)
		case len(e.wanted) > 0 && gone:
			e.err = err
		case len(e.wanted) == 0 && on && e.added && !e.pinned:
			remove = append(remove, e)
		}
	}
	for _, e := range add {
		if e.added {
			continue
		}
		if err := c.claim(ctx, e); err != nil {
			return err
		}
	}
	c.change(ctx, machine, add, remove)
	return c.finish(ctx, machine, entries, nil)
}

// claim notes on one assignment that mic is about to put the identity there.
func (c *Machines) claim(ctx context.Context, e *entry) error {
	a := e.wanted[0]
	next := a.DeepCopy()
	setAnnotation(next, annotationAdded, "true")
	if err := c.Client.Patch(ctx, next, client.MergeFrom(a)); err != nil {
		return fmt.Errorf("noting the intent on AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
	}
	e.wanted[0], e.added = next, true
	return nil
}

// change asks for everything at once. If the cloud blames an identity, halves
// are tried until the ones to blame are alone: they never hold up the others.
func (c *Machines) change(ctx context.Context, machine azure.ResourceID, add, remove []*entry) {
	if len(add)+len(remove) == 0 {
		return
	}
	err := c.Cloud.Update(ctx, machine, ids(add), ids(remove))
	switch {
	case err == nil:
	case !blamesIdentity(err) || len(add)+len(remove) == 1:
		for _, e := range slices.Concat(add, remove) {
			e.err = err
		}
	case len(remove) > 0 && len(add) > 0:
		c.change(ctx, machine, nil, remove)
		c.change(ctx, machine, add, nil)
	default:
		c.change(ctx, machine, add[:len(add)/2], remove[:len(remove)/2])
		c.change(ctx, machine, add[len(add)/2:], remove[len(remove)/2:])
	}
}

func ids(entries []*entry) []azure.ResourceID {
	out := make([]azure.ResourceID, len(entries))
	for i, e := range entries {
		out[i] = e.id
	}
	return out
}

// finish writes the outcome to the assignments and their bindings. A machine's
// error counts for every identity that waits.
func (c *Machines) finish(ctx context.Context, machine azure.ResourceID, entries []*entry, machineErr error) error {
	var errs []error
	for _, e := range entries {
		cause := e.err
		if cause == nil {
			cause = machineErr
		}
		if cause != nil {
			errs = append(errs, fmt.Errorf("identity %s on %s: %w", e.id, machine, cause))
			logger(c.Logger).ErrorContext(ctx, "identity not changed", "identity", e.id.String(), "machine", machine.String(), "err", cause)
		}
		for _, a := range e.wanted {
			if err := c.wanted(ctx, machine, e, a, cause); err != nil {
				errs = append(errs, err)
			}
		}
		for _, a := range e.leaving {
			if err := c.leave(ctx, machine, e, a, cause); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func (c *Machines) wanted(ctx context.Context, machine azure.ResourceID, e *entry, a *v1.AzureAssignedIdentity, cause error) error {
	next := a.DeepCopy()
	if cause != nil {
		if a.Status.Status == v1.AssignedIDAssigned && e.err == nil {
			return nil // the machine cannot be asked; it has had the identity
		}
		why := explain(cause, machine, e.id, c.Assignee)
		next.Status.Status = v1.AssignedIDCreated
		meta.SetStatusCondition(&next.Status.Conditions, metav1.Condition{Type: v1.ConditionAssigned, Status: metav1.ConditionFalse, Reason: "CloudRefused", Message: clip(why)})
		c.event(a, corev1.EventTypeWarning, eventApplyError, "Assign", why)
	} else {
		next.Status.Status = v1.AssignedIDAssigned
		meta.RemoveStatusCondition(&next.Status.Conditions, v1.ConditionAssigned)
		setAnnotation(next, annotationAdded, fmt.Sprint(e.added))
	}
	first := next.Status.Status == v1.AssignedIDAssigned && a.Status.Status != v1.AssignedIDAssigned
	data, err := client.MergeFrom(a).Data(next)
	if err != nil || string(data) == "{}" {
		return err
	}
	if err := c.Client.Patch(ctx, next, client.RawPatch(types.MergePatchType, data)); ignoreGone(err) != nil {
		return fmt.Errorf("updating AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
	}
	if first {
		c.event(a, corev1.EventTypeNormal, eventApplied, "Assign", fmt.Sprintf("Binding %s applied on node %s for pod %s", bindingName(a), a.Spec.NodeName, a.Name))
	}
	return nil
}

func (c *Machines) leave(ctx context.Context, machine azure.ResourceID, e *entry, a *v1.AzureAssignedIdentity, cause error) error {
	if cause != nil && len(e.wanted) == 0 {
		c.event(a, corev1.EventTypeWarning, eventRemoveError, "Unassign", explain(cause, machine, e.id, c.Assignee))
		return nil // the finalizer stays until the identity has left
	}
	next := a.DeepCopy()
	controllerutil.RemoveFinalizer(next, v1.AssignedFinalizer)
	if err := c.Client.Patch(ctx, next, client.MergeFrom(a)); ignoreGone(err) != nil {
		return fmt.Errorf("releasing AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
	}
	c.event(a, corev1.EventTypeNormal, eventRemoved, "Unassign", fmt.Sprintf("Binding %s removed from node %s for pod %s", bindingName(a), a.Spec.NodeName, a.Name))
	return nil
}

// event records on the binding of an assignment.
func (c *Machines) event(a *v1.AzureAssignedIdentity, kind, reason, action, note string) {
	if a.Spec.AzureBindingRef != nil {
		c.Events.Eventf(a.Spec.AzureBindingRef, nil, kind, reason, action, "%s", clip(note))
	}
}

// bindingName is empty for an assignment that somebody wrote without one.
func bindingName(a *v1.AzureAssignedIdentity) string {
	if a.Spec.AzureBindingRef == nil {
		return ""
	}
	return a.Spec.AzureBindingRef.Name
}

// clip keeps a note within the limit of an event (1024 bytes).
func clip(s string) string {
	if len(s) > 1000 {
		return strings.ToValidUTF8(s[:1000], "") + "…" // half a letter would not be accepted
	}
	return s
}

// due reports whether a machine that waits for nothing is to be compared with
// the cloud, and otherwise when; zero means never.
func (c *Machines) due(key string) (wait time.Duration, due bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last, ok := c.checked[key]
	if !ok {
		return 0, true // not compared since the start
	}
	if c.Recheck == 0 {
		return 0, false
	}
	wait = c.Recheck - c.now().Sub(last)
	return wait, wait <= 0
}

func (c *Machines) note(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.checked == nil {
		c.checked = map[string]time.Time{}
	}
	c.checked[key] = c.now()
}

func (c *Machines) forget(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.checked, key)
}

func (c *Machines) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

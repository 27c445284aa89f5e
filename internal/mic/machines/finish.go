package machines

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/mic/arm"
	"github.com/lanyard-id/lanyard/internal/mic/assigned"
	"github.com/lanyard-id/lanyard/internal/mic/metrics"
)

// Reasons of events on bindings; the first four as Pod Identity v1 wrote them.
const (
	eventApplied        = "binding applied"
	eventApplyError     = "binding apply error"
	eventRemoveError    = "binding remove error"
	eventMachineUnknown = "MachineUnknown"
	eventUnknown        = "IdentityUnknown"
)

// writers is how many assignments of one machine are written side by side.
const writers = 12

// finish writes the outcome to the assignments and their bindings. A machine's
// error counts for every identity that waits.
//
// Assignments that bear a claim come last, when what it is about bears its own
// note: until then the claim is the only thing that tells mic's identities from
// somebody else's. And an assignment that holds an identity there is let go only
// when another one that wants it does.
func (c *Controller) finish(ctx context.Context, b *batch, machineErr error) error {
	plain := func(a *v1.AzureAssignedIdentity) bool { return len(claims(a)) == 0 }
	claiming := func(a *v1.AzureAssignedIdentity) bool { return !plain(a) }
	wanted := func(e *entry) []*v1.AzureAssignedIdentity { return e.wanted }
	leaving := func(e *entry) []*v1.AzureAssignedIdentity { return e.leaving }
	want := func(e *entry, a *v1.AzureAssignedIdentity, cause error) error { return c.wanted(ctx, b, e, a, cause) }
	leave := func(e *entry, a *v1.AzureAssignedIdentity, cause error) error { return c.leave(ctx, b, e, a, cause) }
	err := write(b, machineErr, wanted, plain, want)
	if err == nil {
		b.unclear = machineErr != nil
		for _, e := range b.entries {
			b.unclear = b.unclear || e.later || e.err != nil && !arm.BlamesIdentity(e.err) && !arm.Gone(e.err)
		}
		err = write(b, machineErr, wanted, claiming, want)
	}
	if err = errors.Join(err, write(b, machineErr, leaving, plain, leave)); err != nil {
		return err
	}
	return write(b, machineErr, leaving, claiming, leave)
}

// write does it to each of the assignments, whatever happens to the others.
func write(b *batch, machineErr error, list func(*entry) []*v1.AzureAssignedIdentity, which func(*v1.AzureAssignedIdentity) bool, do func(*entry, *v1.AzureAssignedIdentity, error) error) error {
	var g errgroup.Group
	g.SetLimit(writers)
	for _, e := range b.entries {
		cause := cmp.Or(e.err, machineErr)
		for _, a := range list(e) {
			if which(a) {
				g.Go(func() error { return do(e, a, cause) })
			}
		}
	}
	return g.Wait()
}

func (c *Controller) wanted(ctx context.Context, b *batch, e *entry, a *v1.AzureAssignedIdentity, cause error) error {
	if e.later {
		return nil
	}
	next := a.DeepCopy()
	heir := a == e.wanted[0] && e.added && !e.held // the others leave the entry alone
	if heir {
		controllerutil.AddFinalizer(next, v1.AssignedFinalizer)
	}
	switch {
	case cause != nil && a.Status.Status == v1.AssignedIDAssigned && (e.err == nil || b.memory.there == nil && !arm.Gone(e.err)):
		// The machine cannot be asked; it has had the identity.
	case cause != nil:
		reason, why := arm.Explain(cause, b.machine, e.id, c.Assignee())
		next.Status.Status = v1.AssignedIDCreated
		meta.SetStatusCondition(&next.Status.Conditions, metav1.Condition{Type: v1.ConditionAssigned, Status: metav1.ConditionFalse, Reason: reason, Message: assigned.Clip(why)})
		c.event(a, corev1.EventTypeWarning, eventApplyError, "Assign", why)
	default:
		next.Status.Status = v1.AssignedIDAssigned
		meta.RemoveStatusCondition(&next.Status.Conditions, v1.ConditionAssigned)
		assigned.SetAnnotation(next, assigned.AddedAnnotation, fmt.Sprint(e.added))
		if !b.unclear {
			assigned.SetAnnotation(next, assigned.AddingAnnotation, "")
		}
	}
	first := next.Status.Status == v1.AssignedIDAssigned && a.Status.Status != v1.AssignedIDAssigned
	data, err := client.MergeFrom(a).Data(next)
	if err != nil || string(data) == "{}" {
		return err
	}
	// Nobody but mic owns fields of an assignment. Without a record of that, this
	// and every later request costs the API server less.
	next.SetManagedFields([]metav1.ManagedFieldsEntry{{}})
	// Another controller, in the moment in which two believe to lead, may have
	// noted that the identity is its own.
	if data, err = client.MergeFromWithOptions(a, client.MergeFromWithOptimisticLock{}).Data(next); err != nil {
		return err
	}
	start := time.Now()
	err = c.Client.Patch(ctx, next, client.RawPatch(types.MergePatchType, data))
	if apierrors.IsNotFound(err) {
		return nil
	}
	c.Metrics.Kubernetes(metrics.StatusUpdate, start, err)
	c.Metrics.Kubernetes(metrics.Update, start, err)
	if err != nil {
		return fmt.Errorf("updating AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
	}
	b.memory.written.Store(next.UID, next)
	if heir {
		e.held = true
	}
	if first {
		c.event(a, corev1.EventTypeNormal, eventApplied, "Assign", fmt.Sprintf("Binding %s applied on node %s for pod %s", assigned.BindingName(a), a.Spec.NodeName, a.Name))
	}
	return nil
}

func (c *Controller) leave(ctx context.Context, b *batch, e *entry, a *v1.AzureAssignedIdentity, cause error) error {
	if cause != nil && len(e.wanted) == 0 && !arm.Gone(cause) {
		_, why := arm.Explain(cause, b.machine, e.id, c.Assignee())
		c.event(a, corev1.EventTypeWarning, eventRemoveError, "Unassign", why)
		if !arm.IdentityGone(cause) {
			return nil // the finalizer stays until the identity has left
		}
		// What does not exist cannot be used; nothing is gained by waiting for it.
		return c.release(ctx, b, a)
	}
	if b.unclear && len(claims(a)) > 0 || len(e.wanted) > 0 && e.added && !e.held && !e.later {
		return nil // another batch lets it go
	}
	if err := c.release(ctx, b, a); err != nil {
		return err
	}
	if e.foreign && b.memory.there[e.id.Key()] {
		c.logger().WarnContext(ctx, "an identity that no AzureIdentity names is left on a machine", "machine", b.machine.String(), "identity", e.id.String(), "assignment", a.Name, "namespace", a.Namespace)
		c.event(a, corev1.EventTypeWarning, eventUnknown, "Unassign", fmt.Sprintf("no AzureIdentity of this cluster names %s: it is left alone. If it is to leave: %s", e.id, removal(b.machine, e.id)))
		return nil
	}
	c.event(a, corev1.EventTypeNormal, assigned.EventRemoved, "Unassign", assigned.Removed(a))
	return nil
}

// release ends an assignment.
func (c *Controller) release(ctx context.Context, b *batch, a *v1.AzureAssignedIdentity) error {
	next := a.DeepCopy()
	if !controllerutil.RemoveFinalizer(next, v1.AssignedFinalizer) {
		return nil
	}
	start := time.Now()
	err := c.Client.Patch(ctx, next, client.MergeFrom(a))
	if err = assigned.IgnoreGone(err); err != nil {
		c.Metrics.Kubernetes(metrics.Deletion, start, err)
		return fmt.Errorf("releasing AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
	}
	b.memory.written.Store(next.UID, next)
	c.Metrics.Kubernetes(metrics.Deletion, start, nil)
	return nil
}

// event records on the binding of an assignment.
func (c *Controller) event(a *v1.AzureAssignedIdentity, kind, reason, action, note string) {
	if a.Spec.AzureBindingRef != nil {
		c.Events.Eventf(a.Spec.AzureBindingRef, nil, kind, reason, action, "%s", assigned.Clip(note))
	}
}

// removal is the command that takes an identity off a machine.
func removal(machine, identity azure.ResourceID) string {
	command := "vm"
	if machine.Is(azure.TypeVirtualMachineScaleSet) {
		command = "vmss"
	}
	return fmt.Sprintf("az %s identity remove --subscription %s --resource-group %s --name %s --identities %s", command, machine.SubscriptionID, machine.ResourceGroup, machine.Name(), identity)
}

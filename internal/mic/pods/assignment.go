package pods

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/mic/assigned"
	"github.com/lanyard-id/lanyard/internal/mic/metrics"
)

// Reasons of events and conditions.
const (
	// ReasonNoMachine means: the pod's node is no machine of Azure.
	ReasonNoMachine  = "NoMachine"
	eventNotEntitled = "NotEntitled"
	eventReleased    = "Released"
)

// siblings is how many assignments of the same identity on the same machine are
// looked at for one that is Assigned.
const siblings = 8

// behind means: the cache is a little behind, and the watch may bring nothing that
// wakes the pod. It is how long to wait at most.
type behind time.Duration

func (behind) Error() string { return "the cache is behind" }

// soon is how long the cache usually needs at most.
const soon = 50 * time.Millisecond

// madeLimit is how long the cache may take to hear of an assignment.
const madeLimit = time.Minute

// keep decides about an assignment that exists: it stays, is brought up to
// date, or goes.
func (c *Controller) keep(ctx context.Context, pod binding.Pod, a *v1.AzureAssignedIdentity, bound []binding.Bound, at place) error {
	if !a.DeletionTimestamp.IsZero() {
		if assigned.MachineKey(a) != "" {
			return nil // the machines' controller lets it go
		}
		return c.orphan(ctx, a)
	}
	for _, b := range bound {
		if !binding.Concerns(a, pod, b.Identity) {
			continue
		}
		c.ours.Store(a.UID, struct{}{})
		if outdated(a, pod, b, at) {
			break
		}
		return c.refresh(ctx, a, b, at)
	}
	if _, asked := c.deleted.LoadOrStore(a.UID, struct{}{}); asked {
		return nil // the cache is a little behind
	}
	if _, ours := c.ours.Load(a.UID); !ours {
		c.logger().WarnContext(ctx, "no binding backs an assignment: it is removed", "assignment", a.Name, "namespace", a.Namespace, "pod", pod.Name, "podNamespace", pod.Namespace)
		c.Events.Eventf(a, nil, corev1.EventTypeWarning, eventNotEntitled, "Remove", "no AzureIdentityBinding entitles the pod %s/%s to this identity on node %s: either something other than mic wrote this AzureAssignedIdentity, or its reason ended while mic did not run", a.Spec.PodNamespace, a.Spec.Pod, a.Spec.NodeName)
	}
	start := time.Now()
	only := client.Preconditions{UID: &a.UID}
	if len(a.Finalizers) == 0 {
		// The API server deletes even what is given a finalizer at this moment.
		only.ResourceVersion = &a.ResourceVersion
	}
	err := c.Client.Delete(ctx, a, only)
	if only.ResourceVersion != nil && apierrors.IsConflict(err) {
		c.deleted.Delete(a.UID)
		return behind(soon)
	}
	if err = assigned.IgnoreGone(err); err != nil {
		c.deleted.Delete(a.UID)
		c.Metrics.Kubernetes(metrics.Deletion, start, err)
		return fmt.Errorf("deleting AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
	}
	if len(a.Finalizers) > 0 {
		return nil // the machines' controller lets it go
	}
	c.Metrics.Kubernetes(metrics.Deletion, start, nil)
	if b := a.Spec.AzureBindingRef; b != nil && a.Status.Status == v1.AssignedIDAssigned {
		c.Events.Eventf(b, nil, corev1.EventTypeNormal, assigned.EventRemoved, "Unassign", "%s", assigned.Clip(assigned.Removed(a)))
	}
	return nil
}

// outdated reports whether an assignment is of another place or identity. It
// then goes and a new one comes: the old identity has to leave the machine.
func outdated(a *v1.AzureAssignedIdentity, pod binding.Pod, b binding.Bound, at place) bool {
	was, is := a.Spec.AzureIdentityRef.Spec, b.Identity.Spec
	known := assigned.MachineKey(a)
	return a.Spec.NodeName != pod.Node || was.Type != is.Type ||
		azure.Fold(was.ResourceID) != azure.Fold(is.ResourceID) ||
		known != "" && at.why == nil && known != at.machine.Key()
}

// refresh updates the copies that an assignment holds.
func (c *Controller) refresh(ctx context.Context, a *v1.AzureAssignedIdentity, b binding.Bound, at place) error {
	next := a.DeepCopy()
	next.Spec.AzureIdentityRef, next.Spec.AzureBindingRef = copyIdentity(b.Identity), copyBinding(b.Binding)
	if at.why == nil && b.Identity.Spec.Type == v1.UserAssignedMSI {
		assigned.SetAnnotation(next, assigned.MachineAnnotation, at.machine.String())
	}
	if equality.Semantic.DeepEqual(a, next) {
		return nil
	}
	if err := c.Client.Patch(ctx, next, client.MergeFrom(a)); assigned.IgnoreGone(err) != nil {
		return fmt.Errorf("updating AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
	}
	return nil
}

// orphan lets an assignment go whose machine was never noted: one of Pod
// Identity v1, or one that never got so far.
func (c *Controller) orphan(ctx context.Context, a *v1.AzureAssignedIdentity) error {
	next := a.DeepCopy()
	delete(next.Annotations, assigned.MachineAnnotation) // it names no machine
	if a.Status.Status != v1.AssignedIDCreated && a.Spec.AzureIdentityRef != nil && a.Spec.AzureIdentityRef.Spec.Type == v1.UserAssignedMSI {
		at, err := c.place(ctx, a.Spec.NodeName)
		if err != nil {
			return fmt.Errorf("reading node %s: %w", a.Spec.NodeName, err)
		}
		if at.why == nil {
			assigned.SetAnnotation(next, assigned.MachineAnnotation, at.machine.String())
		}
	}
	release := next.Annotations[assigned.MachineAnnotation] == ""
	if release && !controllerutil.RemoveFinalizer(next, v1.AssignedFinalizer) {
		return nil
	}
	if err := c.Client.Patch(ctx, next, client.MergeFrom(a)); assigned.IgnoreGone(err) != nil {
		return fmt.Errorf("releasing AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
	}
	if release && a.Spec.AzureBindingRef != nil && a.Status.Status != v1.AssignedIDCreated {
		c.Events.Eventf(a.Spec.AzureBindingRef, nil, corev1.EventTypeNormal, eventReleased, "Release", "AzureAssignedIdentity %s is released without a change to a machine: node %s is gone", a.Name, a.Spec.NodeName)
	}
	return nil
}

// want creates the assignment if there is none.
func (c *Controller) want(ctx context.Context, pod binding.Pod, b binding.Bound, have []v1.AzureAssignedIdentity, at place) error {
	for i := range have {
		if binding.Concerns(&have[i], pod, b.Identity) {
			return nil // if it is on its way out, its end brings us back
		}
	}
	key := madeKey{types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, types.NamespacedName{Namespace: b.Identity.Namespace, Name: b.Identity.Name}}
	if since, made := c.made.Load(key); made {
		if left := madeLimit - c.now().Sub(since.(time.Time)); left > 0 {
			return behind(left)
		}
	}
	a, err := c.assignment(ctx, pod, b, at)
	if err != nil {
		return err
	}
	if at.why != nil && b.Identity.Spec.Type == v1.UserAssignedMSI {
		c.Events.Eventf(b.Binding, nil, corev1.EventTypeWarning, ReasonNoMachine, "Assign", "pod %s/%s: %v", pod.Namespace, pod.Name, at.why)
	}
	for _, name := range []string{binding.AssignedName(pod, b.Identity), binding.AssignedNameUnique(pod, b.Identity)} {
		try := a.DeepCopy()
		try.Name = name
		hold := c.hold(try)
		start := time.Now()
		c.made.Store(key, c.now()) // before the watch can bring it
		err := c.Client.Create(ctx, try)
		hold(err)
		if err == nil {
			c.ours.Store(try.UID, struct{}{})
			c.Metrics.Kubernetes(metrics.Addition, start, nil)
			c.logger().InfoContext(ctx, "assignment created", "pod", pod.Name, "namespace", pod.Namespace, "identity", b.Identity.Name, "node", pod.Node, "assignment", name, "status", try.Status.Status)
			return nil
		}
		c.made.Delete(key)
		if !apierrors.IsAlreadyExists(err) {
			c.Metrics.Kubernetes(metrics.Addition, start, err)
			return fmt.Errorf("creating AzureAssignedIdentity %s/%s: %w", a.Namespace, name, err)
		}
		var other v1.AzureAssignedIdentity
		if err := c.Live.Get(ctx, types.NamespacedName{Namespace: a.Namespace, Name: name}, &other); err != nil {
			return fmt.Errorf("reading AzureAssignedIdentity %s/%s: %w", a.Namespace, name, err)
		}
		if binding.Concerns(&other, pod, b.Identity) {
			return nil // the cache is a little behind; the watch brings us back
		}
	}
	return fmt.Errorf("the names for the AzureAssignedIdentity of pod %s/%s and AzureIdentity %s/%s are taken", pod.Namespace, pod.Name, b.Identity.Namespace, b.Identity.Name)
}

func (c *Controller) assignment(ctx context.Context, pod binding.Pod, b binding.Bound, at place) (*v1.AzureAssignedIdentity, error) {
	a := &v1.AzureAssignedIdentity{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: binding.AssignedNamespace(b.Identity, c.ForceNamespaced),
			Labels:    map[string]string{v1.NodeLabel: binding.NodeLabelValue(pod.Node)},
		},
		Spec: v1.AzureAssignedIdentitySpec{
			AzureIdentityRef: copyIdentity(b.Identity),
			AzureBindingRef:  copyBinding(b.Binding),
			Pod:              pod.Name,
			PodNamespace:     pod.Namespace,
			NodeName:         pod.Node,
		},
		Status: v1.AzureAssignedIdentityStatus{Status: v1.AssignedIDCreated, AvailableReplicas: 1},
	}
	if b.Identity.Spec.Type != v1.UserAssignedMSI {
		a.Status.Status = v1.AssignedIDAssigned // nothing to do on the machine
		return a, nil
	}
	if at.why != nil {
		meta.SetStatusCondition(&a.Status.Conditions, metav1.Condition{Type: v1.ConditionAssigned, Status: metav1.ConditionFalse, Reason: ReasonNoMachine, Message: at.why.Error()})
		return a, nil
	}
	a.Annotations = map[string]string{assigned.MachineAnnotation: at.machine.String()}
	sibling, err := c.sibling(ctx, at.machine, b.Identity)
	if err != nil {
		return nil, err
	}
	if sibling != nil {
		a.Annotations[assigned.AddedAnnotation] = sibling.Annotations[assigned.AddedAnnotation]
		a.Status.Status = v1.AssignedIDAssigned
	}
	return a, nil
}

// sibling returns an assignment because of which the machine has the identity.
// Should that be the past, the machines' controller, which remembers what the
// machine has, puts the identity back.
func (c *Controller) sibling(ctx context.Context, machine azure.ResourceID, id *v1.AzureIdentity) (*v1.AzureAssignedIdentity, error) {
	resource, err := binding.ManagedIdentity(id)
	if err != nil {
		return nil, nil // desired passes none
	}
	var list v1.AzureAssignedIdentityList
	if err := c.Client.List(ctx, &list, client.MatchingFields{assigned.AssignedByPlacement: assigned.Placement(machine.Key(), resource)}, client.UnsafeDisableDeepCopy, client.Limit(siblings)); err != nil {
		return nil, fmt.Errorf("listing the assignments of %s on %s: %w", resource, machine, err)
	}
	for i := range list.Items {
		a := &list.Items[i]
		_, ours := c.ours.Load(a.UID)
		if ours && a.DeletionTimestamp.IsZero() && a.Status.Status == v1.AssignedIDAssigned && a.Annotations[assigned.AddedAnnotation] != "" {
			return a, nil
		}
	}
	return nil, nil
}

// hold gives the first assignment of an identity on a machine the finalizer,
// which keeps it until the identity has left. One is enough: the others cost one
// request less when they go, and the machines' controller passes the duty on. The
// func that is returned takes how the creation went.
func (c *Controller) hold(a *v1.AzureAssignedIdentity) func(error) {
	key := assigned.PlacementOf(a)
	if key == "" {
		return func(error) {}
	}
	if _, held := c.holders.LoadOrStore(key, types.UID("")); held {
		return func(error) {}
	}
	a.Finalizers = []string{v1.AssignedFinalizer}
	return func(err error) {
		if err != nil {
			c.holders.CompareAndDelete(key, types.UID(""))
			return
		}
		c.holders.CompareAndSwap(key, types.UID(""), a.UID) // unless the watch has told more already
	}
}

// holds takes note of an assignment that came or changed.
func (c *Controller) holds(a *v1.AzureAssignedIdentity) {
	key := assigned.PlacementOf(a)
	switch {
	case key == "" || !controllerutil.ContainsFinalizer(a, v1.AssignedFinalizer):
	case a.DeletionTimestamp.IsZero():
		c.holders.Store(key, a.UID)
	default:
		c.holders.CompareAndDelete(key, a.UID)
	}
}

// copyIdentity is the part of an identity that its assignments repeat.
func copyIdentity(id *v1.AzureIdentity) *v1.AzureIdentity {
	out := &v1.AzureIdentity{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1.GroupVersion().String(), Kind: v1.KindAzureIdentity},
		ObjectMeta: metav1.ObjectMeta{Name: id.Name, Namespace: id.Namespace, UID: id.UID},
	}
	if v, ok := id.Annotations[v1.BehaviorAnnotation]; ok {
		out.Annotations = map[string]string{v1.BehaviorAnnotation: v}
	}
	id.Spec.DeepCopyInto(&out.Spec)
	out.Spec.OldAzureIdentitySpec = v1.OldAzureIdentitySpec{}
	return out
}

func copyBinding(b *v1.AzureIdentityBinding) *v1.AzureIdentityBinding {
	out := &v1.AzureIdentityBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1.GroupVersion().String(), Kind: v1.KindAzureIdentityBinding},
		ObjectMeta: metav1.ObjectMeta{Name: b.Name, Namespace: b.Namespace, UID: b.UID},
	}
	b.Spec.DeepCopyInto(&out.Spec)
	out.Spec.OldAzureIdentityBindingSpec = v1.OldAzureIdentityBindingSpec{}
	return out
}

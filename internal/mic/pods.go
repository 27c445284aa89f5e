package mic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/binding"
)

// Reasons of events and conditions.
const (
	eventInvalidIdentity = "InvalidIdentity"
	eventIdentityMissing = "IdentityMissing"
	eventNoMachine       = "NoMachine"
)

// Pods keeps one AzureAssignedIdentity per pod and identity that the pod may
// use. All fields but Logger must be set.
type Pods struct {
	Client          client.Client
	Live            client.Reader // reads past the cache
	Events          events.EventRecorder
	ForceNamespaced bool
	Logger          *slog.Logger // nil means slog.Default
}

// Reconcile brings the assignments of one pod in line. A pod that is gone loses
// all of them.
func (c *Pods) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	pod, bound, err := c.read(ctx, req.NamespacedName)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("reading pod %s: %w", req, err)
	}
	machine, machineErr, err := c.machine(ctx, pod.Node)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("reading node %s: %w", pod.Node, err)
	}
	var have v1.AzureAssignedIdentityList
	if err := c.Client.List(ctx, &have, client.MatchingFields{assignedByPod: req.String()}); err != nil {
		return reconcile.Result{}, fmt.Errorf("listing the assignments of pod %s: %w", req, err)
	}
	var errs []error
	for i := range have.Items {
		if err := c.keep(ctx, pod, &have.Items[i], bound, machine); err != nil {
			errs = append(errs, err)
		}
	}
	for _, b := range bound {
		if err := c.want(ctx, pod, b, have.Items, machine, machineErr); err != nil {
			errs = append(errs, err)
		}
	}
	return reconcile.Result{}, errors.Join(errs...)
}

// read returns the pod and what it may use; nothing if it is not scheduled, has
// ended or is gone.
func (c *Pods) read(ctx context.Context, key types.NamespacedName) (binding.Pod, []binding.Bound, error) {
	pod := binding.Pod{Namespace: key.Namespace, Name: key.Name}
	var p corev1.Pod
	if err := c.Client.Get(ctx, key, &p); err != nil {
		return pod, nil, client.IgnoreNotFound(err)
	}
	pod.UID, pod.Node, pod.Labels, pod.ServiceAccount = string(p.UID), p.Spec.NodeName, p.Labels, p.Spec.ServiceAccountName
	label := p.Labels[v1.BindingLabel]
	if label == "" || pod.Node == "" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return pod, nil, nil
	}
	var list v1.AzureIdentityBindingList
	if err := c.Client.List(ctx, &list, client.MatchingFields{bindingsBySelector: label}); err != nil {
		return pod, nil, err
	}
	var lookup error
	w := binding.World{ForceNamespaced: c.ForceNamespaced, Identity: func(namespace, name string) *v1.AzureIdentity {
		var id v1.AzureIdentity
		if err := c.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, &id); err != nil {
			lookup = errors.Join(lookup, client.IgnoreNotFound(err))
			return nil
		}
		return &id
	}}
	for i := range list.Items {
		w.Bindings = append(w.Bindings, &list.Items[i])
	}
	bound, problems := binding.Of(pod, w)
	if lookup != nil {
		return pod, nil, lookup
	}
	for _, x := range problems {
		if x.Reason == binding.IdentityMissing {
			c.Events.Eventf(x.Binding, nil, corev1.EventTypeWarning, eventIdentityMissing, "Assign", "there is no AzureIdentity %s in namespace %s", x.Binding.Spec.AzureIdentity, x.Binding.Namespace)
		}
	}
	valid := bound[:0]
	for _, b := range bound {
		if b.Identity.Spec.Type == v1.UserAssignedMSI {
			if _, err := binding.ManagedIdentity(b.Identity); err != nil {
				for _, regarding := range []client.Object{b.Identity, b.Binding} {
					c.Events.Eventf(regarding, nil, corev1.EventTypeWarning, eventInvalidIdentity, "Assign", "AzureIdentity %s cannot be assigned: %v", b.Identity.Name, err)
				}
				continue
			}
		}
		valid = append(valid, b)
	}
	return pod, valid, nil
}

// machine returns the machine of a node. That a node is not there or no machine
// of Azure is not a failure but told in why.
func (c *Pods) machine(ctx context.Context, node string) (id azure.ResourceID, why, err error) {
	if node == "" {
		return id, errors.New("the pod is not scheduled"), nil
	}
	var n corev1.Node
	if err := c.Client.Get(ctx, types.NamespacedName{Name: node}, &n); err != nil {
		return id, fmt.Errorf("node %s does not exist", node), client.IgnoreNotFound(err)
	}
	id, why = machineOfNode(&n)
	return id, why, nil
}

// keep decides about an assignment that exists: it stays, is brought up to
// date, or goes.
func (c *Pods) keep(ctx context.Context, pod binding.Pod, a *v1.AzureAssignedIdentity, bound []binding.Bound, machine azure.ResourceID) error {
	known := machineOfAssigned(a) != ""
	if !a.DeletionTimestamp.IsZero() {
		if known {
			return nil // the machines' controller lets it go
		}
		return c.orphan(ctx, a)
	}
	for _, b := range bound {
		if !binding.Concerns(a, pod, b.Identity) {
			continue
		}
		if outdated(a, pod, b, machine) {
			break
		}
		return c.refresh(ctx, a, b, machine)
	}
	err := c.Client.Delete(ctx, a, client.Preconditions{UID: &a.UID})
	if err = ignoreGone(err); err != nil {
		return fmt.Errorf("deleting AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
	}
	return nil
}

// outdated reports whether an assignment is of another place or identity. It
// then goes and a new one comes: the old identity has to leave the machine.
func outdated(a *v1.AzureAssignedIdentity, pod binding.Pod, b binding.Bound, machine azure.ResourceID) bool {
	was, is := a.Spec.AzureIdentityRef.Spec, b.Identity.Spec
	known := machineOfAssigned(a)
	return a.Spec.NodeName != pod.Node || was.Type != is.Type ||
		azure.Fold(was.ResourceID) != azure.Fold(is.ResourceID) ||
		known != "" && machine.Provider != "" && known != machine.Key()
}

// refresh updates the copies that an assignment holds.
func (c *Pods) refresh(ctx context.Context, a *v1.AzureAssignedIdentity, b binding.Bound, machine azure.ResourceID) error {
	next := a.DeepCopy()
	next.Spec.AzureIdentityRef, next.Spec.AzureBindingRef = copyIdentity(b.Identity), copyBinding(b.Binding)
	if machine.Provider != "" && b.Identity.Spec.Type == v1.UserAssignedMSI {
		setAnnotation(next, annotationMachine, machine.String())
	}
	if equality.Semantic.DeepEqual(a, next) {
		return nil
	}
	if err := c.Client.Patch(ctx, next, client.MergeFrom(a)); ignoreGone(err) != nil {
		return fmt.Errorf("updating AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
	}
	return nil
}

// orphan lets an assignment go whose machine was never noted: one of Pod
// Identity v1, or one that never got so far.
func (c *Pods) orphan(ctx context.Context, a *v1.AzureAssignedIdentity) error {
	next := a.DeepCopy()
	if a.Status.Status != v1.AssignedIDCreated && a.Spec.AzureIdentityRef != nil && a.Spec.AzureIdentityRef.Spec.Type == v1.UserAssignedMSI {
		machine, why, err := c.machine(ctx, a.Spec.NodeName)
		if err != nil {
			return fmt.Errorf("reading node %s: %w", a.Spec.NodeName, err)
		}
		if why == nil {
			setAnnotation(next, annotationMachine, machine.String())
		}
	}
	if next.Annotations[annotationMachine] == "" && !controllerutil.RemoveFinalizer(next, v1.AssignedFinalizer) {
		return nil
	}
	if err := c.Client.Patch(ctx, next, client.MergeFrom(a)); ignoreGone(err) != nil {
		return fmt.Errorf("releasing AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
	}
	return nil
}

// want creates the assignment if there is none.
func (c *Pods) want(ctx context.Context, pod binding.Pod, b binding.Bound, have []v1.AzureAssignedIdentity, machine azure.ResourceID, why error) error {
	for i := range have {
		if binding.Concerns(&have[i], pod, b.Identity) {
			return nil // if it is on its way out, its end brings us back
		}
	}
	a := c.assignment(pod, b, machine, why)
	if why != nil && b.Identity.Spec.Type == v1.UserAssignedMSI {
		c.Events.Eventf(b.Binding, nil, corev1.EventTypeWarning, eventNoMachine, "Assign", "pod %s/%s: %v", pod.Namespace, pod.Name, why)
	}
	for _, name := range []string{binding.AssignedName(pod, b.Identity), binding.AssignedNameUnique(pod, b.Identity)} {
		try := a.DeepCopy()
		try.Name = name
		err := c.Client.Create(ctx, try)
		if err == nil {
			logger(c.Logger).InfoContext(ctx, "assignment created", "pod", pod.Name, "namespace", pod.Namespace, "identity", b.Identity.Name, "node", pod.Node, "assignment", name)
			return nil
		}
		if !apierrors.IsAlreadyExists(err) {
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

func (c *Pods) assignment(pod binding.Pod, b binding.Bound, machine azure.ResourceID, why error) *v1.AzureAssignedIdentity {
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
		return a
	}
	a.Finalizers = []string{v1.AssignedFinalizer}
	if why == nil {
		a.Annotations = map[string]string{annotationMachine: machine.String()}
	} else {
		meta.SetStatusCondition(&a.Status.Conditions, metav1.Condition{Type: v1.ConditionAssigned, Status: metav1.ConditionFalse, Reason: eventNoMachine, Message: why.Error()})
	}
	return a
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

func setAnnotation(o client.Object, name, value string) {
	a := o.GetAnnotations()
	if a == nil {
		a = map[string]string{}
	}
	a[name] = value
	o.SetAnnotations(a)
}

// ignoreGone drops the errors of an object that was deleted or replaced in the
// meantime: the watch brings the news.
func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.Default()
	}
	return l
}

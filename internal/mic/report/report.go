// Package report tells people, in conditions and events on AzureIdentityBinding
// and AzureIdentity, whether these work and, if not, what to do.
//
//	binding, identity, pod, assignment, access request ── watches ──> the binding, gathered for a moment
//	    Ready   False: written wrongly, refused by Azure, no machine; True: how many pods have it
//	    Open    whether time and approvals let the binding be used, and when that changes
//	identity, assignment ── watches ──> the identity
//	    Ready   the same, for all its bindings
//
// Nothing is written that is written already, and an event is recorded only when
// a condition changes its reason.
package report

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/mic/assigned"
	"github.com/lanyard-id/lanyard/internal/mic/pods"
	"github.com/lanyard-id/lanyard/internal/schedule"
)

// Reasons of conditions; those of assignments that fail come beside them.
const (
	reasonAssigned        = "Assigned"
	reasonWaiting         = "Waiting"
	reasonNoPods          = "NoPods"
	reasonInvalidID       = "InvalidResourceID"
	reasonInvalidIdentity = "InvalidIdentity"
	reasonIdentityMissing = "IdentityMissing"
	reasonNoSelector      = "NoSelector"
	reasonInvalidSchedule = "InvalidSchedule"
	reasonInvalidSelector = "InvalidSelector"
	reasonOpen            = "Open"
)

// A Controller reports. All fields but those with a comment must be set before
// SetUp.
type Controller struct {
	Client          client.Client
	Events          events.EventRecorder
	ForceNamespaced bool             // every binding is only for pods of its own namespace
	Requests        bool             // AccessRequests exist in this cluster and may be read
	Delay           time.Duration    // how long changes are gathered
	Now             func() time.Time // nil means time.Now
	Logger          *slog.Logger     // nil means slog.Default

	calendars binding.Calendars
}

// binding reports on one binding.
func (c *Controller) binding(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var b v1.AzureIdentityBinding
	if err := c.Client.Get(ctx, req.NamespacedName, &b); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	next := b.DeepCopy()
	ready, err := c.bindingReady(ctx, &b)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("judging AzureIdentityBinding %s: %w", req, err)
	}
	open, changes, err := c.open(ctx, &b)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("judging AzureIdentityBinding %s: %w", req, err)
	}
	c.set(&b, &next.Status.Conditions, ready, open)
	if equality.Semantic.DeepEqual(b.Status, next.Status) {
		return again(changes, c.now()), nil
	}
	if err := c.Client.Status().Patch(ctx, next, client.MergeFrom(&b)); assigned.IgnoreGone(err) != nil {
		return reconcile.Result{}, fmt.Errorf("reporting on AzureIdentityBinding %s: %w", req, err)
	}
	return again(changes, c.now()), nil
}

// set writes conditions, and an event for each that is new.
func (c *Controller) set(o client.Object, all *[]metav1.Condition, conditions ...metav1.Condition) {
	for _, is := range conditions {
		is.ObservedGeneration = o.GetGeneration()
		is.Message = clip(is.Message)
		was := meta.FindStatusCondition(*all, is.Type)
		if is.Status == metav1.ConditionFalse && is.Type == v1.ConditionReady && (was == nil || was.Reason != is.Reason) {
			c.Events.Eventf(o, nil, corev1.EventTypeWarning, is.Reason, "Report", "%s", assigned.Clip(is.Message))
		}
		meta.SetStatusCondition(all, is)
	}
}

// clip keeps a message within the limit of a condition (32,768 bytes) and of reason.
func clip(s string) string {
	if len(s) > 4000 {
		return strings.ToValidUTF8(s[:4000], "")
	}
	return s
}

func again(changes, now time.Time) reconcile.Result {
	if changes.IsZero() {
		return reconcile.Result{}
	}
	return reconcile.Result{RequeueAfter: min(max(changes.Sub(now), time.Millisecond), time.Hour)}
}

func condition(typ string, ok bool, reason, format string, args ...any) metav1.Condition {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	return metav1.Condition{Type: typ, Status: status, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func (c *Controller) bindingReady(ctx context.Context, b *v1.AzureIdentityBinding) (metav1.Condition, error) {
	none := metav1.Condition{}
	if len(binding.Keys(b)) == 0 {
		return condition(v1.ConditionReady, false, reasonNoSelector, "the binding is for no pod: give spec.selector (the value of the pods' label %s), spec.podSelector or spec.serviceAccountName", v1.BindingLabel), nil
	}
	if b.Spec.Schedule != nil {
		if _, err := schedule.New(b.Spec.Schedule); err != nil {
			return condition(v1.ConditionReady, false, reasonInvalidSchedule, "%v", err), nil
		}
	}
	if b.Spec.PodSelector != nil {
		if _, err := metav1.LabelSelectorAsSelector(b.Spec.PodSelector); err != nil {
			return condition(v1.ConditionReady, false, reasonInvalidSelector, "spec.podSelector: %v", err), nil
		}
	}
	var id v1.AzureIdentity
	err := c.Client.Get(ctx, types.NamespacedName{Namespace: b.Namespace, Name: b.Spec.AzureIdentity}, &id, client.UnsafeDisableDeepCopy)
	if client.IgnoreNotFound(err) != nil {
		return none, err
	}
	if err != nil || !id.DeletionTimestamp.IsZero() {
		return condition(v1.ConditionReady, false, reasonIdentityMissing, "there is no AzureIdentity %s in namespace %s", b.Spec.AzureIdentity, b.Namespace), nil
	}
	if wrong, ok := invalid(&id); !ok {
		wrong.Message = fmt.Sprintf("AzureIdentity %s: %s", id.Name, wrong.Message)
		return wrong, nil
	}
	var list v1.AzureAssignedIdentityList
	if err := c.Client.List(ctx, &list, client.MatchingFields{assigned.AssignedByBinding: b.Namespace + "/" + b.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return none, err
	}
	note, err := c.hostNetwork(ctx, b)
	if err != nil {
		return none, err
	}
	out := summary(list.Items, "no pod that the binding is for runs now")
	out.Message += note
	return out, nil
}

// invalid returns what is wrong with an identity as it is written.
func invalid(id *v1.AzureIdentity) (wrong metav1.Condition, ok bool) {
	err := binding.Valid(id)
	if err == nil {
		return wrong, true
	}
	reason := reasonInvalidIdentity
	if id.Spec.Type == v1.UserAssignedMSI {
		reason = reasonInvalidID
	}
	return condition(v1.ConditionReady, false, reason, "%v", err), false
}

// summary is the condition Ready of whatever the assignments are of.
func summary(list []v1.AzureAssignedIdentity, none string) metav1.Condition {
	var have, waiting, failed int
	var worst *metav1.Condition
	machines := map[string]bool{}
	for i := range list {
		a := &list[i]
		switch bad := meta.FindStatusCondition(a.Status.Conditions, v1.ConditionAssigned); {
		case !a.DeletionTimestamp.IsZero():
		case bad != nil && bad.Status == metav1.ConditionFalse:
			failed++
			if worst == nil || bad.Reason < worst.Reason || bad.Reason == worst.Reason && bad.Message < worst.Message {
				worst = bad
			}
		case a.Status.Status == v1.AssignedIDAssigned || a.Status.Status == "":
			have++
			machines[assigned.MachineKey(a)] = true
		default:
			waiting++
		}
	}
	delete(machines, "")
	switch {
	case failed > 0:
		return condition(v1.ConditionReady, false, worst.Reason, "%d of %d pods cannot use the identity: %s", failed, failed+have+waiting, worst.Message)
	case waiting > 0:
		return condition(v1.ConditionReady, true, reasonWaiting, "%d pods can use the identity, %d wait for Azure", have, waiting)
	case have > 0 && len(machines) > 0:
		return condition(v1.ConditionReady, true, reasonAssigned, "%d pods on %d machines can use the identity", have, len(machines))
	case have > 0:
		return condition(v1.ConditionReady, true, reasonAssigned, "%d pods can use the identity", have)
	default:
		return condition(v1.ConditionReady, true, reasonNoPods, "%s", none)
	}
}

// hostNetwork warns of pods that nmi cannot tell apart.
func (c *Controller) hostNetwork(ctx context.Context, b *v1.AzureIdentityBinding) (string, error) {
	found, err := pods.Reached(ctx, c.Client, b)
	if err != nil {
		return "", err
	}
	n, example := 0, ""
	for i := range found {
		if found[i].Spec.HostNetwork && !pods.Ended(&found[i]) {
			n++
			if name := found[i].Namespace + "/" + found[i].Name; example == "" || name < example {
				example = name
			}
		}
	}
	if n == 0 {
		return "", nil
	}
	return fmt.Sprintf("; %d pods, such as %s, use the host's network: their address is the node's, so they cannot be told apart and get no identity by their address", n, example), nil
}

// open judges time and approvals, whatever pod asks.
func (c *Controller) open(ctx context.Context, b *v1.AzureIdentityBinding) (metav1.Condition, time.Time, error) {
	w := binding.World{Calendars: &c.calendars}
	if c.Requests && b.Spec.Access == v1.AccessOnRequest {
		var list lanyard.AccessRequestList
		if err := c.Client.List(ctx, &list, client.InNamespace(b.Namespace), client.MatchingFields{assigned.RequestsByBinding: b.Name}, client.UnsafeDisableDeepCopy); err != nil {
			return metav1.Condition{}, time.Time{}, err
		}
		for i := range list.Items {
			w.Requests = append(w.Requests, &list.Items[i])
		}
	}
	o := binding.OpeningOf(b, w, c.now())
	if o.Open {
		return condition(v1.ConditionOpen, true, reasonOpen, "%s", o.Text), o.Changes, nil
	}
	text := o.Text
	if b.Spec.Access == v1.AccessOnRequest && !c.Requests {
		text += "; mic may not read AccessRequests, or the cluster has none: apply the CustomResourceDefinition and the ClusterRole of this version and restart mic"
	}
	return condition(v1.ConditionOpen, false, string(o.Reason), "%s", text), o.Changes, nil
}

// identity reports on one identity.
func (c *Controller) identity(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var id v1.AzureIdentity
	if err := c.Client.Get(ctx, req.NamespacedName, &id); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	ready, ok := invalid(&id)
	if ok {
		var list v1.AzureAssignedIdentityList
		if err := c.Client.List(ctx, &list, client.MatchingFields{assigned.AssignedByIdentity: req.String()}, client.UnsafeDisableDeepCopy); err != nil {
			return reconcile.Result{}, err
		}
		ready = summary(list.Items, "no pod uses the identity now")
	}
	next := id.DeepCopy()
	c.set(&id, &next.Status.Conditions, ready)
	if equality.Semantic.DeepEqual(id.Status, next.Status) {
		return reconcile.Result{}, nil
	}
	if err := c.Client.Status().Patch(ctx, next, client.MergeFrom(&id)); assigned.IgnoreGone(err) != nil {
		return reconcile.Result{}, fmt.Errorf("reporting on AzureIdentity %s: %w", req, err)
	}
	return reconcile.Result{}, nil
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

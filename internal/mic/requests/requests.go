// Package requests approves the AccessRequests that a rule of their binding
// approves, and keeps the condition Active of all of them.
//
//	request, binding ── watches ──> the request
//	    binding.Automatic   decision: Approved, by mic's own user, automatic
//	    binding.Granted     Active: from when to when, or why not
//
// mic decides as any approver does: admission asks whether its user holds the
// verb approve. A rule is about who asks, so it decides nothing where admission
// does not check that: see guarded.
package requests

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/mic/assigned"
)

// ConditionActive of an AccessRequest is True while it opens its binding.
const ConditionActive = "Active"

// Reasons of ConditionActive.
const (
	reasonPending   = "Pending"
	reasonUnguarded = "Unguarded"
	reasonActive    = "Active"
	reasonExpired   = "Expired"
	reasonEarly     = "NotYet"
)

// lookAgain is when a request that a rule would approve is tried again while
// nobody checks who asks.
const lookAgain = time.Minute

// A Controller looks after requests. All fields but those with a comment must be
// set before SetUp.
type Controller struct {
	Client client.Client
	User   string           // mic's own, as the API server authenticates it
	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default
}

// SetUp registers the controller.
func (c *Controller) SetUp(m manager.Manager) error {
	return builder.ControllerManagedBy(m).
		Named("requests").
		For(&lanyard.AccessRequest{}).
		Watches(&v1.AzureIdentityBinding{}, handler.EnqueueRequestsFromMapFunc(c.ofBinding)).
		Complete(c)
}

func (c *Controller) ofBinding(ctx context.Context, o client.Object) []reconcile.Request {
	var list lanyard.AccessRequestList
	if err := c.Client.List(ctx, &list, client.InNamespace(o.GetNamespace()), client.MatchingFields{assigned.RequestsByBinding: o.GetName()}, client.UnsafeDisableDeepCopy); err != nil {
		c.logger().ErrorContext(ctx, "mapping a binding to its requests", "binding", o.GetName(), "namespace", o.GetNamespace(), "err", err)
	}
	var out []reconcile.Request
	for i := range list.Items {
		if list.Items[i].Status.Decision == nil {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return out
}

// Reconcile looks after one request.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var r lanyard.AccessRequest
	if err := c.Client.Get(ctx, req.NamespacedName, &r); err != nil || !r.DeletionTimestamp.IsZero() {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	next := r.DeepCopy()
	var unguarded bool
	if r.Status.Decision == nil {
		var err error
		if unguarded, err = c.decide(ctx, next); err != nil {
			return reconcile.Result{}, err
		}
	}
	active, changes := c.active(next)
	if unguarded {
		active.Reason, changes = reasonUnguarded, c.now().Add(lookAgain)
		active.Message = "a rule of the binding would approve it, but nothing checks who asked: apply the admission policy access.lanyard.id (deploy/manifests/access.yaml), or kubectl lanyard approve " + r.Name + " -n " + r.Namespace
	}
	active.ObservedGeneration = r.Generation
	meta.SetStatusCondition(&next.Status.Conditions, active)
	if !equality.Semantic.DeepEqual(r.Status, next.Status) {
		// Whoever decides at the same time must not be overruled.
		if err := c.Client.Status().Patch(ctx, next, client.MergeFromWithOptions(&r, client.MergeFromWithOptimisticLock{})); err != nil {
			if assigned.IgnoreGone(err) == nil {
				return reconcile.Result{}, nil // the watch brings the newer one
			}
			return reconcile.Result{}, fmt.Errorf("writing the status of AccessRequest %s: %w", req, err)
		}
		if r.Status.Decision == nil && next.Status.Decision != nil {
			c.logger().InfoContext(ctx, "access request approved by a rule of its binding", "request", r.Name, "namespace", r.Namespace, "binding", r.Spec.Binding, "requester", r.Spec.Requester.Username, "duration", r.Spec.Duration.Duration)
		}
	}
	if changes.IsZero() {
		return reconcile.Result{}, nil
	}
	return reconcile.Result{RequeueAfter: min(max(changes.Sub(c.now()), time.Millisecond), time.Hour)}, nil
}

// decide approves if a rule of the binding does. unguarded means that it would,
// if admission checked who asks.
func (c *Controller) decide(ctx context.Context, r *lanyard.AccessRequest) (unguarded bool, err error) {
	var b v1.AzureIdentityBinding
	if err := c.Client.Get(ctx, types.NamespacedName{Namespace: r.Namespace, Name: r.Spec.Binding}, &b); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	if !binding.Automatic(&b, r) {
		return false, nil
	}
	if ok, err := c.guarded(ctx, r); err != nil || !ok {
		return !ok, err
	}
	const text = "a rule in spec.approval.automatic of the AzureIdentityBinding allows it"
	r.Status.Decision = &lanyard.Decision{Verdict: lanyard.Approved, By: c.User, At: metav1.NewTime(c.now()), Reason: text, Automatic: true}
	meta.SetStatusCondition(&r.Status.Conditions, metav1.Condition{Type: lanyard.ConditionApproved, Status: metav1.ConditionTrue, Reason: "Automatic", Message: text, ObservedGeneration: r.Generation})
	return false, nil
}

// guarded reports whether the admission policy is in force, by trying, without
// effect, what it refuses: to decide in the name of another.
func (c *Controller) guarded(ctx context.Context, r *lanyard.AccessRequest) (bool, error) {
	try := r.DeepCopy()
	try.Status.Decision = &lanyard.Decision{Verdict: lanyard.Approved, By: "not " + c.User, At: metav1.NewTime(c.now()), Automatic: true}
	err := c.Client.Status().Patch(ctx, try, client.MergeFrom(r), client.DryRunAll)
	switch {
	case apierrors.IsForbidden(err):
		return true, nil
	case err == nil:
		c.logger().ErrorContext(ctx, "the admission policy access.lanyard.id is not in force: nothing is approved by rule", "request", r.Name, "namespace", r.Namespace)
		return false, nil
	default:
		return false, fmt.Errorf("asking whether admission checks decisions about AccessRequest %s/%s: %w", r.Namespace, r.Name, err)
	}
}

// active is the condition, and when it changes; zero means not by itself.
func (c *Controller) active(r *lanyard.AccessRequest) (metav1.Condition, time.Time) {
	no := func(reason, text string) metav1.Condition {
		return metav1.Condition{Type: ConditionActive, Status: metav1.ConditionFalse, Reason: reason, Message: text}
	}
	from, to, granted := binding.Granted(r)
	switch now := c.now(); {
	case r.Status.Decision == nil:
		return no(reasonPending, "nobody has decided yet: kubectl lanyard approve "+r.Name+" -n "+r.Namespace), time.Time{}
	case !granted:
		return no(string(r.Status.Decision.Verdict), "decided by "+r.Status.Decision.By), time.Time{}
	case now.Before(from):
		return no(reasonEarly, "in force from "+from.UTC().Format(time.RFC3339)), from
	case now.Before(to):
		return metav1.Condition{Type: ConditionActive, Status: metav1.ConditionTrue, Reason: reasonActive, Message: "in force until " + to.UTC().Format(time.RFC3339)}, to
	default:
		return no(reasonExpired, "it ended at "+to.UTC().Format(time.RFC3339)), time.Time{}
	}
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

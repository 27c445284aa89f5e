// Package access is how people ask for a binding that is open only on request,
// and how others decide about that: the commands "lanyard access", "lanyard
// approve", "lanyard deny" and "lanyard revoke".
//
//	Ask     who am I (SelfSubjectReview) ── AccessRequest in that name
//	Decide  may I (SelfSubjectAccessReview, verb approve) ── status.decision
//	Wait    a watch until somebody, or a rule, has decided
//
// It only asks politely: whether a request is genuine and a decision allowed is
// checked at admission (deploy/manifests/access.yaml).
package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
)

// A Desk takes requests and decisions of one user to one cluster.
type Desk struct {
	Client client.WithWatch
	Now    func() time.Time // nil means time.Now
}

// NewDesk returns a desk for the user that config authenticates.
func NewDesk(config *rest.Config) (*Desk, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1.AddToScheme, lanyard.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme} {
		if err := add(s); err != nil {
			return nil, fmt.Errorf("registering types: %w", err)
		}
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: s})
	if err != nil {
		return nil, fmt.Errorf("preparing to talk to the API server: %w", err)
	}
	return &Desk{Client: c}, nil
}

// approverRole has all that a decision needs.
const approverRole = "lanyard-access-approver"

// An Ask is what somebody wants.
type Ask struct {
	Namespace string
	Binding   string
	Pod       string // empty means every pod that the binding matches
	Reason    string
	Duration  time.Duration
}

// Ask makes a request in the user's own name.
func (d *Desk) Ask(ctx context.Context, a Ask) (*lanyard.AccessRequest, error) {
	var b v1.AzureIdentityBinding
	switch err := d.Client.Get(ctx, client.ObjectKey{Namespace: a.Namespace, Name: a.Binding}, &b); {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("there is no AzureIdentityBinding %s in namespace %s", a.Binding, a.Namespace)
	case apierrors.IsForbidden(err): // one may ask for what one may not read
	case err != nil:
		return nil, explain(err, "reading AzureIdentityBinding "+a.Namespace+"/"+a.Binding)
	case b.Spec.Access == "" || b.Spec.Access == v1.AccessAlways:
		return nil, fmt.Errorf("AzureIdentityBinding %s/%s needs no request: its spec.access is not OnRequest", a.Namespace, a.Binding)
	}
	who, _, err := d.whoAmI(ctx)
	if err != nil {
		return nil, err
	}
	r := &lanyard.AccessRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.Namespace, GenerateName: prefix(a.Binding)},
		Spec: lanyard.AccessRequestSpec{
			Binding: a.Binding, Pod: a.Pod, Reason: a.Reason,
			Duration:  metav1.Duration{Duration: a.Duration},
			Requester: lanyard.Requester{Username: who.Username, Groups: unique(who.Groups)},
		},
	}
	if err := d.Client.Create(ctx, r); err != nil {
		if apierrors.IsForbidden(err) && !admission(err) {
			return nil, fmt.Errorf("%s may not ask for access in namespace %s: ask for the ClusterRole lanyard-access-requester there (%w)", who.Username, a.Namespace, err)
		}
		return nil, explain(err, "making the request")
	}
	return r, nil
}

// prefix is that of the generated names of requests for a binding.
func prefix(binding string) string {
	const limit = 50
	if len(binding) > limit {
		binding = strings.TrimRight(binding[:limit], "-.")
	}
	return binding + "-"
}

func unique(groups []string) []string {
	groups = slices.Clone(groups)
	slices.Sort(groups)
	return slices.Compact(groups)
}

// List returns the requests of a namespace, or of all if it is empty: those that
// wait first, then the latest first.
func (d *Desk) List(ctx context.Context, namespace string) ([]lanyard.AccessRequest, error) {
	var list lanyard.AccessRequestList
	if err := d.Client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, explain(err, "listing requests")
	}
	slices.SortStableFunc(list.Items, func(a, b lanyard.AccessRequest) int {
		if x, y := a.Status.Decision == nil, b.Status.Decision == nil; x != y {
			if x {
				return -1
			}
			return 1
		}
		return b.CreationTimestamp.Compare(a.CreationTimestamp.Time)
	})
	return list.Items, nil
}

// OnRequest returns the names of the bindings of a namespace that can be asked
// for.
func (d *Desk) OnRequest(ctx context.Context, namespace string) ([]string, error) {
	var list v1.AzureIdentityBindingList
	if err := d.Client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, explain(err, "listing bindings")
	}
	var names []string
	for i := range list.Items {
		if list.Items[i].Spec.Access == v1.AccessOnRequest {
			names = append(names, list.Items[i].Name)
		}
	}
	return names, nil
}

// Decide writes a decision in the user's own name. It is in force from the API
// server's present time on, because the user's clock may be wrong.
func (d *Desk) Decide(ctx context.Context, namespace, name string, verdict lanyard.Verdict, reason string) (*lanyard.AccessRequest, error) {
	who, now, err := d.whoAmI(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.mayDecide(ctx, who.Username, namespace, name, verdict); err != nil {
		return nil, err
	}
	for {
		var r lanyard.AccessRequest
		if err := d.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &r); err != nil {
			if apierrors.IsNotFound(err) {
				return nil, fmt.Errorf("there is no AccessRequest %s in namespace %s", name, namespace)
			}
			return nil, explain(err, "reading AccessRequest "+namespace+"/"+name)
		}
		if err := sensible(&r, verdict, now); err != nil {
			return nil, err
		}
		next := r.DeepCopy()
		decide(next, lanyard.Decision{Verdict: verdict, By: who.Username, At: metav1.NewTime(now), Reason: reason})
		err := d.Client.Status().Patch(ctx, next, client.MergeFromWithOptions(&r, client.MergeFromWithOptimisticLock{}))
		switch {
		case err == nil:
			return next, nil
		case apierrors.IsConflict(err): // somebody else wrote: look again
		case apierrors.IsForbidden(err) && !admission(err):
			return nil, fmt.Errorf("you may not %s AccessRequest %s/%s: ask for the verb patch on accessrequests/status.lanyard.id, which the ClusterRole %s has (%w)", verb(verdict), namespace, name, approverRole, err)
		default:
			return nil, explain(err, "writing the decision")
		}
	}
}

// decide writes the decision and its story.
func decide(r *lanyard.AccessRequest, d lanyard.Decision) {
	c := metav1.Condition{Type: lanyard.ConditionApproved, Status: metav1.ConditionFalse, Reason: string(d.Verdict), LastTransitionTime: d.At}
	c.Message = strings.ToLower(string(d.Verdict)) + " by " + d.By
	if d.Verdict == lanyard.Approved {
		c.Status = metav1.ConditionTrue
	}
	if was := r.Status.Decision; was != nil {
		c.Message += "; approved by " + was.By + " at " + was.At.UTC().Format(time.RFC3339)
	}
	meta.SetStatusCondition(&r.Status.Conditions, c)
	r.Status.Decision = &d
}

// sensible refuses decisions that the API server would refuse with fewer words.
func sensible(r *lanyard.AccessRequest, verdict lanyard.Verdict, now time.Time) error {
	name := "AccessRequest " + r.Namespace + "/" + r.Name
	was := r.Status.Decision
	switch {
	case was == nil && verdict == lanyard.Revoked:
		return fmt.Errorf("%s is not approved, so there is nothing to revoke: deny it instead", name)
	case was == nil:
		return nil
	case was.Verdict == lanyard.Approved && verdict == lanyard.Revoked:
		if end := was.At.Add(r.Spec.Duration.Duration); !now.Before(end) {
			return fmt.Errorf("the access that %s gave ended %s: there is nothing to revoke", name, end.UTC().Format(time.RFC3339))
		}
		return nil
	case was.Verdict == lanyard.Approved && verdict == lanyard.Denied:
		return fmt.Errorf("%s was approved by %s: revoke it instead", name, was.By)
	default:
		return fmt.Errorf("%s was %s by %s at %s already", name, strings.ToLower(string(was.Verdict)), was.By, was.At.UTC().Format(time.RFC3339))
	}
}

// Wait returns the request once it is decided. It ends with the context.
func (d *Desk) Wait(ctx context.Context, namespace, name string) (*lanyard.AccessRequest, error) {
	var r *lanyard.AccessRequest
	for ctx.Err() == nil {
		var list lanyard.AccessRequestList
		here := []client.ListOption{client.InNamespace(namespace), client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("metadata.name", name)}}
		if err := d.Client.List(ctx, &list, here...); ctx.Err() != nil {
			break
		} else if err != nil {
			return r, explain(err, "waiting for a decision")
		}
		if len(list.Items) == 0 {
			return r, fmt.Errorf("AccessRequest %s/%s was deleted before it was decided", namespace, name)
		}
		if r = &list.Items[0]; r.Status.Decision != nil {
			return r, nil
		}
		w, err := d.Client.Watch(ctx, &lanyard.AccessRequestList{}, append(here, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.ResourceVersion}})...)
		if ctx.Err() != nil && err != nil {
			break
		} else if err != nil {
			return r, explain(err, "waiting for a decision")
		}
		next := decided(w)
		if next != nil && next.Status.Decision != nil {
			return next, nil
		}
	}
	return r, fmt.Errorf("nobody has decided about AccessRequest %s/%s: %w", namespace, name, context.Cause(ctx))
}

// decided returns the first decided state that a watch tells of, or nil when the
// watch ends, which API servers do every few minutes, or the request is deleted.
func decided(w watch.Interface) *lanyard.AccessRequest {
	defer w.Stop()
	for event := range w.ResultChan() {
		r, ok := event.Object.(*lanyard.AccessRequest)
		if !ok || event.Type == watch.Deleted {
			return nil
		}
		if r.Status.Decision != nil {
			return r
		}
	}
	return nil
}

// whoAmI returns the user as the API server sees it, and the server's time.
func (d *Desk) whoAmI(ctx context.Context) (authenticationv1.UserInfo, time.Time, error) {
	var review authenticationv1.SelfSubjectReview
	if err := d.Client.Create(ctx, &review); err != nil {
		return authenticationv1.UserInfo{}, time.Time{}, explain(err, "asking the API server who you are")
	}
	now := review.CreationTimestamp.Time
	if now.IsZero() {
		if now = time.Now(); d.Now != nil {
			now = d.Now()
		}
	}
	return review.Status.UserInfo, now.Truncate(time.Second), nil
}

func (d *Desk) mayDecide(ctx context.Context, user, namespace, name string, verdict lanyard.Verdict) error {
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
		Namespace: namespace, Name: name, Verb: lanyard.VerbApprove, Group: lanyard.GroupName, Resource: lanyard.ResourceAccessRequests,
	}}}
	if err := d.Client.Create(ctx, review); err != nil {
		return explain(err, "asking whether you may decide")
	}
	if !review.Status.Allowed {
		return fmt.Errorf("you (%s) may not %s AccessRequest %s/%s: ask for the verb approve on accessrequests.lanyard.id, which the ClusterRole %s has", user, verb(verdict), namespace, name, approverRole)
	}
	return nil
}

func verb(v lanyard.Verdict) string {
	switch v {
	case lanyard.Approved:
		return "approve"
	case lanyard.Denied:
		return "deny"
	default:
		return "revoke"
	}
}

// admission reports whether a refusal is the policy's, whose message is for
// people, and not RBAC's.
func admission(err error) bool {
	return strings.Contains(err.Error(), "ValidatingAdmissionPolicy")
}

// explain adds what to do to errors that have a usual cause.
func explain(err error, doing string) error {
	var missing *meta.NoKindMatchError
	if errors.As(err, &missing) || meta.IsNoMatchError(err) {
		return fmt.Errorf("%s: this cluster does not have the API %s: install Lanyard's CRDs there (%w)", doing, lanyard.GroupVersion(), err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

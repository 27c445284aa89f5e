package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	aadv1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyardv1 "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/estate"
)

// Bindings of the story whose time is limited, and the people around them:
// personas of the mission's documents.
const (
	nightlyBinding    = "nightly-report"
	breakGlassBinding = "break-glass"
	requester         = "faye"
	approver          = "leonard"
	accessRequest     = "faye-break-glass"
)

// openLater is a window that is closed now: document 004's "between midnight
// and 1 AM", on the day that is furthest away.
func openLater(now time.Time) *aadv1.Schedule {
	day := strings.ToLower(now.UTC().AddDate(0, 0, 4).Weekday().String()[:3])
	return &aadv1.Schedule{Windows: []aadv1.Window{{Days: []aadv1.Day{aadv1.Day(day)}, Start: "00:00", End: "01:00"}}}
}

// openNow is open all day, every day.
func openNow() *aadv1.Schedule {
	return &aadv1.Schedule{Windows: []aadv1.Window{{Start: "00:00", End: "24:00"}}}
}

// limitedBindings let pods use the identity of document 001 at a time, or on
// request.
func limitedBindings(now time.Time) []client.Object {
	binding := func(name string) *aadv1.AzureIdentityBinding {
		return &aadv1.AzureIdentityBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name},
			Spec:       aadv1.AzureIdentityBindingSpec{AzureIdentity: estate.PodIdentity, Selector: name},
		}
	}
	nightly, breakGlass := binding(nightlyBinding), binding(breakGlassBinding)
	nightly.Spec.Schedule = openLater(now)
	breakGlass.Spec.Access = aadv1.AccessOnRequest
	return []client.Object{
		nightly, breakGlass,
		grant(requester, "lanyard-access-requester"),
		grant(approver, "lanyard-access-approver"),
	}
}

// grant gives a user one of the roles that come with AccessRequests.
func grant(user, role string) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: user},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}
}

// setWindow gives the nightly binding another schedule.
func (s *Story) setWindow(ctx context.Context, schedule *aadv1.Schedule) error {
	b := &aadv1.AzureIdentityBinding{}
	if err := s.Objects.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: nightlyBinding}, b); err != nil {
		return fmt.Errorf("reading the binding %s: %w", nightlyBinding, err)
	}
	was := b.DeepCopy()
	b.Spec.Schedule = schedule
	if err := s.Objects.Patch(ctx, b, client.MergeFrom(was)); err != nil {
		return fmt.Errorf("moving the window of the binding %s: %w", nightlyBinding, err)
	}
	return nil
}

// requestAndApprove is what `kubectl lanyard access request` of one person and
// `kubectl lanyard approve` of another do.
func (s *Story) requestAndApprove(ctx context.Context) error {
	asks, err := s.As(requester)
	if err != nil {
		return err
	}
	r := &lanyardv1.AccessRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: accessRequest},
		Spec: lanyardv1.AccessRequestSpec{
			Binding: breakGlassBinding, Reason: "the greeting must be read by hand", Duration: metav1.Duration{Duration: time.Hour},
			Requester: lanyardv1.Requester{Username: requester},
		},
	}
	if err := asks.Create(ctx, r); err != nil {
		return fmt.Errorf("%s asks for the binding %s: %w", requester, breakGlassBinding, err)
	}
	decides, err := s.As(approver)
	if err != nil {
		return err
	}
	was := r.DeepCopy()
	r.Status.Decision = &lanyardv1.Decision{Verdict: lanyardv1.Approved, By: approver, At: metav1.Now()}
	if err := decides.Status().Patch(ctx, r, client.MergeFrom(was)); err != nil {
		return fmt.Errorf("%s approves the request %s: %w", approver, accessRequest, err)
	}
	return nil
}

// forgetRequest removes what an earlier play left, so that the door is shut again.
func (s *Story) forgetRequest(ctx context.Context) error {
	r := &lanyardv1.AccessRequest{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: accessRequest}}
	if err := s.Objects.Delete(ctx, r); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("removing the request of an earlier play: %w", err)
	}
	return nil
}

package access_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/access"
)

func TestNobodyAsksInTheNameOfAnother(t *testing.T) {
	o := newOffice(t)
	alice := o.desk("alice").Client
	o.refused(alice.Create(t.Context(), o.request("bob", nil)), "spec.requester.username must be alice")
	o.refused(alice.Create(t.Context(), o.request("alice", []string{"dev", "sre"})), "may only name groups of alice")
	if err := alice.Create(t.Context(), o.request("alice", []string{"dev"})); err != nil {
		t.Errorf("a subset of the groups: %v", err)
	}
	if err := alice.Create(t.Context(), o.request("alice", nil)); err != nil {
		t.Errorf("no groups: %v", err)
	}
	decided := o.request("mallory", nil)
	decided.Status.Decision = &lanyard.Decision{Verdict: lanyard.Approved, By: "mallory", At: metav1.Now()}
	if err := o.desk("mallory").Client.Create(t.Context(), decided); err == nil && o.now(decided).Status.Decision != nil {
		t.Error("a request brought its decision along")
	}
}

func TestARequestCannotBeChanged(t *testing.T) {
	o := newOffice(t)
	r := o.asked()
	for name, edit := range map[string]func(*lanyard.AccessRequest){
		"duration":  func(r *lanyard.AccessRequest) { r.Spec.Duration.Duration = 100 * time.Hour },
		"binding":   func(r *lanyard.AccessRequest) { r.Spec.Binding = "other" },
		"requester": func(r *lanyard.AccessRequest) { r.Spec.Requester.Username = "mallory" },
		"groups":    func(r *lanyard.AccessRequest) { r.Spec.Requester.Groups = append(r.Spec.Requester.Groups, "sre") },
		"pod":       func(r *lanyard.AccessRequest) { r.Spec.Pod = "p" },
	} {
		t.Run(name, func(t *testing.T) {
			now := o.now(r)
			edit(&now)
			for user, c := range map[string]client.Client{"mallory": o.desk("mallory").Client, "the administrator": o.admin} {
				if err := c.Update(t.Context(), &now); err == nil || !strings.Contains(err.Error(), "a request cannot be changed") {
					t.Errorf("%s: %v", user, err)
				}
			}
		})
	}
}

func TestOnlyWhoMayApproveDecides(t *testing.T) {
	o := newOffice(t)
	r := o.asked()
	at := metav1.NewTime(time.Now().Truncate(time.Second))
	approved := func(by string) *lanyard.Decision {
		return &lanyard.Decision{Verdict: lanyard.Approved, By: by, At: at}
	}
	o.refused(o.decide("alice", r, approved("alice")), "forbidden")
	for _, verdict := range []lanyard.Verdict{lanyard.Approved, lanyard.Denied, lanyard.Revoked} {
		o.refused(o.decide("mallory", r, &lanyard.Decision{Verdict: verdict, By: "mallory", At: at}), "mallory may not decide about AccessRequest "+o.namespace+"/"+r.Name)
	}
	o.refused(o.decide("mallory", r, approved("bob")), "mallory may not decide")
	o.refused(o.decide("bob", r, approved("alice")), "status.decision.by must be bob")
	rule := approved("bob")
	rule.Automatic = true
	o.refused(o.decide("bob", r, rule), "a person decides in person")
	if d := o.now(r).Status.Decision; d != nil {
		t.Fatalf("decided: %+v", d)
	}
	if err := o.decide("bob", r, approved("bob")); err != nil {
		t.Fatal(err)
	}

	// What is decided stays so: an approval is not extended, renamed or taken back.
	later := approved("bob")
	later.At = metav1.NewTime(at.Add(time.Hour))
	o.refused(o.decide("bob", r, later), "an approval can be revoked, everything else is final")
	o.refused(o.decide("bob", r, nil), "a decision cannot be taken back")
	o.refused(o.decide("mallory", r, &lanyard.Decision{Verdict: lanyard.Revoked, By: "mallory", At: at}), "mallory may not decide")
	o.refused(o.decide("mallory", r, nil), "cannot be taken back")
	if err := o.decide("bob", r, &lanyard.Decision{Verdict: lanyard.Revoked, By: "bob", At: at}); err != nil {
		t.Fatal(err)
	}
	o.refused(o.decide("bob", r, approved("bob")), "final")
	// Conditions are no decision.
	now := o.now(r)
	now.Status.Conditions = []metav1.Condition{{Type: "Seen", Status: "True", Reason: "Seen", LastTransitionTime: at}}
	if err := o.desk("mallory").Client.Status().Update(t.Context(), &now); err != nil {
		t.Errorf("a condition: %v", err)
	}
}

func TestTheVerbCanBeGivenForOneRequest(t *testing.T) {
	o := newOffice(t)
	one, other := o.asked(), o.asked()
	o.make(
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: "one"}, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{"lanyard.id"}, Resources: []string{"accessrequests"}, Verbs: []string{"approve"}, ResourceNames: []string{one.Name}},
			{APIGroups: []string{"lanyard.id"}, Resources: []string{"accessrequests", "accessrequests/status"}, Verbs: []string{"get", "patch"}},
		}},
		o.grant("dave", "Role", "one"),
	)
	dave := o.desk("dave")
	if _, err := dave.Decide(t.Context(), o.namespace, one.Name, lanyard.Approved, ""); err != nil {
		t.Error(err)
	}
	_, err := dave.Decide(t.Context(), o.namespace, other.Name, lanyard.Approved, "")
	o.refused(err, "you (dave) may not approve")
	o.refused(o.patch("dave", other, "dave"), "dave may not decide")
}

func TestFromTheQuestionToTheRevocation(t *testing.T) {
	o := newOffice(t)
	r := o.asked()
	if diff := cmp.Diff(lanyard.Requester{Username: "alice", Groups: []string{"dev", "system:authenticated"}}, r.Spec.Requester); diff != "" {
		t.Error(diff)
	}
	var got *lanyard.AccessRequest
	_, done := background(t, func(ctx context.Context) (err error) {
		got, err = o.desk("alice").Wait(ctx, r.Namespace, r.Name)
		return err
	})
	bob := o.desk("bob")
	if _, err := bob.Decide(t.Context(), r.Namespace, r.Name, lanyard.Revoked, ""); err == nil {
		t.Error("what nobody approved was revoked")
	}
	before := time.Now()
	if _, err := bob.Decide(t.Context(), r.Namespace, r.Name, lanyard.Approved, "as agreed"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	d := got.Status.Decision
	if d.Verdict != lanyard.Approved || d.By != "bob" || d.Reason != "as agreed" || d.Automatic || d.At.Sub(before).Abs() > time.Minute {
		t.Errorf("decision %+v", d)
	}
	_, err := bob.Decide(t.Context(), r.Namespace, r.Name, lanyard.Denied, "")
	o.refused(err, "was approved by bob: revoke it instead")
	_, err = bob.Decide(t.Context(), r.Namespace, r.Name, lanyard.Approved, "")
	o.refused(err, "was approved by bob at ")
	if _, err := bob.Decide(t.Context(), r.Namespace, r.Name, lanyard.Revoked, "done"); err != nil {
		t.Fatal(err)
	}
	now := o.now(r)
	if d := now.Status.Decision; d.Verdict != lanyard.Revoked || d.By != "bob" {
		t.Errorf("decision %+v", d)
	}
	if c := now.Status.Conditions; len(c) != 1 || c[0].Status != metav1.ConditionFalse || !strings.Contains(c[0].Message, "revoked by bob; approved by bob at 20") {
		t.Errorf("conditions %+v", c)
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	o := newOffice(t)
	r := o.asked()
	ask := func(user, binding string) error {
		_, err := o.desk(user).Ask(t.Context(), access.Ask{Namespace: o.namespace, Binding: binding, Reason: "x", Duration: time.Hour})
		return err
	}
	o.refused(ask("alice", "none"), "there is no AzureIdentityBinding none in namespace "+o.namespace)
	o.refused(ask("alice", "plain"), "needs no request: its spec.access is not OnRequest")
	o.refused(ask("carol", "payroll"), "carol may not ask for access in namespace "+o.namespace+": ask for the ClusterRole lanyard-access-requester")
	for _, user := range []string{"alice", "mallory"} {
		_, err := o.desk(user).Decide(t.Context(), r.Namespace, r.Name, lanyard.Approved, "")
		o.refused(err, "you ("+user+") may not approve AccessRequest "+r.Namespace+"/"+r.Name+": ask for the verb approve on accessrequests.lanyard.id")
	}
	_, err := o.desk("bob").Decide(t.Context(), r.Namespace, "none", lanyard.Approved, "")
	o.refused(err, "there is no AccessRequest none in namespace "+o.namespace)
}

func TestWhoWaitsLearnsThatTheRequestIsGone(t *testing.T) {
	o := newOffice(t)
	r := o.asked()
	_, done := background(t, func(ctx context.Context) error {
		_, err := o.desk("alice").Wait(ctx, r.Namespace, r.Name)
		return err
	})
	if err := o.desk("bob").Client.Delete(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	o.refused(<-done, "was deleted before it was decided")
	other := o.asked()
	stop, done := background(t, func(ctx context.Context) error {
		_, err := o.desk("alice").Wait(ctx, other.Namespace, other.Name)
		return err
	})
	stop(errors.New("enough of it"))
	o.refused(<-done, "enough of it")
}

func TestTheTable(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	make := func(name, reason string, verdict lanyard.Verdict, ago time.Duration) lanyard.AccessRequest {
		r := lanyard.AccessRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}}
		r.Spec = lanyard.AccessRequestSpec{Binding: "b", Reason: reason, Duration: metav1.Duration{Duration: time.Hour}, Requester: lanyard.Requester{Username: "alice"}}
		if verdict != "" {
			r.Status.Decision = &lanyard.Decision{Verdict: verdict, By: "bob", At: metav1.NewTime(now.Add(-ago))}
		}
		return r
	}
	var out bytes.Buffer
	err := access.Print(&out, "", []lanyard.AccessRequest{
		make("one", "why\x1b[31m\nfake   row", "", 0), make("two", "why", lanyard.Approved, 48*time.Minute), make("three", "why", lanyard.Approved, time.Hour),
		make("four", "why", lanyard.Denied, 0), make("five", "why", lanyard.Revoked, 0), make("six", "why", lanyard.Approved, -time.Hour),
	}, true, false, now)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.TrimPrefix(`
NAME    BINDING   POD   REQUESTER   DURATION   STATE            REASON
one     b         *     alice       1h0m0s     waits            why [31m fake   row
two     b         *     alice       1h0m0s     open, 12m left   why
three   b         *     alice       1h0m0s     ended            why
four    b         *     alice       1h0m0s     denied by bob    why
five    b         *     alice       1h0m0s     revoked by bob   why
six     b         *     alice       1h0m0s     opens in 1h0m    why
`, "\n")
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

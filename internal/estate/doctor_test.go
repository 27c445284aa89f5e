package estate_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// webhookIgnored: with failurePolicy Ignore pods run without their identity
// while the webhook is down. The doctor tells of all of them and evicts those
// that somebody makes again; their replacements work. Nobody's hand is needed.
func webhookIgnored(t *testing.T, s *shop) {
	s.hireDoctor(t)
	s.scale(t, 0)
	s.failurePolicy(t, "Ignore")
	until(t, 10*time.Second, "pods are admitted as they are", func(ctx context.Context) error {
		p, _, err := s.try(ctx)
		if err == nil && mutated(p) {
			err = errors.New("the webhook has seen one")
		}
		return err
	})
	d := s.deploy(t, "gap", "red")
	alone := labelled("alone", "red", workload("main", "watch"))
	must(t, s.Objects.Create(t.Context(), alone))
	var sick []corev1.Pod
	until(t, 20*time.Second, "the pods are there", func(ctx context.Context) (err error) {
		if sick, err = s.podsOf(ctx, "gap"); err == nil && len(sick) != 2 {
			err = fmt.Errorf("%d pods", len(sick))
		}
		return err
	})
	for i := range sick {
		if mutated(&sick[i]) {
			t.Fatalf("%s is mutated: this proves nothing", sick[i].Name)
		}
	}
	s.scale(t, 2)
	back := time.Now()
	s.rolledOut(t, 60*time.Second, webhookNS, webhooks)
	s.untilServed(t, 120*time.Second, "gap", "red")
	t.Logf("healed %.1f s after the webhook was started", time.Since(back).Seconds())
	var one corev1.Pod
	if err := s.Objects.Get(t.Context(), client.ObjectKeyFromObject(alone), &one); err != nil || one.UID != alone.UID || one.DeletionTimestamp != nil {
		t.Errorf("a pod that nobody makes again should stay: %v, %v", one.UID, err)
	}
	for _, p := range append(sick, *alone) {
		s.event(t, p.Name, "NotMutated")
	}
	until(t, 20*time.Second, "the doctor counts what it did", func(ctx context.Context) error {
		for metric, want := range map[string]float64{
			`lanyard_webhook_doctor_evictions_total{result="evicted"}`: 2, `lanyard_webhook_doctor_evictions_total{result="healed"}`: 2,
			`lanyard_webhook_doctor_pods{finding="NotMutated"}`: 1,
		} {
			if got := s.counted(t, webhookNS, "8095", metric); got != want {
				return fmt.Errorf("%s is %v, want %v", metric, got, want)
			}
		}
		return nil
	})
	var list eventsv1.EventList
	must(t, s.Objects.List(t.Context(), &list, client.InNamespace(namespace)))
	for _, e := range list.Items {
		if e.Regarding.Name == alone.Name && e.Reason == "NotMutated" && !strings.Contains(e.Note, "not evicted") {
			t.Errorf("nobody is told why %s stays: %s", alone.Name, e.Note)
		}
	}
	s.failurePolicy(t, "Fail")
	must(t, s.Objects.Delete(t.Context(), d))
	must(t, s.Objects.Delete(t.Context(), alone, client.GracePeriodSeconds(0)))
}

func (s *shop) failurePolicy(t *testing.T, p string) {
	t.Helper()
	s.patch(t, s.configuration(), fmt.Sprintf(`[{"op":"replace","path":"/webhooks/0/failurePolicy","value":%q}]`, p))
}

// hireDoctor is what the chart does with doctor.mode=evict.
func (s *shop) hireDoctor(t *testing.T) {
	t.Helper()
	rule := func(group, resource string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
	}
	const name = "doctor"
	account := []rbacv1.Subject{{Kind: "ServiceAccount", Name: "azure-wi-webhook-admin", Namespace: webhookNS}}
	for _, o := range []client.Object{
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{
			rule("", "pods", "get", "list", "watch"), rule("events.k8s.io", "events", "create", "patch"), rule("", "pods/eviction", "create"),
		}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: account, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: name}},
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: webhookNS, Name: name}, Rules: []rbacv1.PolicyRule{rule("coordination.k8s.io", "leases", "create", "get", "update")}},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: webhookNS, Name: name}, Subjects: account, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: name}},
	} {
		must(t, s.Objects.Create(t.Context(), o))
	}
	s.patch(t, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: webhookNS, Name: webhooks}},
		`[{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--doctor=evict"},{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--doctor-interval=10s"}]`)
}

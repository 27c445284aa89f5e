package doctor

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"

	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/webhook/doctor/diagnosis"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

// The account has what the doctor needs, and nothing else.
func (w *town) account() *rest.Config {
	w.t.Helper()
	name := "doctor-" + w.namespace
	rule := func(group, resource string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
	}
	everywhere := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{
		rule("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "get"),
		rule("", "pods", "get", "list", "watch"), rule("", "namespaces", "get"), rule("", "serviceaccounts", "get"),
		rule("events.k8s.io", "events", "create", "patch"), rule("", "pods/eviction", "create"),
	}}
	election := rule("coordination.k8s.io", "leases", "get", "update")
	election.ResourceNames = []string{LeaseName}
	here := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace}, Rules: []rbacv1.PolicyRule{
		rule("coordination.k8s.io", "leases", "create"), election,
	}}
	subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Name: "default", Namespace: w.namespace}}
	var errs []error
	errs = append(errs, w.client.Create(w.t.Context(), everywhere), w.client.Create(w.t.Context(), here),
		w.client.Create(w.t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: subjects, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: name}}),
		w.client.Create(w.t.Context(), &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace}, Subjects: subjects, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: name}}))
	if err := errors.Join(errs...); err != nil {
		w.t.Fatal(err)
	}
	token, err := w.kube.CoreV1().ServiceAccounts(w.namespace).CreateToken(w.t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(cluster.Config(w.t))
	config.BearerToken = token.Status.Token
	return config
}

func TestARolloutWhileTheWebhookIsAwayIsHealed(t *testing.T) {
	w := newTown(t)
	w.deployment("web", 3)
	alone := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "alone", Namespace: w.namespace, Labels: map[string]string{"azure.workload.identity/use": "true", "app": "alone"}}, Spec: spec()}
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: w.namespace}, Spec: policyv1.PodDisruptionBudgetSpec{
		MaxUnavailable: &intstr.IntOrString{IntVal: 0}, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
	}}
	if err := errors.Join(w.client.Create(t.Context(), alone), w.client.Create(t.Context(), budget)); err != nil {
		t.Fatal(err)
	}
	before := map[types.UID]bool{}
	for _, p := range w.pods("app=web") {
		if mutated(p) {
			t.Fatalf("%s is mutated: the webhook is not away", p.Name)
		}
		before[p.UID] = true
	}
	w.webhookIsBack()

	c := w.start(w.open(w.account(), true))
	labtest.Eventually(t, t.Context(), func() error {
		switch {
		case c.found(diagnosis.NotMutated) != 4:
			return fmt.Errorf("%v pods are found", c.found(diagnosis.NotMutated))
		case len(w.events("NotMutated")) != 4:
			return fmt.Errorf("events %q", w.events("NotMutated"))
		case c.evictions(resultRefused) < 2:
			return fmt.Errorf("the budget has refused %v evictions", c.evictions(resultRefused))
		}
		return nil
	})
	for _, text := range w.events("NotMutated") {
		if want := "has no projected token"; !strings.HasPrefix(text, "Warning ") || !strings.Contains(text, want) {
			t.Errorf("event %q lacks %q", text, want)
		}
	}
	for _, p := range w.pods("app=web") {
		if !before[p.UID] || p.DeletionTimestamp != nil {
			t.Errorf("%s goes or came against the budget", p.Name)
		}
	}
	w.patch(budget, types.MergePatchType, `{"spec":{"maxUnavailable":1}}`)
	labtest.Eventually(t, t.Context(), func() error {
		healed := 0
		for _, p := range w.pods("app=web") {
			if mutated(p) && !before[p.UID] {
				healed++
			}
		}
		if found := c.found(diagnosis.NotMutated); healed != 3 || found != 1 || c.evictions(resultHealed) != 3 {
			return fmt.Errorf("%d pods are healed, %v are not mutated, %v evictions helped", healed, found, c.evictions(resultHealed))
		}
		return nil
	})
	if n := c.evictions(resultEvicted); n != 3 {
		t.Errorf("%v evictions for 3 pods", n)
	}
	if pods := w.pods("app=alone"); len(pods) != 1 || pods[0].UID != alone.UID {
		t.Error("the pod without a controller has gone")
	}
	if err := w.client.Delete(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, t.Context(), func() error {
		if n := c.found(diagnosis.NotMutated); n != 0 {
			return fmt.Errorf("%v are left", n)
		}
		return nil
	})
	if log := c.log.String(); !strings.Contains(log, "a pod lacks its workload identity") || strings.Count(log, "pod=alone") != 1 || strings.Contains(log, "forbidden") {
		t.Errorf("log:\n%s", log)
	}
}

func TestReportsAndLeavesThePodsAlone(t *testing.T) {
	w := newTown(t)
	w.deployment("web", 2)
	w.webhookIsBack()
	c := w.open(w.account(), false)
	c.Pace.Grace, c.Pace.Remind = 1, 1 // every round
	w.start(c)
	labtest.Eventually(t, t.Context(), func() error {
		list, err := w.kube.EventsV1().Events(w.namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Reason == "NotMutated" && e.Series != nil && e.Series.Count >= 3 {
				return nil
			}
		}
		return fmt.Errorf("no series in %v events", len(list.Items))
	})
	if n := len(w.events("NotMutated")); n != 2 {
		t.Errorf("%d events for 2 pods", n)
	}
	if n := c.evictions(resultEvicted); n != 0 || len(w.pods("app=web")) != 2 {
		t.Errorf("%v evictions", n)
	}
}

func TestAReplacementThatIsNoBetterEndsTheEvictions(t *testing.T) {
	w := newTown(t) // and the webhook stays away
	w.deployment("web", 2)
	c := w.start(w.open(cluster.Config(t), true))
	labtest.Eventually(t, t.Context(), func() error {
		if n := len(w.events(reasonUnhelped)); n != 1 || c.evictions(resultUnhealed) != 1 {
			return fmt.Errorf("%d events, %v evictions without help", n, c.evictions(resultUnhealed))
		}
		return nil
	})
	if n := c.evictions(resultEvicted); n != 1 {
		t.Errorf("%v evictions", n)
	}
	after := map[types.UID]bool{}
	for _, p := range w.pods("app=web") {
		after[p.UID] = true
	}

	// The next leader knows it.
	c.stop()
	if c.found(diagnosis.NotMutated) != 0 || c.acts() {
		t.Error("a doctor that no longer acts has findings")
	}
	next := w.start(w.open(cluster.Config(t), true))
	labtest.Eventually(t, t.Context(), func() error {
		if n := next.found(diagnosis.NotMutated); n != 2 {
			return fmt.Errorf("the next leader has found %v pods", n)
		}
		return nil
	})
	// Several rounds later nobody has gone.
	rounds := next.renewals(t)
	labtest.Eventually(t, t.Context(), func() error {
		if rounds() < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	for _, p := range w.pods("app=web") {
		if !after[p.UID] {
			t.Errorf("%s came after the doctor had given up", p.Name)
		}
	}
	if n := next.evictions(resultEvicted); n != 0 {
		t.Errorf("the next leader evicted %v", n)
	}
}

// renewals counts how often the Lease is written from now on.
func (c *clinic) renewals(t *testing.T) func() int {
	t.Helper()
	read := func() string {
		l, err := c.lease.read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return l.ResourceVersion
	}
	last, n := read(), 0
	return func() int {
		if now := read(); now != last {
			last, n = now, n+1
		}
		return n
	}
}

func TestOfTwoReplicasOneActsAndTheOtherTakesOver(t *testing.T) {
	w := newTown(t)
	w.deployment("web", 1)
	w.webhookIsBack()
	first := w.start(w.open(cluster.Config(t), false))
	labtest.Eventually(t, t.Context(), first.looked)
	second := w.start(w.open(cluster.Config(t), true))
	rounds := first.renewals(t)
	labtest.Eventually(t, t.Context(), func() error {
		if second.acts() {
			t.Fatal("both act")
		}
		if rounds() < 3 {
			return errors.New("the first has not renewed its lease three times yet")
		}
		return nil
	})
	first.dead.Store(true) // it cannot give the Lease back
	labtest.Eventually(t, t.Context(), func() error {
		if second.acts() && first.acts() {
			t.Fatal("both act")
		}
		if !second.acts() || second.evictions(resultHealed) != 1 {
			return errors.New("the second has not healed the pod yet")
		}
		return nil
	})
	if first.acts() {
		t.Error("the one that is cut off still acts")
	}
	first.dead.Store(false)
}

func TestNobodyIsEvictedWhileTheWebhookIsNotReady(t *testing.T) {
	w := newTown(t)
	w.deployment("web", 1)
	w.webhookIsBack()
	c := w.open(cluster.Config(t), true)
	ready, asked := make(chan struct{}), make(chan struct{}, 1)
	born := w.pods("app=web")[0].CreationTimestamp.Time
	c.Ready = func() error {
		select {
		case <-ready:
			return nil
		default:
		}
		if c.found(diagnosis.NotMutated) == 1 && c.API.now().Sub(born) > c.Pace.Grace {
			select {
			case asked <- struct{}{}:
			default:
			}
		}
		return errors.New("no certificate")
	}
	w.start(c)
	select {
	case <-asked:
	case <-t.Context().Done():
	}
	if n := c.evictions(resultEvicted); n != 0 {
		t.Errorf("%v evictions while the webhook was not ready", n)
	}
	close(ready)
	labtest.Eventually(t, t.Context(), func() error {
		if n := c.evictions(resultHealed); n != 1 {
			return fmt.Errorf("%v healed", n)
		}
		return nil
	})
}

// A pod may name an owner that it does not have. It harms itself, nobody else.
func TestAForgedOwnerEvictsNobodyElse(t *testing.T) {
	w := newTown(t)
	// Nothing here runs stateful sets: what the pods say of their owner stays.
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: w.namespace}, Spec: appsv1.StatefulSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "db"}}, Spec: spec()},
	}}
	if err := w.client.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	ours := true
	pod := func(name string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace, Labels: labelled(), OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db", UID: set.UID, Controller: &ours},
		}}, Spec: spec()}
		if err := w.client.Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	pod("forger")
	w.webhookIsBack()
	victim := pod("db-0")
	c := w.start(w.open(cluster.Config(t), true))
	labtest.Eventually(t, t.Context(), func() error {
		if n := c.evictions(resultEvicted); n != 1 || c.found(diagnosis.NotMutated) != 0 {
			return fmt.Errorf("%v evictions, %v findings", n, c.found(diagnosis.NotMutated))
		}
		return nil
	})
	if pods := w.pods(""); len(pods) != 1 || pods[0].UID != victim.UID {
		t.Error("another's pod was evicted")
	}
}

func TestAFloodIsBounded(t *testing.T) {
	d := &Doctor{patients: map[string]*patient{}, Metrics: NewMetrics()}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range maxPatients + 100 {
		text := fmt.Sprintf(`{"metadata":{"name":"web-%d","namespace":"shop","uid":"u","labels":{"azure.workload.identity/use":"true"}},"spec":{"containers":[{"name":"main","image":%q}]}}`, i, strings.Repeat("x", 10_000))
		s, err := diagnosis.ParseSubject([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		d.note(s, diagnosis.Judge(s, nil, diagnosis.Hook{}, mutation.ServiceAccount{}, testConfig))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	d.count()
	if len(d.patients) != maxPatients || d.over != 100 || (&clinic{Doctor: d}).found(diagnosis.NotMutated) != maxPatients {
		t.Errorf("%d are remembered, %d are over", len(d.patients), d.over)
	}
	if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); kept > 4<<20 { //nolint:gosec // a heap
		t.Errorf("they take %d bytes", kept)
	} else {
		t.Logf("they take %d bytes", kept)
	}
}

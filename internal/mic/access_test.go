package mic_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/mic"
	"github.com/lanyard-id/lanyard/internal/mic/arm"
	"github.com/lanyard-id/lanyard/internal/mic/taint"
)

// bindWith is bind with changes to the binding.
func (w *world) bindWith(name string, edit func(*v1.AzureIdentityBindingSpec)) *v1.AzureIdentityBinding {
	w.Helper()
	b := &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: name}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: name, Selector: w.label(name)}}
	edit(&b.Spec)
	w.make(&v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: name}, Spec: v1.AzureIdentitySpec{ResourceID: idPrefix + name, ClientID: "client-" + name}}, b)
	return b
}

// awaitReport waits until a condition of a binding or identity is as described:
// "True Reason" and a part of the message.
func (w *world) awaitReport(o client.Object, typ, want, text string) {
	w.Helper()
	w.eventually(func() error {
		if err := w.Get(w.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			return err
		}
		var all []metav1.Condition
		switch o := o.(type) {
		case *v1.AzureIdentityBinding:
			all = o.Status.Conditions
		case *v1.AzureIdentity:
			all = o.Status.Conditions
		case *lanyard.AccessRequest:
			all = o.Status.Conditions
		}
		c := meta.FindStatusCondition(all, typ)
		if c == nil || string(c.Status)+" "+c.Reason != want || !strings.Contains(c.Message, text) {
			return fmt.Errorf("condition %s: %+v, want %s and %q", typ, c, want, text)
		}
		return nil
	})
}

func TestAnIdentityIsOnTheMachineWhileItsBindingIsOpenAndALittleBefore(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	w.run(c, func(c *mic.Config) { c.WindowLead = time.Hour })
	at := func(d time.Duration) *metav1.Time { return &metav1.Time{Time: time.Now().Add(d).Truncate(time.Second)} }
	soon := w.bindWith("soon", func(s *v1.AzureIdentityBindingSpec) { s.NotBefore = at(30 * time.Minute) })
	later := w.bindWith("later", func(s *v1.AzureIdentityBindingSpec) { s.NotBefore = at(2 * time.Hour) })
	ends := w.bindWith("ends", func(s *v1.AzureIdentityBindingSpec) { s.NotAfter = at(3 * time.Second) })
	for _, n := range []string{"soon", "later", "ends"} {
		w.pod(w.ns, n, w.node, w.label(n))
	}
	w.awaitCloud(c, w.set, "ends soon")
	w.awaitReport(ends, v1.ConditionOpen, "True Open", "open until")
	w.await(w.ns, "later", "")
	w.await(w.ns, "soon", "soon=Assigned")
	w.awaitReport(soon, v1.ConditionOpen, "False NotOpen", "")
	w.awaitReport(later, v1.ConditionOpen, "False NotOpen", "")
	w.await(w.ns, "ends", "")
	w.awaitCloud(c, w.set, "soon")
	w.awaitReport(ends, v1.ConditionOpen, "False NotOpen", "")
}

func TestAnAccessRequestThatARuleApprovesOpensTheBindingUntilItIsRevoked(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	w.run(c)
	b := w.bindWith("i", func(s *v1.AzureIdentityBindingSpec) {
		s.Access = v1.AccessOnRequest
		s.Approval = &v1.Approval{Automatic: []v1.AutomaticApproval{{Groups: []string{"on-call"}, MaxDuration: metav1.Duration{Duration: time.Hour}}}}
	})
	w.pod(w.ns, "p", w.node, w.label("i"))
	w.awaitReport(b, v1.ConditionOpen, "False AwaitingApproval", "")
	request := func(name string, groups []string, d time.Duration) *lanyard.AccessRequest {
		return &lanyard.AccessRequest{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: name}, Spec: lanyard.AccessRequestSpec{
			Binding: "i", Reason: "an incident", Duration: metav1.Duration{Duration: d}, Requester: lanyard.Requester{Username: "ann", Groups: groups},
		}}
	}
	// Nobody has checked whether it is ann who asks, nor her groups.
	forged := request("forged", []string{"on-call"}, time.Hour)
	w.make(forged)
	w.awaitReport(forged, "Active", "False Unguarded", "access.lanyard.id")
	w.await(w.ns, "p", "")
	if err := w.Delete(w.Context(), forged); err != nil {
		t.Fatal(err)
	}
	w.apply("access")
	ann, bob := w.as("lanyard-access-requester", "ann", "on-call", "guests"), w.as("lanyard-access-approver", "bob")
	w.eventually(func() error { // the API server hears of the policy a little later
		if err := w.Create(w.Context(), request("not-ann", nil, time.Hour), client.DryRunAll); !apierrors.IsForbidden(err) {
			return fmt.Errorf("in the name of ann: %w", err)
		}
		return nil
	})
	ask := func(name string, groups []string, d time.Duration) *lanyard.AccessRequest {
		r := request(name, groups, d)
		w.eventually(func() error { return ann.Create(w.Context(), r) }) // the authorizer hears of roles a little later
		return r
	}
	w.awaitReport(ask("other-group", []string{"guests"}, time.Minute), "Active", "False Pending", "kubectl lanyard approve other-group")
	w.awaitReport(ask("too-long", []string{"on-call"}, 2*time.Hour), "Active", "False Pending", "")
	w.await(w.ns, "p", "")
	r := ask("fits", []string{"on-call"}, time.Hour)
	w.awaitReport(r, "Active", "True Active", "in force until")
	if d := r.Status.Decision; d == nil || !d.Automatic || d.By != "system:serviceaccount:default:aad-pod-id-mic-service-account" || d.Verdict != lanyard.Approved {
		t.Errorf("the decision is %+v", d)
	}
	w.await(w.ns, "p", "i=Assigned")
	w.awaitReport(b, v1.ConditionOpen, "True Open", "")
	next := r.DeepCopy()
	next.Status.Decision.Verdict, next.Status.Decision.By, next.Status.Decision.Automatic = lanyard.Revoked, "bob", false
	if err := bob.Status().Patch(w.Context(), next, client.MergeFrom(r)); err != nil {
		t.Fatal(err)
	}
	w.await(w.ns, "p", "")
	w.awaitCloud(c, w.set, "")
	w.awaitReport(r, "Active", "False Revoked", "decided by bob")

	short := ask("short", []string{"on-call"}, 2*time.Second)
	w.await(w.ns, "p", "i=Assigned")
	w.await(w.ns, "p", "")
	w.awaitReport(short, "Active", "False Expired", "it ended at")
}

func TestServiceAccountsAndPodSelectorsChoosePodsWithoutTheLabel(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	other := cluster.Namespace(t)
	w.run(c)
	w.bindWith("account", func(s *v1.AzureIdentityBindingSpec) { s.Selector, s.ServiceAccountNames = "", []string{"runner"} })
	w.bindWith("labels", func(s *v1.AzureIdentityBindingSpec) {
		s.Selector, s.PodSelector = "", &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	})
	w.bindWith("both", func(s *v1.AzureIdentityBindingSpec) { s.ServiceAccountName = "runner" })
	for _, ns := range []string{w.ns, other} {
		w.make(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "runner"}})
	}
	pod := func(namespace, name, account string, labels map[string]string) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
			Spec:       corev1.PodSpec{NodeName: w.node, ServiceAccountName: account, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
		}
		w.make(p)
		return p
	}
	magic := map[string]string{v1.BindingLabel: w.label("both")}
	pod(w.ns, "runs-as", "runner", nil)
	pod(w.ns, "labelled", "default", map[string]string{"app": "web"})
	pod(w.ns, "has-both", "runner", magic)
	pod(w.ns, "label-alone", "default", magic)
	pod(other, "elsewhere", "runner", map[string]string{"app": "web"})
	w.await(w.ns, "runs-as", "account=Assigned")
	w.await(w.ns, "labelled", "labels=Assigned")
	w.await(w.ns, "has-both", "account=Assigned both=Assigned")
	w.await(w.ns, "label-alone", "")
	w.await(other, "elsewhere", "")

	var p corev1.Pod // labels may change while a pod runs
	if err := w.Get(w.Context(), types.NamespacedName{Namespace: w.ns, Name: "labelled"}, &p); err != nil {
		t.Fatal(err)
	}
	old := p.DeepCopy()
	p.Labels["app"] = "db"
	if err := w.Patch(w.Context(), &p, client.MergeFrom(old)); err != nil {
		t.Fatal(err)
	}
	w.await(w.ns, "labelled", "")
}

func TestConditionsSayWhetherABindingWorksAndWhatToDo(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	w.run(c)
	id, good := w.bind("good")
	w.awaitReport(good, v1.ConditionReady, "True NoPods", "no pod")
	w.awaitReport(good, v1.ConditionOpen, "True Open", "")
	w.pod(w.ns, "one", w.node, w.label("good"))
	w.pod(w.ns, "two", w.node, w.label("good"))
	w.awaitReport(good, v1.ConditionReady, "True Assigned", "2 pods on 1 machines can use the identity")
	w.awaitReport(id, v1.ConditionReady, "True Assigned", "2 pods on 1 machines")

	nobody := &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "nobody"}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "good"}}
	lost := &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "lost"}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "missing", Selector: "x"}}
	w.make(nobody, lost)
	w.awaitReport(nobody, v1.ConditionReady, "False NoSelector", "spec.podSelector")
	w.awaitReport(lost, v1.ConditionReady, "False IdentityMissing", "there is no AzureIdentity missing")

	c.setRefuse(refuseAdding("barred", arm.Error{Status: 403, Code: "LinkedAuthorizationFailed", Message: "no"}))
	barredID, barred := w.bind("barred")
	w.pod(w.ns, "three", w.node, w.label("barred"))
	w.awaitReport(barred, v1.ConditionReady, "False NotGranted", `az role assignment create --role "Managed Identity Operator"`)
	w.awaitReport(barredID, v1.ConditionReady, "False NotGranted", "1 of 1 pods")
	w.awaitEvent(barred, v1.KindAzureIdentityBinding, "NotGranted", "Managed Identity Operator")
	c.setRefuse(nil)
	w.awaitReport(barred, v1.ConditionReady, "True Assigned", "1 pods")

	host := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "host", Labels: map[string]string{v1.BindingLabel: w.label("good")}},
		Spec:       corev1.PodSpec{NodeName: w.node, HostNetwork: true, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
	w.make(host)
	w.awaitReport(good, v1.ConditionReady, "True Assigned", "1 pods, such as "+w.ns+"/host, use the host's network")
}

func TestTheStartupTaintGoesWhenNMIIsReady(t *testing.T) {
	w := newWorld(t)
	const key = "lanyard.id/nmi-not-ready"
	node := func(name string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name + "-" + w.ns}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{
			{Key: key, Value: "true", Effect: corev1.TaintEffectNoSchedule}, {Key: "other", Effect: corev1.TaintEffectNoSchedule},
		}}}
		w.make(n)
		return n
	}
	first, second := node("first"), node("second")
	w.run(&cloud{}, func(c *mic.Config) {
		c.Kubernetes.Impersonate = rest.ImpersonationConfig{} // the manifests grant this only to who turns it on
		c.StartupTaint, c.Agents = key, taint.Agents{Namespace: w.ns, Selectors: []labels.Selector{labels.SelectorFromSet(labels.Set{"component": "nmi"})}}
	})
	setReady := func(p *corev1.Pod, ready corev1.ConditionStatus) {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
		if err := w.Status().Update(w.Context(), p); err != nil {
			w.Fatal(err)
		}
	}
	agent := func(namespace string, n *corev1.Node, ready corev1.ConditionStatus) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "nmi-" + n.Name, Labels: map[string]string{"component": "nmi"}},
			Spec:       corev1.PodSpec{NodeName: n.Name, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
		}
		w.make(p)
		setReady(p, ready)
		return p
	}
	open := func(n *corev1.Node) error {
		var now corev1.Node
		if err := w.Get(w.Context(), client.ObjectKeyFromObject(n), &now); err != nil {
			return err
		}
		var other bool
		for _, t := range now.Spec.Taints {
			if t.Key == key {
				return errors.New("tainted")
			}
			other = other || t.Key == "other"
		}
		if !other {
			return errors.New("a taint of somebody else is gone")
		}
		return nil
	}
	// A former node of that name had an agent, and its pod is still there.
	stale := agent(w.ns, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "third-" + w.ns}}, corev1.ConditionTrue)
	w.eventually(func() error {
		if time.Since(stale.CreationTimestamp.Time) < time.Second {
			return errors.New("times are in whole seconds")
		}
		return nil
	})
	third := node("third")
	agent(cluster.Namespace(t), first, corev1.ConditionTrue) // anybody's pod with the label
	p := agent(w.ns, first, corev1.ConditionFalse)
	agent(w.ns, second, corev1.ConditionTrue)
	w.eventually(func() error { return open(second) }) // so the others were seen too
	if err := open(first); err == nil {
		t.Fatal("a node without a ready nmi is open")
	}
	if err := open(third); err == nil {
		t.Fatal("a node is open because nmi ran on a former one of its name")
	}
	stale.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
	if err := w.Status().Update(t.Context(), stale); err != nil {
		t.Fatal(err)
	}
	w.eventually(func() error { return open(third) })
	setReady(p, corev1.ConditionTrue)
	w.eventually(func() error { return open(first) })
}

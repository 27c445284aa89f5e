package nodewatch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/nmi"
)

var cluster = labtest.Cluster{CRDs: deploy.FS}

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard()) // controller-runtime has one logger per process
	os.Exit(m.Run())
}

const resourceID = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/vpl-id"

// A world is a Watcher for the node n1 and a client to change what it sees.
type world struct {
	*Watcher
	client.Client
	namespace string
}

func newWorld(t *testing.T, edit ...func(*Config)) *world {
	t.Helper()
	config := Config{Kubernetes: cluster.Config(t), Node: "n1"}
	for _, e := range edit {
		e(&config)
	}
	w := watching(t, config)
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(cluster.Config(t), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return &world{w, c, cluster.Namespace(t)}
}

func watching(t *testing.T, config Config) *Watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if !w.Synced(ctx) {
		t.Fatal("the caches do not fill")
	}
	return w
}

// pod makes a pod that runs with an address, as a kubelet would report it.
func (w *world) pod(t *testing.T, name, node, ip string, edit ...func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace, Labels: map[string]string{v1.BindingLabel: w.namespace}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	for _, e := range edit {
		e(p)
	}
	phase := p.Status.Phase
	if err := w.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	// No kubelet ends it, and its address must be free for the next test.
	t.Cleanup(func() {
		if err := w.Delete(context.Background(), p, client.GracePeriodSeconds(0)); err != nil {
			t.Error(err)
		}
	})
	if p.Status.Phase = phase; phase == "" {
		p.Status.Phase = corev1.PodRunning
	}
	p.Status.PodIP, p.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	if err := w.Status().Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return p
}

func at4(ip string) nmi.Who { return nmi.Who{Address: netip.MustParseAddr(ip)} }

func TestAPodIsFoundByItsOwnAddressOnly(t *testing.T) {
	w := newWorld(t)
	mine := w.pod(t, "mine", "n1", "10.1.0.1")
	w.pod(t, "six", "n1", "fd00::1")
	w.pod(t, "elsewhere", "n2", "10.1.0.2")
	w.pod(t, "host", "n1", "10.1.0.3", func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	w.pod(t, "ended", "n1", "10.1.0.4", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
	w.pod(t, "again", "n1", "10.1.0.4")
	w.pod(t, "twin-a", "n1", "10.1.0.5")
	w.pod(t, "twin-b", "n1", "10.1.0.5")
	for who, want := range map[nmi.Who]string{
		at4("10.1.0.1"): "mine", at4("fd00::1"): "six",
		at4("10.1.0.2"):                             "", // of another node
		at4("10.1.0.3"):                             "", // the host's own address proves nothing
		at4("10.1.0.4"):                             "again",
		at4("10.1.0.5"):                             "", // claimed twice
		at4("10.1.0.9"):                             "", // nobody's
		{UID: string(mine.UID)}:                     "mine",
		{UID: "nobody"}:                             "",
		{Namespace: w.namespace, Name: "host"}:      "host",
		{Namespace: w.namespace, Name: "ended"}:     "",
		{Namespace: "default", Name: "mine"}:        "",
		{Namespace: w.namespace, Name: "elsewhere"}: "",
	} {
		labtest.Eventually(t, t.Context(), func() error {
			p, err := w.Pod(who)
			var unknown *nmi.UnknownPodError
			if want == "" && !errors.As(err, &unknown) || want != "" && err != nil {
				return fmt.Errorf("%s: %+v, %w", who, p, err)
			}
			if p.Name != want || want != "" && (p.UID == "" || p.Node != "n1" || p.Labels[v1.BindingLabel] != w.namespace) {
				return fmt.Errorf("%s: %+v, want %q", who, p, want)
			}
			return nil
		})
	}
}

// objects are an identity, its binding and its assignment to the pod p.
func (w *world) objects() (*v1.AzureIdentity, *v1.AzureIdentityBinding, *v1.AzureAssignedIdentity) {
	kind := func(k string) metav1.TypeMeta {
		return metav1.TypeMeta{APIVersion: v1.GroupVersion().String(), Kind: k}
	}
	id := &v1.AzureIdentity{TypeMeta: kind("AzureIdentity"), ObjectMeta: metav1.ObjectMeta{Name: "i", Namespace: w.namespace}, Spec: v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: "c"}}
	b := &v1.AzureIdentityBinding{TypeMeta: kind("AzureIdentityBinding"), ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: w.namespace}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "i", Selector: w.namespace}}
	a := &v1.AzureAssignedIdentity{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: w.namespace, Labels: map[string]string{v1.NodeLabel: "n1"}},
		Spec:       v1.AzureAssignedIdentitySpec{AzureIdentityRef: id.DeepCopy(), AzureBindingRef: b.DeepCopy(), Pod: "p", PodNamespace: w.namespace, NodeName: "n1"},
	}
	return id, b, a
}

// outcome is what the rules say of a pod now.
func (w *world) outcome(pod binding.Pod) string {
	b, err := w.View(pod).Select(binding.Selector{}, time.Now())
	var no *binding.Refusal
	if errors.As(err, &no) {
		return string(no.Reason)
	}
	return b.Identity.Spec.ClientID
}

// until waits for an outcome the way a request does.
func (w *world) until(t *testing.T, pod binding.Pod, want string) {
	t.Helper()
	changes, stop := w.Changes(nmi.Who{UID: pod.UID})
	defer stop()
	late := time.After(20 * time.Second)
	for {
		got := w.outcome(pod)
		if got == want {
			return
		}
		select {
		case <-changes:
		case <-late:
			t.Fatalf("no change is told any more, and still %s, want %s", got, want)
		}
	}
}

func TestEveryChangeIsToldAndSeen(t *testing.T) {
	told := make(chan binding.Pod, 1000)
	w := newWorld(t, func(c *Config) {
		c.Changed = func(_ context.Context, p binding.Pod, _ bool) { told <- p }
	})
	p := w.pod(t, "p", "n1", "10.1.1.1")
	var who binding.Pod
	labtest.Eventually(t, t.Context(), func() (err error) {
		who, err = w.Pod(nmi.Who{UID: string(p.UID)})
		return err
	})
	id, b, a := w.objects()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	w.until(t, who, "NoBinding")
	do(w.Create(ctx, b))
	w.until(t, who, "IdentityMissing")
	do(w.Create(ctx, id))
	w.until(t, who, "NotAssigned")
	do(w.Create(ctx, a))
	w.until(t, who, "c")
	b.Spec.Access = v1.AccessOnRequest
	do(w.Update(ctx, b))
	w.until(t, who, "AwaitingApproval")
	select {
	case <-w.requests.filled: // the kind is found at the start
	case <-time.After(20 * time.Second):
		t.Fatal("AccessRequests are not watched")
	}
	r := &lanyard.AccessRequest{ObjectMeta: metav1.ObjectMeta{Name: "r", Namespace: w.namespace}, Spec: lanyard.AccessRequestSpec{Binding: "b", Reason: "test", Duration: metav1.Duration{Duration: time.Hour}, Requester: lanyard.Requester{Username: "u"}}}
	do(w.Create(ctx, r))
	r.Status.Decision = &lanyard.Decision{Verdict: lanyard.Approved, By: "u", At: metav1.Now()}
	do(w.Status().Update(ctx, r))
	w.until(t, who, "c")
	do(w.Delete(ctx, r))
	w.until(t, who, "AwaitingApproval")
	b.Spec.Access = ""
	do(w.Update(ctx, b))
	w.until(t, who, "c")
	b.Spec.Selector = "other"
	do(w.Update(ctx, b))
	w.until(t, who, "NoBinding")
	b.Spec.Selector, b.Spec.PodSelector = "", &metav1.LabelSelector{MatchLabels: map[string]string{v1.BindingLabel: w.namespace}}
	do(w.Update(ctx, b))
	w.until(t, who, "c")
	id.Spec.ClientID = "changed"
	do(w.Update(ctx, id))
	w.until(t, who, "changed")
	do(w.Delete(ctx, a))
	w.until(t, who, "NotAssigned")
	do(w.Delete(ctx, id))
	w.until(t, who, "IdentityMissing")
	do(w.Delete(ctx, b))
	w.until(t, who, "NoBinding")
	e := &v1.AzurePodIdentityException{ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: w.namespace}, Spec: v1.AzurePodIdentityExceptionSpec{PodLabels: map[string]string{"x": "y"}}}
	do(w.Create(ctx, e))
	labtest.Eventually(t, ctx, func() error {
		if all := w.View(who).Exceptions; len(all) != 1 {
			return fmt.Errorf("%d exceptions", len(all))
		}
		return nil
	})
	if got := <-told; got.UID != who.UID {
		t.Errorf("told of %+v", got)
	}
}

func TestManagedModeNeedsNoAssignment(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Managed, c.ForceNamespaced = true, true })
	p := w.pod(t, "p", "n1", "10.1.2.1")
	id, b, _ := w.objects()
	for _, o := range []client.Object{id, b} {
		if err := w.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	var who binding.Pod
	labtest.Eventually(t, t.Context(), func() (err error) {
		who, err = w.Pod(nmi.Who{UID: string(p.UID)})
		return err
	})
	w.until(t, who, "c")
}

func TestAClusterThatIsAwayLeavesWhatWasKnown(t *testing.T) {
	config := rest.CopyConfig(cluster.Config(t))
	line := newLine(t, config)
	w := newWorld(t, func(c *Config) { c.Kubernetes = config })
	p := w.pod(t, "p", "n1", "10.1.3.1")
	id, b, a := w.objects()
	for _, o := range []client.Object{id, b, a} {
		if err := w.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	var who binding.Pod
	labtest.Eventually(t, t.Context(), func() (err error) {
		who, err = w.Pod(at4("10.1.3.1"))
		return err
	})
	w.until(t, who, "c")
	line.cut()
	for range 1000 {
		if got, err := w.Pod(at4("10.1.3.1")); err != nil || got.UID != string(p.UID) || w.outcome(got) != "c" {
			t.Fatalf("while the API server is away: %+v, %v, %s", got, err, w.outcome(got))
		}
	}
	id.Spec.ClientID = "changed meanwhile"
	if err := w.Update(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	line.mend()
	w.until(t, who, "changed meanwhile")
}

package nmi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

var cluster = labtest.Cluster{CRDs: deploy.FS}

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard()) // controller-runtime has one logger per process
	os.Exit(m.Run())
}

// A world is a Watcher for the node n1 and a client to change what it sees.
type world struct {
	*Watcher
	client.Client
	kube      kubernetes.Interface
	namespace string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	config := cluster.Config(t)
	w, err := NewWatcher(ctx, WatcherConfig{Kubernetes: config, Node: "n1"})
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
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return &world{w, c, kubernetes.NewForConfigOrDie(config), cluster.Namespace(t)}
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

func TestAPodIsFoundByItsOwnAddressOnly(t *testing.T) {
	w := newWorld(t)
	w.pod(t, "mine", "n1", "10.1.0.1")
	w.pod(t, "elsewhere", "n2", "10.1.0.2")
	w.pod(t, "host", "n1", "10.1.0.3", func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	w.pod(t, "ended", "n1", "10.1.0.4", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
	w.pod(t, "again", "n1", "10.1.0.4")
	w.pod(t, "twin-a", "n1", "10.1.0.5")
	w.pod(t, "twin-b", "n1", "10.1.0.5")
	for ip, want := range map[string]string{
		"10.1.0.1": "mine",
		"10.1.0.2": "",      // of another node
		"10.1.0.3": "",      // the host's own address proves nothing
		"10.1.0.4": "again", // reused
		"10.1.0.5": "",      // claimed twice
		"10.1.0.9": "",      // nobody's
	} {
		labtest.Eventually(t, t.Context(), func() error {
			p, err := w.PodByIP(t.Context(), netip.MustParseAddr(ip))
			var unknown *UnknownPodError
			if want == "" && !errors.As(err, &unknown) || want != "" && err != nil {
				return fmt.Errorf("%s: %+v, %v", ip, p, err)
			}
			if p.Name != want || want != "" && (p.UID == "" || p.Node != "n1" || p.Labels[v1.BindingLabel] != w.namespace) {
				return fmt.Errorf("%s: %+v, want %q", ip, p, want)
			}
			return nil
		})
	}
}

func TestAPodWhoseTimeIsOverHasNoAddress(t *testing.T) {
	w := newWorld(t)
	p := w.pod(t, "ending", "n1", "10.1.3.1")
	if err := w.Delete(t.Context(), p, client.GracePeriodSeconds(30)); err != nil {
		t.Fatal(err)
	}
	ip := netip.MustParseAddr("10.1.3.1")
	labtest.Eventually(t, t.Context(), func() error { // it may still need tokens to end well
		got, err := w.PodByIP(t.Context(), ip)
		if err != nil || got.Name != "ending" {
			return fmt.Errorf("while it ends: %+v, %v", got, err)
		}
		return nil
	})
	w.now = func() time.Time { return time.Now().Add(time.Minute) }
	labtest.Eventually(t, t.Context(), func() error { // once the watch has told of the deletion
		var unknown *UnknownPodError
		if got, err := w.PodByIP(t.Context(), ip); !errors.As(err, &unknown) {
			return fmt.Errorf("after its time: %+v, %v", got, err)
		}
		return nil
	})
}

func TestAChangeOfTheAssignmentIsToldAndSeen(t *testing.T) {
	w := newWorld(t)
	p := w.pod(t, "p", "n1", "10.1.1.1")
	kind := func(k string) metav1.TypeMeta {
		return metav1.TypeMeta{APIVersion: v1.GroupVersion().String(), Kind: k}
	}
	id := &v1.AzureIdentity{TypeMeta: kind("AzureIdentity"), ObjectMeta: metav1.ObjectMeta{Name: "i", Namespace: w.namespace}, Spec: v1.AzureIdentitySpec{ResourceID: resourceID}}
	b := &v1.AzureIdentityBinding{TypeMeta: kind("AzureIdentityBinding"), ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: w.namespace}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "i", Selector: w.namespace}}
	a := &v1.AzureAssignedIdentity{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: w.namespace, Labels: map[string]string{v1.NodeLabel: "n1"}},
		Spec:       v1.AzureAssignedIdentitySpec{AzureIdentityRef: id.DeepCopy(), AzureBindingRef: b.DeepCopy(), Pod: "p", PodNamespace: w.namespace, NodeName: "n1"},
	}
	for _, o := range []client.Object{id, b, a} {
		if err := w.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	who := podOf(p)
	timeout := time.After(20 * time.Second)
	for {
		changed := w.Changed()
		known, _, err := w.World(t.Context(), who)
		if err != nil {
			t.Fatal(err)
		}
		bound, err := binding.Select(who, known, binding.Selector{}, time.Now())
		if err == nil {
			if bound.Identity.Spec.ResourceID != resourceID {
				t.Errorf("got %+v", bound.Identity)
			}
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("no change is told any more, and still: %v", err)
		}
	}
}

func TestADecisionIsAnEventOnBindingAndPodAndOneAuditLine(t *testing.T) {
	w := newWorld(t)
	p := w.pod(t, "p", "n1", "10.1.2.1")
	b := &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: w.namespace}}
	id := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Name: "i", Namespace: w.namespace}}
	if err := w.Create(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	broadcaster := record.NewBroadcaster()
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: w.kube.CoreV1().Events("")})
	var audit bytes.Buffer
	r := &Events{Events: broadcaster.NewRecorder(scheme, corev1.EventSource{Component: "nmi"}), Audit: slog.New(slog.NewJSONHandler(&audit, nil))}
	r.Record(t.Context(), Decision{Pod: podOf(p), Binding: b, Identity: id, Resource: "https://vault.azure.net", Issued: true, Expires: time.Unix(1700000000, 0)})
	r.Record(t.Context(), Decision{Pod: podOf(p), Binding: b, Resource: "https://vault.azure.net", Reason: "NotAllowed", Text: "because"})

	labtest.Eventually(t, t.Context(), func() error {
		events, err := w.kube.CoreV1().Events(w.namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		got := map[string]bool{}
		for _, e := range events.Items {
			if strings.Contains(e.Message, "https://vault.azure.net") {
				got[e.InvolvedObject.Kind+" "+e.InvolvedObject.Name+" "+e.Reason] = true
			}
		}
		for _, want := range []string{"AzureIdentityBinding b TokenIssued", "AzureIdentityBinding b TokenRefused", "Pod p TokenIssued", "Pod p TokenRefused"} {
			if !got[want] {
				return fmt.Errorf("no event %q among %v", want, got)
			}
		}
		return nil
	})
	lines := strings.Split(strings.TrimSpace(audit.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("audit: %s", audit.String())
	}
	var first map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &first); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"msg": "audit", "decision": "issued", "pod": "p", "namespace": w.namespace, "uid": string(p.UID), "node": "n1",
		"identity": w.namespace + "/i", "binding": w.namespace + "/b", "resource": "https://vault.azure.net", "expires": "2023-11-14T22:13:20Z",
	} {
		if first[key] != want {
			t.Errorf("audit %s = %v, want %v", key, first[key], want)
		}
	}
	if !strings.Contains(lines[1], `"decision":"refused"`) || !strings.Contains(lines[1], `"reason":"NotAllowed"`) {
		t.Errorf("audit: %s", lines[1])
	}
}

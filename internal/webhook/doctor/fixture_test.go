package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/webhook"
	"github.com/lanyard-id/lanyard/internal/webhook/doctor/diagnosis"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

var cluster = labtest.Cluster{Args: []string{
	"--controllers=namespace-controller,serviceaccount-controller,root-ca-certificate-publisher-controller,garbage-collector-controller,replicaset-controller,deployment-controller,disruption-controller",
}}

var testConfig = mutation.Config{
	TenantID:       "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
	AuthorityHost:  "https://login.microsoftonline.com/",
	Proxy:          mutation.Proxy{Image: "lanyard/proxy:dev", InitImage: "lanyard/proxy-init:dev", LogLevel: "info"},
	NativeSidecars: true,
}

// town is a namespace with workloads, a webhook that is away at first, and a
// kubelet that says of every pod that it is ready.
type town struct {
	t         *testing.T
	kube      *kubernetes.Clientset
	client    client.Client
	namespace string
	accounts  *webhook.AccountCache
	server    *httptest.Server
}

func newTown(t *testing.T) *town {
	t.Helper()
	config := cluster.Config(t)
	w := &town{t: t, namespace: cluster.Namespace(t)}
	var err error
	if w.kube, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if w.client, err = client.New(config, client.Options{}); err != nil {
		t.Fatal(err)
	}
	w.accounts = &webhook.AccountCache{Logger: slog.New(slog.DiscardHandler)}
	if w.accounts.Client, err = metadata.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = w.accounts.Run(ctx) })
	running.Go(func() { w.kubelet(ctx) })
	w.server = httptest.NewTLSServer(&webhook.Handler{ServiceAccounts: w.accounts, Config: testConfig, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		w.server.Close()
	})
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "app", Namespace: w.namespace, Annotations: map[string]string{workloadidentity.AnnotationClientID: "11111111-2222-3333-4444-555555555555"}}}
	if err := w.client.Create(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, t.Context(), w.accounts.Ready)
	w.install()
	return w
}

// install applies the configuration that users install, for this namespace
// only, with the policy that lets pods through while nobody answers.
func (w *town) install() {
	w.t.Helper()
	manifests, err := deploy.Manifests("webhook")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, doc := range strings.Split(string(manifests[0]), "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			w.t.Fatal(err)
		}
		switch o.GetKind() {
		case "MutatingWebhookConfiguration":
			hook := o.Object["webhooks"].([]any)[0].(map[string]any)
			hook["failurePolicy"] = "Ignore"
			hook["clientConfig"] = w.clientConfig("https://127.0.0.1:1")
			hook["namespaceSelector"] = map[string]any{"matchLabels": map[string]any{"town": w.namespace}}
			w.t.Cleanup(func() {
				if err := w.client.Delete(context.WithoutCancel(w.t.Context()), o); err != nil {
					w.t.Error(err)
				}
			})
		case "Namespace", "ServiceAccount":
		default:
			continue
		}
		if err := w.client.Create(w.t.Context(), o); err != nil && !apierrors.IsAlreadyExists(err) {
			w.t.Fatalf("%s: %v", o.GetKind(), err)
		}
	}
	w.patch(w.namespaceObject(), types.MergePatchType, fmt.Sprintf(`{"metadata":{"labels":{"town":%q}}}`, w.namespace))
}

func (w *town) namespaceObject() client.Object {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.namespace}}
}

func (w *town) patch(o client.Object, kind types.PatchType, text string) {
	w.t.Helper()
	if err := w.client.Patch(w.t.Context(), o, client.RawPatch(kind, []byte(text))); err != nil {
		w.t.Fatal(err)
	}
}

func (w *town) clientConfig(url string) map[string]any {
	return map[string]any{"url": url + workloadidentity.WebhookPath, "caBundle": labtest.CABundle(w.server)}
}

// webhookIsBack makes the API server reach the webhook.
func (w *town) webhookIsBack() {
	w.t.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration"}}
	o.SetName(workloadidentity.WebhookConfiguration)
	w.patch(o, types.JSONPatchType, fmt.Sprintf(`[{"op":"replace","path":"/webhooks/0/clientConfig/url","value":%q}]`, w.server.URL+workloadidentity.WebhookPath))
	// The API server learns of it by a watch.
	labtest.Eventually(w.t, w.t.Context(), func() error {
		probe := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "probe-", Namespace: w.namespace, Labels: labelled()}, Spec: spec()}
		if err := w.client.Create(w.t.Context(), probe, client.DryRunAll); err != nil {
			return err
		}
		if len(probe.Spec.Volumes) < 2 {
			return errors.New("the webhook is not asked yet")
		}
		return nil
	})
}

func labelled() map[string]string {
	return map[string]string{workloadidentity.LabelUse: "true", "app": "web"}
}

func spec() corev1.PodSpec {
	return corev1.PodSpec{ServiceAccountName: "app", Containers: []corev1.Container{{Name: "main", Image: "x"}}}
}

func (w *town) deployment(name string, replicas int32) {
	w.t.Helper()
	app := labelled()
	app["app"] = name
	o := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: app}, Spec: spec()},
	}}
	if err := w.client.Create(w.t.Context(), o); err != nil {
		w.t.Fatal(err)
	}
	labtest.Eventually(w.t, w.t.Context(), func() error {
		if n := len(w.pods("app=" + name)); n != int(replicas) {
			return fmt.Errorf("%d pods", n)
		}
		return nil
	})
}

func (w *town) pods(selector string) []corev1.Pod {
	w.t.Helper()
	list, err := w.kube.CoreV1().Pods(w.namespace).List(w.t.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		w.t.Fatal(err)
	}
	return list.Items
}

func mutated(p corev1.Pod) bool {
	for _, v := range p.Spec.Containers[0].Env {
		if v.Name == workloadidentity.EnvFederatedTokenFile {
			return true
		}
	}
	return false
}

// kubelet makes every pod of the namespace ready.
func (w *town) kubelet(ctx context.Context) {
	for ctx.Err() == nil {
		changes, err := w.kube.CoreV1().Pods(w.namespace).Watch(ctx, metav1.ListOptions{})
		if err != nil {
			continue
		}
		for e := range changes.ResultChan() {
			if p, ok := e.Object.(*corev1.Pod); ok && e.Type == watch.Added && p.Status.Phase == corev1.PodPending {
				_, _ = w.kube.CoreV1().Pods(w.namespace).Patch(ctx, p.Name, types.StrategicMergePatchType,
					[]byte(`{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`), metav1.PatchOptions{}, "status")
			}
		}
	}
}

// events returns the reasons of the doctor's Events about pods, with their notes.
func (w *town) events(reason string) []string {
	w.t.Helper()
	list, err := w.kube.EventsV1().Events(w.namespace).List(w.t.Context(), metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range list.Items {
		if e.ReportingController == controllerName && e.Reason == reason {
			out = append(out, e.Type+" "+e.Regarding.Name+" "+e.Note)
		}
	}
	return out
}

// clinic is a running doctor.
type clinic struct {
	*Doctor
	log  *safeBuffer
	dead atomic.Bool // cut off from the API server
	stop func()
}

// open starts a doctor with the given rights, at the pace of tests.
func (w *town) open(config *rest.Config, evict bool) *clinic {
	w.t.Helper()
	c := &clinic{log: &safeBuffer{}}
	config = rest.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if c.dead.Load() {
				return nil, errors.New("no route to host")
			}
			return next.RoundTrip(r)
		})
	})
	api, err := NewAPI(config)
	if err != nil {
		w.t.Fatal(err)
	}
	c.Doctor = &Doctor{
		API: api, Accounts: w.accounts, Config: testConfig, Configuration: workloadidentity.WebhookConfiguration, Webhook: workloadidentity.WebhookName,
		Namespace: w.namespace, Identity: fmt.Sprintf("%p", c), Evict: evict, Interval: 10 * time.Second,
		Pace:    Pace{Lease: 2 * time.Second, Round: 20 * time.Millisecond, Evict: 10 * time.Millisecond, Grace: 2 * time.Second, Replace: 20 * time.Second, Retry: 100 * time.Millisecond},
		Metrics: NewMetrics(), Logger: slog.New(slog.NewTextHandler(c.log, nil)),
	}
	return c
}

func (w *town) start(c *clinic) *clinic {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Run(ctx); err != nil {
			w.t.Errorf("the doctor ended with %v", err)
		}
	}()
	c.stop = func() { cancel(); <-done }
	w.t.Cleanup(func() {
		c.stop()
		if w.t.Failed() {
			w.t.Logf("log of the doctor:\n%s", c.log)
		}
	})
	return c
}

func (c *clinic) found(f diagnosis.Finding) float64 {
	return testutil.ToFloat64(c.Metrics.pods.WithLabelValues(string(f)))
}

func (c *clinic) evictions(result string) float64 {
	return testutil.ToFloat64(c.Metrics.evictions.WithLabelValues(result))
}

func (c *clinic) acts() bool { return testutil.ToFloat64(c.Metrics.acting) == 1 }

// looked reports that every pod has been judged.
func (c *clinic) looked() error {
	if testutil.ToFloat64(c.Metrics.looked) == 0 {
		return errors.New("the doctor has not looked yet")
	}
	return nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// safeBuffer is a log that is read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

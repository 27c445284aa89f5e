package door2

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/bench"
	"github.com/lanyard-id/lanyard/internal/bench/bed"
	"github.com/lanyard-id/lanyard/internal/bench/load"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
	"github.com/lanyard-id/lanyard/internal/bench/standin"
)

const (
	webhookPort = 9443 // the webhook's own defaults
	healthPort  = 9440

	manyAccounts = 50000
	spaces       = 50
	padding      = 600 // bytes of annotations that are not ours, as in v1.6's measurement
)

// A hook is a bed with the objects of the webhook's chart.
type hook struct {
	*bed.Bed
	health *http.Client
	pool   *x509.CertPool // what the API server trusts the webhook by; nil before a webhook has run
}

func newHook(ctx context.Context, c bed.Config) (_ *hook, err error) {
	b, err := bed.New(ctx, c)
	if err != nil {
		return nil, err
	}
	h := &hook{Bed: b, health: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: b.NS.DialContext}}}
	if err := h.install(ctx); err != nil {
		return nil, errors.Join(err, b.Close(ctx))
	}
	return h, nil
}

// install makes the namespace and the webhook's configuration, which waits for
// a CA bundle.
func (h *hook) install(ctx context.Context) error {
	if _, err := h.Kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: workloadidentity.Namespace}}, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating the webhook's namespace: %w", err)
	}
	manifests, err := deploy.Manifests("webhook")
	if err != nil {
		return err
	}
	for doc := range strings.SplitSeq(string(manifests[0]), "\n---\n") {
		c := &admissionregistrationv1.MutatingWebhookConfiguration{}
		if err := yaml.Unmarshal([]byte(doc), c); err != nil || c.Kind != "MutatingWebhookConfiguration" {
			continue
		}
		if _, err := h.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(ctx, c, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("creating the webhook's configuration: %w", err)
		}
		return nil
	}
	return errors.New("the webhook's manifest has no MutatingWebhookConfiguration")
}

// trust waits until the webhook has told the API server its CA.
func (h *hook) trust(ctx context.Context) error {
	return bed.Until(ctx, 30*time.Second, func() error {
		c, err := h.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, workloadidentity.WebhookConfiguration, metav1.GetOptions{})
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		if len(c.Webhooks) != 1 || !pool.AppendCertsFromPEM(c.Webhooks[0].ClientConfig.CABundle) {
			return errors.New("the webhook's configuration has no CA bundle yet")
		}
		h.pool = pool
		return nil
	})
}

// start starts the webhook with its default flags, perhaps in a control group.
func (h *hook) start(kubeconfig string, limit *bed.Throttle) (*bed.Child, error) {
	command := []string{filepath.Join(h.Bin, "webhook"), "--kubeconfig=" + kubeconfig, "--serving-names=" + bed.At(webhookPort).Addr().String(), "--shutdown-delay=0"}
	if limit != nil {
		command = limit.Command(command...)
	}
	return h.Start("webhook", []string{"AZURE_TENANT_ID=" + standin.Tenant, "POD_NAMESPACE=" + workloadidentity.Namespace}, command[0], command[1:]...)
}

// ready asks once.
func (h *hook) ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+bed.At(healthPort).String()+"/readyz", nil)
	if err != nil {
		return err
	}
	res, err := h.health.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 4<<10))
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(text)))
	}
	return err
}

// A firstOne is the first admission of a webhook.
type firstOne struct {
	ready  time.Duration // from the process's start
	took   time.Duration // from then, a new connection included
	second time.Duration // the next one, on the same connection
}

// first starts a webhook, asks it the moment it says that it is ready, and once
// more. The webhook goes on.
func (h *hook) first(ctx context.Context, kubeconfig string, limit *bed.Throttle) (w *bed.Child, f firstOne, err error) {
	body, err := review(accountName(0), nil)
	if err != nil {
		return nil, f, err
	}
	started := time.Now()
	if w, err = h.start(kubeconfig, limit); err != nil {
		return nil, f, err
	}
	if h.pool == nil {
		if err := h.trust(ctx); err != nil {
			return w, f, err
		}
	}
	c := call(h.Bed, h.pool, false)
	defer c.close()
	if err := w.Ready(ctx, time.Minute, func() error { return h.ready(ctx) }); err != nil {
		return w, f, err
	}
	f.ready = time.Since(started)
	if _, f.took, err = c.admit(ctx, body, standin.ClientID(1)); err != nil {
		return w, f, fmt.Errorf("the webhook said that it was ready: %w", err)
	}
	_, f.second, err = c.admit(ctx, body, standin.ClientID(1))
	return w, f, err
}

func accountName(i int) string { return fmt.Sprintf("sa-%05d", i) }

// accounts makes n service accounts in some namespaces, each annotated with a
// client id.
func (h *hook) accounts(ctx context.Context, n int) error {
	for i := range spaces {
		if err := h.Namespace(ctx, fmt.Sprintf("team-%02d", i)); err != nil {
			return err
		}
	}
	return bed.Each(ctx, n, func(ctx context.Context, i int) error {
		_, err := h.Kube.CoreV1().ServiceAccounts(fmt.Sprintf("team-%02d", i%spaces)).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
			Name: accountName(i), Annotations: map[string]string{
				workloadidentity.AnnotationClientID: standin.ClientID(i + 1), "example.com/padding": strings.Repeat("x", padding),
			},
		}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

func webhook(ctx context.Context, r *bench.Runner) (m []bench.Measurement, err error) {
	n, rounds, span := manyAccounts, 5, 4*time.Second
	if r.Quick {
		n, rounds, span = 5000, 3, 2*time.Second
	}
	h, err := newHook(ctx, r.Config)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.Close(ctx)) }()
	kubeconfig, err := h.Kubeconfig(ctx, "webhook")
	if err != nil {
		return nil, err
	}
	h.Step("creating %d service accounts", n)
	started := time.Now()
	if err := h.accounts(ctx, n); err != nil {
		return nil, fmt.Errorf("creating service accounts: %w", err)
	}
	made := fmt.Sprintf("%d service accounts, made in %s, all with a client id and %d B of other annotations", n, meter.Brief(time.Since(started)), padding)

	limited, err := h.limited(ctx, kubeconfig, rounds)
	if err != nil {
		limited = bench.Measurement{Row: bench.Row{Name: "webhook-first-100m"}, Now: "not measured", Error: err.Error()}
	}
	m = append(m, limited)
	w, firsts, err := h.several(ctx, kubeconfig, nil, rounds)
	if err != nil {
		return m, err
	}
	took := typical(firsts)
	m = append(m, bench.Measurement{
		Row: bench.Row{Name: "webhook-first"}, Now: meter.Brief(took), Value: meter.InMillis(took), Unit: "ms", Ratio: bench.Times(v16First, took), OK: took <= reachFirst,
		Note: describe(firsts) + "; " + made,
	})
	if err := h.Idle(ctx, w.PID()); err != nil {
		return m, err
	}
	memory, err := meter.MemoryOf(w.PID())
	if err != nil {
		return m, err
	}
	plain, err := h.load(ctx, w, nil, false, span)
	if err != nil {
		return m, err
	}
	two, err := h.load(ctx, w, nil, true, span/2)
	if err != nil {
		return m, err
	}
	sidecar, err := h.load(ctx, w, map[string]string{workloadidentity.AnnotationInjectProxySidecar: "true"}, false, span)
	if err != nil {
		return m, err
	}
	after, err := meter.MemoryOf(w.PID())
	if err != nil {
		return m, err
	}
	anonymous := float64(memory.Anonymous)
	m = append(m, bench.Measurement{
		Row: bench.Row{Name: "webhook-memory"}, Now: meter.Megabytes(memory.Anonymous), Value: anonymous / 1e6, Unit: "MB", Ratio: bench.Times(v16Memory, anonymous), OK: anonymous <= reachMemory,
		Note: fmt.Sprintf("resident %s, at most %s so far; after the load %s anonymous, %s resident", meter.Megabytes(memory.Resident), meter.Megabytes(memory.Peak), meter.Megabytes(after.Anonymous), meter.Megabytes(after.Resident)),
	})
	return append(qualify(m, n),
		admission("admission-cpu", plain, reachCPU, fmt.Sprintf("; over HTTP/2, as API servers ask, %s", millis(two.CPUPerRequest()))),
		admission("admission-proxy-cpu", sidecar, v16CPU, ""),
	), nil
}

// qualify says of what was measured with fewer service accounts that it was.
func qualify(m []bench.Measurement, n int) []bench.Measurement {
	for i := range m {
		if n < manyAccounts && m[i].Error == "" {
			m[i].Now, m[i].Ratio = fmt.Sprintf("%s at %d", m[i].Now, n), ""
		}
	}
	return m
}

// several starts a webhook some times; the last one goes on.
func (h *hook) several(ctx context.Context, kubeconfig string, limit *bed.Throttle, rounds int) (w *bed.Child, all []firstOne, err error) {
	for i := range rounds {
		if w != nil {
			if err := w.Stop(ctx); err != nil {
				return nil, nil, err
			}
		}
		h.Step("starting the webhook, %d of %d", i+1, rounds)
		var f firstOne
		if w, f, err = h.first(ctx, kubeconfig, limit); err != nil {
			return nil, nil, err
		}
		all = append(all, f)
	}
	return w, all, nil
}

// limited is the first admission in a control group with v1.6's CPU limit.
func (h *hook) limited(ctx context.Context, kubeconfig string, rounds int) (m bench.Measurement, err error) {
	limit, err := bed.NewThrottle(100)
	if err != nil {
		return m, fmt.Errorf("no control group of our own can be made here: %w", err)
	}
	defer func() { err = errors.Join(err, limit.Close()) }()
	w, firsts, err := h.several(ctx, kubeconfig, limit, rounds)
	if err != nil {
		return m, err
	}
	memory, err := meter.MemoryOf(w.PID())
	if err := errors.Join(err, w.Stop(ctx)); err != nil {
		return m, err
	}
	took := typical(firsts)
	return bench.Measurement{
		Row: bench.Row{Name: "webhook-first-100m"}, Now: meter.Brief(took), Value: meter.InMillis(took), Unit: "ms", Ratio: bench.Times(v16FirstLimited, took), OK: took <= reachFirst,
		Note: fmt.Sprintf("in a control group with a tenth of a processor for each 100 ms, where whoever has used it up waits for the next; our chart sets no CPU limit; %s; %s anonymous", describe(firsts), meter.Megabytes(memory.Anonymous)),
	}, nil
}

// typical is the median.
func typical(all []firstOne) time.Duration {
	var took []time.Duration
	for _, f := range all {
		took = append(took, f.took)
	}
	return meter.Percentile(took, 0.5)
}

func describe(all []firstOne) string {
	var took, second, ready []string
	for _, f := range all {
		took, second, ready = append(took, meter.Brief(f.took)), append(second, meter.Brief(f.second)), append(ready, meter.Brief(f.ready))
	}
	list := func(l []string) string { return strings.Join(l, ", ") }
	return fmt.Sprintf("%s with a new TLS connection, asked within 10 ms of being ready; the next one %s; ready %s after the process's start", list(took), list(second), list(ready))
}

// load puts reviews of the pod with these annotations on the webhook.
func (h *hook) load(ctx context.Context, w *bed.Child, annotations map[string]string, http2 bool, span time.Duration) (load.Result, error) {
	body, err := review(accountName(0), annotations)
	if err != nil {
		return load.Result{}, err
	}
	h.Step("%d callers ask for admission for %s", admitters, span)
	c := call(h.Bed, h.pool, http2)
	defer c.close()
	return c.load(ctx, body, standin.ClientID(1), w.PID(), span)
}

func millis(d time.Duration) string { return fmt.Sprintf("%.3f ms", meter.InMillis(d)) }

func admission(name string, r load.Result, reach time.Duration, more string) bench.Measurement {
	cpu := r.CPUPerRequest()
	m := bench.Measurement{
		Row: bench.Row{Name: name}, Now: millis(cpu), Value: meter.InMillis(cpu), Unit: "ms", OK: cpu > 0 && cpu <= reach,
		Note: fmt.Sprintf("%.0f/s, p50 %s, p99 %s, the callers on the same processors; TLS 1.3, keep-alive, %d B of pod%s",
			r.PerSecond(), meter.Brief(meter.Percentile(r.Latencies, 0.5)), meter.Brief(meter.Percentile(r.Latencies, 0.99)), len(onePod), more),
	}
	if name == "admission-cpu" {
		m.Ratio = bench.Times(v16CPU, cpu)
	}
	return m
}

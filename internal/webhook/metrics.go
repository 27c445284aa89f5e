package webhook

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// A decision is what became of one request, as the metrics count it.
type decision string

const (
	decisionMutated   decision = "mutated"
	decisionUnchanged decision = "unchanged"
	decisionDenied    decision = "denied"  // the user's to change
	decisionFailed    decision = "failed"  // the cluster's or ours
	decisionInvalid   decision = "invalid" // no admission review
)

// maxNamespaces bounds the namespaces with a series of refusals. Whoever reaches
// the webhook can send reviews that name any.
const maxNamespaces = 500

// otherNamespaces stands for those beyond: no namespace has this name.
const otherNamespaces = "(others)"

// Metrics counts decisions. Register it as a collector.
type Metrics struct {
	requests *prometheus.HistogramVec
	denials  *prometheus.CounterVec
	expiry   prometheus.Gauge
	accounts prometheus.GaugeFunc

	// Under the names of the library that v1.6 is built with.
	served   *prometheus.CounterVec
	latency  prometheus.Observer
	inFlight prometheus.Gauge
	panics   prometheus.Counter

	all []prometheus.Collector

	mu         sync.Mutex
	namespaces map[string]bool // with a series of refusals
}

// NewMetrics returns metrics without any observation. The accounts func is the
// number of annotated service accounts that are known.
func NewMetrics(accounts func() int) *Metrics {
	buckets := []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 3, 10}
	path := prometheus.Labels{"webhook": workloadidentity.WebhookPath}
	latency := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "controller_runtime_webhook_latency_seconds", ConstLabels: path, Buckets: buckets,
		Help: "Seconds that a request took.",
	})
	m := &Metrics{
		namespaces: map[string]bool{},
		denials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lanyard_webhook_refused_pods_total",
			Help: "Pods that were refused: denied is the user's to change, failed the cluster's or the webhook's.",
		}, []string{"namespace", "decision"}),
		served: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "controller_runtime_webhook_requests_total", ConstLabels: path,
			Help: "Requests by HTTP status. A denial is an answer with 200.",
		}, []string{"code"}),
		latency: latency,
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "controller_runtime_webhook_requests_in_flight", ConstLabels: path,
			Help: "Requests that are being answered.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "controller_runtime_webhook_panics_total",
			Help: "Requests that ended in a panic.",
		}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "azwi_mutation_request",
			Help:    "Seconds that an admission request took, by what became of it.",
			Buckets: buckets,
		}, []string{"decision"}),
		expiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lanyard_webhook_certificate_expiry_timestamp_seconds",
			Help: "When the serving certificate expires, in seconds since 1970.",
		}),
		accounts: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "lanyard_webhook_annotated_service_accounts",
			Help: "Service accounts with an annotation of azure.workload.identity/ in the cache.",
		}, func() float64 { return float64(accounts()) }),
	}
	for _, d := range []decision{decisionMutated, decisionUnchanged, decisionDenied, decisionFailed, decisionInvalid} {
		m.requests.WithLabelValues(string(d))
	}
	for _, code := range []string{"200", "500"} {
		m.served.WithLabelValues(code)
	}
	m.all = []prometheus.Collector{m.requests, m.denials, m.expiry, m.accounts, m.served, latency, m.inFlight, m.panics}
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all {
		c.Collect(ch)
	}
}

// serving counts a request in, and out by what it returns.
func (m *Metrics) serving() func(status *int) {
	if m == nil {
		return func(*int) {}
	}
	started := time.Now()
	m.inFlight.Inc()
	return func(status *int) {
		m.inFlight.Dec()
		m.served.WithLabelValues(strconv.Itoa(*status)).Inc()
		m.latency.Observe(time.Since(started).Seconds())
	}
}

func (m *Metrics) observe(d decision, took time.Duration) {
	if m != nil {
		m.requests.WithLabelValues(string(d)).Observe(took.Seconds())
	}
}

// refused counts a pod that was not admitted. Only namespaces with such pods
// have a series.
func (m *Metrics) refused(namespace string, d decision) {
	if m != nil {
		m.denials.WithLabelValues(m.shown(namespace), string(d)).Inc()
	}
}

// shown is the namespace as the series have it.
func (m *Metrics) shown(namespace string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.namespaces[namespace]:
	case len(m.namespaces) >= maxNamespaces || len(validation.IsDNS1123Label(namespace)) > 0:
		return otherNamespaces
	default:
		m.namespaces[namespace] = true
	}
	return namespace
}

func (m *Metrics) panicked() {
	if m != nil {
		m.panics.Inc()
	}
}

// CertificateExpires notes when the certificate that is served from now on
// expires.
func (m *Metrics) CertificateExpires(at time.Time) { m.expiry.Set(float64(at.Unix())) }

package webhook

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
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

// Metrics counts decisions. Register it as a collector.
type Metrics struct {
	requests *prometheus.HistogramVec
	expiry   prometheus.Gauge
	accounts prometheus.GaugeFunc
}

// NewMetrics returns metrics without any observation. The accounts func is the
// number of annotated service accounts that are known.
func NewMetrics(accounts func() int) *Metrics {
	m := &Metrics{
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "azwi_mutation_request",
			Help:    "Seconds that an admission request took, by what became of it.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 3, 10},
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
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.requests.Describe(ch)
	m.expiry.Describe(ch)
	m.accounts.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.requests.Collect(ch)
	m.expiry.Collect(ch)
	m.accounts.Collect(ch)
}

func (m *Metrics) observe(d decision, took time.Duration) {
	if m != nil {
		m.requests.WithLabelValues(string(d)).Observe(took.Seconds())
	}
}

// CertificateExpires notes when the certificate that is served from now on
// expires.
func (m *Metrics) CertificateExpires(at time.Time) { m.expiry.Set(float64(at.Unix())) }

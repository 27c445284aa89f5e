package doctor

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lanyard-id/lanyard/internal/webhook/doctor/diagnosis"
)

// Metrics counts what the doctor finds and does. Register it as a collector.
// Only the replica that acts has findings.
type Metrics struct {
	pods      *prometheus.GaugeVec
	over      prometheus.Gauge
	evictions *prometheus.CounterVec
	acting    prometheus.Gauge
	looked    prometheus.Gauge
}

// Results of evictions.
const (
	resultEvicted  = "evicted"
	resultHealed   = "healed"    // the replacement is ready and has its identity
	resultRefused  = "refused"   // by a PodDisruptionBudget, for now
	resultFailed   = "failed"    // by the API server
	resultUnhealed = "unhelpful" // the replacement is no better, or never came
)

func findings() []diagnosis.Finding {
	return []diagnosis.Finding{diagnosis.NotMutated, diagnosis.Incomplete, diagnosis.StaleIdentity}
}

// NewMetrics returns metrics without any observation.
func NewMetrics() *Metrics {
	m := &Metrics{
		pods: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lanyard_webhook_doctor_pods",
			Help: "Pods that ask for an identity and run without it, by what is wrong.",
		}, []string{"finding"}),
		over: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lanyard_webhook_doctor_pods_over_limit",
			Help: "Such pods beyond those that are remembered: neither reported nor evicted yet.",
		}),
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lanyard_webhook_doctor_evictions_total",
			Help: "Evictions by what became of them.",
		}, []string{"result"}),
		acting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lanyard_webhook_doctor_acting",
			Help: "1 on the replica whose doctor acts.",
		}),
		looked: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lanyard_webhook_doctor_last_look_timestamp_seconds",
			Help: "When this replica's doctor last looked at every pod, in seconds since 1970.",
		}),
	}
	for _, f := range findings() {
		m.pods.WithLabelValues(string(f))
	}
	for _, r := range []string{resultEvicted, resultHealed, resultRefused, resultFailed, resultUnhealed} {
		m.evictions.WithLabelValues(r)
	}
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.pods, m.over, m.evictions, m.acting, m.looked}
}

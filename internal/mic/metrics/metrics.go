// Package metrics counts what mic does, under Pod Identity v1's names, so that
// dashboards stay as they are:
//
//	aadpodidentity_assigned_identity_{addition,deletion,update}_{count,duration_seconds}
//	aadpodidentity_mic_cycle_{count,duration_seconds}
//	aadpodidentity_mic_new_leader_election_count
//	aadpodidentity_cloud_provider_operations_duration_seconds{operation_type}
//	aadpodidentity_{cloud_provider,kubernetes_api}_operations_errors_count{operation_type}
//
// Labels have only values that are written in this repository.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Operations of the Kubernetes API that are counted when they fail.
const (
	Addition     = "assigned_identity_addition"
	Deletion     = "assigned_identity_deletion"
	Update       = "assigned_identity_update"
	StatusUpdate = "update_azure_assigned_identity_status"
)

// Metrics of one process. A nil *Metrics counts nothing.
type Metrics struct {
	operations    map[string]operation // by Addition, Deletion and Update
	cycles        operation
	elections     prometheus.Counter
	cloud         *prometheus.HistogramVec
	cloudErrors   *prometheus.CounterVec
	clusterErrors *prometheus.CounterVec
}

type operation struct {
	count    prometheus.Counter
	duration prometheus.Histogram
}

const namespace = "aadpodidentity"

// New makes the metrics and registers them.
func New(r prometheus.Registerer) (*Metrics, error) {
	quick := []float64{.01, .02, .05, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1, 2, 3, 4, 5, 10}
	slow := []float64{.5, 1, 5, 10, 30, 60, 120, 300, 600, 900, 1200}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets})
	}
	labels := []string{"operation_type"}
	m := &Metrics{
		operations:    map[string]operation{},
		cycles:        operation{counter("mic_cycle_count", "Number of times that the identities of one machine were brought in line."), histogram("mic_cycle_duration_seconds", "How long that took.", slow)},
		elections:     counter("mic_new_leader_election_count", "Number of times that this process became the leader."),
		cloud:         prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: "cloud_provider_operations_duration_seconds", Help: "Duration of requests to Azure, until their effect is done.", Buckets: slow}, labels),
		cloudErrors:   prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: "cloud_provider_operations_errors_count", Help: "Number of requests that Azure refused."}, labels),
		clusterErrors: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: "kubernetes_api_operations_errors_count", Help: "Number of requests that the API server refused."}, labels),
	}
	all := []prometheus.Collector{m.cycles.count, m.cycles.duration, m.elections, m.cloud, m.cloudErrors, m.clusterErrors}
	for name, what := range map[string]string{Addition: "created", Deletion: "let go", Update: "brought up to date"} {
		o := operation{counter(name+"_count", "Number of AzureAssignedIdentities that were "+what+"."), histogram(name+"_duration_seconds", "How long the API server took for that.", quick)}
		m.operations[name] = o
		all = append(all, o.count, o.duration)
	}
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Kubernetes records a request to the API server that began at start.
func (m *Metrics) Kubernetes(name string, start time.Time, err error) {
	if m == nil {
		return
	}
	if err != nil {
		m.clusterErrors.WithLabelValues(name).Inc()
		return
	}
	if o, ok := m.operations[name]; ok {
		o.count.Inc()
		o.duration.Observe(time.Since(start).Seconds())
	}
}

// Cloud records an operation in Azure.
func (m *Metrics) Cloud(name string, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.cloud.WithLabelValues(name).Observe(took.Seconds())
	if err != nil {
		m.cloudErrors.WithLabelValues(name).Inc()
	}
}

// Cycle records that a machine was brought in line.
func (m *Metrics) Cycle(start time.Time) {
	if m != nil {
		m.cycles.count.Inc()
		m.cycles.duration.Observe(time.Since(start).Seconds())
	}
}

// Elected records that this process became the leader.
func (m *Metrics) Elected() {
	if m != nil {
		m.elections.Inc()
	}
}

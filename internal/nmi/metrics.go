package nmi

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lanyard-id/lanyard/internal/imds"
)

// Metrics are what an agent counts, under the names and labels of Pod Identity
// v1. Unlike v1's, no label holds what a caller wrote: operation_type is a kind
// of request, resource one of a list, and namespace that of a pod of this node.
// A nil *Metrics counts nothing.
type Metrics struct {
	operations *prometheus.HistogramVec
	upstream   *prometheus.HistogramVec
	failures   *prometheus.CounterVec
	kubernetes *prometheus.CounterVec
	cache      *prometheus.CounterVec
	lost       []prometheus.Collector

	mu         sync.RWMutex
	series     map[seriesKey]prometheus.Observer
	namespaces map[string]bool
}

type seriesKey struct {
	kind      string
	status    int
	namespace string
	resource  string
}

// maxNamespaces bounds the label namespace: pods come and go, series stay.
const maxNamespaces = 256

// other stands for what is beyond a bound.
const other = "other"

// NewMetrics returns metrics to register.
func NewMetrics() *Metrics {
	const prefix = "aadpodidentity_"
	return &Metrics{
		operations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "nmi_operations_duration_seconds", Help: "Time to answer a request, in seconds.",
			Buckets: []float64{.001, .01, .1, .5, 1, 2, 5, 10, 20, 30},
		}, []string{"operation_type", "status_code", "namespace", "resource"}),
		upstream: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "imds_operations_duration_seconds", Help: "Time of requests to the metadata service and to Entra, in seconds.",
			Buckets: []float64{.01, .05, .1, .5, 1, 2, 5, 10, 15},
		}, []string{"operation_type"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "imds_operations_errors_count", Help: "Requests to the metadata service and to Entra that gave no token.",
		}, []string{"operation_type"}),
		kubernetes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "kubernetes_api_operations_errors_count", Help: "Requests to the API server that failed.",
		}, []string{"operation_type"}),
		cache: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "nmi_token_cache_requests_total", Help: "Tokens asked for, by whether memory had them.",
		}, []string{"result"}),
		series: map[seriesKey]prometheus.Observer{}, namespaces: map[string]bool{},
	}
}

// The values of operation_type for requests to the API server.
const (
	OperationWatch  = "watch"
	OperationEvent  = "event"
	OperationReview = "token_review"
)

// Lost adds counters of what could not be recorded: lines of the log, and
// decisions that are in no event.
func (m *Metrics) Lost(lines, events func() uint64) {
	m.lost = append(m.lost,
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "aadpodidentity_nmi_log_lines_lost_total", Help: "Log and audit lines that nobody read in time."}, func() float64 { return float64(lines()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "aadpodidentity_nmi_events_lost_total", Help: "Decisions that no event tells of; the audit log does."}, func() float64 { return float64(events()) }))
}

func (m *Metrics) collectors() []prometheus.Collector {
	return append([]prometheus.Collector{m.operations, m.upstream, m.failures, m.kubernetes, m.cache}, m.lost...)
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(ch)
	}
}

// Upstream counts a request to an upstream, or to the API server for a Secret.
func (m *Metrics) Upstream(operation string, took time.Duration, err error) {
	if operation == "get_secret" {
		if err != nil {
			m.KubernetesError(operation)
		}
		return
	}
	m.upstream.WithLabelValues(operation).Observe(took.Seconds())
	if err != nil {
		m.failures.WithLabelValues(operation).Inc()
	}
}

// KubernetesError counts a request to the API server that failed.
func (m *Metrics) KubernetesError(operation string) { m.kubernetes.WithLabelValues(operation).Inc() }

// Cached counts a question to the token cache.
func (m *Metrics) Cached(hit bool) {
	if hit {
		m.cache.WithLabelValues("hit").Inc()
	} else {
		m.cache.WithLabelValues("miss").Inc()
	}
}

func (m *Metrics) observe(o operation, took time.Duration) {
	if m == nil {
		return
	}
	k := seriesKey{o.name(), o.status, o.namespace, resourceLabel(o.resource)}
	m.mu.RLock()
	series := m.series[k]
	m.mu.RUnlock()
	if series == nil {
		series = m.newSeries(k)
	}
	series.Observe(took.Seconds())
}

func (m *Metrics) newSeries(k seriesKey) prometheus.Observer {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k.namespace != "" && !m.namespaces[k.namespace] {
		if len(m.namespaces) >= maxNamespaces {
			k.namespace = other
		} else {
			m.namespaces[k.namespace] = true
		}
	}
	s := m.operations.WithLabelValues(k.kind, strconv.Itoa(k.status), k.namespace, k.resource)
	m.series[k] = s
	return s
}

func (o operation) name() string {
	switch {
	case o.host:
		return "host_token"
	case o.kind == imds.TokenEndpoint:
		return "token"
	case o.kind == imds.Instance, o.kind == imds.Other:
		return "metadata"
	default:
		return "refused"
	}
}

// resourceLabel is a resource of Azure's public and sovereign clouds by its
// kind, so that a dashboard can tell them apart and a caller adds none.
func resourceLabel(resource string) string {
	if resource == "" {
		return ""
	}
	host := strings.TrimPrefix(strings.TrimPrefix(strings.ToLower(resource), "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "management.azure.com", "management.core.windows.net", "management.usgovcloudapi.net", "management.chinacloudapi.cn":
		return "management"
	case "vault.azure.net", "vault.usgovcloudapi.net", "vault.azure.cn", "managedhsm.azure.net":
		return "vault"
	case "storage.azure.com":
		return "storage"
	case "graph.microsoft.com", "graph.windows.net":
		return "graph"
	case "database.windows.net", "database.usgovcloudapi.net", "database.chinacloudapi.cn", "ossrdbms-aad.database.windows.net":
		return "database"
	case "servicebus.azure.net", "eventhubs.azure.net":
		return "messaging"
	case "monitor.azure.com", "api.loganalytics.io":
		return "monitor"
	case "cognitiveservices.azure.com":
		return "cognitive"
	}
	return other
}

// A statusWriter remembers the status.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

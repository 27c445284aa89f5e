package nmi

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lanyard-id/lanyard/internal/imds"
)

// Metrics are what an agent counts, under the names of Pod Identity v1. Unlike
// v1's, no label holds what a caller wrote.
type Metrics struct {
	operations *prometheus.HistogramVec
}

// NewMetrics returns metrics to register and to Measure with.
func NewMetrics() *Metrics {
	return &Metrics{prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "aadpodidentity_nmi_operations_duration_seconds",
		Help:    "Time to answer a request, in seconds.",
		Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 2, 5, 10, 20, 30},
	}, []string{"operation_type", "status_code"})}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) { m.operations.Describe(ch) }

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) { m.operations.Collect(ch) }

// Measure counts the requests that next answers.
func (m *Metrics) Measure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		s := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(s, r)
		m.operations.WithLabelValues(operation(r), strconv.Itoa(s.status)).Observe(time.Since(start).Seconds())
	})
}

func operation(r *http.Request) string {
	switch imds.Classify(r.URL) {
	case imds.TokenEndpoint:
		return "token"
	case imds.Instance, imds.Other:
		return "metadata"
	default:
		return "refused"
	}
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

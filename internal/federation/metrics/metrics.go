// Package metrics counts what the federation controller does:
//
//	lanyard_federation_identities{condition,status,reason}        FederatedIdentities, counted when asked
//	lanyard_federation_azure_requests_total{operation,result}     and _duration_seconds{operation}
//	lanyard_federation_probes_total{result}
//	lanyard_federation_abandoned_total                            credentials left behind in Azure
//
// Labels have only values that are written in this repository.
package metrics

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/federated"
)

const (
	namespace = "lanyard"
	subsystem = "federation"
)

// Metrics of one process. A nil *Metrics counts nothing.
type Metrics struct {
	requests  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	probes    *prometheus.CounterVec
	abandoned prometheus.Counter
	objects   *prometheus.Desc

	mu   sync.Mutex
	read client.Reader
}

// New makes the metrics and registers them.
func New(r prometheus.Registerer) (*Metrics, error) {
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}
	}
	m := &Metrics{
		requests: prometheus.NewCounterVec(counter("azure_requests_total", "Operations in Azure by their result."), []string{"operation", "result"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "azure_request_duration_seconds", Help: "Duration of operations in Azure.", Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"operation"}),
		probes:    prometheus.NewCounterVec(counter("probes_total", "Token exchanges that were tried, by their result."), []string{"result"}),
		abandoned: prometheus.NewCounter(counter("abandoned_total", "Credentials that could not be removed and were left behind in Azure.")),
		objects: prometheus.NewDesc(prometheus.BuildFQName(namespace, subsystem, "identities"), "FederatedIdentities by the state of their conditions.",
			[]string{"condition", "status", "reason"}, nil),
	}
	for _, c := range []prometheus.Collector{m.requests, m.durations, m.probes, m.abandoned, m} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Count makes m count the FederatedIdentities that read finds; it must not block.
func (m *Metrics) Count(read client.Reader) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.read = read
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.objects }

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	read := m.read
	m.mu.Unlock()
	if read == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var list lanyard.FederatedIdentityList
	if err := read.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return // the cache is not filled yet
	}
	type label struct{ condition, status, reason string }
	counts := map[label]int{}
	for i := range list.Items {
		for _, c := range list.Items[i].Status.Conditions {
			counts[label{c.Type, string(c.Status), c.Reason}]++
		}
	}
	for l, n := range counts {
		ch <- prometheus.MustNewConstMetric(m.objects, prometheus.GaugeValue, float64(n), l.condition, l.status, l.reason)
	}
}

// Probe counts one exchange.
func (m *Metrics) Probe(result string) {
	if m != nil {
		m.probes.WithLabelValues(result).Inc()
	}
}

// Abandoned counts a credential that was left behind.
func (m *Metrics) Abandoned() {
	if m != nil {
		m.abandoned.Inc()
	}
}

func (m *Metrics) observe(operation string, start time.Time, err error) {
	if m == nil {
		return
	}
	m.requests.WithLabelValues(operation, result(err)).Inc()
	m.durations.WithLabelValues(operation).Observe(time.Since(start).Seconds())
}

func result(err error) string {
	var throttled *federated.Throttled
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &throttled):
		return "throttled"
	case errors.Is(err, federated.ErrForbidden):
		return "forbidden"
	case errors.Is(err, federated.ErrNotFound):
		return "not_found"
	case errors.Is(err, federated.ErrLimit):
		return "limit"
	case errors.Is(err, federated.ErrTaken):
		return "taken"
	}
	return "error"
}

// Azure is what is counted.
type Azure interface {
	Find(ctx context.Context, clientID string) (federated.Parent, error)
	FindResource(ctx context.Context, resourceID string) (federated.Parent, error)
	List(ctx context.Context, p federated.Parent) ([]federated.Credential, error)
	PutListed(ctx context.Context, p federated.Parent, listed []federated.Credential, want federated.Credential) error
	Delete(ctx context.Context, p federated.Parent, name string) (existed bool, err error)
}

// Counted is Azure whose operations are counted.
type Counted struct {
	Azure
	Metrics *Metrics
}

// Find is counted.
func (c Counted) Find(ctx context.Context, clientID string) (p federated.Parent, err error) {
	defer func(start time.Time) { c.Metrics.observe("find", start, err) }(time.Now())
	return c.Azure.Find(ctx, clientID)
}

// FindResource is counted.
func (c Counted) FindResource(ctx context.Context, resourceID string) (p federated.Parent, err error) {
	defer func(start time.Time) { c.Metrics.observe("find", start, err) }(time.Now())
	return c.Azure.FindResource(ctx, resourceID)
}

// List is counted.
func (c Counted) List(ctx context.Context, p federated.Parent) (all []federated.Credential, err error) {
	defer func(start time.Time) { c.Metrics.observe("list", start, err) }(time.Now())
	return c.Azure.List(ctx, p)
}

// PutListed is counted.
func (c Counted) PutListed(ctx context.Context, p federated.Parent, listed []federated.Credential, want federated.Credential) (err error) {
	defer func(start time.Time) { c.Metrics.observe("put", start, err) }(time.Now())
	return c.Azure.PutListed(ctx, p, listed, want)
}

// Delete is counted.
func (c Counted) Delete(ctx context.Context, p federated.Parent, name string) (existed bool, err error) {
	defer func(start time.Time) { c.Metrics.observe("delete", start, err) }(time.Now())
	return c.Azure.Delete(ctx, p, name)
}

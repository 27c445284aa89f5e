package nmi

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/metricstest"
)

// series lists what is counted as "name label label …".
func series(t *testing.T, m *Metrics) map[string]int {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(m)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			labels := []string{f.GetName()}
			for _, l := range metric.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			got[strings.Join(labels, " ")] = int(metric.GetHistogram().GetSampleCount()) + int(metric.GetCounter().GetValue())
		}
	}
	return got
}

func TestMetricsHoldNothingThatACallerWrote(t *testing.T) {
	f := newFixture(t)
	f.Metrics = NewMetrics()
	for _, target := range []string{tokenQuery, tokenQuery + "&client_id=evil", imds.TokenPath + "?resource=evil", "/metadata/instance/evil", "/evil", "/metadata/%69dentity"} {
		f.get(t, target)
	}
	f.ask(t, f.hostURL, "GET", "/host/token?resource=https://graph.microsoft.com/.default", "podns: default", "podname: test-id-pod")
	f.ask(t, f.hostURL, "GET", "/host/token?resource=r", "podns: evil", "podname: evil")
	const name = "aadpodidentity_nmi_operations_duration_seconds"
	want := map[string]int{
		name + " namespace=default operation_type=token resource=vault status_code=200":      1,
		name + " namespace=default operation_type=token resource=vault status_code=404":      1,
		name + " namespace=default operation_type=token resource=other status_code=200":      1,
		name + " namespace= operation_type=metadata resource= status_code=200":               1,
		name + " namespace= operation_type=refused resource= status_code=404":                1,
		name + " namespace= operation_type=refused resource= status_code=400":                1,
		name + " namespace=default operation_type=host_token resource=graph status_code=200": 1,
		name + " namespace= operation_type=host_token resource=other status_code=404":        1,
	}
	if diff := cmp.Diff(want, series(t, f.Metrics)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	for i := range 2 * maxNamespaces {
		f.Metrics.observe(operation{kind: imds.TokenEndpoint, namespace: fmt.Sprint("n", i)}, time.Second)
	}
	if n := len(series(t, f.Metrics)); n > maxNamespaces+len(want)+1 {
		t.Errorf("%d series", n)
	}
}

// names is every metric that an agent can have. Pod Identity v1 had those
// without nmi_token_cache and _lost_ in their names.
var names = []string{
	"aadpodidentity_imds_operations_duration_seconds",
	"aadpodidentity_imds_operations_errors_count",
	"aadpodidentity_kubernetes_api_operations_errors_count",
	"aadpodidentity_nmi_events_lost_total",
	"aadpodidentity_nmi_log_lines_lost_total",
	"aadpodidentity_nmi_operations_duration_seconds",
	"aadpodidentity_nmi_token_cache_requests_total",
}

func allMetrics() *Metrics {
	m := NewMetrics()
	m.Lost(func() uint64 { return 1 }, func() uint64 { return 2 })
	m.observe(operation{kind: imds.TokenEndpoint, status: 200}, time.Second)
	m.Upstream("adal_token_msi", time.Second, errors.New("x"))
	m.Upstream("get_secret", time.Second, errors.New("x"))
	m.Cached(true)
	m.Cached(false)
	return m
}

func TestTheListOfMetricsIsComplete(t *testing.T) {
	var got []string
	for s := range series(t, allMetrics()) {
		got = append(got, strings.Fields(s)[0])
	}
	slices.Sort(got)
	if diff := cmp.Diff(names, slices.Compact(got)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestTheDocumentsListTheMetrics(t *testing.T) {
	described := &metricstest.Names{}
	described.MustRegister(allMetrics())
	metricstest.Documented(t, described, "aadpodidentity_nmi_", "aadpodidentity_imds_")
}

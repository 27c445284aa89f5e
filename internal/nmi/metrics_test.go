package nmi

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestMetricsHoldNothingThatACallerWrote(t *testing.T) {
	m := NewMetrics()
	s := httptest.NewServer(m.Measure(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })))
	defer s.Close()
	for _, path := range []string{"/metadata/identity/oauth2/token?resource=evil", "/metadata/instance/evil", "/evil", "/metadata/%69dentity"} {
		res, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(m)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			var labels []string
			for _, l := range metric.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			got[f.GetName()+" "+strings.Join(labels, " ")] = metric.GetHistogram().GetSampleCount()
		}
	}
	for series, want := range map[string]uint64{
		"aadpodidentity_nmi_operations_duration_seconds token 418":    1,
		"aadpodidentity_nmi_operations_duration_seconds metadata 418": 1,
		"aadpodidentity_nmi_operations_duration_seconds refused 418":  2,
	} {
		if got[series] != want {
			t.Errorf("%s = %d, want %d; all: %v", series, got[series], want, got)
		}
	}
	if len(got) != 3 {
		t.Errorf("series: %v", got)
	}
}

func TestMetricsAreListedInTheDocuments(t *testing.T) {
	m := NewMetrics()
	m.operations.WithLabelValues("token", "200").Observe(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(m)
	if n, err := testutil.GatherAndCount(registry); err != nil || n == 0 {
		t.Fatal(n, err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !strings.Contains(string(text), "`"+f.GetName()+"`") {
			t.Errorf("docs/operations.md does not list %s", f.GetName())
		}
	}
}

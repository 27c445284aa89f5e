package metricstest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

func TestDifferencesAreFound(t *testing.T) {
	const text = "`a_before`\n### Metrics\n| `a_one`, `a_two` | `label` |\n| `b_other` | |\n### Audit\n`a_after`"
	for name, test := range map[string]struct {
		text  string
		names []string
		want  []string
	}{
		"the list is right":                       {text, []string{"a_one", "a_two"}, nil},
		"a metric is not listed":                  {text, []string{"a_one", "a_two", "a_three"}, []string{"does not list a_three"}},
		"a listed metric does not exist":          {text, []string{"a_one"}, []string{"lists a_two, which does not exist"}},
		"another section does not count":          {text, []string{"a_one", "a_two", "a_after"}, []string{"does not list a_after"}},
		"another component's need not be":         {text, []string{"a_one", "a_two", "b_other"}, nil},
		"there is no section":                     {"`a_one`", []string{"a_one"}, []string{"has no section Metrics"}},
		"nothing was registered: a useless check": {text, nil, []string{"is compared with no metrics at all"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, compare(test.text, test.names, []string{"a_"})); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestNamesOfMetricsWithoutObservation(t *testing.T) {
	n := &Names{}
	n.MustRegister(
		prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "x", Name: "total", Help: `with "quotes"`}, []string{"l"}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "y", ConstLabels: prometheus.Labels{"a": "b"}}, func() float64 { return 1 }),
	)
	if diff := cmp.Diff([]string{"x_total", "y"}, n.all); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

package metrics

import (
	"testing"

	"github.com/lanyard-id/lanyard/internal/metricstest"
)

func TestTheDocumentsListTheMetrics(t *testing.T) {
	names := &metricstest.Names{}
	if _, err := New(names); err != nil {
		t.Fatal(err)
	}
	metricstest.Documented(t, names, "lanyard_federation_")
}

package metrics_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lanyard-id/lanyard/internal/mic/metrics"
)

// The names are those of Pod Identity v1: dashboards and alerts hold them.
func TestTheNamesAreThoseOfPodIdentityV1(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	m, err := metrics.New(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{metrics.Addition, metrics.Deletion, metrics.Update} {
		m.Kubernetes(name, time.Now(), nil)
	}
	m.Kubernetes(metrics.StatusUpdate, time.Now(), errors.New("no"))
	m.Cloud("vmss_update", time.Second, errors.New("no"))
	m.Cycle(time.Now())
	m.Elected()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName()+"="+l.GetValue())
		}
		got = append(got, strings.TrimSpace(f.GetType().String()+" "+f.GetName()+" "+strings.Join(labels, ",")))
	}
	slices.Sort(got)
	want := []string{
		"COUNTER aadpodidentity_assigned_identity_addition_count",
		"COUNTER aadpodidentity_assigned_identity_deletion_count",
		"COUNTER aadpodidentity_assigned_identity_update_count",
		"COUNTER aadpodidentity_cloud_provider_operations_errors_count operation_type=vmss_update",
		"COUNTER aadpodidentity_kubernetes_api_operations_errors_count operation_type=update_azure_assigned_identity_status",
		"COUNTER aadpodidentity_mic_cycle_count",
		"COUNTER aadpodidentity_mic_new_leader_election_count",
		"HISTOGRAM aadpodidentity_assigned_identity_addition_duration_seconds",
		"HISTOGRAM aadpodidentity_assigned_identity_deletion_duration_seconds",
		"HISTOGRAM aadpodidentity_assigned_identity_update_duration_seconds",
		"HISTOGRAM aadpodidentity_cloud_provider_operations_duration_seconds operation_type=vmss_update",
		"HISTOGRAM aadpodidentity_mic_cycle_duration_seconds",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	var none *metrics.Metrics // counts nothing, and does not fail
	none.Cycle(time.Now())
	none.Cloud("vm_get", 0, nil)
	none.Kubernetes(metrics.Addition, time.Now(), nil)
	none.Elected()
}

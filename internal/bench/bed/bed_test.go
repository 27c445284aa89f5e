package bed

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWritesAreCountedByResource(t *testing.T) {
	const text = `# TYPE apiserver_request_total counter
apiserver_request_total{code="201",component="apiserver",dry_run="",group="aadpodidentity.k8s.io",resource="azureassignedidentities",scope="resource",subresource="",verb="POST",version="v1"} 200
apiserver_request_total{code="200",component="apiserver",dry_run="",group="aadpodidentity.k8s.io",resource="azureassignedidentities",scope="resource",subresource="",verb="PATCH",version="v1"} 1.2e+03
apiserver_request_total{code="409",component="apiserver",dry_run="",group="aadpodidentity.k8s.io",resource="azureassignedidentities",scope="resource",subresource="",verb="PATCH",version="v1"} 3
apiserver_request_total{code="200",component="apiserver",dry_run="",group="aadpodidentity.k8s.io",resource="azureassignedidentities",scope="cluster",subresource="",verb="LIST",version="v1"} 9
apiserver_request_total{code="201",component="apiserver",dry_run="",group="",resource="events",scope="resource",subresource="",verb="POST",version="v1"} 7
apiserver_request_duration_seconds_count{resource="pods",verb="POST"} 5
`
	want := map[string]int{"azureassignedidentities POST": 200, "azureassignedidentities PATCH": 1200, "azureassignedidentities refused": 3, "events POST": 7}
	got := countWrites(text)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestATrackerCountsAssignments(t *testing.T) {
	tr := &Tracker{state: map[string]string{}, changed: make(chan struct{})}
	tr.note("default/a", "Created")
	tr.note("default/b", "Created")
	if err := tr.Wait(t.Context(), time.Millisecond, 2, 2); err == nil || !strings.Contains(err.Error(), "0 of 2 are assigned") {
		t.Errorf("two that are not assigned: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- tr.Wait(t.Context(), time.Minute, 1, 1) }()
	tr.note("default/a", "Assigned")
	tr.note("default/a", "Assigned") // again: counted once
	tr.note("default/b", "")
	if err := <-done; err != nil {
		t.Error(err)
	}
	tr.note("default/a", "")
	if err := tr.Wait(t.Context(), time.Minute, 0, 0); err != nil {
		t.Error(err)
	}
}

func TestUntilWaitsForSuccessButNotForLostCauses(t *testing.T) {
	n := 0
	if err := Until(t.Context(), time.Minute, func() error {
		if n++; n < 3 {
			return errors.New("not yet")
		}
		return nil
	}); err != nil || n != 3 {
		t.Errorf("%v after %d looks", err, n)
	}
	if err := Until(t.Context(), time.Hour, func() error { return Fatal{Err: errors.New("it has ended")} }); err == nil || err.Error() != "it has ended" {
		t.Errorf("a lost cause: %v", err)
	}
	if err := Until(t.Context(), time.Millisecond, func() error { return errors.New("not yet") }); err == nil || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("over time: %v", err)
	}
}

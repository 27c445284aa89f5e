package webhook

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

func TestPackedAccountsKeepWhatIsOfTheContract(t *testing.T) {
	type maps = map[string]string
	for name, tc := range map[string]struct {
		labels, annotations maps
		want                mutation.ServiceAccount
	}{
		"nothing":       {},
		"others' only":  {maps{"app": "x"}, maps{"example.com/client-id": "y"}, mutation.ServiceAccount{}},
		"an annotation": {nil, maps{"azure.workload.identity/client-id": "a", "x": "y"}, mutation.ServiceAccount{Annotations: maps{"azure.workload.identity/client-id": "a"}}},
		"an empty one":  {nil, maps{"azure.workload.identity/tenant-id": ""}, mutation.ServiceAccount{Annotations: maps{"azure.workload.identity/tenant-id": ""}}},
		"a label":       {maps{"azure.workload.identity/use": "true"}, nil, mutation.ServiceAccount{Labels: maps{"azure.workload.identity/use": "true"}}},
		"all of it": {maps{"azure.workload.identity/use": ""}, maps{"azure.workload.identity/client-id": "=", "azure.workload.identity/tenant-id": "", "azure.workload.identity/use": "z"},
			mutation.ServiceAccount{
				Labels:      maps{"azure.workload.identity/use": ""},
				Annotations: maps{"azure.workload.identity/client-id": "=", "azure.workload.identity/tenant-id": "", "azure.workload.identity/use": "z"},
			}},
		"a value that separates": {nil, maps{"azure.workload.identity/client-id": "a\x00tenant-id\x00b"}, mutation.ServiceAccount{}},
	} {
		t.Run(name, func(t *testing.T) {
			got := pack(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Labels: tc.labels, Annotations: tc.annotations}}).unpack()
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

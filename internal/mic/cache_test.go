package mic

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/internal/mic/taint"
)

// All pods of the cluster are in the cache; this is what makes that cheap.
func TestTenThousandPodsTakeLittleMemory(t *testing.T) {
	agents := taint.Agents{Namespace: "default", Selectors: AgentSelectors()}
	containers := make([]corev1.Container, 3)
	for i := range containers {
		containers[i] = corev1.Container{Name: fmt.Sprint("c", i), Image: "registry.example/some/image:v1.2.3", Args: []string{strings.Repeat("a", 200)}, Env: []corev1.EnvVar{{Name: "A", Value: strings.Repeat("v", 100)}}}
	}
	const n = 10000
	keep := make([]any, 0, n)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range n {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", Name: fmt.Sprintf("frontend-6c8d9f7b54-%05d", i), UID: "0b8f1c2e-7e4d-4a55-9a0e-3f6a5b7c8d9e", ResourceVersion: "123456789",
				Labels:          map[string]string{"app": "frontend", "pod-template-hash": "6c8d9f7b54", "team": "shop", "aadpodidbinding": "frontend"},
				Annotations:     map[string]string{"a": strings.Repeat("x", 500)},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "frontend-6c8d9f7b54", UID: "1"}},
				ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "m", FieldsV1: metav1.NewFieldsV1(`{"f:a":"` + strings.Repeat("x", 1000) + `"}`)}},
			},
			Spec:   corev1.PodSpec{NodeName: fmt.Sprint("node-", i/30), ServiceAccountName: "frontend", Containers: containers},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
		}
		data, err := json.Marshal(p) // as it comes from the wire, nothing is shared
		if err != nil {
			t.Fatal(err)
		}
		var read corev1.Pod
		if err := json.Unmarshal(data, &read); err != nil {
			t.Fatal(err)
		}
		kept, err := slimPod(agents)(&read)
		if err != nil {
			t.Fatal(err)
		}
		keep = append(keep, kept)
	}
	used := heap() - before
	t.Logf("%d pods take %.1f MB", n, float64(used)/1e6)
	if used > 30e6 {
		t.Errorf("%d pods take %d bytes", n, used)
	}
	runtime.KeepAlive(keep)
}

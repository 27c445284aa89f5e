package keyrotation

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// tell logs what the cluster and Lanyard's pods said last.
func (b *bed) tell(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	events, err := b.Lab.Client.CoreV1().Events("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Logf("listing events: %v", err)
		return
	}
	for _, e := range events.Items[max(0, len(events.Items)-60):] {
		t.Logf("%s %d× %s %s: %s: %.300s", e.LastTimestamp.UTC().Format(time.TimeOnly), e.Count, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
	}
	pods, err := b.Lab.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Logf("listing pods: %v", err)
		return
	}
	lines := int64(40)
	for _, p := range pods.Items {
		if p.Spec.ServiceAccountName == account {
			continue
		}
		text, err := b.Lab.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{TailLines: &lines}).DoRaw(ctx)
		t.Logf("%s (%v) said last:\n%s", p.Name, err, text)
	}
}

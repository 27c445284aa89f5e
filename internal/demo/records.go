package demo

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// records returns, for each binding, the event that tells of the issuance
// that the story's pod caused. Events are written behind the answer to the
// pod, so it watches for a moment.
func (s *Story) records(ctx context.Context, bindings []string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var records []string
	for _, binding := range bindings {
		event, err := s.issuance(ctx, binding)
		if err != nil {
			return records, fmt.Errorf("no issuance is recorded on the binding %s: %w", binding, err)
		}
		records = append(records, fmt.Sprintf("%s: %s %s: %s", binding, event.Type, event.Reason, event.Message))
	}
	return records, nil
}

func (s *Story) issuance(ctx context.Context, binding string) (*corev1.Event, error) {
	for {
		w, err := s.Kube.CoreV1().Events(metav1.NamespaceDefault).Watch(ctx, metav1.ListOptions{
			FieldSelector: "involvedObject.kind=AzureIdentityBinding,involvedObject.name=" + binding,
		})
		if err != nil {
			return nil, err
		}
		for e := range w.ResultChan() {
			if event, ok := e.Object.(*corev1.Event); ok && event.Reason == reasonIssued {
				w.Stop()
				return event, nil
			}
		}
		w.Stop()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

package nmi

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
)

// Reasons of the events that tell of decisions.
const (
	ReasonIssued  = "TokenIssued"
	ReasonRefused = "TokenRefused"
)

// Events is the Recorder that writes an event on the AzureIdentityBinding and
// on the pod, and one audit line, for every decision. An event's text holds
// nothing that differs from one issuance to the next, so that Kubernetes counts
// a series instead of storing each.
type Events struct {
	Events record.EventRecorder
	Audit  *slog.Logger // one line a decision; nil means slog.Default
}

// Record implements Recorder.
func (e *Events) Record(ctx context.Context, d Decision) {
	e.audit(ctx, d)
	if d.Pod.Name == "" {
		return // nobody to tell
	}
	kind, reason, text := d.event()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: d.Pod.Namespace, Name: d.Pod.Name, UID: types.UID(d.Pod.UID)}}
	e.Events.Event(pod, kind, reason, text)
	if d.Binding != nil {
		e.Events.Event(d.Binding, kind, reason, text)
	}
}

func (d Decision) event() (kind, reason, text string) {
	if d.Issued {
		return corev1.EventTypeNormal, ReasonIssued, d.issued()
	}
	return corev1.EventTypeWarning, ReasonRefused, d.refused()
}

func (d Decision) issued() string {
	if d.Excepted {
		return fmt.Sprintf("token for %s passed through to pod %s/%s: an AzurePodIdentityException names its label", d.Resource, d.Pod.Namespace, d.Pod.Name)
	}
	return fmt.Sprintf("token for %s issued to pod %s/%s (service account %s) on node %s as AzureIdentity %s/%s",
		d.Resource, d.Pod.Namespace, d.Pod.Name, d.Pod.ServiceAccount, d.Pod.Node, d.Identity.Namespace, d.Identity.Name)
}

func (d Decision) refused() string {
	return fmt.Sprintf("token for %s refused to pod %s/%s: %s: %s", d.Resource, d.Pod.Namespace, d.Pod.Name, d.Reason, d.Text)
}

func (e *Events) audit(ctx context.Context, d Decision) {
	logger := e.Audit
	if logger == nil {
		logger = slog.Default()
	}
	decision := "refused"
	if d.Issued {
		decision = "issued"
	}
	attrs := []slog.Attr{
		slog.String("decision", decision),
		slog.String("namespace", d.Pod.Namespace), slog.String("pod", d.Pod.Name), slog.String("uid", d.Pod.UID),
		slog.String("serviceAccount", d.Pod.ServiceAccount), slog.String("node", d.Pod.Node),
		slog.String("resource", d.Resource), slog.Bool("excepted", d.Excepted),
	}
	if d.Binding != nil {
		attrs = append(attrs, slog.String("binding", d.Binding.Namespace+"/"+d.Binding.Name))
	}
	if d.Identity != nil {
		attrs = append(attrs, slog.String("identity", d.Identity.Namespace+"/"+d.Identity.Name), slog.String("identityResourceID", d.Identity.Spec.ResourceID))
	}
	if d.Issued {
		attrs = append(attrs, slog.String("expires", d.Expires.UTC().Format(time.RFC3339)))
	} else {
		attrs = append(attrs, slog.String("reason", d.Reason), slog.String("text", d.Text))
	}
	logger.LogAttrs(ctx, slog.LevelInfo, "audit", attrs...)
}

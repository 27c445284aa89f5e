package doctor

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/internal/webhook/doctor/diagnosis"
)

// An event is an Event of events.k8s.io/v1.
type event struct {
	metav1.TypeMeta
	Metadata            metav1.ObjectMeta `json:"metadata"`
	EventTime           metav1.MicroTime  `json:"eventTime"`
	ReportingController string            `json:"reportingController"`
	ReportingInstance   string            `json:"reportingInstance"`
	Action              string            `json:"action"`
	Reason              string            `json:"reason"`
	Regarding           map[string]string `json:"regarding"`
	Note                string            `json:"note"`
	Type                string            `json:"type"`
}

const (
	controllerName = "lanyard.id/webhook-doctor"
	maxNote        = 1024
)

// Reasons of Events beside the findings.
const (
	reasonEvicted  = "Evicted"
	reasonUnhelped = "EvictionDidNotHelp"
)

// report writes the Events and log lines that are due, a few at a time.
func (d *Doctor) report(ctx context.Context) {
	d.mu.Lock()
	unhelped := d.unhelped
	d.unhelped = nil
	d.mu.Unlock()
	for _, p := range unhelped {
		note := "The pod replaces one that was evicted for want of a workload identity, and has none either. No other pod of its controller is evicted. See whether the API server reaches the webhook, and what else changes the pod."
		if err := d.tell(ctx, p, "Warning", reasonUnhelped, note, 0); err != nil {
			d.Logger.WarnContext(ctx, "writing an event", "namespace", p.namespace, "pod", p.name, "err", err)
		}
	}
	due, failed := d.due(), 0
	for _, p := range due {
		if p.reported == 0 {
			d.Logger.WarnContext(ctx, "a pod lacks its workload identity", "namespace", p.namespace, "pod", p.name, "uid", p.uid, "finding", p.verdict.Finding,
				"detail", p.verdict.Detail, "owner", p.owner.Kind+"/"+p.owner.Name, "notEvicted", p.verdict.Keep)
		}
		wait := d.Pace.Remind
		if err := d.tell(ctx, p, "Warning", string(p.verdict.Finding), advice(p.verdict, p.owner), p.reported); err != nil {
			if failed++; failed == 1 {
				d.Logger.WarnContext(ctx, "writing an event", "namespace", p.namespace, "pod", p.name, "err", err)
			}
			wait = min(wait, time.Minute)
		}
		d.mu.Lock()
		if now := d.patients[p.key()]; now != nil && now.uid == p.uid && now.verdict.Finding == p.verdict.Finding {
			now.reported, now.due = p.reported+1, time.Now().Add(wait)
		}
		d.mu.Unlock()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case len(due) == 0:
	case failed < len(due):
		d.mute = 0
	default: // as without the right to: not once a second for every pod
		d.mute++
		d.speak = time.Now().Add(d.Pace.Round << min(d.mute, 6))
	}
}

// due returns copies of the patients that have waited longest for a report.
func (d *Doctor) due() []patient {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []*patient
	now := time.Now()
	if now.Before(d.speak) {
		return nil
	}
	for _, p := range d.patients {
		if now.After(p.due) {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b *patient) int { return cmp.Or(a.due.Compare(b.due), a.created.Compare(b.created)) })
	out := make([]patient, 0, perRound)
	for _, p := range all[:min(len(all), perRound)] {
		out = append(out, *p)
	}
	return out
}

// advice says what the pod lacks and what its user can do.
func advice(v diagnosis.Verdict, owner diagnosis.Owner) string {
	var text string
	switch again := "Delete the pod and it comes back with it"; v.Finding {
	case diagnosis.NotMutated:
		if owner.UID == "" {
			again = "Nothing makes this pod again: delete it and create it anew"
		} else if owner.Kind == "Job" {
			again = "Run the Job again"
		}
		text = fmt.Sprintf("The pod runs without the workload identity that its label asks for: %s. The webhook was not asked when it was created. %s.", v.Detail, again)
	case diagnosis.Incomplete:
		text = fmt.Sprintf("The pod has only a part of the workload identity that its label asks for: %s. Something has changed the pod after the webhook: let that come before it, or have the webhook asked again (reinvocationPolicy IfNeeded).", v.Detail)
	case diagnosis.StaleIdentity:
		text = fmt.Sprintf("The pod has an identity that its service account has no longer: %s. Restart the workload when the new identity may be used.", v.Detail)
	}
	if v.Keep != "" {
		text += " It is not evicted: " + v.Keep + "."
	}
	return text + " To have it ignored, annotate the pod with " + diagnosis.AnnotationDoctor + "=ignore."
}

// tell writes an Event about a pod, or counts it up if it is there. Its name
// follows from the pod and the reason, so that another leader finds it.
func (d *Doctor) tell(ctx context.Context, p patient, kind, reason, note string, before int) error {
	sum := sha256.Sum256([]byte(p.uid + reason))
	name, now := p.name[:min(len(p.name), 200)]+"."+hex.EncodeToString(sum[:8]), metav1.NowMicro()
	path := "/apis/events.k8s.io/v1/namespaces/" + p.namespace + "/events"
	count := func() error {
		return d.API.call(ctx, http.MethodPatch, path+"/"+name, map[string]any{
			"series": map[string]any{"count": max(2, before+1), "lastObservedTime": now},
		}, nil)
	}
	if before > 0 {
		if err := count(); !apierrors.IsNotFound(err) {
			return err
		}
	}
	if len(note) > maxNote {
		note = strings.ToValidUTF8(note[:maxNote-3], "") + "..." // a cut character would be replaced by a longer one
	}
	err := d.API.call(ctx, http.MethodPost, path, event{
		TypeMeta: metav1.TypeMeta{APIVersion: "events.k8s.io/v1", Kind: "Event"},
		Metadata: metav1.ObjectMeta{Name: name, Namespace: p.namespace}, EventTime: now,
		ReportingController: controllerName, ReportingInstance: d.Identity[:min(len(d.Identity), 128)], Action: "Look", Reason: reason,
		Regarding: map[string]string{"apiVersion": "v1", "kind": "Pod", "namespace": p.namespace, "name": p.name, "uid": p.uid},
		Note:      note, Type: kind,
	}, nil)
	if apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
		return count()
	}
	return err
}

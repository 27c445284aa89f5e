// Package journal keeps the record of a node agent's decisions: one audit line
// each, and events that count them.
//
//	Decision ── audit line ──> Backlog ──> standard output
//	         ── series     ──> events.k8s.io/v1, on the binding and on the pod
//
// A series is one pod, binding, identity, resource, token and reason. Its first
// decision is written at once; the second write follows when it has been
// repeated for a few seconds, and then one every few minutes, with the count and
// the last time. client-go's tools/events would do the same but takes everything
// with one reason and one pod for a repetition: the note of a second resource,
// or of the next token's expiry, would never be written. An audit needs them.
//
// Nothing here blocks a request: what cannot be written is counted.
package journal

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/nmi"
)

// Reasons of events.
const (
	ReasonIssued      = "TokenIssued"
	ReasonRefused     = "TokenRefused"
	ReasonHostNetwork = "HostNetworkPod"

	ReasonCredentialRefused = "CredentialRefused"
	ReasonCredentialWorks   = "CredentialWorks"
)

// controller is the reportingController of our events.
const controller = "aadpodidentity.k8s.io/nmi"

// Bounds of what a pod, or all of them, can make us remember and write.
const (
	maxSeries       = 8192
	maxSeriesPerPod = 32
	maxNote         = 1024 // of the API server
)

// When a series is written again.
const (
	settle = 10 * time.Second // the first repetitions are gathered this long
	steady = 5 * time.Minute  // between later writes
	idle   = 6 * time.Minute  // then a series has ended: tools/events' figure
)

// An EventWriter writes events of one namespace; see Client.
type EventWriter interface {
	Create(ctx context.Context, e *eventsv1.Event) error
	Patch(ctx context.Context, namespace, name string, patch []byte) error
}

// A Journal is an nmi.Recorder. Events and Node must be set. Decisions are
// kept from the beginning, and written while Run runs.
type Journal struct {
	Events EventWriter
	Audit  *slog.Logger // one line a decision; nil means slog.Default
	Log    *slog.Logger // trouble with events; nil means slog.Default
	Node   string       // reportingInstance
	Now    func() time.Time

	trail  trail
	mu     sync.Mutex
	series map[key]*series
	perPod map[string]int // live series by pod UID
	fresh  chan struct{}  // capacity 1: something waits for its first write
	lost   atomic.Uint64
	sn     atomic.Uint64
}

// A key is what makes two decisions the same event.
type key struct {
	onPod        bool // the event is on the pod, else on the binding
	pod, binding string
	identity     string
	resource     string
	reason       string
	expires      int64
}

// A series is guarded by Journal.mu but for event, which only Run touches.
type series struct {
	event   *eventsv1.Event
	count   int32
	last    time.Time
	written int32     // count at the last write
	at      time.Time // of the last write or attempt
}

// Lost returns how many decisions are in no event.
func (j *Journal) Lost() uint64 { return j.lost.Load() }

// Record implements nmi.Recorder.
func (j *Journal) Record(ctx context.Context, d nmi.Decision) {
	j.trail.write(ctx, j.Audit, d)
	if d.Pod.Name == "" {
		return // nobody to tell
	}
	reason := ReasonIssued
	if !d.Issued {
		reason = d.Reason
	}
	k := key{pod: d.Pod.UID, resource: d.Resource, reason: reason}
	if d.Issued {
		k.expires = d.Expires.Unix()
	}
	if d.Identity != nil {
		k.identity = d.Identity.Namespace + "/" + d.Identity.Name
	}
	if d.Binding != nil {
		k.binding = string(d.Binding.UID)
		if k.binding == "" {
			k.binding = d.Binding.Namespace + "/" + d.Binding.Name
		}
		j.count(k, d)
	}
	// A pod's author looks at the pod, above all when it gets nothing.
	if d.Binding == nil || !d.Issued {
		k.onPod = true
		j.count(k, d)
	}
}

func (j *Journal) count(k key, d nmi.Decision) {
	now := j.now()
	j.mu.Lock()
	defer j.mu.Unlock()
	if s := j.series[k]; s != nil {
		s.count++
		s.last = now
		return
	}
	if j.perPod[k.pod] >= maxSeriesPerPod {
		k.resource, d.Resource = "", "(more resources)"
		if s := j.series[k]; s != nil {
			s.count++
			s.last = now
			return
		}
	}
	if len(j.series) >= maxSeries || j.perPod[k.pod] >= 2*maxSeriesPerPod {
		j.lost.Add(1)
		return
	}
	j.add(k, j.event(k, d, now), now)
}

// add needs the lock.
func (j *Journal) add(k key, e *eventsv1.Event, now time.Time) {
	if j.series == nil {
		j.series, j.perPod = map[key]*series{}, map[string]int{}
	}
	j.series[k] = &series{event: e, count: 1, last: now}
	j.perPod[k.pod]++
	j.wakeUp()
}

func (j *Journal) wakeUp() {
	if j.fresh == nil {
		j.fresh = make(chan struct{}, 1)
	}
	select {
	case j.fresh <- struct{}{}:
	default:
	}
}

// HostNetwork warns on a binding that it matches a pod in the node's own
// network.
func (j *Journal) HostNetwork(p binding.Pod, b *v1.AzureIdentityBinding) {
	now := j.now()
	k := key{pod: p.UID, binding: string(b.UID), reason: ReasonHostNetwork}
	note := fmt.Sprintf("pod %s/%s (uid %s) on node %s matches this binding but runs in the host's network: pods there cannot be told apart by their address, and their requests are not led to the node agent, so it gets no token by this binding; give it a network of its own, and see --block-host-network to keep it from the node's identities", p.Namespace, p.Name, p.UID, p.Node)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.series[k] != nil || len(j.series) >= maxSeries {
		return
	}
	j.add(k, j.build(bindingReference(b), podReference(p), corev1.EventTypeWarning, ReasonHostNetwork, note, now), now)
}

// Credential tells on an AzureIdentity that its new credential is refused while
// the old one serves on, or with a nil error that it works.
func (j *Journal) Credential(id *v1.AzureIdentity, err error) {
	now := j.now()
	kind, reason, note := corev1.EventTypeNormal, ReasonCredentialWorks, "the new credential works on node "+j.Node
	if err != nil {
		kind, reason, note = corev1.EventTypeWarning, ReasonCredentialRefused, fmt.Sprintf("the new credential does not work on node %s: %v", j.Node, err)
	}
	k := key{identity: id.Namespace + "/" + id.Name, reason: reason, resource: note}
	j.mu.Lock()
	defer j.mu.Unlock()
	if s := j.series[k]; s != nil {
		s.count++
		s.last = now
		return
	}
	if len(j.series) >= maxSeries {
		j.lost.Add(1)
		return
	}
	of := &corev1.ObjectReference{APIVersion: v1.GroupVersion().String(), Kind: "AzureIdentity", Namespace: id.Namespace, Name: id.Name, UID: id.UID}
	j.add(k, j.build(of, nil, kind, reason, note, now), now)
}

func (j *Journal) event(k key, d nmi.Decision, now time.Time) *eventsv1.Event {
	kind, reason, note := corev1.EventTypeWarning, ReasonRefused, refused(d)
	if d.Issued {
		kind, reason, note = corev1.EventTypeNormal, ReasonIssued, issued(d)
	}
	regarding, related := podReference(d.Pod), (*corev1.ObjectReference)(nil)
	if d.Binding != nil {
		related = bindingReference(d.Binding)
	}
	if !k.onPod {
		regarding, related = related, regarding
	}
	return j.build(regarding, related, kind, reason, note, now)
}

func (j *Journal) build(regarding, related *corev1.ObjectReference, kind, reason, note string, now time.Time) *eventsv1.Event {
	if len(note) > maxNote {
		note = note[:maxNote-len("…")-3]
		for note != "" && note[len(note)-1]&0xC0 == 0x80 { // not inside a character
			note = note[:len(note)-1]
		}
		note += "…"
	}
	suffix := "." + strconv.FormatInt(now.UnixNano(), 16) + strconv.FormatUint(j.sn.Add(1), 16)
	name := regarding.Name
	return &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: regarding.Namespace, Name: name[:min(len(name), 253-len(suffix))] + suffix},
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: controller, ReportingInstance: j.Node[:min(len(j.Node), 128)],
		Action: "IssueToken", Reason: reason, Regarding: *regarding, Related: related, Note: note, Type: kind,
	}
}

func podReference(p binding.Pod) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)}
}

func bindingReference(b *v1.AzureIdentityBinding) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: v1.GroupVersion().String(), Kind: "AzureIdentityBinding", Namespace: b.Namespace, Name: b.Name, UID: b.UID}
}

// Run writes events until the context ends, and what is unwritten then within
// two seconds.
func (j *Journal) Run(ctx context.Context) error {
	j.mu.Lock()
	if j.fresh == nil {
		j.fresh = make(chan struct{}, 1)
	}
	fresh := j.fresh
	j.mu.Unlock()
	tick := time.NewTicker(settle)
	defer tick.Stop()
	for {
		select {
		case <-fresh:
		case <-tick.C:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			j.write(last, true)
			return nil
		}
		j.write(ctx, false)
	}
}

// write writes what is due; all that is unwritten if last.
func (j *Journal) write(ctx context.Context, last bool) {
	type job struct {
		key   key
		s     *series
		count int32
		at    time.Time
		first bool
	}
	now := j.now()
	var jobs []job
	j.mu.Lock()
	for k, s := range j.series {
		since := now.Sub(s.at)
		switch {
		case s.written == 0 && since < settle && !s.at.IsZero() && !last: // it failed just now
		case s.written == 0, s.count > s.written && (last || s.written == 1 && since >= settle || since >= steady):
			jobs = append(jobs, job{k, s, s.count, s.last, s.written == 0})
		case s.count == s.written && now.Sub(s.last) >= idle:
			j.forget(k)
		}
	}
	j.mu.Unlock()
	for _, b := range jobs {
		var err error
		if b.first {
			err = j.create(ctx, b.s.event)
			b.count = 1
		} else {
			err = j.patch(ctx, b.s.event, b.count, b.at)
		}
		if ctx.Err() != nil {
			return
		}
		j.mu.Lock()
		b.s.at = j.now()
		switch {
		case err == nil:
			b.s.written = b.count
		case permanent(err):
			j.lost.Add(uint64(b.s.count - b.s.written)) //nolint:gosec // a count is never less than what of it was written
			j.forget(b.key)
		}
		j.mu.Unlock()
		if err != nil {
			j.log().WarnContext(ctx, "an event was not written", "event", b.s.event.Name, "namespace", b.s.event.Namespace, "reason", b.s.event.Reason, "err", err)
		}
	}
}

// forget needs the lock.
func (j *Journal) forget(k key) {
	delete(j.series, k)
	if j.perPod[k.pod]--; j.perPod[k.pod] <= 0 {
		delete(j.perPod, k.pod)
	}
}

// permanent reports whether to try again is in vain: the namespace is going,
// or the event has been deleted.
func permanent(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

func (j *Journal) create(ctx context.Context, e *eventsv1.Event) error {
	err := j.Events.Create(ctx, e)
	if apierrors.IsAlreadyExists(err) {
		return nil // an earlier attempt was not answered
	}
	return err
}

func (j *Journal) patch(ctx context.Context, e *eventsv1.Event, count int32, last time.Time) error {
	patch, err := json.Marshal(map[string]any{"series": eventsv1.EventSeries{Count: count, LastObservedTime: metav1.NewMicroTime(last)}})
	if err != nil {
		return err
	}
	return j.Events.Patch(ctx, e.Namespace, e.Name, patch)
}

func (j *Journal) now() time.Time {
	if j.Now != nil {
		return j.Now()
	}
	return time.Now()
}

func (j *Journal) log() *slog.Logger { return cmp.Or(j.Log, slog.Default()) }

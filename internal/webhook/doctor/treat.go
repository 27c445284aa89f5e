package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lanyard-id/lanyard/internal/webhook/doctor/diagnosis"
)

// A treatment is what the doctor does to the pods of one owner. The key is
// ownerKey.
type treatment struct {
	finding  diagnosis.Finding
	evicted  string    // UID of the pod; empty: a budget has refused, or an earlier leader evicted it
	at       time.Time // of the eviction, on the server's clock; pods made since are its replacement
	deadline time.Time // for the replacement
	unhelped bool      // it was no better: the owner is left alone

	refused int       // by a budget, one after the other
	again   time.Time // when to ask it again
}

func (t *treatment) waiting() bool { return !t.unhelped && !t.at.IsZero() }

// restore reads what the last leader has tried. Whether it helped shows in the
// pods made since.
func restore(text string, wait time.Duration) map[string]*treatment {
	out := map[string]*treatment{}
	var tried map[string]time.Time
	if json.Unmarshal([]byte(text), &tried) != nil {
		return out
	}
	for owner, at := range tried {
		if len(out) < maxWaiting+maxUnhelped {
			out[owner] = &treatment{finding: diagnosis.NotMutated, at: at, deadline: time.Now().Add(wait)}
		}
	}
	return out
}

// tried is what the next leader has to know. It is a few kilobytes: both kinds
// of entries are limited.
func (d *Doctor) tried() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[string]time.Time{}
	for owner, t := range d.treated {
		if !t.at.IsZero() {
			out[owner] = t.at
		}
	}
	text, err := json.Marshal(out)
	if err != nil {
		return ""
	}
	return string(text)
}

// treat evicts at most one pod.
func (d *Doctor) treat(ctx context.Context) {
	if d.Ready != nil && d.Ready() != nil {
		return
	}
	p, ok := d.candidate(ctx)
	if !ok {
		return
	}
	verdict, err := d.again(ctx, p)
	if err != nil {
		d.Logger.WarnContext(ctx, "the doctor cannot look at a pod again before its eviction", "namespace", p.namespace, "pod", p.name, "err", err)
		d.hold(p, "")
		return
	}
	if verdict.Finding != p.verdict.Finding || verdict.Keep != "" {
		d.hold(p, verdict.Keep)
		return
	}
	d.evict(ctx, p)
}

// candidate returns the oldest pod that may be evicted now.
func (d *Doctor) candidate(ctx context.Context) (patient, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now, waiting := time.Now(), 0
	for key, t := range d.treated {
		if t.waiting() && now.After(t.deadline) {
			// What an earlier leader has only meant to evict has no replacement.
			if t.evicted != "" && d.ails(key) {
				d.giveUp(ctx, key, t, patient{}, fmt.Sprintf("no replacement was ready within %s", d.Pace.Replace))
			} else {
				delete(d.treated, key)
			}
		}
		if t.waiting() {
			waiting++
		}
	}
	if d.stopped || waiting >= maxWaiting || now.Before(d.next) {
		return patient{}, false
	}
	var oldest *patient
	for _, p := range d.patients {
		t := d.treated[ownerKey(p.namespace, p.owner)]
		switch {
		case p.verdict.Keep != "", p.verdict.Finding == diagnosis.StaleIdentity && !d.EvictStale:
		case d.API.now().Sub(p.created) < d.Pace.Grace:
		case t != nil && (t.unhelped || !t.at.IsZero() || now.Before(t.again)):
		case oldest == nil || p.created.Before(oldest.created):
			oldest = p
		}
	}
	if oldest == nil {
		return patient{}, false
	}
	return *oldest, true
}

// ails reports whether a pod of the owner has a finding.
func (d *Doctor) ails(owner string) bool {
	for _, p := range d.patients {
		if ownerKey(p.namespace, p.owner) == owner {
			return true
		}
	}
	return false
}

// again judges a pod by what the API server says now, of everything: what is
// remembered may be old.
func (d *Doctor) again(ctx context.Context, p patient) (diagnosis.Verdict, error) {
	hook, err := d.readHook(ctx)
	if err != nil {
		return diagnosis.Verdict{}, err
	}
	labels, err := d.readLabels(ctx, hook, p.namespace)
	if err != nil {
		return diagnosis.Verdict{}, err
	}
	var raw json.RawMessage
	err = d.API.call(ctx, http.MethodGet, "/api/v1/namespaces/"+p.namespace+"/pods/"+p.name, nil, &raw)
	if apierrors.IsNotFound(err) {
		return diagnosis.Verdict{}, nil
	}
	if err != nil {
		return diagnosis.Verdict{}, err
	}
	pod, err := diagnosis.ParseSubject(raw)
	if err != nil {
		return diagnosis.Verdict{}, err
	}
	if pod.UID != p.uid || pod.Owner != p.owner {
		return diagnosis.Verdict{}, nil
	}
	account, err := d.Accounts.ServiceAccount(ctx, p.namespace, pod.ServiceAccount)
	if err != nil {
		return diagnosis.Verdict{}, fmt.Errorf("its service account, without which a new pod would be refused: %w", err)
	}
	account.Namespace, account.Name = p.namespace, pod.ServiceAccount
	return diagnosis.Judge(pod, labels, hook, account, d.config()), nil
}

// hold leaves an owner alone for a while, and a pod for the reason that has
// come up since it was judged.
func (d *Doctor) hold(p patient, keep string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := d.patients[p.key()]; now != nil && now.uid == p.uid && keep != "" {
		now.verdict.Keep = keep
	}
	d.refuse(p)
}

// refuse makes the owner of a pod wait, longer each time.
func (d *Doctor) refuse(p patient) {
	key := ownerKey(p.namespace, p.owner)
	t := d.treated[key]
	if t == nil {
		t = &treatment{finding: p.verdict.Finding}
		d.treated[key] = t
	}
	t.at, t.evicted = time.Time{}, ""
	t.again = time.Now().Add(d.Pace.Retry << min(t.refused, 5))
	t.refused++
}

// evict asks the API server to evict this very pod. Other pods are out of
// reach, whatever the pod says about its owner.
func (d *Doctor) evict(ctx context.Context, p patient) {
	key := ownerKey(p.namespace, p.owner)
	d.mu.Lock()
	d.next = time.Now().Add(d.Pace.Evict)
	t := d.treated[key]
	if t == nil {
		t = &treatment{}
		d.treated[key] = t
	}
	t.finding, t.evicted, t.at, t.deadline = p.verdict.Finding, p.uid, d.API.now().Truncate(time.Second), time.Now().Add(d.Pace.Replace)
	d.mu.Unlock()

	err := d.lease.renew(ctx)
	if err == nil {
		err = d.API.call(ctx, http.MethodPost, "/api/v1/namespaces/"+p.namespace+"/pods/"+p.name+"/eviction", map[string]any{
			"apiVersion": "policy/v1", "kind": "Eviction",
			"metadata":      map[string]any{"name": p.name, "namespace": p.namespace},
			"deleteOptions": map[string]any{"preconditions": map[string]any{"uid": p.uid}},
		}, nil)
	}
	log := d.Logger.With("namespace", p.namespace, "pod", p.name, "uid", p.uid, "finding", p.verdict.Finding, "owner", p.owner.Kind+"/"+p.owner.Name)
	switch {
	case err == nil:
		d.Metrics.evictions.WithLabelValues(resultEvicted).Inc()
		log.InfoContext(ctx, "pod evicted")
		if err := d.tell(ctx, p, "Normal", reasonEvicted, "Evicted so that its replacement gets the workload identity: "+p.verdict.Detail+".", 0); err != nil {
			log.WarnContext(ctx, "writing an event", "err", err)
		}
		return
	case apierrors.IsTooManyRequests(err):
		d.Metrics.evictions.WithLabelValues(resultRefused).Inc()
		log.InfoContext(ctx, "a PodDisruptionBudget does not allow the eviction now", "err", err)
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // it has gone, or we are not the leader
		log.InfoContext(ctx, "the pod was not evicted", "err", err)
	default:
		d.Metrics.evictions.WithLabelValues(resultFailed).Inc()
		log.WarnContext(ctx, "evicting the pod", "err", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.treated[key] == t && !t.unhelped {
		d.refuse(p)
	}
}

// observe sees whether a pod is the replacement of an evicted one, and if that
// has helped.
func (d *Doctor) observe(ctx context.Context, pod diagnosis.Subject, v diagnosis.Verdict) {
	if pod.Owner.UID == "" || pod.Over {
		return
	}
	key := ownerKey(pod.Namespace, pod.Owner)
	t := d.treated[key]
	switch {
	case t == nil, !t.waiting(), pod.UID == t.evicted, pod.Created.Before(t.at):
	case v.Finding != diagnosis.Healthy:
		d.giveUp(ctx, key, t, *newPatient(pod), "the replacement has no workload identity either")
	case pod.Ready:
		delete(d.treated, key)
		d.Metrics.evictions.WithLabelValues(resultHealed).Inc()
		d.Logger.InfoContext(ctx, "a replacement has its workload identity", "namespace", pod.Namespace, "pod", pod.Name, "owner", pod.Owner.Kind+"/"+pod.Owner.Name)
	}
}

// giveUp leaves an owner alone from now on: more evictions would only harm. p
// is the replacement, if there is one.
func (d *Doctor) giveUp(ctx context.Context, key string, t *treatment, p patient, why string) {
	t.unhelped = true
	d.Metrics.evictions.WithLabelValues(resultUnhealed).Inc()
	d.Logger.ErrorContext(ctx, "an eviction did not help: no other pod of this owner is evicted", "namespace", p.namespace, "pod", p.name, "owner", key, "err", why)
	if p.uid != "" {
		d.unhelped = append(d.unhelped, p)
	}
	number := 0
	for _, t := range d.treated {
		if t.unhelped {
			number++
		}
	}
	if number >= maxUnhelped && !d.stopped {
		d.stopped = true
		d.Logger.ErrorContext(ctx, "evictions do not help: none are made any more. See whether the API server reaches the webhook", "owners", number)
	}
}

// forget drops what was done to owners all of whose pods are well.
func (d *Doctor) forget() {
	for key, t := range d.treated {
		switch {
		case t.waiting() || d.ails(key):
		case t.unhelped && time.Since(t.at) < time.Hour:
		default:
			delete(d.treated, key)
		}
	}
}

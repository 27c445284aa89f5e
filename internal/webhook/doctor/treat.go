package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/internal/webhook/doctor/diagnosis"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

// A treatment is what the doctor does to the pods of one owner. The key is
// ownerKey.
type treatment struct {
	pod      patient   // that was evicted; the zero patient: a budget has refused, or an earlier leader evicted it
	at       time.Time // of the eviction, on the server's clock; pods made since are its replacement
	deadline time.Time // for the replacement
	unhelped bool      // it was no better: the owner is left alone

	// The server has not said whether it evicts the pod. When it must have
	// ended, the pod is looked at.
	doubt bool
	ends  time.Time

	refused int       // by a budget, one after the other
	again   time.Time // when to ask it again
}

func (t *treatment) waiting() bool { return !t.unhelped && !t.at.IsZero() }

// attempt is a treatment as it is handed on.
type attempt struct {
	At       time.Time `json:"at"`
	Unhelped bool      `json:"unhelped,omitempty"`
}

// restore reads what the last leader has tried. Whether it helped shows in the
// pods made since, or was seen.
func restore(text string, wait time.Duration) map[string]*treatment {
	out := map[string]*treatment{}
	var tried map[string]attempt
	if json.Unmarshal([]byte(text), &tried) != nil {
		return out
	}
	for owner, a := range tried {
		if len(out) < maxHandedOn {
			out[owner] = &treatment{at: a.At, deadline: time.Now().Add(wait), unhelped: a.Unhelped}
		}
	}
	return out
}

// tried is what the next leader has to know. It is a few kilobytes: both kinds
// of entries are limited.
func (d *Doctor) tried() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[string]attempt{}
	for owner, t := range d.treated {
		if !t.at.IsZero() {
			out[owner] = attempt{t.at, t.unhelped}
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
	d.settle(ctx)
	if d.Ready != nil && d.Ready() != nil {
		return
	}
	p, ok := d.candidate(ctx)
	if !ok {
		return
	}
	verdict, err := d.again(ctx, p)
	if err != nil {
		d.hold(p, "")
		d.slower()
		d.Logger.WarnContext(ctx, "the doctor cannot look at a pod again before its eviction", "namespace", p.namespace, "pod", p.name, "err", err)
		return
	}
	if verdict.Finding != p.verdict.Finding || verdict.Keep != "" {
		d.hold(p, verdict.Keep)
		return
	}
	d.evict(ctx, p)
}

// slower makes the next eviction wait, longer the more have failed: what fails
// for every pod, as a missing right does, fills no log.
func (d *Doctor) slower() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed++
	d.next = time.Now().Add(d.Pace.Evict << min(d.failed, 4))
}

// settle finds out whether pods were evicted of which the server has not said
// so.
func (d *Doctor) settle(ctx context.Context) {
	d.mu.Lock()
	var doubts []*treatment
	for _, t := range d.treated {
		if t.doubt && time.Now().After(t.ends) {
			doubts = append(doubts, t)
		}
	}
	d.mu.Unlock()
	for _, t := range doubts {
		pod, found, err := d.read(ctx, t.pod)
		d.mu.Lock()
		switch {
		case err != nil:
			t.ends = time.Now().Add(d.Pace.Doubt)
		case d.treated[t.pod.ownerKey()] != t || t.unhelped: // its replacement was seen meanwhile
		case found && !pod.Over:
			t.doubt = false
			d.refuse(t.pod)
		default:
			t.doubt = false
		}
		d.mu.Unlock()
	}
}

// candidate returns the oldest pod that may be evicted now. The first eviction
// has to help before there are two at a time.
func (d *Doctor) candidate(ctx context.Context) (patient, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now, waiting := time.Now(), 0
	for key, t := range d.treated {
		switch {
		case !t.waiting():
		case t.doubt || now.Before(t.deadline):
			waiting++
		case t.pod.uid == "": // what an earlier leader has only meant to evict has no replacement
			delete(d.treated, key)
		default:
			d.giveUp(ctx, key, t, patient{}, fmt.Sprintf("no replacement was ready within %s", d.Pace.Replace))
		}
	}
	limit := 1
	if d.proven {
		limit = maxWaiting
	}
	if d.stopped || waiting >= limit || now.Before(d.next) {
		return patient{}, false
	}
	here, _ := d.unhelpedOwners()
	var oldest *patient
	for _, p := range d.patients {
		t := d.treated[p.ownerKey()]
		switch {
		case here[p.namespace] >= maxUnhelpedHere:
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
		if p.ownerKey() == owner {
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
	pod, found, err := d.read(ctx, p)
	if err != nil || !found || pod.Owner != p.owner {
		return diagnosis.Verdict{}, err
	}
	// Not from the cache: its watch may be late, and the other replicas' ahead.
	var o metav1.PartialObjectMetadata
	if err := d.API.call(ctx, http.MethodGet, "/api/v1/namespaces/"+p.namespace+"/serviceaccounts/"+pod.ServiceAccount, nil, &o); err != nil {
		return diagnosis.Verdict{}, fmt.Errorf("its service account, without which a new pod would be refused: %w", err)
	}
	account := mutation.ServiceAccount{Namespace: p.namespace, Name: pod.ServiceAccount, Labels: o.Labels, Annotations: o.Annotations}
	return diagnosis.Judge(pod, labels, hook, account, d.config()), nil
}

// read returns the pod as it is now, and whether it is there.
func (d *Doctor) read(ctx context.Context, p patient) (diagnosis.Subject, bool, error) {
	var raw json.RawMessage
	err := d.API.call(ctx, http.MethodGet, "/api/v1/namespaces/"+p.namespace+"/pods/"+p.name, nil, &raw)
	if apierrors.IsNotFound(err) {
		return diagnosis.Subject{}, false, nil
	}
	if err != nil {
		return diagnosis.Subject{}, false, err
	}
	pod, err := diagnosis.ParseSubject(raw)
	return pod, err == nil && pod.UID == p.uid, err
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
	key := p.ownerKey()
	t := d.treated[key]
	if t == nil {
		t = &treatment{}
		d.treated[key] = t
	}
	t.at, t.pod = time.Time{}, patient{}
	t.again = time.Now().Add(d.Pace.Retry << min(t.refused, 5))
	t.refused++
}

// evict asks the API server to evict this very pod. Other pods are out of
// reach, whatever the pod says about its owner.
func (d *Doctor) evict(ctx context.Context, p patient) {
	key := p.ownerKey()
	d.mu.Lock()
	d.next = time.Now().Add(d.Pace.Evict)
	t := d.treated[key]
	if t == nil {
		t = &treatment{}
		d.treated[key] = t
	}
	t.pod, t.at, t.deadline = p, d.API.now().Truncate(time.Second), time.Now().Add(d.Pace.Replace)
	d.mu.Unlock()

	err, asked := d.lease.renew(ctx), false
	if err == nil {
		asked = true
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
		d.fine()
		if err := d.tell(ctx, p, "Normal", reasonEvicted, "Evicted so that its replacement gets the workload identity: "+p.verdict.Detail+".", 0); err != nil {
			log.WarnContext(ctx, "writing an event", "err", err)
		}
		return
	case apierrors.IsTooManyRequests(err):
		d.Metrics.evictions.WithLabelValues(resultRefused).Inc()
		log.InfoContext(ctx, "a PodDisruptionBudget does not allow the eviction now", "err", err)
		d.fine()
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // it has gone, or we are not the leader
		log.InfoContext(ctx, "the pod was not evicted", "err", err)
	default:
		d.Metrics.evictions.WithLabelValues(resultFailed).Inc()
		d.slower()
		log.WarnContext(ctx, "evicting the pod", "err", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.treated[key] != t || t.unhelped: // its replacement was seen meanwhile
	case asked && uncertain(err):
		t.doubt, t.ends = true, time.Now().Add(d.Pace.Doubt)
	default:
		d.refuse(p)
	}
}

func (d *Doctor) fine() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed = 0
}

// uncertain reports whether a request that ended with this error may have been
// carried out, or may still be.
func uncertain(err error) bool {
	var answer apierrors.APIStatus
	return !errors.As(err, &answer) || answer.Status().Code >= http.StatusInternalServerError
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
	case t == nil, !t.waiting(), pod.UID == t.pod.uid, pod.Created.Before(t.at):
	case v.Finding != diagnosis.Healthy:
		d.giveUp(ctx, key, t, *newPatient(pod), "the replacement has no workload identity either")
	case pod.Ready:
		delete(d.treated, key)
		d.proven = true
		d.Metrics.evictions.WithLabelValues(resultHealed).Inc()
		d.Logger.InfoContext(ctx, "a replacement has its workload identity", "namespace", pod.Namespace, "pod", pod.Name, "owner", pod.Owner.Kind+"/"+pod.Owner.Name)
	}
}

// giveUp leaves an owner alone from now on: more evictions would only harm. p
// is the replacement, if there is one.
func (d *Doctor) giveUp(ctx context.Context, key string, t *treatment, p patient, why string) {
	t.unhelped, t.doubt, d.proven = true, false, false
	of := cmp.Or(t.pod, p)
	d.Metrics.evictions.WithLabelValues(resultUnhealed).Inc()
	d.Logger.ErrorContext(ctx, "an eviction did not help: no other pod of this owner is evicted", "namespace", of.namespace, "evicted", t.pod.name, "replacement", p.name, "owner", of.owner.Kind+"/"+of.owner.Name, "err", why)
	if p.uid != "" {
		d.unhelped = append(d.unhelped, p)
	}
	here, all := d.unhelpedOwners()
	if ns := of.namespace; here[ns] == maxUnhelpedHere {
		d.Logger.ErrorContext(ctx, "evictions do not help in this namespace: none are made there any more. See what else changes its pods", "namespace", ns)
	}
	if all >= maxUnhelped && !d.stopped {
		d.stopped = true
		d.Logger.ErrorContext(ctx, "evictions do not help: none are made any more. See whether the API server reaches the webhook, and then delete the lease to begin anew", "owners", all, "lease", d.Namespace+"/"+LeaseName)
	}
}

// unhelpedOwners counts the owners whom evictions did not help, by namespace,
// and as far as they count against evictions anywhere: the pods of one
// namespace, which its users may change as they like, do not stop those of
// others.
func (d *Doctor) unhelpedOwners() (here map[string]int, all int) {
	here = map[string]int{}
	for key, t := range d.treated {
		if namespace, _, _ := strings.Cut(key, "/"); t.unhelped {
			if here[namespace]++; here[namespace] <= maxUnhelpedHere {
				all++
			}
		}
	}
	return here, all
}

// forget drops what was done to owners all of whose pods are well.
func (d *Doctor) forget() {
	for key, t := range d.treated {
		switch {
		case t.waiting() || d.ails(key):
		case t.unhelped && time.Since(t.at) < remembered:
		default:
			delete(d.treated, key)
		}
	}
}

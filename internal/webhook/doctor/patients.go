package doctor

import (
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/webhook/doctor/diagnosis"
)

// A patient is a pod with a finding.
type patient struct {
	namespace, name, uid string
	owner                diagnosis.Owner
	created              time.Time
	verdict              diagnosis.Verdict
	look                 int // in which it was last seen

	reported int       // Events about this finding
	due      time.Time // of the next
}

// newPatient copies: the pod's strings may be parts of its whole text.
func newPatient(pod diagnosis.Subject) *patient {
	o := pod.Owner
	return &patient{
		namespace: strings.Clone(pod.Namespace), name: strings.Clone(pod.Name), uid: strings.Clone(pod.UID), created: pod.Created,
		owner: diagnosis.Owner{Group: strings.Clone(o.Group), Kind: strings.Clone(o.Kind), Name: strings.Clone(o.Name), UID: strings.Clone(o.UID)},
	}
}

func (p *patient) key() string { return p.namespace + "/" + p.name }

func (p *patient) ownerKey() string { return ownerKey(p.namespace, p.owner) }

// ownerKey is how pods of one controller are known: whatever a pod says of its
// owner counts in its own namespace only.
func ownerKey(namespace string, o diagnosis.Owner) string { return namespace + "/" + o.UID }

// note remembers a verdict, or forgets the pod if there is nothing to remember.
func (d *Doctor) note(pod diagnosis.Subject, v diagnosis.Verdict) {
	key := pod.Namespace + "/" + pod.Name
	p := d.patients[key]
	if p != nil && p.uid != pod.UID { // a namesake
		delete(d.patients, key)
		p = nil
	}
	switch {
	case v.Finding == diagnosis.Healthy:
		delete(d.patients, key)
		return
	case p == nil && len(d.patients) >= maxPatients:
		d.over++
		return
	case p == nil:
		p = newPatient(pod)
		d.patients[key] = p
	case p.verdict.Finding != v.Finding:
		p.reported, p.due = 0, time.Time{}
	}
	p.verdict, p.look = v, d.look
}

// count writes the metrics.
func (d *Doctor) count() {
	number := map[diagnosis.Finding]int{}
	for _, p := range d.patients {
		number[p.verdict.Finding]++
	}
	for _, f := range findings() {
		d.Metrics.pods.WithLabelValues(string(f)).Set(float64(number[f]))
	}
	d.Metrics.over.Set(float64(d.over))
}

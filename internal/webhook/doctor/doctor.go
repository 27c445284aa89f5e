package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/internal/webhook/doctor/diagnosis"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

// Accounts remembers service accounts.
type Accounts interface {
	// Known returns what is in memory: an account with annotations, or nothing.
	Known(namespace, name string) mutation.ServiceAccount
}

// A Doctor looks after the pods of a cluster. The fields up to Identity must
// be set.
type Doctor struct {
	API           *API
	Accounts      Accounts
	Config        mutation.Config // as the webhook has it; NativeSidecars is the func's
	Configuration string          // name of the MutatingWebhookConfiguration
	Webhook       string          // name of the webhook in it
	Namespace     string          // of the Lease
	Identity      string          // of this replica; no two have the same

	Evict      bool          // false: only report
	EvictStale bool          // evict pods with a StaleIdentity too
	Interval   time.Duration // between looks at every pod; 0 means 10 minutes

	Ready          func() error // why the webhook cannot answer: nobody is evicted; nil means it can
	NativeSidecars func() bool  // nil means yes
	Metrics        *Metrics     // nil means none
	Logger         *slog.Logger // nil means slog.Default
	Pace           Pace         // the zero value means its defaults

	lease *lease

	mu       sync.Mutex
	patients map[string]*patient   // by namespace/name
	over     int                   // findings of this look beyond maxPatients
	look     int                   // number of the current look
	treated  map[string]*treatment // by owner
	stopped  bool                  // too many treatments did not help
	proven   bool                  // the last treatment that is over helped
	failed   int                   // evictions that could not be tried, one after the other
	mute     int                   // rounds in which no Event could be written, one after the other
	speak    time.Time             // when to try again
	unhelped []patient             // replacements that were no better, to be told
	next     time.Time             // the earliest next eviction

	namespaces map[string]map[string]string // labels; only the follower's
	unread     int                          // namespaces of this look without labels; likewise
	hook       diagnosis.Hook               // likewise
}

// Pace says how fast the doctor acts. A zero field means its default.
type Pace struct {
	Lease   time.Duration // how long a replica that is gone is waited for; 15 s
	Round   time.Duration // between steps, each of at most perRound Events and one eviction; 1 s
	Evict   time.Duration // between evictions; 5 s
	Grace   time.Duration // the age at which a pod may be evicted; 30 s
	Replace time.Duration // how long to wait for a replacement to be ready; 10 min
	Remind  time.Duration // between Events about one pod; 30 min, since they live for an hour
	Doubt   time.Duration // after which an eviction without answer has happened or will not; 1 min, as requests take at most
	Retry   time.Duration // first pause after a budget's refusal, doubled up to 32 times it; 10 s
}

func (p Pace) orDefaults() Pace {
	return Pace{
		Lease: cmp.Or(p.Lease, 15*time.Second), Round: cmp.Or(p.Round, time.Second), Evict: cmp.Or(p.Evict, 5*time.Second),
		Grace: cmp.Or(p.Grace, 30*time.Second), Replace: cmp.Or(p.Replace, 10*time.Minute), Remind: cmp.Or(p.Remind, 30*time.Minute),
		Doubt: cmp.Or(p.Doubt, time.Minute), Retry: cmp.Or(p.Retry, 10*time.Second),
	}
}

const (
	maxPatients = 5000 // some 2 MB
	perRound    = 5    // Events
	maxWaiting  = 5    // owners whose replacement is waited for

	// Owners whose replacement was no better, or never came: then it is not the
	// owners. Of a namespace so many count, and then it is left alone.
	maxUnhelped, maxUnhelpedHere = 10, 3

	maxHandedOn = 100            // attempts
	remembered  = 24 * time.Hour // owners without a pod that was no better: more than it takes to count to maxUnhelped
)

// Run looks after the pods whenever this replica has the Lease, until the
// context ends.
func (d *Doctor) Run(ctx context.Context) error {
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	if d.Metrics == nil {
		d.Metrics = NewMetrics()
	}
	d.Interval, d.Pace = cmp.Or(d.Interval, 10*time.Minute), d.Pace.orDefaults()
	d.lease = &lease{api: d.API, namespace: d.Namespace, identity: d.Identity, lasts: d.Pace.Lease, handOn: d.tried, logger: d.Logger}
	d.lease.run(ctx, d.lead)
	return nil
}

// lead acts until the context ends, and forgets.
func (d *Doctor) lead(ctx context.Context) {
	d.mu.Lock()
	d.patients, d.treated, d.over = map[string]*patient{}, restore(d.lease.tried(), d.Pace.Replace), 0
	_, unhelped := d.unhelpedOwners()
	d.stopped, d.proven, d.failed, d.mute = unhelped >= maxUnhelped, false, 0, 0
	d.mu.Unlock()
	d.Metrics.acting.Set(1)
	following := make(chan struct{})
	go func() {
		defer close(following)
		d.follow(ctx)
	}()
	ticker := time.NewTicker(d.Pace.Round)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			d.mu.Lock()
			d.count()
			d.mu.Unlock()
			d.report(ctx)
			if d.Evict {
				d.treat(ctx)
			}
		}
	}
	<-following
	d.mu.Lock()
	defer d.mu.Unlock()
	d.patients, d.treated, d.unhelped, d.over = nil, nil, nil, 0
	d.count()
	d.Metrics.acting.Set(0)
}

// follow looks at every pod, and then at every change, again and again.
func (d *Doctor) follow(ctx context.Context) {
	patience := time.Second
	for ctx.Err() == nil {
		started := time.Now()
		err := d.lookAround(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > time.Minute || err == nil {
			patience = time.Second
		}
		if err != nil {
			d.Logger.WarnContext(ctx, "the doctor cannot look at pods", "err", err, "retryIn", patience)
		}
		pause(ctx, patience)
		if err != nil {
			patience = min(2*patience, time.Minute)
		}
	}
}

func (d *Doctor) lookAround(ctx context.Context) error {
	hook, err := d.readHook(ctx)
	if err != nil {
		return err
	}
	if hook.Conditional && !d.hook.Conditional {
		d.Logger.WarnContext(ctx, "the webhook's configuration has matchConditions, which only the API server evaluates: pods that they leave out are reported too", "configuration", d.Configuration)
	}
	d.hook, d.namespaces, d.unread = hook, map[string]map[string]string{}, 0
	d.mu.Lock()
	d.look++
	d.over = 0
	d.mu.Unlock()
	version, err := d.API.pods(ctx, func(raw []byte) { d.see(ctx, raw) })
	if err != nil {
		return err
	}
	d.mu.Lock()
	for key, p := range d.patients {
		if p.look != d.look {
			delete(d.patients, key)
		}
	}
	d.forget()
	d.mu.Unlock()
	if d.unread == 0 {
		d.Metrics.looked.SetToCurrentTime()
	} else {
		d.Logger.WarnContext(ctx, "the pods of some namespaces are not judged", "namespaces", d.unread)
	}
	for end := time.Now().Add(d.Interval); ; {
		started := time.Now()
		if version, err = d.watch(ctx, version, time.Until(end)); err != nil || ctx.Err() != nil || time.Until(end) < shortWatch {
			return err
		}
		if time.Since(started) < shortWatch {
			return errors.New("watching pods: the server ends every watch at once")
		}
	}
}

// shortWatch is a watch that is as good as refused: looking at every pod again
// each time is not an answer to it.
const shortWatch = time.Second

func (d *Doctor) watch(ctx context.Context, version string, limit time.Duration) (string, error) {
	return d.API.watch(ctx, version, limit, func(kind string, raw []byte) {
		switch kind {
		case "ADDED", "MODIFIED":
			d.see(ctx, raw)
		case "DELETED":
			d.gone(raw)
		}
	})
}

// see judges a pod and remembers it if there is a finding.
func (d *Doctor) see(ctx context.Context, raw []byte) {
	pod, err := diagnosis.ParseSubject(raw)
	if err != nil {
		d.Logger.DebugContext(ctx, "the doctor cannot read a pod", "err", err)
		return
	}
	labels := d.labels(ctx, pod.Namespace)
	if labels == nil {
		return
	}
	account := d.Accounts.Known(pod.Namespace, pod.ServiceAccount)
	account.Namespace, account.Name = pod.Namespace, pod.ServiceAccount
	verdict := diagnosis.Judge(pod, labels, d.hook, account, d.config())
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note(pod, verdict)
	d.observe(ctx, pod, verdict)
}

func (d *Doctor) gone(raw []byte) {
	pod, err := diagnosis.ParseSubject(raw)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	key := pod.Namespace + "/" + pod.Name
	if p := d.patients[key]; p != nil && p.uid == pod.UID {
		delete(d.patients, key)
	}
}

func (d *Doctor) config() mutation.Config {
	c := d.Config
	c.NativeSidecars = d.NativeSidecars == nil || d.NativeSidecars()
	return c
}

func (d *Doctor) readHook(ctx context.Context) (diagnosis.Hook, error) {
	var raw json.RawMessage
	err := d.API.call(ctx, http.MethodGet, "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/"+d.Configuration, nil, &raw)
	if apierrors.IsNotFound(err) {
		return diagnosis.Hook{}, nil
	}
	if err != nil {
		return diagnosis.Hook{}, err
	}
	return diagnosis.ParseHook(raw, d.Webhook)
}

// labels returns the labels of a namespace as of this look; nil if they cannot
// be read, which is said once.
func (d *Doctor) labels(ctx context.Context, namespace string) map[string]string {
	known, ok := d.namespaces[namespace]
	if !ok {
		var err error
		if known, err = d.readLabels(ctx, d.hook, namespace); err != nil {
			if d.unread++; d.unread == 1 { // the others are counted
				d.Logger.WarnContext(ctx, "the doctor cannot read a namespace's labels, which the webhook's namespaceSelector needs: its pods are not judged", "namespace", namespace, "err", err)
			}
			known = nil
		}
		d.namespaces[namespace] = known
	}
	return known
}

// readLabels returns what a hook needs of a namespace's labels, as they are
// now.
func (d *Doctor) readLabels(ctx context.Context, hook diagnosis.Hook, namespace string) (map[string]string, error) {
	if !hook.Asks() {
		return map[string]string{corev1.LabelMetadataName: namespace}, nil
	}
	var o metav1.PartialObjectMetadata
	if err := d.API.call(ctx, http.MethodGet, "/api/v1/namespaces/"+namespace, nil, &o); err != nil {
		return nil, err
	}
	if o.Labels == nil {
		o.Labels = map[string]string{}
	}
	return o.Labels, nil
}

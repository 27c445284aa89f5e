package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	typed "k8s.io/client-go/kubernetes/typed/events/v1"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/nmi"
)

// A book is an EventWriter that remembers each write.
type book struct {
	mu     sync.Mutex
	writes []string
	events map[string]*eventsv1.Event
	err    error
}

func (b *book) Create(_ context.Context, e *eventsv1.Event) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return b.err
	}
	if b.events == nil {
		b.events = map[string]*eventsv1.Event{}
	}
	b.events[e.Name] = e.DeepCopy()
	b.writes = append(b.writes, "create "+e.Regarding.Kind+" "+e.Reason)
	return nil
}

func (b *book) Patch(_ context.Context, _, name string, patch []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return b.err
	}
	if err := json.Unmarshal(patch, b.events[name]); err != nil {
		return err
	}
	b.writes = append(b.writes, fmt.Sprintf("patch %s %s %d", b.events[name].Regarding.Kind, b.events[name].Reason, b.events[name].Series.Count))
	return nil
}

func (b *book) all() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.writes...)
}

func (b *book) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func decision(edit ...func(*nmi.Decision)) nmi.Decision {
	d := nmi.Decision{
		Pod:      binding.Pod{Namespace: "ns", Name: "p", UID: "u", Node: "n1", ServiceAccount: "sa"},
		Address:  netip.MustParseAddr("10.0.0.1"),
		Binding:  &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "b", UID: "bu"}},
		Identity: &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "i"}, Spec: v1.AzureIdentitySpec{ClientID: "c"}},
		Resource: "https://vault.azure.net", Issued: true, Expires: time.Unix(1700003600, 0), TokenExpires: time.Unix(1700003600, 0),
	}
	for _, e := range edit {
		e(&d)
	}
	return d
}

func refusedBy(d *nmi.Decision) { d.Issued, d.Reason, d.Text = false, "NotAllowed", "because" }

// keep runs a journal in a bubble of time.
func keep(t *testing.T, b *book) *Journal {
	t.Helper()
	discard := slog.New(slog.DiscardHandler)
	j := &Journal{Events: b, Audit: discard, Log: discard, Node: "n1"}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- j.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return j
}

// pass lets time go by, with a decision each second.
func pass(j *Journal, d time.Duration, what nmi.Decision) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range d / time.Second {
		<-tick.C
		j.Record(context.Background(), what)
	}
}

func TestABusyPodMakesTwoWritesAndThenOneEveryFewMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{}
		j := keep(t, b)
		j.Record(t.Context(), decision())
		synctest.Wait()
		if diff := cmp.Diff([]string{"create AzureIdentityBinding TokenIssued"}, b.all()); diff != "" {
			t.Errorf("at once (-want +got)\n%s", diff)
		}
		pass(j, time.Hour, decision())
		synctest.Wait()
		writes := b.all()
		if n := len(writes); n < 12 || n > 15 || !strings.HasPrefix(writes[1], "patch AzureIdentityBinding TokenIssued 1") {
			t.Errorf("%d writes in an hour: %v", n, writes)
		}
		<-time.After(steady + settle) // the rest of the series is written, and then it ends
		<-time.After(idle + settle)
		synctest.Wait()
		writes = b.all()
		if last := writes[len(writes)-1]; last != "patch AzureIdentityBinding TokenIssued 3601" {
			t.Errorf("the last write is %q", last)
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		if len(j.series) != 0 || len(j.perPod) != 0 {
			t.Errorf("%d series are remembered", len(j.series))
		}
	})
}

func TestWhatDiffersIsAnEventOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{}
		j := keep(t, b)
		for _, d := range []nmi.Decision{
			decision(), decision(), // one series
			decision(func(d *nmi.Decision) { d.Resource = "https://management.azure.com/" }),
			decision(func(d *nmi.Decision) { d.Expires = d.Expires.Add(time.Hour) }), // the next token
			decision(func(d *nmi.Decision) { d.Pod.UID = "another" }),
			decision(refusedBy), // on the pod too
			decision(func(d *nmi.Decision) { d.Excepted, d.Binding, d.Identity = true, nil, nil }),
			decision(refusedBy, func(d *nmi.Decision) { d.Pod = binding.Pod{} }), // nobody to tell
		} {
			j.Record(t.Context(), d)
		}
		synctest.Wait()
		issued, refused, onPod := 0, 0, 0
		for _, w := range b.all() {
			issued += strings.Count(w, "create AzureIdentityBinding TokenIssued")
			refused += strings.Count(w, "create AzureIdentityBinding TokenRefused")
			onPod += strings.Count(w, "create Pod")
		}
		if issued != 4 || refused != 1 || onPod != 2 {
			t.Errorf("%d, %d, %d of %v", issued, refused, onPod, b.all())
		}
	})
}

func TestAPodCannotFloodTheEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{}
		j := keep(t, b)
		for i := range 10000 {
			j.Record(t.Context(), decision(refusedBy, func(d *nmi.Decision) { d.Resource = fmt.Sprint("https://evil/", i) }))
		}
		synctest.Wait()
		if n := len(b.all()); n > 2*maxSeriesPerPod {
			t.Errorf("%d writes", n)
		}
		<-time.After(settle + time.Second)
		synctest.Wait()
		writes := b.all()
		if last := writes[len(writes)-1]; !strings.HasPrefix(last, "patch") || !strings.HasSuffix(last, " 99"+last[len(last)-2:]) {
			t.Errorf("the rest is not counted: %v", writes[len(writes)-2:])
		}
	})
}

func TestWhatCannotBeWrittenIsTriedAgainOrCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{}
		b.fail(errors.New("connection refused"))
		j := keep(t, b)
		j.Record(t.Context(), decision())
		j.Record(t.Context(), decision())
		<-time.After(time.Minute)
		synctest.Wait()
		if j.Lost() != 0 {
			t.Errorf("%d lost while the API server is away", j.Lost())
		}
		b.fail(nil)
		<-time.After(2*settle + time.Second)
		synctest.Wait()
		if diff := cmp.Diff([]string{"create AzureIdentityBinding TokenIssued", "patch AzureIdentityBinding TokenIssued 2"}, b.all()); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		b.fail(apierrors.NewNotFound(schema.GroupResource{Resource: "events"}, "x"))
		j.Record(t.Context(), decision())
		<-time.After(steady + 2*settle)
		synctest.Wait()
		if j.Lost() != 1 {
			t.Errorf("%d lost after the namespace is gone", j.Lost())
		}
	})
}

// A reader is an output that can be stopped.
type reader struct {
	mu sync.Mutex
	bytes.Buffer
}

func (r *reader) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.Buffer.Write(p)
}

func TestALogThatNobodyReadsBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &reader{}
		b := &Backlog{To: to, Limit: 1000}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx) }()
		line := strings.Repeat("x", 99) + "\n"
		to.mu.Lock() // nobody reads
		for range 100 {
			if n, err := io.WriteString(b, line); n != 100 || err != nil {
				t.Fatal(n, err)
			}
		}
		to.mu.Unlock()
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if b.Lost() != 90 || strings.Count(to.String(), line) != 10 || !strings.Contains(to.String(), `"lost":90`) {
			t.Errorf("%d lost, wrote %d bytes", b.Lost(), to.Len())
		}
	})
}

func TestTheAuditLineHoldsEverything(t *testing.T) {
	var out bytes.Buffer
	j := &Journal{Audit: slog.New(slog.NewJSONHandler(&out, nil)), Events: &book{}, Node: "n1"}
	j.Record(t.Context(), decision(func(d *nmi.Decision) {
		d.TokenExpires, d.For, d.Agent = d.Expires.Add(time.Hour), "kube-system/csi", "curl/8.5.0"
	}))
	j.Record(t.Context(), decision(refusedBy))
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatal(out.String())
	}
	for i, want := range []map[string]any{
		{"msg": "audit", "level": "INFO", "decision": "issued", "namespace": "ns", "pod": "p", "uid": "u", "serviceAccount": "sa", "node": "n1", "address": "10.0.0.1", "caller": "kube-system/csi",
			"resource": "https://vault.azure.net", "excepted": false, "binding": "ns/b", "identity": "ns/i", "identityClientID": "c", "identityResourceID": "",
			"expires": "2023-11-14T23:13:20Z", "clipped": true, "tokenExpires": "2023-11-15T00:13:20Z", "userAgent": "curl/8.5.0"},
		{"msg": "audit", "level": "INFO", "decision": "refused", "namespace": "ns", "pod": "p", "uid": "u", "serviceAccount": "sa", "node": "n1", "address": "10.0.0.1",
			"resource": "https://vault.azure.net", "excepted": false, "binding": "ns/b", "identity": "ns/i", "identityClientID": "c", "identityResourceID": "",
			"reason": "NotAllowed", "text": "because"},
	} {
		var got map[string]any
		if err := json.Unmarshal([]byte(lines[i]), &got); err != nil {
			t.Fatal(err)
		}
		delete(got, "time")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	}
}

var cluster = labtest.Cluster{CRDs: deploy.FS}

func TestALineTellsOfItsOwnDecisionWhateverCameBefore(t *testing.T) {
	var out bytes.Buffer
	j := &Journal{Events: &book{}, Audit: slog.New(slog.NewJSONHandler(&out, nil))}
	first := decision()
	for _, step := range []struct {
		name string
		edit func(*nmi.Decision)
		want map[string]any
	}{
		{"the first", func(*nmi.Decision) {}, map[string]any{"decision": "issued", "pod": "p", "clipped": false}},
		{"the same again with another end", func(d *nmi.Decision) { d.Expires = d.Expires.Add(-time.Hour) }, map[string]any{"expires": "2023-11-14T22:13:20Z", "tokenExpires": "2023-11-14T23:13:20Z", "clipped": true}},
		{"another resource", func(d *nmi.Decision) { d.Resource = "r2" }, map[string]any{"resource": "r2"}},
		{"the next pod of that address", func(d *nmi.Decision) { d.Pod.UID, d.Pod.Name = "u2", "p2" }, map[string]any{"pod": "p2", "uid": "u2"}},
		{"another address of the pod", func(d *nmi.Decision) { d.Address = netip.MustParseAddr("fd00::1") }, map[string]any{"address": "fd00::1"}},
		{"through a driver", func(d *nmi.Decision) { d.For = "ns/driver" }, map[string]any{"caller": "ns/driver"}},
		{"an identity that was changed", func(d *nmi.Decision) {
			id := *d.Identity
			id.Spec.ClientID = "c2"
			d.Identity = &id
		}, map[string]any{"identityClientID": "c2"}},
		{"a refusal", refusedBy, map[string]any{"decision": "refused", "reason": "NotAllowed", "pod": "p"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			d := first
			step.edit(&d)
			for range 2 {
				out.Reset()
				j.Record(t.Context(), d)
				var got map[string]any
				if err := json.Unmarshal(out.Bytes(), &got); err != nil {
					t.Fatal(err)
				}
				for k, want := range step.want {
					if got[k] != want {
						t.Errorf("%s is %v, want %v", k, got[k], want)
					}
				}
			}
		})
	}
}

func TestTheAPIServerTakesTheSeries(t *testing.T) {
	namespace := cluster.Namespace(t)
	api := typed.NewForConfigOrDie(cluster.Config(t))
	in := func(d *nmi.Decision) { d.Pod.Namespace, d.Binding.Namespace = namespace, namespace }
	discard := slog.New(slog.DiscardHandler)
	j := &Journal{Events: Client{API: api.RESTClient()}, Audit: discard, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Node: "n1"}
	clipped := decision(in, func(d *nmi.Decision) { d.TokenExpires = d.Expires.Add(time.Hour) })
	long := decision(in, refusedBy, func(d *nmi.Decision) { d.Resource, d.Text = strings.Repeat("ü", 2000), strings.Repeat("ü", 2000) })
	j.Record(t.Context(), clipped)
	j.Record(t.Context(), long)
	j.HostNetwork(long.Pod, long.Binding)
	own := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "i"}}
	j.Credential(own, errors.New("AADSTS7000215: Invalid client secret provided"))
	j.Credential(own, nil)
	j.write(t.Context(), false)
	for range 4 {
		j.Record(t.Context(), clipped)
	}
	j.write(t.Context(), true)
	if j.Lost() != 0 {
		t.Errorf("%d lost", j.Lost())
	}
	events, err := api.Events(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int32{}
	for _, e := range events.Items {
		n := int32(1)
		if e.Series != nil {
			n = e.Series.Count
		}
		if e.Related == nil {
			e.Related = &corev1.ObjectReference{}
		}
		got[e.Type+" "+e.Reason+" "+e.Regarding.Kind+" "+e.Regarding.Name+" "+e.Related.Kind+" "+e.ReportingController+" "+e.ReportingInstance] = n
		if e.Reason == ReasonIssued && (!strings.Contains(e.Note, "pod "+namespace+"/p (uid u, service account sa) on node n1 as AzureIdentity ns/i; it expires 2023-11-14T23:13:20Z as reported") || !strings.Contains(e.Note, "valid until 2023-11-15T00:13:20Z")) {
			t.Errorf("note %q", e.Note)
		}
	}
	want := map[string]int32{
		"Normal TokenIssued AzureIdentityBinding b Pod " + controller + " n1":     5,
		"Warning TokenRefused AzureIdentityBinding b Pod " + controller + " n1":   1,
		"Warning TokenRefused Pod p AzureIdentityBinding " + controller + " n1":   1,
		"Warning HostNetworkPod AzureIdentityBinding b Pod " + controller + " n1": 1,
		"Warning CredentialRefused AzureIdentity i  " + controller + " n1":        1,
		"Normal CredentialWorks AzureIdentity i  " + controller + " n1":           1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

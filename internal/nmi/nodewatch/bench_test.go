package nodewatch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/nmi"
	"github.com/lanyard-id/lanyard/internal/nmi/journal"
	"github.com/lanyard-id/lanyard/internal/nmi/source"
	"github.com/lanyard-id/lanyard/internal/token"
)

// nowhere takes events.
type nowhere struct{}

func (nowhere) Create(context.Context, *eventsv1.Event) error       { return nil }
func (nowhere) Patch(context.Context, string, string, []byte) error { return nil }

// crowd is an agent that knows 110 pods of its node, each with an identity of
// its own, in a cluster with so many identities and bindings; the API server
// and the metadata service are in memory, everything else is as it runs.
func crowd(b testing.TB, identities int) *nmi.Server {
	b.Helper()
	p := newPorts()
	w := empty(Config{Node: "n1", Arrivals: p, Began: began})
	put := func(o any) { w.put(slimmed(b, o)) }
	for i := range identities {
		put(identity(i))
		put(bindingOf(i))
	}
	for i := range 110 {
		pod := report(fmt.Sprint(i), address(i), time.Time{})
		pod.Labels, pod.Spec.NodeName = map[string]string{v1.BindingLabel: fmt.Sprint("app-", i)}, "n1"
		p.plug(address(i), began)
		w.put(pod)
		a := &v1.AzureAssignedIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("a-", i)}, Spec: v1.AzureAssignedIdentitySpec{
			Pod: pod.Name, PodNamespace: pod.Namespace, NodeName: "n1", AzureIdentityRef: identity(i),
		}}
		put(a)
	}
	// As cmd/nmi wires them.
	backlog := &journal.Backlog{To: io.Discard}
	ctx, stop := context.WithCancel(context.Background())
	metrics := nmi.NewMetrics()
	access := strings.Repeat("x", 1500) // about the length of a token of Entra
	src := &source.Source{
		Machine: token.Func(func(_ context.Context, r token.Request) (token.Token, error) {
			return token.Token{AccessToken: access, ExpiresOn: time.Now().Add(24 * time.Hour), Resource: r.Resource, ClientID: "11111111-2222-3333-4444-555555555555"}, nil
		}),
		Patience: time.Minute, Cached: metrics.Cached,
	}
	logger := slog.New(slog.NewJSONHandler(backlog, nil))
	j := &journal.Journal{Events: nowhere{}, Audit: logger, Log: logger, Node: "n1"}
	ended := make(chan error, 3)
	go func() { ended <- backlog.Run(ctx) }()
	go func() { ended <- j.Run(ctx) }()
	go func() { ended <- src.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		for range 3 {
			if err := <-ended; err != nil {
				b.Error(err)
			}
		}
	})
	return &nmi.Server{
		Node: w, Tokens: src, Recorder: j, Metrics: metrics, Logger: logger,
		Limits: &nmi.Limits{Inflight: 1000, Rate: 1e6},
	}
}

// slimmed is an object as the caches hold it.
func slimmed(t testing.TB, o any) any {
	t.Helper()
	s, err := slim(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func address(i int) string { return fmt.Sprintf("10.0.%d.%d", i/200, 1+i%200) }

func identity(i int) *v1.AzureIdentity {
	return &v1.AzureIdentity{
		TypeMeta: metav1.TypeMeta{APIVersion: "aadpodidentity.k8s.io/v1", Kind: "AzureIdentity"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: fmt.Sprint("identity-", i), UID: types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i)), ResourceVersion: "12345",
			Annotations: map[string]string{"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("y", 600)},
		},
		Spec: v1.AzureIdentitySpec{
			ResourceID: fmt.Sprintf("/subscriptions/11111111-2222-3333-4444-555555555555/resourcegroups/group/providers/Microsoft.ManagedIdentity/userAssignedIdentities/identity-%d", i),
			ClientID:   fmt.Sprintf("11111111-2222-3333-4444-%012d", i),
		},
	}
}

func bindingOf(i int) *v1.AzureIdentityBinding {
	return &v1.AzureIdentityBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("binding-", i), UID: types.UID(fmt.Sprintf("10000000-0000-0000-0000-%012d", i))},
		Spec:       v1.AzureIdentityBindingSpec{AzureIdentity: fmt.Sprint("identity-", i), Selector: fmt.Sprint("app-", i)},
	}
}

// A sink is a response that is thrown away.
type sink struct {
	header http.Header
	status int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(status int)      { s.status = status }
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }

const query = imds.TokenPath + "?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net"

// BenchmarkAgent is what the agent adds to net/http for a cached token: who
// asks, may it, the token, the record and the answer.
func BenchmarkAgent(b *testing.B) {
	for _, n := range []int{110, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := crowd(b, n)
			requests := make([]*http.Request, 110)
			w := &sink{header: http.Header{}}
			for i := range requests {
				requests[i] = httptest.NewRequest(http.MethodGet, "http://169.254.169.254"+query, nil)
				requests[i].RemoteAddr = address(i) + ":1234"
				requests[i].Header.Set("Metadata", "true")
				s.ServeHTTP(w, requests[i])
				if w.status != http.StatusOK {
					b.Fatal(w.status)
				}
			}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				s.ServeHTTP(w, requests[i%110])
				i++
			}
		})
	}
}

// as makes requests of one connection look like those of many pods.
func as(h http.Handler) http.Handler {
	i := 0
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.RemoteAddr = address(i%110) + ":1"
		i++
		h.ServeHTTP(w, r)
	})
}

// BenchmarkToken asks over one kept connection, beside a handler that knows
// nothing and writes the same bytes. Both times contain the client.
func BenchmarkToken(b *testing.B) {
	agent := httptest.NewServer(as(crowd(b, 110)))
	defer agent.Close()
	header, want := ask(b, agent)
	for range 110 { // the metadata service is asked 18 times a second at most
		ask(b, agent)
	}
	bare := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for _, name := range []string{"Content-Type", "X-Content-Type-Options", "Cache-Control", "Content-Length"} {
			w.Header().Set(name, header.Get(name))
		}
		_, _ = w.Write(want)
	}))
	defer bare.Close()
	for _, s := range []struct {
		name   string
		server *httptest.Server
	}{{"bare", bare}, {"nmi", agent}} {
		b.Run(s.name, func(b *testing.B) {
			if _, got := ask(b, s.server); len(got) != len(want) || !bytes.Contains(got, want[:1500]) {
				b.Fatalf("%s, want %s", got, want)
			}
			b.ReportAllocs()
			for b.Loop() {
				ask(b, s.server)
			}
		})
	}
}

// ask is what the Azure SDKs ask, and the answer read to its end.
func ask(b *testing.B, s *httptest.Server) (http.Header, []byte) {
	r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, s.URL+query, nil)
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Metadata", "true")
	resp, err := s.Client().Do(r)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Fatalf("%s %s %v", resp.Status, body, err)
	}
	return resp.Header, body
}

// BenchmarkChange is a change of an identity that concerns no pod here, with
// 110 pods and as many waiting requests.
func BenchmarkChange(b *testing.B) {
	s := crowd(b, 5000)
	w := s.Node.(*Watcher)
	for i := range 110 {
		_, stop := w.Changes(nmi.Who{UID: fmt.Sprint(i)})
		defer stop()
	}
	o := slimmed(b, identity(4000))
	b.ReportAllocs()
	for b.Loop() {
		w.put(o)
	}
}

// The objects of 5,000 identities and bindings take little memory.
func TestWhatIsHeldIsSlim(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := crowd(t, 5000)
	took := (heap() - before) >> 20
	t.Logf("%d MiB", took)
	if took > 10 {
		t.Errorf("%d MiB", took)
	}
	runtime.KeepAlive(s)
}

// A change wakes those whom it concerns and nobody else.
// A list after the API server was away tells of deletions by silence.
func TestWhatIsNotInANewListIsGone(t *testing.T) {
	w := empty(Config{Node: "n1"})
	w.put(report("1", a, time.Time{}, func(p *corev1.Pod) { p.Labels = map[string]string{v1.BindingLabel: "app-1"} }))
	pod, err := w.Pod(nmi.Who{UID: "1"})
	if err != nil {
		t.Fatal(err)
	}
	bindings, identities, pods := w.shelf(kind{}), w.shelf(kind{}), w.shelf(kind{})
	fill := func(s *shelf, objs ...any) {
		t.Helper()
		if err := s.Replace(objs, ""); err != nil {
			t.Fatal(err)
		}
	}
	outcome := func() string {
		view := w.View(pod)
		bound, problems := binding.Of(view.Pod, view.World)
		return fmt.Sprint(len(bound), " ", len(problems))
	}
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() { fill(bindings, bindingOf(1), bindingOf(2)); fill(identities, identity(1), identity(2)) }, "1 0"},
		{func() { fill(identities, identity(2)) }, "0 1"},
		{func() { fill(identities, slimmed(t, identity(1))) }, "1 0"}, // as the reflector hands over what it has slimmed
		{func() { fill(bindings, bindingOf(2)) }, "0 0"},
	} {
		if step.do(); outcome() != step.want {
			t.Errorf("got %s, want %s", outcome(), step.want)
		}
	}
	fill(pods, report("1", a, time.Time{}))
	fill(pods)
	if _, err := w.Pod(nmi.Who{UID: "1"}); err == nil {
		t.Error("a pod that is not in the list is known")
	}
	if len(w.bindings) != 1 || len(w.identities) != 1 || len(w.byUID) != 0 {
		t.Errorf("%d bindings, %d identities, %d pods", len(w.bindings), len(w.identities), len(w.byUID))
	}
}

// A request that has read its pod before a label changed must not leave what it
// sees behind for the requests after it.
func TestAnOldPodLeavesNoViewForTheNewOne(t *testing.T) {
	w := empty(Config{Node: "n1"})
	labelled := func(label string) binding.Pod {
		p := report("0", a, time.Time{})
		p.Labels = map[string]string{v1.BindingLabel: label}
		w.put(p)
		pod, err := w.Pod(nmi.Who{UID: "0"})
		if err != nil {
			t.Fatal(err)
		}
		return pod
	}
	w.put(slimmed(t, bindingOf(1)))
	old := labelled("other")
	now := labelled("app-1")
	w.View(old)
	if view := w.View(now); len(view.World.Bindings) != 1 {
		t.Errorf("the pod has %d bindings", len(view.World.Bindings))
	}
}

func TestAChangeWakesOnlyWhomItConcerns(t *testing.T) {
	s := crowd(t, 200)
	w := s.Node.(*Watcher)
	channels := make([]<-chan struct{}, 110)
	for i := range channels {
		c, stop := w.Changes(nmi.Who{UID: fmt.Sprint(i)})
		defer stop()
		channels[i] = c
	}
	woken := func() (all []int) {
		for i, c := range channels {
			select {
			case <-c:
				all = append(all, i)
			default:
			}
		}
		return all
	}
	w.put(slimmed(t, identity(150)))
	w.put(slimmed(t, bindingOf(150)))
	if all := woken(); len(all) != 0 {
		t.Errorf("an identity of other nodes wakes %v", all)
	}
	for name, change := range map[string]func(){
		"an identity": func() { w.put(slimmed(t, identity(7))) },
		"a binding":   func() { w.put(slimmed(t, bindingOf(7))) },
		"an assignment": func() {
			w.put(&v1.AzureAssignedIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a-7"}, Spec: v1.AzureAssignedIdentitySpec{Pod: "pod-7", PodNamespace: "ns"}})
		},
	} {
		change()
		if all := woken(); len(all) != 1 || all[0] != 7 {
			t.Errorf("%s wakes %v", name, all)
		}
	}
}

package nmi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

// alone is a Server without a socket, for tests of time.
func alone() (*Server, *fakeNode, *memory) {
	n, m := newFakeNode(), &memory{}
	a := &azure{lifetime: time.Hour}
	return &Server{Node: n, Recorder: m, Tokens: a, Metadata: a}, n, m
}

var asked = request{TokenRequest: imds.TokenRequest{Resource: "r"}, who: Who{Address: netip.MustParseAddr("127.0.0.1")}}

func TestARequestWaitsForTheAssignmentThatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n, m := alone()
		s.Wait = time.Minute
		assigned := n.world.Assigned
		n.world.Assigned = nil
		answered := make(chan error, 1)
		go func() {
			_, _, err := s.get(t.Context(), asked)
			answered <- err
		}()
		synctest.Wait()
		n.change(func() {}) // a change that does not help must not end the wait
		synctest.Wait()
		select {
		case err := <-answered:
			t.Fatalf("answered before the assignment: %v", err)
		default:
		}
		start := time.Now()
		n.change(func() { n.world.Assigned = assigned })
		if err := <-answered; err != nil || time.Since(start) > 0 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		if len(n.changes) != 0 || len(m.all()) != 1 {
			t.Errorf("%d still wait; recorded %+v", len(n.changes), m.all())
		}
	})
}

func TestWaitsHaveTheirLimits(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*Server, *fakeNode)
		want time.Duration
	}{
		{"an assignment that does not come", func(_ *Server, n *fakeNode) { n.world.Assigned = nil }, time.Minute},
		{"a pod that is not seen", func(_ *Server, n *fakeNode) { n.pod = nil }, unknownPodWait},
		{"a refusal that no change helps", func(_ *Server, n *fakeNode) { n.pod.Labels = nil }, 0},
		{"managed mode", func(_ *Server, n *fakeNode) { n.world.Managed, n.world.Bindings = true, nil }, 0},
		{"a binding that is closed", func(_ *Server, n *fakeNode) {
			n.world.Bindings[0].Spec.NotBefore = &metav1.Time{Time: time.Now().Add(time.Hour)}
		}, 0},
		{"no wait", func(s *Server, n *fakeNode) { s.Wait, n.world.Assigned = 0, nil }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, n, _ := alone()
				s.Wait = time.Minute
				c.edit(s, n)
				start := time.Now()
				if _, _, err := s.get(t.Context(), asked); err == nil || time.Since(start) != c.want {
					t.Errorf("%v after %s, want %s", err, time.Since(start), c.want)
				}
			})
		})
	}
}

// A slow source gives tokens after something has happened.
type slow struct {
	*azure
	meanwhile func()
}

func (s slow) Tokens(ctx context.Context, id *v1.AzureIdentity, resource string) ([]token.Token, error) {
	s.meanwhile()
	return s.azure.Tokens(ctx, id, resource)
}

func (s slow) Token(ctx context.Context, r token.Request) (token.Token, error) {
	s.meanwhile()
	return s.azure.Token(ctx, r)
}

func TestATokenThatComesForAPodThatIsNoMoreGoesToNobody(t *testing.T) {
	next := *newFakeNode().pod
	next.UID = "next"
	for name, pod := range map[string]*binding.Pod{"the address is another pod's": &next, "nobody has the address": nil} {
		for _, excepted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, excepted %v", name, excepted), func(t *testing.T) {
				f := newFixture(t)
				if excepted {
					f.node.exceptions = []*v1.AzurePodIdentityException{{ObjectMeta: metav1.ObjectMeta{Namespace: "default"}, Spec: v1.AzurePodIdentityExceptionSpec{PodLabels: f.node.pod.Labels}}}
				}
				source := slow{f.azure, func() { f.node.change(func() { f.node.pod = pod }) }}
				f.Tokens, f.Metadata = source, source
				res, body := f.get(t, tokenQuery)
				if res.StatusCode != http.StatusInternalServerError || strings.Contains(body, "access_token") {
					t.Errorf("%s: %s", res.Status, body)
				}
				if len(f.azure.asked)+len(f.azure.passed) != 1 {
					t.Error("no token was asked for")
				}
				if all := f.recorded.all(); len(all) != 1 || all[0].Issued || all[0].Reason != "UnknownPod" || all[0].Pod.UID != "u" {
					t.Errorf("recorded %+v", all)
				}
			})
		}
	}
}

func TestAClientThatGoesAwayIsNotRecordedAndEndsItsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n, m := alone()
		s.Wait, n.world.Assigned = time.Hour, nil
		ctx, leave := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, _, err := s.get(ctx, asked)
			ended <- err
		}()
		synctest.Wait()
		leave()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if len(m.all()) != 0 || len(n.changes) != 0 {
			t.Errorf("recorded %+v, %d wait", m.all(), len(n.changes))
		}
	})
}

func TestATokenIsSaidToEndWhenItsBindingCloses(t *testing.T) {
	f := newFixture(t)
	f.spec().NotAfter = &metav1.Time{Time: now.Add(10 * time.Minute)}
	_, body := f.get(t, tokenQuery)
	if a := decode(t, body); a.ExpiresOn != "1700000600" || a.ExpiresIn != "600" {
		t.Errorf("got %s", body)
	}
	d := f.recorded.all()
	if len(d) != 1 || !d[0].Clipped() || !d[0].Expires.Equal(now.Add(10*time.Minute)) || !d[0].TokenExpires.Equal(now.Add(time.Hour)) {
		t.Errorf("recorded %+v", d)
	}
	f.spec().NotAfter = &metav1.Time{Time: now.Add(24 * time.Hour)}
	if _, body := f.get(t, tokenQuery); decode(t, body).ExpiresOn != "1700003600" {
		t.Errorf("a window that ends later clips: %s", body)
	}
	if d := f.recorded.all(); len(d) != 2 || d[1].Clipped() {
		t.Errorf("recorded %+v", d)
	}
}

func TestABindingThatOpensLaterDoesNotSayRetry(t *testing.T) {
	f := newFixture(t)
	for in, want := range map[time.Duration]string{5 * time.Minute: "300", 5*time.Minute + time.Second: "", time.Hour: ""} {
		f.spec().NotBefore = &metav1.Time{Time: now.Add(in)}
		if res, body := f.get(t, tokenQuery); res.StatusCode != http.StatusForbidden || res.Header.Get("Retry-After") != want {
			t.Errorf("in %s: %d, Retry-After %q, want %q: %s", in, res.StatusCode, res.Header.Get("Retry-After"), want, body)
		}
	}
}

func TestTheTokensOfAuxiliaryTenantsAreAnArray(t *testing.T) {
	f := newFixture(t)
	f.azure.tenants = 3
	_, body := f.get(t, tokenQuery)
	var all []answer
	if err := json.Unmarshal([]byte(body), &all); err != nil || len(all) != 3 || all[2].ExpiresOn != "1700003600" {
		t.Errorf("%s: %v", body, err)
	}
	res, body := f.ask(t, f.hostURL, http.MethodGet, "/host/token?resource=r", "podns: default", "podname: test-id-pod")
	if wholeToken1 := strings.Count(body, "access_token"); res.StatusCode != http.StatusOK || wholeToken1 != 1 {
		t.Errorf("a driver gets %s", body)
	}
}

// A pod with two identities: object ids choose by what their own tokens say.
func TestAnObjectIDNeverGoesUpstream(t *testing.T) {
	f := newFixture(t)
	second := f.node.identity().DeepCopy()
	second.Name = "zweite"
	second.Spec.ResourceID += "-2"
	b := f.node.world.Bindings[0].DeepCopy()
	b.Name, b.Spec.AzureIdentity = "second", "zweite"
	a := f.node.world.Assigned[0].DeepCopy()
	a.Spec.AzureIdentityRef = second
	first := f.node.world.Identity
	f.node.world.Identity = func(ns, name string) *v1.AzureIdentity {
		if ns == "default" && name == "zweite" {
			return second
		}
		return first(ns, name)
	}
	f.node.world.Bindings, f.node.world.Assigned = append(f.node.world.Bindings, b), append(f.node.world.Assigned, a)
	if res, body := f.get(t, tokenQuery+"&object_id=Oid-Of-Zweite"); res.StatusCode != http.StatusOK || decode(t, body).AccessToken != jwt("oid-of-zweite") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	d := f.recorded.all()
	if len(d) != 1 || d[0].Identity.Name != "zweite" || d[0].Binding.Name != "second" {
		t.Errorf("recorded %+v", d)
	}
	if len(f.azure.passed) != 0 {
		t.Errorf("asked the metadata service: %+v", f.azure.passed)
	}
	f.azure.err = &imds.Error{Status: 503, Description: "later", RetryAfter: time.Second}
	if res, _ := f.get(t, tokenQuery+"&object_id=oid-of-zweite"); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("an upstream that is away: %d", res.StatusCode)
	}
}

func TestAnExceptedPodIsPassedThroughWithItsOwnSelector(t *testing.T) {
	f := newFixture(t)
	setups["excepted"](f)
	if res, body := f.get(t, tokenQuery+"&object_id=o"); res.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	if diff := cmp.Diff([]token.Request{{ObjectID: "o", Resource: "https://vault.azure.net"}}, f.azure.passed); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if d := f.recorded.all(); len(d) != 1 || !d[0].Issued || !d[0].Excepted {
		t.Errorf("recorded %+v", d)
	}
	// A driver that asks for the pod does not get the node's identity.
	f.ask(t, f.hostURL, http.MethodGet, "/host/token?resource=r", "podns: default", "podname: test-id-pod")
	if len(f.azure.passed) != 1 || !slices.Equal(f.azure.asked, []string{"default/vpl-id"}) {
		t.Errorf("asked %v, passed %v", f.azure.asked, f.azure.passed)
	}
}

func TestADriversRequestIsRecordedWithBothPods(t *testing.T) {
	f := newFixture(t)
	f.ask(t, f.hostURL, http.MethodGet, "/host/token?resource=r", "podns: default", "podname: test-id-pod")
	if d := f.recorded.all(); len(d) != 1 || d[0].Pod.UID != "u" || d[0].For != "kube-system/provider-x" || d[0].Address.IsValid() {
		t.Errorf("recorded %+v", d)
	}
}

func TestOnePodDoesNotTakeTheAgentFromOthers(t *testing.T) {
	at := now
	l := &Limits{Inflight: 2, Rate: 10}
	ip, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	var leave []func()
	enter := func(uid string, a netip.Addr) error {
		done, err := l.enter(uid, a, at)
		if err == nil {
			leave = append(leave, done)
		}
		return err
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	must(enter("a", ip))
	must(enter("a", ip))
	var e *imds.Error
	if err := enter("a", ip); !errors.As(err, &e) || e.Status != http.StatusTooManyRequests || e.RetryAfter <= 0 {
		t.Errorf("a third at a time: %v", err)
	}
	must(enter("b", other))
	for _, done := range leave {
		done()
	}
	for range 18 { // two of twenty are used
		done, err := l.enter("a", ip, at)
		must(err)
		if err == nil {
			done()
		}
	}
	if err := enter("a", ip); err == nil {
		t.Error("the twenty-first in an instant is let in")
	}
	at = at.Add(time.Second)
	must(enter("a", ip))
	// Unknown addresses have a share together.
	let := 0
	for i := range 100 {
		if enter("", netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})) == nil {
			let++
		}
	}
	if let != 2*unknownShare {
		t.Errorf("%d unknown addresses at a time", let)
	}
	// And what is remembered is bounded.
	for i := range 2 * maxCallers {
		if done, err := l.enter("", netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), at); err == nil {
			done()
		}
	}
	if len(l.callers) > maxCallers {
		t.Errorf("%d callers are remembered", len(l.callers))
	}
	at = at.Add(time.Minute)
	must(enter("fresh", ip))
}

func TestConnectionsOfOneAddressAreBounded(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config = NewHTTPServer(s.Config.Handler, 0)
	s.Start()
	defer s.Close()
	ask := func(c net.Conn) error {
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		return res.Body.Close()
	}
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var all []net.Conn
	for range maxLoopbackConnections {
		all = append(all, dial())
	}
	if err := ask(all[len(all)-1]); err != nil {
		t.Fatalf("the last that is allowed: %v", err)
	}
	if ask(dial()) == nil {
		t.Error("one more is answered")
	}
	for _, c := range all[:8] {
		c.Close()
	}
	deadline := time.Now().Add(10 * time.Second)
	for ask(dial()) != nil {
		if time.Now().After(deadline) {
			t.Fatal("no connection is let in after others were closed")
		}
	}
}

func TestALimitedPodIsTold(t *testing.T) {
	f := newFixture(t)
	f.Limits = &Limits{Rate: 1}
	status := func() int {
		res, _ := f.get(t, tokenQuery)
		return res.StatusCode
	}
	if got := []int{status(), status(), status()}; !slices.Equal(got, []int{200, 200, 429}) {
		t.Errorf("got %v", got)
	}
}

func TestObjectIDReadsOnlyTokens(t *testing.T) {
	for access, want := range map[string]string{jwt("x"): "x", "": "", "a.b": "", "a.!!.c": "", "a.e30.c": "", "a.bm90IGpzb24.c": ""} {
		if got := objectID(access); got != want {
			t.Errorf("objectID(%q) = %q", access, got)
		}
	}
}

// What a program calls itself goes into the record; it can neither fill it nor forge a line.
func TestTheRecordTellsWhatAskedAndNoMore(t *testing.T) {
	for sent, want := range map[string]string{
		"azsdk-go-azidentity/v1.3.0 (go1.22; linux)": "azsdk-go-azidentity/v1.3.0 (go1.22; linux)",
		"caf\u00e9\t\u2028x":                         "caf???x",
		strings.Repeat("x", 3000):                    strings.Repeat("x", 128),
	} {
		f := newFixture(t)
		res, body := f.get(t, "/metadata/identity/oauth2/token?resource=r", "User-Agent: "+sent)
		if got := f.recorded.all(); res.StatusCode != http.StatusOK || len(got) != 1 || got[0].Agent != want {
			t.Errorf("%d %s: %+v", res.StatusCode, body, got)
		}
	}
}

package nodewatch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lanyard-id/lanyard/internal/nmi"
	"github.com/lanyard-id/lanyard/internal/sandbox"
)

var began = time.Unix(1700000000, 500_000_000)

// at is an instant after the agent began.
func at(seconds float64) time.Time { return began.Add(time.Duration(seconds * float64(time.Second))) }

// ports are the node's network, as a test says.
type ports struct {
	mu      sync.Mutex
	last    uint64
	behind  map[netip.Addr]sandbox.Port
	changed chan struct{}
}

func newPorts() *ports {
	return &ports{behind: map[netip.Addr]sandbox.Port{}, changed: make(chan struct{})}
}

func (p *ports) Behind(ip netip.Addr) (sandbox.Port, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	port, ok := p.behind[ip]
	return port, ok
}

func (p *ports) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// plug gives an address to a new port.
func (p *ports) plug(ip string, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last++
	p.behind[netip.MustParseAddr(ip)] = sandbox.Port{Index: int(p.last), Generation: p.last, Since: since}
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *ports) unplug(ip string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.behind, netip.MustParseAddr(ip))
}

// A report is what kubelet says of a pod; started in whole seconds, as in the API.
func report(uid, ip string, started time.Time, edit ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pod-" + uid, UID: types.UID(uid)},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	if ip != "" {
		p.Status.PodIPs = []corev1.PodIP{{IP: ip}}
	}
	if !started.IsZero() {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(started.Truncate(time.Second))}}
	}
	for _, e := range edit {
		e(p)
	}
	slimmed, err := slim(p)
	if err != nil {
		panic(err)
	}
	return slimmed.(*corev1.Pod)
}

func deleting(p *corev1.Pod) {
	p.DeletionTimestamp = &metav1.Time{Time: at(1e6)}
}

func running(started time.Time) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Conditions = nil
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(started.Truncate(time.Second))}}}}
	}
}

const a = "10.0.0.7"

func TestWhoIsBehindAnAddress(t *testing.T) {
	type step func(*Watcher, *ports)
	plug := func(s float64) step { return func(_ *Watcher, p *ports) { p.plug(a, at(s)) } }
	say := func(pod *corev1.Pod) step { return func(w *Watcher, _ *ports) { w.put(pod) } }
	gone := func(uid string) step { return func(w *Watcher, _ *ports) { w.remove(report(uid, a, time.Time{})) } }
	for _, c := range []struct {
		name  string
		steps []step
		want  string // uid, or words of why not
	}{
		{"a new pod: its port, then its report", []step{plug(1), say(report("p", a, at(2)))}, "p"},
		{"a new pod whose report comes before its port is seen", []step{say(report("p", a, at(2))), plug(1)}, "p"},
		{"a kubelet without the condition", []step{plug(1), say(report("p", a, time.Time{}, running(at(2))))}, "p"},
		{"a pod of which nothing has started", []step{plug(1), say(report("p", a, time.Time{}))}, "newer than what is known"},
		{"started in the second in which its port appeared", []step{plug(1.4), say(report("p", a, at(1.45)))}, "p"},
		{"an address that no port has", []step{say(report("p", a, at(2)))}, "no network port"},
		{"a former pod that is deleted late", []step{plug(1), say(report("p", a, at(2))), plug(10)}, "newer than what is known"},
		{"then the new pod is reported", []step{plug(1), say(report("p", a, at(2))), plug(10), say(report("q", a, at(11)))}, "q"},
		{"and the former is deleted", []step{plug(1), say(report("p", a, at(2))), plug(10), say(report("q", a, at(11))), gone("p")}, "q"},
		{"the former is deleted first", []step{plug(1), say(report("p", a, at(2))), plug(10), gone("p"), say(report("q", a, at(11)))}, "q"},
		{"the former is deleted and the new one is not reported", []step{plug(1), say(report("p", a, at(2))), plug(10), gone("p")}, "no running pod"},
		{"a late report of the former", []step{plug(1), say(report("p", a, at(2))), plug(10), say(report("p", a, at(2), func(p *corev1.Pod) { p.Labels = map[string]string{"x": "y"} }))}, "newer than what is known"},
		{"a first report of a former that came and went", []step{plug(1), plug(10), say(report("p", a, at(2)))}, "newer than what is known"},
		{"the former while it is deleted, with a container that was restarted", []step{plug(1), say(report("p", a, at(2))), plug(10), say(report("p", a, at(11), deleting))}, "newer than what is known"},
		{"a sandbox that was made anew", []step{plug(1), say(report("p", a, at(2))), plug(10), say(report("p", a, at(11)))}, "p"},
		{"a sandbox that was made anew within a second", []step{plug(1), say(report("p", a, at(2))), plug(10.1), say(report("p", a, at(10.3)))}, "p"},
		{"a former that came and went within the second of the next port", []step{plug(1.6), plug(1.9), say(report("p", a, at(1.7), deleting))}, "newer than what is known"},
		{"a pod that is deleted before it was reported, but started after its port appeared", []step{plug(1), say(report("p", a, at(2.6), deleting))}, "p"},
		{"a former that was started in the second in which it ended", []step{plug(9.6), say(report("p", a, at(9.7))), plug(10.1)}, "newer than what is known"},
		{"a pod that is deleted and still there", []step{plug(1), say(report("p", a, at(2))), say(report("p", a, at(2), deleting))}, "p"},
		{"a pod whose time is over", []step{plug(1), say(report("p", a, at(2), func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: at(3)} }))}, "no running pod"},
		{"a pod that has ended", []step{plug(1), say(report("p", a, at(2), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }))}, "no running pod"},
		{"a pod of the host's network", []step{plug(1), say(report("p", a, at(2), func(p *corev1.Pod) { p.Spec.HostNetwork = true }))}, "no running pod"},
		{"a restart of the agent", []step{plug(0), say(report("p", a, at(-100)))}, "p"},
		{"a restart while a pod is deleted whose port may be another's", []step{plug(0), say(report("p", a, at(-100), deleting))}, "newer than what is known"},
		{"then the next pod is reported", []step{plug(0), say(report("p", a, at(-100), deleting)), say(report("q", a, at(-50)))}, "q"},
		{"a restart, and then the pod is deleted", []step{plug(0), say(report("p", a, at(-100))), say(report("p", a, at(-100), deleting))}, "p"},
		{"a restart, and then the address is reused", []step{plug(0), say(report("p", a, at(-100))), plug(10)}, "newer than what is known"},
		{"two pods that were reported for one port of before", []step{plug(0), say(report("p", a, at(-100))), say(report("q", a, at(-50)))}, "2 running pods"},
		{"a pod that was told a new address", []step{plug(1), say(report("p", a, at(2))), say(report("p", "10.0.0.8", at(2)))}, "no running pod"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPorts()
			w := empty(Config{Node: "n", Arrivals: p, Began: began, Now: func() time.Time { return at(20) }})
			for _, s := range c.steps {
				s(w, p)
			}
			pod, err := w.Pod(nmi.Who{Address: netip.MustParseAddr(a)})
			var unknown *nmi.UnknownPodError
			switch {
			case err == nil && pod.UID != c.want:
				t.Errorf("got %s, want %s", pod.UID, c.want)
			case err != nil && (!errors.As(err, &unknown) || !unknown.Wait || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestRoutedBelievesOnlyTheTableWhereItKnows(t *testing.T) {
	p := newPorts()
	p.plug("127.0.0.1", at(1))
	if got, ok := (Routed{p}).Behind(netip.MustParseAddr("127.0.0.1")); !ok || got.Generation != 1 {
		t.Errorf("got %+v, %v", got, ok)
	}
	for _, ip := range []string{"127.0.0.2", "203.0.113.1", "::1"} { // loopback, beyond the machine's card
		if got, ok := (Routed{p}).Behind(netip.MustParseAddr(ip)); ok {
			t.Errorf("%s is behind %+v", ip, got)
		}
	}
}

// Pods come and go on a few addresses while 100,000 questions are asked; what
// Kubernetes tells comes late and in any order. No answer may be another pod
// than the one whose sandbox has the address at the time of the question.
func TestChurnNeverYieldsAnotherPod(t *testing.T) {
	const addresses, questions = 8, 100_000
	random := rand.New(rand.NewPCG(1, 2))
	clock := began.Add(time.Second)
	p := newPorts()
	w := empty(Config{Node: "n", Arrivals: p, Began: began, Now: func() time.Time { return clock }})
	owner := map[string]string{} // address -> uid, the truth
	var late []func()            // what the watch has yet to tell
	tell := func() {
		if len(late) > 0 {
			i := random.IntN(len(late))
			late[i]()
			late = append(late[:i], late[i+1:]...)
		}
	}
	right, unknown, n := 0, 0, 0
	for right+unknown < questions {
		// One step is between 0 and 400 ms: several pods fit in a second.
		clock = clock.Add(time.Duration(random.IntN(400)) * time.Millisecond)
		ip := fmt.Sprintf("10.0.0.%d", random.IntN(addresses))
		switch random.IntN(4) {
		case 0: // the pod ends; its deletion is told later, or never before the next
			if uid := owner[ip]; uid != "" {
				p.unplug(ip)
				delete(owner, ip)
				late = append(late, func() { w.remove(report(uid, ip, time.Time{})) })
			}
		case 1: // the next pod; kubelet frees an address a second after its pod at the earliest
			if owner[ip] == "" {
				clock = clock.Add(time.Second)
				n++
				uid := fmt.Sprint(n)
				p.plug(ip, clock)
				owner[ip] = uid
				started := clock.Add(time.Duration(random.IntN(300)) * time.Millisecond)
				late = append(late, func() { w.put(report(uid, ip, started)) })
			}
		default:
			tell()
		}
		for range 10 {
			ip := fmt.Sprintf("10.0.0.%d", random.IntN(addresses))
			pod, err := w.Pod(nmi.Who{Address: netip.MustParseAddr(ip)})
			if err != nil {
				unknown++
				continue
			}
			if pod.UID != owner[ip] {
				t.Fatalf("question %d: %s is %q, and the answer %q", right+unknown, ip, owner[ip], pod.UID)
			}
			right++
		}
	}
	if right < questions/10 || n < 1000 {
		t.Errorf("%d of %d questions were answered, about %d pods", right, questions, n)
	}
}

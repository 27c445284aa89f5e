package estate_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/control"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
	"github.com/lanyard-id/lanyard/internal/lab/process"
)

// A whole estate, on which everything fails in turn while pods ask for tokens:
// what each part promises about its own faults must hold for all of them
// together. After each fault everything is as it should be, and nobody ever got
// a token of somebody else.
func TestFaultsAreSurvived(t *testing.T) {
	b := newBed(t)
	red, redToo, green := b.pod(t, "red", "red"), b.pod(t, "red-too", "red"), b.pod(t, "green", "green")
	b.pod(t, "stranger", "") // never gets one: judge looks at it
	busy := []*watched{red, redToo, green}
	b.untilTokens(t, 40*time.Second, busy...)

	for _, f := range []struct {
		name string
		test func(*testing.T, *bed, []*watched)
	}{
		{"the metadata service throttles, fails and hangs", metadataFails},
		{"Resource Manager throttles and fails while another scale set takes 30 s", managerFails},
		{"the cloud's clock jumps ahead and back", clockJumps},
		{"addresses are used again at once", addressesAreReused},
		{"the node agent is killed under load", agentKilled},
		{"the controller is killed in the middle of an assignment", controllerKilled},
		{"API server and etcd stand still", controlPlaneStops},
	} {
		began := time.Now()
		t.Run(f.name, func(t *testing.T) {
			f.test(t, b, busy)
			b.holds(t, 40*time.Second)
		})
		t.Logf("%s: %.1f s", f.name, time.Since(began).Seconds())
		if t.Failed() {
			t.Fatal("what follows would prove nothing")
		}
	}
	// The other scale set's operation was over long ago, and its pod is gone.
	until(t, 40*time.Second, "the other scale set is as before", func(ctx context.Context) error {
		carried, err := b.carried(ctx, otherSet)
		if err == nil && len(carried) > 0 {
			err = fmt.Errorf("it still carries %v", carried)
		}
		return err
	})
	b.judgeSees(t)
	total := 0
	for _, w := range b.pods {
		total += len(w.answers)
	}
	t.Logf("%d pods were answered %d times", len(b.pods), total)
}

// metadataFails: who has a token keeps it, who has none is told within a second
// with a status that SDKs retry, and all is well by itself afterwards.
func metadataFails(t *testing.T, b *bed, busy []*watched) {
	for i, f := range []struct {
		name, resource string
		rule           fault.Rule
	}{
		{"429", azure.ResourceStorage, fault.Rule{Status: http.StatusTooManyRequests, RetryAfter: fault.Duration(2 * time.Second)}},
		{"500", azure.ResourceGraph, fault.Rule{Status: http.StatusInternalServerError}},
		{"hang", azure.AppAKSServer, fault.Rule{Hang: true}},
	} {
		f.rule.Host = hostIMDS
		from := time.Now()
		hits, end := b.fail(t, f.rule)
		// A token for another resource is one that nobody has yet.
		late := b.pod(t, fmt.Sprintf("late-%d", i), "red", "--resource="+f.resource)
		b.lasts(t, 6*time.Second)
		until(t, 15*time.Second, f.name+": the new pod is answered twice", func(ctx context.Context) error {
			if err := b.read(ctx, late); err != nil {
				return err
			}
			if len(late.answers) < 2 {
				return fmt.Errorf("%d answers", len(late.answers))
			}
			return nil
		})
		to := time.Now()
		if hits() == 0 {
			t.Errorf("%s: the fault met no request: this proves nothing", f.name)
		}
		end()
		for _, a := range late.answers {
			if a.At.Before(to.Add(-time.Second)) {
				refusedForNow(t, f.name, a)
			}
		}
		b.untilTokens(t, 20*time.Second, late)
		if err := b.readAll(t.Context()); err != nil {
			t.Error(err)
		}
		uninterrupted(t, from, time.Now(), busy...)
		b.remove(t, late)
	}
}

// refusedForNow asserts that an answer came soon and that every SDK asks again:
// azidentity, MSAL and azure-identity retry 404, 410, 429 and 5xx of the
// metadata service.
func refusedForNow(t *testing.T, what string, a answer) {
	t.Helper()
	again := []int{404, 410, 429, 500, 502, 503, 504}
	if !slices.Contains(again, a.Status) || a.Millis > 1500 {
		t.Errorf("%s: the new pod is to be told within a second to ask again: %v", what, a)
	}
}

// managerFails: neither storms nor a scale set that takes its time keep a new pod of another from its identity.
func managerFails(t *testing.T, b *bed, busy []*watched) {
	from := time.Now()
	slow, _ := b.fail(t, fault.Rule{
		Host: azure.HostManagement, Method: http.MethodPatch, Path: "**/" + otherSet, Count: 1,
		Operation: &fault.Operation{Duration: fault.Duration(30 * time.Second)},
	})
	forget := b.otherNode(t)
	until(t, 15*time.Second, "the other scale set is being changed", func(context.Context) error {
		if slow() == 0 {
			return errors.New("nobody asked for it")
		}
		return nil
	})
	storm := fault.Rule{Host: azure.HostManagement, Path: "**/" + ownSet + "**", Count: 2}
	storm.Status, storm.RetryAfter = http.StatusTooManyRequests, fault.Duration(time.Second)
	throttled, _ := b.fail(t, storm)
	storm.Status, storm.RetryAfter = http.StatusServiceUnavailable, 0
	failed, _ := b.fail(t, storm)
	blue := b.pod(t, "blue", "blue", "--timeout=30s")
	b.untilTokens(t, 27*time.Second, blue) // mic rests for five seconds each time that it is throttled
	if throttled() == 0 || failed() == 0 {
		t.Errorf("the storms met %d and %d requests: this proves nothing", throttled(), failed())
	}
	for _, a := range blue.answers {
		if a.Status != 200 && !slices.Contains([]int{404, 429, 503}, a.Status) {
			t.Errorf("SDKs do not ask again after %v", a)
		}
	}
	if err := b.readAll(t.Context()); err != nil {
		t.Error(err)
	}
	uninterrupted(t, from, time.Now(), busy...)
	b.remove(t, blue)
	forget()
}

// otherNode registers a machine of the other scale set with a pod on it that
// needs an identity. Nothing runs there.
func (b *bed) otherNode(t *testing.T) (forget func()) {
	t.Helper()
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "aks-nodepool2-vmss000000"},
		Spec:       corev1.NodeSpec{ProviderID: "azure://" + b.sets[otherSet] + "/virtualMachines/0"},
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "elsewhere", Labels: map[string]string{"aadpodidbinding": "green"}},
		Spec:       corev1.PodSpec{NodeName: node.Name, Containers: []corev1.Container{{Name: "c", Image: "lanyard/pause:dev"}}},
	}
	must(t, b.Objects.Create(t.Context(), node))
	must(t, b.Objects.Create(t.Context(), pod))
	return func() { must(t, b.Objects.Delete(t.Context(), pod, client.GracePeriodSeconds(0))) }
}

// clockJumps: tokens that were issued under one clock are refused under the
// other; mic's and nmi's own recover, and pods do not notice.
func clockJumps(t *testing.T, b *bed, busy []*watched) {
	from := time.Now()
	b.Cloud.Clock().Shift(2 * time.Hour)
	ahead := b.pod(t, "ahead", "amber", "--timeout=20s")
	b.untilTokens(t, 20*time.Second, ahead)
	b.Cloud.Clock().Reset()
	back := b.pod(t, "back", "violet", "--timeout=20s")
	b.untilTokens(t, 20*time.Second, back)
	b.remove(t, ahead, back)
	if err := b.readAll(t.Context()); err != nil {
		t.Error(err)
	}
	uninterrupted(t, from, time.Now(), busy...)
}

// addressesAreReused: pods with changing identities share few addresses, one
// after the other, some removed by force and some that ended but are still
// there, with the same address in their status.
func addressesAreReused(t *testing.T, b *bed, busy []*watched) {
	from := time.Now()
	colours := []string{"red", "blue", "green", ""}
	used := map[string][]string{} // identities by address
	var last []*watched
	for wave := range 4 {
		b.rewindAddresses(t)
		var pods []*watched
		for i := range colours {
			colour := colours[(i+wave)%len(colours)]
			pods = append(pods, b.pod(t, fmt.Sprintf("churn-%d-%d", wave, i), colour, "--pause=50ms", "--count=12"))
		}
		until(t, 30*time.Second, fmt.Sprintf("wave %d", wave), func(ctx context.Context) error {
			for _, w := range pods {
				p, err := b.Lab.Client.CoreV1().Pods(namespace).Get(ctx, w.name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				if err := b.read(ctx, w); err != nil {
					return fmt.Errorf("%w (%s)", err, p.Status.Phase)
				}
				if len(w.answers) < 12 {
					return fmt.Errorf("%s has asked %d times", w.name, len(w.answers))
				}
				if ip := p.Status.PodIP; ip != "" && !slices.Contains(used[ip], w.name) {
					used[ip] = append(used[ip], w.name)
				}
			}
			return nil
		})
		for _, w := range pods {
			if a := slowest(w.answers); a.Millis > 2000 {
				t.Logf("wave %d: the slowest answer for %s (%q): %v", wave, w.name, w.identity, a)
			}
		}
		b.remove(t, last...)
		last = pods
		for i, w := range pods {
			if a := w.answers[len(w.answers)-1]; w.identity != "" && a.Status != 200 {
				t.Errorf("%s has no token after 12 requests: %v", w.name, a)
			}
			if i%2 == 0 { // the others stay as pods that have ended
				b.remove(t, w)
			}
		}
		last = slices.DeleteFunc(last, func(w *watched) bool { return w.gone })
	}
	b.remove(t, last...)
	again := 0
	for ip, pods := range used {
		if len(pods) > 1 {
			again++
			t.Logf("%s was the address of %s", ip, strings.Join(pods, ", "))
		}
	}
	if again == 0 && !b.Simulated() {
		t.Errorf("no address was used twice, this proves nothing: %v", used)
	}
	if err := b.readAll(t.Context()); err != nil {
		t.Error(err)
	}
	uninterrupted(t, from, time.Now(), busy...)
}

func slowest(answers []answer) answer {
	return slices.MaxFunc(answers, func(a, b answer) int { return cmp.Compare(a.Millis, b.Millis) })
}

// rewindAddresses makes the node give out the addresses next that were given
// out first. The simulated node gives out all of its range in turn.
func (b *bed) rewindAddresses(t *testing.T) {
	t.Helper()
	if b.Simulated() {
		return
	}
	kubelet := b.onNode(t, "kube", "kubelet")
	file := filepath.Join("/proc", fmt.Sprint(kubelet.PID), "root/run/cni/networks/lab/last_reserved_ip.0")
	must(t, os.WriteFile(file, []byte("10.244.0.20"), 0o644))
}

// agentKilled: while nmi is away no request of a pod reaches the metadata
// service (judge looks at the cloud's log), and it comes back by itself.
func agentKilled(t *testing.T, b *bed, busy []*watched) {
	for _, f := range []struct {
		name string
		kill func()
	}{
		{"its process is killed", func() { must(t, b.onNode(t, "nmi", "").Signal(unix.SIGKILL)) }},
		{"its pod is deleted", func() {
			must(t, b.Objects.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(namespace),
				client.MatchingLabels{"component": "nmi"}, client.GracePeriodSeconds(0)))
		}},
	} {
		old := b.onNode(t, "nmi", "")
		f.kill()
		until(t, 10*time.Second, f.name, func(context.Context) error {
			if old.Alive() {
				return errors.New("it still runs")
			}
			return nil
		})
		dead := time.Now()
		b.untilTokens(t, 30*time.Second, busy...)
		refused := 0
		for _, w := range busy {
			for _, a := range w.since(dead) {
				if a.Status != 200 {
					refused++
				}
			}
		}
		t.Logf("%s: %d requests of %d pods failed meanwhile, for %.1f s", f.name, refused, len(busy), time.Since(dead).Seconds())
	}
}

// controllerKilled: the other replica, or the same one anew, ends what was begun.
func controllerKilled(t *testing.T, b *bed, busy []*watched) {
	from := time.Now()
	b.Cloud.SetSettings(control.Settings{OperationDuration: fault.Duration(3 * time.Second)})
	defer b.Cloud.SetSettings(control.Settings{})
	pod, mic := b.leader(t)
	amber := b.pod(t, "amber", "amber", "--timeout=45s")
	until(t, 20*time.Second, "the assignment has begun", func(context.Context) error {
		for _, e := range b.asked(azure.HostManagement, from) {
			if e.Method != http.MethodGet && strings.HasSuffix(strings.ToLower(e.Path), ownSet) {
				return nil
			}
		}
		return errors.New("mic changed nothing")
	})
	must(t, mic.Signal(unix.SIGKILL))
	t.Logf("%s, which led, is killed", pod)
	b.untilTokens(t, 45*time.Second, amber)
	b.remove(t, amber)
	if err := b.readAll(t.Context()); err != nil {
		t.Error(err)
	}
	uninterrupted(t, from, time.Now(), busy...)
}

// controlPlaneStops: nothing of the cluster answers for 20 s. Tokens live for
// 16 s only, which is made by letting the cloud's clock lag by a day less 16 s:
// what is simulated is the lifetime, while expiry and refresh are real.
func controlPlaneStops(t *testing.T, b *bed, busy []*watched) {
	const lifetime, pause = 16 * time.Second, 20 * time.Second
	b.Cloud.Clock().Shift(lifetime - 24*time.Hour)
	defer b.Cloud.Clock().Reset()
	brief := []*watched{
		b.pod(t, "brief-red", "red", "--resource="+azure.ResourceManagement+"/"),
		b.pod(t, "brief-green", "green", "--resource="+azure.ResourceManagement+"/"),
	}
	b.untilTokens(t, 20*time.Second, brief...)
	for _, w := range brief {
		if left := time.Until(w.answers[len(w.answers)-1].Expires); left > lifetime {
			t.Fatalf("the tokens of %s live for %s: this proves nothing", w.name, left)
		}
	}
	plane := b.onNode(t, "kube", "server")
	must(t, plane.Signal(unix.SIGSTOP))
	from := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), pause)
	refreshed := 0
	err := b.Cloud.Journal().Follow(ctx, 0, func(entries []journal.Entry) error {
		for _, e := range entries {
			if e.Host == hostIMDS && e.Status == 200 {
				refreshed++
			}
		}
		return nil
	})
	cancel()
	to := time.Now()
	stood := stopped(plane)
	must(t, plane.Signal(unix.SIGCONT))
	if !stood || !errors.Is(err, context.DeadlineExceeded) || refreshed < 2 {
		t.Errorf("the control plane stood still: %v (%v), tokens were renewed %d times: this proves nothing", stood, err, refreshed)
	}
	until(t, 30*time.Second, "the API server answers", b.readAll)
	uninterrupted(t, from, to, append(brief, busy...)...)
	for _, w := range brief {
		ends := map[time.Time]bool{}
		for _, a := range w.since(from) {
			if !a.At.After(to) {
				ends[a.Expires] = true
			}
		}
		if len(ends) < 2 {
			t.Errorf("%s saw %d tokens in %s although each lives for %s", w.name, len(ends), pause, lifetime)
		}
	}
	b.Cloud.Clock().Reset()
	// The cluster works again: a new pod with a new identity.
	after := b.pod(t, "after", "violet", "--timeout=60s")
	b.untilTokens(t, 60*time.Second, after)
	b.remove(t, append(brief, after)...)
}

// stopped tells whether a process stands still: proc_pid_stat(5), field 3.
func stopped(p process.ID) bool {
	text, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(p.PID), "stat"))
	_, rest, _ := strings.Cut(string(text), ") ")
	return err == nil && strings.HasPrefix(rest, "T")
}

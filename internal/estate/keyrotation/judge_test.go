package keyrotation

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
	"github.com/lanyard-id/lanyard/internal/estate"
)

// A report is a line of `workload exchange`.
type report struct {
	At       time.Time `json:"at"`
	Millis   float64   `json:"millis"`
	Status   int       `json:"status"`
	KeyID    string    `json:"kid"`
	Issued   time.Time `json:"issued"`
	Ends     time.Time `json:"ends"`
	Identity struct {
		ClientID string `json:"appid"`
	} `json:"identity"`
	Error string `json:"error"`
}

// A judge reads what every pod says and what the cloud has recorded of them.
type judge struct {
	client   kubernetes.Interface
	clientID string

	// away is held while the API server is restarted: one that is about to be
	// ready denies what it will allow, and the kubelet remembers that for 30 s.
	away sync.RWMutex

	mu       sync.Mutex
	pods     map[string]*seen
	recorded map[int]int     // exchanges by their status
	refused  []journal.Entry // of the cloud's record
}

// A seen is what one pod has said.
type seen struct {
	name    string
	reports []report
	failed  []report
	odd     []string  // what else it has said, which is never good
	tokens  []report  // the first of each token
	at      time.Time // of the last one
	longest time.Duration
	slowest float64
}

func newJudge(t *testing.T, e *estate.Estate, clientID string) *judge {
	t.Helper()
	j := &judge{client: e.Lab.Client, clientID: clientID, pods: map[string]*seen{}, recorded: map[int]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { _ = e.Cloud.Journal().Follow(ctx, 0, j.record) }) // its only error is the context's
	all.Go(func() { j.findPods(ctx, &all) })
	t.Cleanup(func() { cancel(); all.Wait() })
	return j
}

func (j *judge) record(entries []journal.Entry) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range entries {
		if e.Host != azure.HostLogin || e.Method != http.MethodPost || e.Client != j.clientID {
			continue
		}
		j.recorded[e.Status]++
		if e.Status != http.StatusOK {
			j.refused = append(j.refused, e)
		}
	}
	return nil
}

// findPods reads the logs of all pods of the service account, from their first
// line to the last.
func (j *judge) findPods(ctx context.Context, all *sync.WaitGroup) {
	for every(ctx, 250*time.Millisecond) {
		list, err := j.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			continue // the API server is away
		}
		for _, p := range list.Items {
			if p.Spec.ServiceAccountName != account || p.Status.Phase != corev1.PodRunning {
				continue
			}
			j.mu.Lock()
			if j.pods[p.Name] == nil {
				s := &seen{name: p.Name}
				j.pods[p.Name] = s
				all.Go(func() { j.follow(ctx, s) })
			}
			j.mu.Unlock()
		}
	}
}

// follow reads a pod's log until the pod is gone. The connection ends with the
// API server, and then begins anew.
func (j *judge) follow(ctx context.Context, s *seen) {
	for ok := true; ok; ok = every(ctx, 200*time.Millisecond) {
		j.away.RLock()
		log, err := j.client.CoreV1().Pods(namespace).GetLogs(s.name, &corev1.PodLogOptions{Follow: true}).Stream(ctx)
		j.away.RUnlock()
		if apierrors.IsNotFound(err) {
			return
		}
		if err != nil {
			continue
		}
		j.read(s, log)
		log.Close()
	}
}

func (j *judge) read(s *seen, log io.Reader) {
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		var r report
		err := json.Unmarshal(lines.Bytes(), &r)
		j.mu.Lock()
		switch {
		case strings.HasPrefix(lines.Text(), "workload"):
			s.odd = append(s.odd, lines.Text())
		case err == nil && r.At.After(s.at): // others were read before
			s.add(r, j.clientID)
		}
		j.mu.Unlock()
	}
}

func (s *seen) add(r report, clientID string) {
	if !s.at.IsZero() {
		s.longest = max(s.longest, r.At.Sub(s.at))
	}
	s.at, s.slowest = r.At, max(s.slowest, r.Millis)
	s.reports = append(s.reports, r)
	if r.Status != http.StatusOK || r.Error != "" || r.Identity.ClientID != clientID {
		s.failed = append(s.failed, r)
	}
	if n := len(s.tokens); n == 0 || s.tokens[n-1].KeyID != r.KeyID || !s.tokens[n-1].Issued.Equal(r.Issued) {
		s.tokens = append(s.tokens, r)
	}
}

// running are the pods that exchange now.
func (j *judge) running(ctx context.Context) ([]string, error) {
	list, err := j.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range list.Items {
		if p.Spec.ServiceAccountName == account && p.DeletionTimestamp == nil {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// exchanging returns an error unless each of these pods has exchanged tokens of
// a key n times since an instant; "" is any key.
func (j *judge) exchanging(names []string, kid string, since time.Time, n int) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, name := range names {
		got, has := 0, ""
		if s := j.pods[name]; s != nil {
			for _, r := range slices.Backward(s.reports) {
				if r.At.Before(since) {
					break
				}
				has = r.KeyID
				if r.Status == http.StatusOK && (kid == "" || r.KeyID == kid) {
					got++
				}
			}
		}
		if got < n {
			return fmt.Errorf("%s has exchanged %d tokens of the key %q (it had one of %q): %w", name, got, kid, has, errNotYet)
		}
	}
	return nil
}

// failures are the first words of every kind of failure, and how many there
// were by the pods and by the cloud.
func (j *judge) failures() (byPods, byCloud int, words []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.pods {
		byPods += len(s.failed) + len(s.odd)
		for _, r := range s.failed {
			words = append(words, fmt.Sprintf("%s of key %s at %s: %d %.200s", s.name, r.KeyID, r.At.UTC().Format(time.TimeOnly), r.Status, r.Error))
		}
		words = append(words, s.odd...)
	}
	return byPods, len(j.refused), words
}

// patience is how long it may take until what pods have said is read: see away.
const patience = time.Minute

// counts are the exchanges in both records that have succeeded.
func (j *judge) counts() (byPods, byCloud int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.pods {
		byPods += len(s.reports) - len(s.failed)
	}
	return byPods, j.recorded[http.StatusOK]
}

// sound asserts that no exchange has failed, and that the pods know of every
// one that the cloud has recorded.
func (j *judge) sound(t *testing.T) {
	t.Helper()
	_, had := j.counts()
	until(t, patience, "the pods have told of all exchanges", func(context.Context) error {
		byPods, byCloud := j.counts()
		if _, failed, _ := j.failures(); failed == 0 && byPods < had {
			return fmt.Errorf("of %d, or %d by now, they tell of %d", had, byCloud, byPods)
		}
		return nil
	})
	byPods, byCloud, words := j.failures()
	if byPods > 0 || byCloud > 0 {
		t.Errorf("%d exchanges failed by the pods and %d by the cloud: %q", byPods, byCloud, words[:min(len(words), 10)])
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	reported, kids := 0, map[string]int{}
	var gap time.Duration
	var slowest float64
	for _, s := range j.pods {
		reported += len(s.reports)
		gap, slowest = max(gap, s.longest), max(slowest, s.slowest)
		for _, r := range s.reports {
			kids[r.KeyID]++
		}
	}
	recorded := j.recorded[http.StatusOK]
	t.Logf("%d pods, %d exchanges by the pods and %d by the cloud, by key %v; the longest pause of a pod was %s, the slowest exchange %.0f ms",
		len(j.pods), reported, recorded, kids, gap.Round(time.Millisecond), slowest)
	if reported > recorded+len(j.pods) { // each may be ahead by the one that the cloud is about to record
		t.Errorf("the pods tell of %d exchanges and the cloud of %d", reported, recorded)
	}
	if gap > 5*time.Second {
		t.Errorf("a pod has paused for %s", gap)
	}
}

func every(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

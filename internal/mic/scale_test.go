package mic_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/mic"
)

// A rollout is so many pods at once, spread over identities and nodes.
type rollout struct {
	pods, identities, nodes int
	scaleSet                bool // all nodes are instances of one; otherwise each is a VM
}

// A writeCount counts the requests that change the cluster, by what they change.
type writeCount struct {
	next  http.RoundTripper
	count *sync.Map // resource -> *atomic.Int64
}

func (c *writeCount) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet {
		kind := "other"
		for _, k := range []string{"azureassignedidentities", "azureidentitybindings", "azureidentities", "events", "leases"} {
			if containsSegment(r.URL.Path, k) {
				kind = k
				break
			}
		}
		n, _ := c.count.LoadOrStore(kind, &atomic.Int64{})
		n.(*atomic.Int64).Add(1)
	}
	return c.next.RoundTrip(r)
}

func containsSegment(path, segment string) bool {
	for rest := path; rest != ""; {
		i := 1
		for i < len(rest) && rest[i] != '/' {
			i++
		}
		if rest[0] == '/' && rest[1:i] == segment {
			return true
		}
		rest = rest[i:]
	}
	return false
}

// play makes the rollout, waits until every pod has its identity, removes the
// pods and waits until nothing is left. arm is how long each change takes there.
func (r rollout) play(w *world, arm time.Duration) (assigned, cleaned time.Duration, patches int64, writes *sync.Map) {
	w.Helper()
	var requests atomic.Int64
	c := &cloud{}
	c.setRefuse(func(ctx context.Context, _ azure.ResourceID, _, _ []azure.ResourceID) error {
		requests.Add(1)
		select {
		case <-time.After(arm):
		case <-ctx.Done():
		}
		return ctx.Err()
	})
	var nodes, machines []string
	for i := range r.nodes {
		name := fmt.Sprintf("n%d-%s", i, w.ns)
		provider := fmt.Sprintf("%s/virtualMachines/%d", w.set, i)
		machine := w.set
		if !r.scaleSet {
			machine = group + "/providers/Microsoft.Compute/virtualMachines/" + name
			provider = machine
		}
		w.addNode(name, "azure://"+provider)
		nodes, machines = append(nodes, name), append(machines, machine)
	}
	for i := range r.identities {
		w.bind(fmt.Sprint("id", i))
	}
	writes = &sync.Map{}
	w.run(c, func(c *mic.Config) {
		c.ReportDelay = 0 // as it is by default
		c.Kubernetes.QPS = -1
		c.Kubernetes.WrapTransport = func(rt http.RoundTripper) http.RoundTripper { return &writeCount{rt, writes} }
		c.Recheck = 3 * time.Minute
	})
	all := func(what func(i int) error) {
		w.Helper()
		var g errgroup.Group
		g.SetLimit(32)
		for i := range r.pods {
			g.Go(func() error { return what(i) })
		}
		if err := g.Wait(); err != nil {
			w.Fatal(err)
		}
	}
	start := time.Now()
	pod := func(i int) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: fmt.Sprint("p", i), Labels: map[string]string{v1.BindingLabel: w.label(fmt.Sprint("id", i%r.identities))}},
			Spec:       corev1.PodSpec{NodeName: nodes[i/r.identities%len(nodes)], Containers: []corev1.Container{{Name: "c", Image: "none"}}},
		}
	}
	all(func(i int) error { return w.Create(w.Context(), pod(i)) })
	w.Logf("made after %s", time.Since(start))
	count := func() (total, done int, err error) {
		var list v1.AzureAssignedIdentityList
		if err := w.List(w.Context(), &list, client.InNamespace("default")); err != nil {
			return 0, 0, err
		}
		for i := range list.Items {
			if list.Items[i].Spec.PodNamespace == w.ns {
				total++
				if list.Items[i].Status.Status == v1.AssignedIDAssigned {
					done++
				}
			}
		}
		return total, done, nil
	}
	w.eventually(func() error {
		_, done, err := count()
		if err == nil && done != r.pods {
			return fmt.Errorf("%d of %d pods are assigned", done, r.pods)
		}
		return err
	})
	assigned = time.Since(start)
	start = time.Now()
	all(func(i int) error { return w.Delete(w.Context(), pod(i), client.GracePeriodSeconds(0)) })
	w.Logf("deleted after %s", time.Since(start))
	w.eventually(func() error {
		total, _, err := count()
		if err == nil && total != 0 {
			return fmt.Errorf("%d assignments are left", total)
		}
		return err
	})
	cleaned = time.Since(start)
	for _, m := range machines {
		if got := c.has(m); got != "" {
			w.Errorf("%s still has %s", m, got)
		}
	}
	return assigned, cleaned, requests.Load(), writes
}

func show(writes *sync.Map, pods int) (text string) {
	writes.Range(func(k, n any) bool {
		text += fmt.Sprintf(" %v=%.2f", k, float64(n.(*atomic.Int64).Load())/float64(pods))
		return true
	})
	return text
}

// Pod Identity v1 took 81.8 s and 121 s, with as slow a cloud and default flags.
func TestTwoHundredPodsAtOnceHaveTheirIdentitiesInSeconds(t *testing.T) {
	w := newWorld(t)
	assigned, cleaned, patches, writes := rollout{pods: 200, identities: 10, nodes: 10, scaleSet: true}.play(w, 2*time.Second)
	t.Logf("assigned after %s, cleaned after %s, %d requests to change the machine, writes per pod:%s", assigned, cleaned, patches, show(writes, 200))
	// On a machine that does nothing else it takes 3 and 4 s.
	if assigned > 20*time.Second || cleaned > 20*time.Second {
		t.Errorf("assigned after %s, cleaned after %s", assigned, cleaned)
	}
	if patches > 4 {
		t.Errorf("%d requests to change one machine", patches)
	}
	if n, _ := writes.Load("azureassignedidentities"); n.(*atomic.Int64).Load() > 3*200+80 {
		t.Errorf("%d writes to assignments", n.(*atomic.Int64).Load())
	}
}

package mic_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/mic"
	"github.com/lanyard-id/lanyard/internal/mic/arm"
)

// A killer ends a controller when a change, of an assignment or of a machine, has
// been made: nothing that it does later has an effect, and it does not hear how
// the change went.
type killer struct {
	*cloud
	next   http.RoundTripper
	mu     sync.Mutex
	left   int
	killed chan struct{}
	last   string
}

var errKilled = errors.New("this process was killed")

// step counts a change and reports whether it may be made, and whether it is the last one.
func (k *killer) step(what string) (alive, last bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left == 0 {
		return false, false
	}
	k.left--
	k.last = what
	return true, k.left == 0
}

func (k *killer) dead() bool {
	select {
	case <-k.killed:
		return true
	default:
		return false
	}
}

func (k *killer) RoundTrip(r *http.Request) (*http.Response, error) {
	if k.dead() {
		return nil, errKilled
	}
	if r.Method == http.MethodGet || !containsSegment(r.URL.Path, "azureassignedidentities") {
		return k.next.RoundTrip(r)
	}
	alive, last := k.step(r.Method)
	if !alive {
		return nil, errKilled
	}
	resp, err := k.next.RoundTrip(r)
	if last && err == nil {
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode >= 300 {
			return nil, fmt.Errorf("%s %s: %s", r.Method, resp.Status, bytes.TrimSpace(body))
		}
		close(k.killed)
		return nil, errKilled
	}
	return resp, err
}

func (k *killer) Update(ctx context.Context, machine azure.ResourceID, add, remove []azure.ResourceID) error {
	alive, last := k.step("machine")
	if !alive {
		return errKilled
	}
	err := k.cloud.Update(ctx, machine, add, remove)
	if last {
		close(k.killed)
		return errKilled
	}
	return err
}

func TestAControllerThatIsKilledAfterAnyStepLeavesNothingBehind(t *testing.T) {
	for i, step := range []string{"the assignment is made", "the intent is noted", "the machine has the identity", "the assignment says so", "the assignment is deleted", "the machine has lost the identity", "the assignment is released"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			k := &killer{cloud: &cloud{}, left: i + 1, killed: make(chan struct{})}
			k.put(w.set, "before", "unrelated")
			w.bind("i")
			stop := w.run(k, func(c *mic.Config) {
				c.Kubernetes.WrapTransport = func(rt http.RoundTripper) http.RoundTripper { k.next = rt; return k }
			})
			p := w.pod(w.ns, "p", w.node, w.label("i"))
			gone := false
			w.eventually(func() error {
				if state, err := w.state(w.ns, "p"); err == nil && state == "i=Assigned" && !gone && !k.dead() && i > 3 {
					w.remove(p)
					gone = true
				}
				if !k.dead() {
					return fmt.Errorf("alive after %s", k.last)
				}
				return nil
			})
			stop()
			w.run(k.cloud)
			if !gone {
				w.await(w.ns, "p", "i=Assigned")
				w.awaitCloud(k.cloud, w.set, "before i unrelated")
				w.remove(p)
			}
			w.await(w.ns, "p", "")
			w.awaitCloud(k.cloud, w.set, "before unrelated")
		})
	}
}

func TestTwoLeadersAtOnceAgree(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	c.put(w.set, "before")
	var changes atomic.Int64
	c.setRefuse(func(context.Context, azure.ResourceID, []azure.ResourceID, []azure.ResourceID) error {
		changes.Add(1)
		return nil
	})
	w.run(c)
	w.run(c)
	names := []string{"a", "b", "before"}
	for _, n := range names {
		w.bind(n)
	}
	pods := map[string]func(){}
	for i := range 12 {
		name, id := fmt.Sprint("p", i), names[i%len(names)]
		p := w.pod(w.ns, name, w.node, w.label(id))
		pods[name] = func() { w.remove(p) }
	}
	for i := range 12 {
		w.await(w.ns, fmt.Sprint("p", i), names[i%len(names)]+"=Assigned")
	}
	w.awaitCloud(c, w.set, "a b before")
	for i := range 12 { // the last one that uses b goes, of a one stays
		if names[i%len(names)] != "a" || i > 0 {
			pods[fmt.Sprint("p", i)]()
		}
	}
	for i := 1; i < 12; i++ {
		w.await(w.ns, fmt.Sprint("p", i), "")
	}
	w.awaitCloud(c, w.set, "a before")
	w.await(w.ns, "p0", "a=Assigned")
	if n := changes.Load(); n > 12 {
		t.Errorf("%d changes of the machine: the two work against each other", n)
	}
}

func TestAForgedAssignmentMovesNoMachine(t *testing.T) {
	foreign := subscription + "/resourceGroups/others/providers/Microsoft.Compute/virtualMachines/vm"
	for _, x := range []struct {
		name    string
		machine func(w *world) string
		status  string
		pod     string // p exists, and its binding leads to another identity
		id      string // that it names
	}{
		{"for a pod that does not exist, on the cluster's machine", func(w *world) string { return w.set }, v1.AssignedIDCreated, "nobody", "victim"},
		{"for a pod with another identity, on its machine", func(w *world) string { return w.set }, v1.AssignedIDCreated, "p", "victim"},
		{"to take what somebody else put there off the pod's machine", func(w *world) string { return w.set }, v1.AssignedIDCreated, "p", "own"},
		{"to take it off as if Pod Identity v1 had put it there", func(w *world) string { return w.set }, v1.AssignedIDAssigned, "nobody", "own"},
		{"on a machine that is not the cluster's", func(*world) string { return foreign }, v1.AssignedIDAssigned, "p", "victim"},
		{"on what is no machine", func(*world) string {
			return subscription + "/resourceGroups/others/providers/Microsoft.Storage/storageAccounts/s"
		}, v1.AssignedIDAssigned, "p", "victim"},
	} {
		t.Run(x.name, func(t *testing.T) {
			w, c := newWorld(t), &cloud{}
			c.put(foreign, "victim")
			c.put(w.set, "own")
			w.bind("mine")
			w.pod(w.ns, "p", w.node, w.label("mine"))
			w.run(c)
			w.await(w.ns, "p", "mine=Assigned")
			forged := &v1.AzureAssignedIdentity{
				ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "forged", Finalizers: []string{v1.AssignedFinalizer}, Annotations: map[string]string{
					"aadpodidentity.k8s.io/machine": x.machine(w), "aadpodidentity.k8s.io/added": "true",
				}},
				Spec: v1.AzureAssignedIdentitySpec{Pod: x.pod, PodNamespace: w.ns, NodeName: w.node, AzureIdentityRef: &v1.AzureIdentity{
					TypeMeta:   metav1.TypeMeta{APIVersion: "aadpodidentity.k8s.io/v1", Kind: "AzureIdentity"},
					ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: x.id}, Spec: v1.AzureIdentitySpec{ResourceID: idPrefix + x.id},
				}},
				Status: v1.AzureAssignedIdentityStatus{Status: x.status},
			}
			if x.status == v1.AssignedIDAssigned {
				delete(forged.Annotations, "aadpodidentity.k8s.io/added") // v1 did not write it
			}
			w.make(forged)
			w.awaitEvent(forged, "AzureAssignedIdentity", "NotEntitled", "no AzureIdentityBinding entitles the pod "+w.ns+"/"+x.pod)
			w.eventually(func() error {
				items, err := w.assigned(w.ns, x.pod)
				for _, a := range items {
					if a.Name == "forged" {
						return errors.New("it is still there")
					}
				}
				return err
			})
			w.awaitCloud(c, foreign, "victim")
			w.awaitCloud(c, w.set, "mine own")
		})
	}
}

func TestAnIdentityLeavesTheMachineThoughItsAssignmentWasForcedAway(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	c.put(w.set, "before")
	w.run(c)
	w.bind("i")
	p := w.pod(w.ns, "p", w.node, w.label("i"))
	w.await(w.ns, "p", "i=Assigned")
	w.remove(p)
	w.eventually(func() error { // whoever is first
		items, err := w.assigned(w.ns, "p")
		if err != nil || len(items) == 0 {
			return err
		}
		forced := items[0].DeepCopy()
		forced.Finalizers = nil
		return client.IgnoreNotFound(w.Patch(w.Context(), forced, client.MergeFrom(&items[0])))
	})
	w.await(w.ns, "p", "")
	w.awaitCloud(c, w.set, "before")
}

// Only one of the assignments of an identity on a machine has the finalizer.
func TestTheFinalizerIsPassedOnWhileAPodUsesTheIdentity(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	c.put(w.set, "before")
	w.run(c)
	w.bind("i")
	pods := map[string]func(){}
	for _, name := range []string{"a", "b", "c"} {
		p := w.pod(w.ns, name, w.node, w.label("i"))
		pods[name] = func() { w.remove(p) }
		w.await(w.ns, name, "i=Assigned")
	}
	for len(pods) > 0 {
		var holder string
		w.eventually(func() error {
			holder = ""
			for name := range pods {
				items, err := w.assigned(w.ns, name)
				if err != nil || len(items) != 1 {
					return fmt.Errorf("%s has %d assignments, %w", name, len(items), err)
				}
				if len(items[0].Finalizers) > 0 {
					holder += name
				}
			}
			if len(holder) != 1 {
				return fmt.Errorf("%q hold the identity", holder)
			}
			return nil
		})
		w.awaitCloud(c, w.set, "before i")
		pods[holder]()
		delete(pods, holder)
		w.await(w.ns, holder, "")
	}
	w.awaitCloud(c, w.set, "before")
}

func TestASubscriptionThatThrottlesIsLeftAloneAndNoOther(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	var asked sync.Map
	c.setRefuse(func(_ context.Context, machine azure.ResourceID, _, _ []azure.ResourceID) error {
		n, _ := asked.LoadOrStore(machine.Name(), &atomic.Int64{})
		n.(*atomic.Int64).Add(1)
		if machine.Name() == "set-"+w.ns {
			return &arm.Error{Status: http.StatusTooManyRequests, Code: "TooManyRequests", Message: "slow down", RetryAfter: time.Hour}
		}
		return nil
	})
	same := group + "/providers/Microsoft.Compute/virtualMachines/same-" + w.ns
	other := strings.NewReplacer("11111111", "99999999", "/same-", "/other-").Replace(same)
	w.addNode("same-"+w.ns, "azure://"+same)
	w.addNode("other-"+w.ns, "azure://"+other)
	w.run(c)
	w.bind("i")
	w.pod(w.ns, "throttled", w.node, w.label("i"))
	w.awaitCondition(w.ns, "throttled", "Azure throttles requests of the subscription 11111111-")
	w.pod(w.ns, "waits", "same-"+w.ns, w.label("i"))
	w.pod(w.ns, "goes", "other-"+w.ns, w.label("i"))
	w.await(w.ns, "goes", "i=Assigned")
	w.await(w.ns, "waits", "i=Created")
	if n, ok := asked.Load("same-" + w.ns); ok {
		t.Errorf("a machine of the throttled subscription was asked %d times", n.(*atomic.Int64).Load())
	}
	if n, _ := asked.Load("set-" + w.ns); n.(*atomic.Int64).Load() != 1 {
		t.Errorf("the machine was asked %d times", n.(*atomic.Int64).Load())
	}
}

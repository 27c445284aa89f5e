package pods

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/lanyard-id/lanyard/internal/mic/assigned"
)

// arrivals are pods that were seen and not handled yet, by machine: while there are
// any, a change of the machine would soon be followed by another one.
type arrivals struct {
	mu       sync.Mutex
	machines map[types.NamespacedName]string
	count    map[string]int
}

func (q *arrivals) add(pod types.NamespacedName, machine string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.machines == nil {
		q.machines, q.count = map[types.NamespacedName]string{}, map[string]int{}
	}
	q.drop(pod)
	q.machines[pod] = machine
	q.count[machine]++
}

func (q *arrivals) done(pod types.NamespacedName) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop(pod)
}

func (q *arrivals) drop(pod types.NamespacedName) {
	machine, ok := q.machines[pod]
	if !ok {
		return
	}
	delete(q.machines, pod)
	if q.count[machine]--; q.count[machine] == 0 {
		delete(q.count, machine)
	}
}

// Coming reports whether pods on the machine of this key were seen whose
// assignments are still to be written.
func (c *Controller) Coming(machine string) bool {
	c.arrivals.mu.Lock()
	defer c.arrivals.mu.Unlock()
	return c.arrivals.count[machine] > 0
}

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// podHandler queues the pod itself and keeps the arrivals.
func (c *Controller) podHandler() handler.EventHandler {
	arrived := func(ctx context.Context, o client.Object) {
		p := o.(*corev1.Pod)
		if p.Spec.NodeName == "" || Ended(p) {
			return
		}
		var n corev1.Node
		if err := c.Client.Get(ctx, types.NamespacedName{Name: p.Spec.NodeName}, &n, client.UnsafeDisableDeepCopy); err != nil {
			return // its machine is not known: nothing to gather
		}
		if machine, err := assigned.MachineOfNode(&n); err == nil {
			c.arrivals.add(client.ObjectKeyFromObject(p), machine.Key())
		}
	}
	itself := &handler.EnqueueRequestForObject{}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) {
			arrived(ctx, e.Object)
			itself.Create(ctx, e, q)
		},
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			if podChanged(e) {
				arrived(ctx, e.ObjectNew)
				itself.Update(ctx, e, q)
			}
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) {
			c.arrivals.done(client.ObjectKeyFromObject(e.Object))
			itself.Delete(ctx, e, q)
		},
	}
}

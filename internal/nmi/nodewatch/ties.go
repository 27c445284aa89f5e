package nodewatch

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Who is behind an address. Kubernetes says which pod had the address when
// kubelet last reported; the node says which port has it now. An address is
// reused within moments, and reports come late, so the two must be tied:
//
//   - A pod is tied to the port that its address is behind when kubelet has
//     reported that something of the pod started since the port appeared: its
//     sandbox (the condition PodReadyToStartContainers) or a container. Both times
//     are the node's own; kubelet's are whole seconds.
//   - From then on the pod has the address while it is behind that port.
//   - When the address is behind another port, the pod has it no more, until a
//     new report says that something started since that port appeared: the pod's
//     sandbox was made anew. An older pod that is deleted late gives no such report.
//   - A port that was there before the agent cannot be dated. A pod is tied to
//     it unless the pod is being deleted, for then the port may be the next pod's.
//   - Of several pods that Kubernetes gives an address to, only those that are
//     tied to its port count.
//
// Whatever is not settled is unknown: the request waits for a newer report, and
// fails without one.
type facts struct {
	started time.Time // the last start that kubelet reported; zero if none
	ties    []tie     // one for each of the entry's addresses
}

// A tie holds what an address is tied to; nil if nothing yet.
type tie = *atomic.Pointer[tied]

type tied struct {
	generation uint64
	started    time.Time // the last start that had been reported by then
}

// remember makes the facts of an entry from the pod and from the entry that it
// replaces. It needs the lock.
func (w *Watcher) remember(e, old *entry, p *corev1.Pod) {
	e.facts.started = lastStart(p)
	e.facts.ties = make([]tie, len(e.addresses))
	for i, a := range e.addresses {
		e.facts.ties[i] = new(atomic.Pointer[tied])
		if old != nil {
			for j, b := range old.addresses {
				if a == b {
					e.facts.ties[i] = old.facts.ties[j]
				}
			}
		}
		w.behind(e, a) // ties them while the report is fresh
	}
}

// behind reports why the pod cannot be held to be behind an address of its
// own; empty if it can.
func (w *Watcher) behind(e *entry, a netip.Addr) string {
	if w.config.Arrivals == nil {
		return ""
	}
	port, ok := w.config.Arrivals.Behind(a)
	if !ok {
		return "no network port of this node has it to itself"
	}
	for i := range e.addresses {
		if e.addresses[i] != a {
			continue
		}
		was := e.facts.ties[i].Load()
		if was != nil && was.generation == port.Generation {
			return ""
		}
		var may bool
		switch since := !e.facts.started.Before(port.Since.Truncate(time.Second)); {
		case was != nil:
			may = since && e.facts.started.After(was.started) && e.ends.IsZero()
		case !port.Since.After(w.config.Began):
			may = e.ends.IsZero()
		default:
			// A former pod may have started in the second in which this port
			// appeared: one that is being deleted is not believed.
			may = since && (e.ends.IsZero() || e.facts.started.After(port.Since))
		}
		if may {
			e.facts.ties[i].CompareAndSwap(was, &tied{port.Generation, e.facts.started})
			return ""
		}
	}
	return "its network port is newer than what is known of pod " + e.pod.Namespace + "/" + e.pod.Name
}

// lastStart is the latest time at which kubelet says that something of the pod
// started.
func lastStart(p *corev1.Pod) time.Time {
	var last time.Time
	later := func(t time.Time) {
		if t.After(last) {
			last = t
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReadyToStartContainers && c.Status == corev1.ConditionTrue {
			later(c.LastTransitionTime.Time)
		}
	}
	for _, all := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for _, c := range all {
			for _, s := range []corev1.ContainerState{c.State, c.LastTerminationState} {
				if s.Running != nil {
					later(s.Running.StartedAt.Time)
				}
				if s.Terminated != nil {
					later(s.Terminated.StartedAt.Time)
				}
			}
		}
	}
	return last
}

// sandboxConditions and starts are what lastStart reads.
func sandboxConditions(all []corev1.PodCondition) []corev1.PodCondition {
	for _, c := range all {
		if c.Type == corev1.PodReadyToStartContainers {
			return []corev1.PodCondition{{Type: c.Type, Status: c.Status, LastTransitionTime: c.LastTransitionTime}}
		}
	}
	return nil
}

func starts(all []corev1.ContainerStatus) []corev1.ContainerStatus {
	slim := make([]corev1.ContainerStatus, len(all))
	for i, c := range all {
		slim[i] = corev1.ContainerStatus{State: start(c.State), LastTerminationState: start(c.LastTerminationState)}
	}
	return slim
}

func start(s corev1.ContainerState) corev1.ContainerState {
	s.Waiting = nil
	if t := s.Terminated; t != nil {
		s.Terminated = &corev1.ContainerStateTerminated{StartedAt: t.StartedAt}
	}
	return s
}

// follow wakes who waits by address when the node's ports change.
func (w *Watcher) follow(ctx context.Context) {
	if w.config.Arrivals == nil {
		return
	}
	for {
		changed := w.config.Arrivals.Changed()
		w.mu.Lock()
		for x := range w.waiters {
			if x.who.Address.IsValid() {
				x.wake()
			}
		}
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

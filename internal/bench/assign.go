package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/internal/bench/bed"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
	"github.com/lanyard-id/lanyard/internal/bench/standin"
)

const (
	v1Assign200   = 81800 * time.Millisecond
	v1Assign2000  = 22500 * time.Millisecond
	v1Clean2000   = 31100 * time.Millisecond
	v1OtherVMSS   = 57500 * time.Millisecond
	v1WritesOfPod = 5.0
)

func assignment() Experiment {
	return Experiment{
		Name: "assignment", What: "mic with its default flags, ARM at 2 s", Limit: 5 * time.Minute, Run: measureAssignment,
		Rows: []Row{
			{"assign-200", "200 pods to assigned, default flags, ARM 2 s", "81.8 s", "4 s"},
			{"assign-2000", "2,000 pods on 30 nodes to assigned, default flags", "22.5 s at raised flags", "10 s"},
			{"clean-2000", "2,000 pods to cleaned, default flags", "31.1 s at raised flags", "10 s"},
			{"api-writes", "API writes per pod lifetime, without events", "5", "counted"},
			{"other-scale-set", "another VMSS while one PATCH takes 30 s", "57.5 s", "3 s"},
		},
	}
}

func measureAssignment(ctx context.Context, r *Runner) (m []Measurement, err error) {
	b, err := bed.New(ctx, r.Config)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close(ctx)) }()
	w := &wave{Bed: b}
	if w.tracker, err = b.Track(ctx); err != nil {
		return nil, err
	}
	const identities = 100
	if err := b.Namespace(ctx, bed.Space); err != nil {
		return nil, err
	}
	if err := b.Identities(ctx, bed.Space, 1, identities); err != nil {
		return nil, err
	}
	small, err := b.ScaleSet(ctx, "small", 10)
	if err != nil {
		return nil, err
	}
	var large []string
	for i := range 3 {
		nodes, err := b.ScaleSet(ctx, fmt.Sprintf("large%d", i), 10)
		if err != nil {
			return nil, err
		}
		large = append(large, nodes...)
	}
	mic, err := b.StartMIC(ctx)
	if err != nil {
		return nil, err
	}

	up, err := w.up(ctx, 200, 10, small, time.Minute+30*time.Second)
	if err != nil {
		return nil, err
	}
	down, err := w.down(ctx, time.Minute+30*time.Second)
	if err != nil {
		return nil, err
	}
	m = append(m, Measurement{
		Row: Row{Name: "assign-200"}, Now: meter.Brief(up.took), Value: up.took.Seconds(), Unit: "s", Ratio: Times(v1Assign200, up.took), OK: up.took <= 4*time.Second,
		Note: fmt.Sprintf("from the first pod's creation, %s of it to create the pods; one scale set of 10 nodes, 10 identities; %s; cleaned in %s (v1: 121 s)", meter.Brief(up.creating), up.cloud, meter.Brief(down.took)),
	})
	other, err := w.other(ctx)
	if err != nil {
		return m, err
	}
	m = append(m, other)

	if err := b.Idle(ctx, mic.PID()); err != nil {
		return m, err
	}
	before, err := b.Writes(ctx)
	if err != nil {
		return m, err
	}
	const many = 2000
	up, err = w.up(ctx, many, identities, large, 2*time.Minute)
	if err != nil {
		return m, err
	}
	m = append(m, Measurement{
		Row: Row{Name: "assign-2000"}, Now: meter.Brief(up.took), Value: up.took.Seconds(), Unit: "s", Ratio: Times(v1Assign2000, up.took), OK: up.took <= 10*time.Second,
		Note: fmt.Sprintf("from the first pod's creation, %s of it to create the pods; 3 scale sets, 100 identities; %s; processor time of mic %s, of the API server %s", meter.Brief(up.creating), up.cloud, meter.Brief(up.mic), meter.Brief(up.api)),
	})
	down, err = w.down(ctx, 2*time.Minute)
	if err != nil {
		return m, err
	}
	m = append(m, Measurement{
		Row: Row{Name: "clean-2000"}, Now: meter.Brief(down.took), Value: down.took.Seconds(), Unit: "s", Ratio: Times(v1Clean2000, down.took), OK: down.took <= 10*time.Second,
		Note: fmt.Sprintf("until every assignment and every identity on a machine is gone, from the first pod's deletion, %s of it to delete the pods; %s; processor time of mic %s, of the API server %s", meter.Brief(down.creating), down.cloud, meter.Brief(down.mic), meter.Brief(down.api)),
	})
	if err := b.Idle(ctx, mic.PID()); err != nil {
		return m, err
	}
	after, err := b.Writes(ctx)
	if err != nil {
		return m, err
	}
	return append(m, perPod(before, after, many, mic.PID())), nil
}

// perPod is what mic, a process, wrote for each of n pods.
func perPod(before, after map[string]int, n, mic int) Measurement {
	const own = "azureassignedidentities"
	sum := map[string]float64{} // by resource
	var verbs, others []string
	var refused float64
	for _, key := range slices.Sorted(maps.Keys(after)) {
		each := float64(after[key]-before[key]) / float64(n)
		resource, verb, _ := strings.Cut(key, " ")
		switch {
		case each == 0 || resource == "pods":
		case verb == "refused":
			refused += each
		default:
			sum[resource] += each
			if resource == own {
				verbs = append(verbs, fmt.Sprintf("%s %.2f", verb, each))
			}
		}
	}
	for _, resource := range slices.Sorted(maps.Keys(sum)) {
		if resource != own {
			others = append(others, fmt.Sprintf("%s %.2f", resource, sum[resource]))
		}
	}
	note := fmt.Sprintf("%s; besides: %s; refused %.2f", strings.Join(verbs, ", "), strings.Join(others, ", "), refused)
	if used, err := meter.MemoryOf(mic); err == nil {
		note += fmt.Sprintf("; mic holds %s (v1: 79 MB), at most %s", meter.Megabytes(used.Resident), meter.Megabytes(used.Peak))
	}
	return Measurement{Row: Row{Name: "api-writes"}, Now: fmt.Sprintf("%.2f", sum[own]), Value: sum[own], Ratio: Times(v1WritesOfPod, sum[own]), OK: sum[own] > 0 && sum[own] <= v1WritesOfPod, Note: note}
}

// A wave is pods that come and go together.
type wave struct {
	*bed.Bed
	tracker *bed.Tracker
	count   int // waves so far
	pods    int // of this one
	space   string
}

// An outcome is how long one half of a wave took, and what it cost.
type outcome struct {
	took     time.Duration
	creating time.Duration // or deleting
	cloud    string
	mic, api time.Duration // processor time
}

func (w *wave) measure(ctx context.Context, n int, work func() (creating time.Duration, err error)) (o outcome, err error) {
	before, err := w.Stats(ctx)
	if err != nil {
		return o, err
	}
	cpu := w.processorTimes()
	started := time.Now()
	if o.creating, err = work(); err != nil {
		return o, err
	}
	o.took = time.Since(started)
	now := w.processorTimes()
	o.mic, o.api = now["mic"]-cpu["mic"], now["api"]-cpu["api"]
	after, err := w.Stats(ctx)
	if err != nil {
		return o, err
	}
	o.cloud = fmt.Sprintf("for %d pods ARM saw %d changes, %d reads, %d polls, %d conflicts", n, after.Changes-before.Changes, after.Reads-before.Reads, after.Polls-before.Polls, after.Conflicts-before.Conflicts)
	return o, nil
}

func (w *wave) processorTimes() map[string]time.Duration {
	out := map[string]time.Duration{}
	for name, pid := range map[string]int{"mic": w.MIC.PID(), "api": w.Control.PID()} {
		if d, err := meter.CPU(pid); err == nil {
			out[name] = d
		}
	}
	return out
}

// up makes pods on the nodes and waits until each has its identity.
func (w *wave) up(ctx context.Context, n, identities int, nodes []string, limit time.Duration) (outcome, error) {
	w.count++
	w.pods, w.space = n, fmt.Sprintf("wave-%d", w.count)
	if err := w.Namespace(ctx, w.space); err != nil {
		return outcome{}, err
	}
	w.Step("%d pods on %d nodes", n, len(nodes))
	return w.measure(ctx, n, func() (time.Duration, error) {
		started := time.Now()
		err := bed.Each(ctx, n, func(ctx context.Context, i int) error {
			_, err := w.Kube.CoreV1().Pods(w.space).Create(ctx, bed.Pod(w.space, fmt.Sprintf("pod-%05d", i), nodes[i%len(nodes)], 1+i/len(nodes)%identities), metav1.CreateOptions{})
			return err
		})
		creating := time.Since(started)
		if err != nil {
			return creating, fmt.Errorf("creating pods: %w", err)
		}
		return creating, w.tracker.Wait(ctx, limit, n, n)
	})
}

// down deletes the pods and waits until nothing of them is left, in the
// cluster or on a machine.
func (w *wave) down(ctx context.Context, limit time.Duration) (outcome, error) {
	w.Step("deleting %d pods", w.pods)
	return w.measure(ctx, w.pods, func() (time.Duration, error) {
		started := time.Now()
		err := bed.Each(ctx, w.pods, func(ctx context.Context, i int) error {
			return w.Kube.CoreV1().Pods(w.space).Delete(ctx, fmt.Sprintf("pod-%05d", i), metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
		})
		deleting := time.Since(started)
		if err != nil {
			return deleting, fmt.Errorf("deleting pods: %w", err)
		}
		if err := w.tracker.Wait(ctx, limit, 0, 0); err != nil {
			return deleting, err
		}
		return deleting, bed.Until(ctx, limit, func() error { return w.bare(ctx) })
	})
}

// bare fails while any machine has an identity.
func (w *wave) bare(ctx context.Context) error {
	s, err := w.Stats(ctx)
	if err != nil {
		return err
	}
	for machine, n := range s.Identities {
		if n > 0 {
			return fmt.Errorf("%s still has %d identities", machine, n)
		}
	}
	return nil
}

// other measures a scale set beside one whose change takes 30 s.
func (w *wave) other(ctx context.Context) (Measurement, error) {
	slow, err := w.ScaleSet(ctx, "slow", 1)
	if err != nil {
		return Measurement{}, err
	}
	quick, err := w.ScaleSet(ctx, "quick", 1)
	if err != nil {
		return Measurement{}, err
	}
	long := 30 * time.Second
	if w.Quick {
		long = 10 * time.Second // long enough to see whether the other one waits for it
	}
	if err := w.setLatency(ctx, "slow", long); err != nil {
		return Measurement{}, err
	}
	w.Step("a change of one scale set takes %s, another one is wanted", long)
	if _, err := w.Kube.CoreV1().Pods(bed.Space).Create(ctx, bed.Pod(bed.Space, "slow", slow[0], 1), metav1.CreateOptions{}); err != nil {
		return Measurement{}, err
	}
	if err := bed.Until(ctx, 20*time.Second, func() error { return w.changing(ctx, "slow") }); err != nil {
		return Measurement{}, err
	}
	started := time.Now()
	if _, err := w.Kube.CoreV1().Pods(bed.Space).Create(ctx, bed.Pod(bed.Space, "quick", quick[0], 1), metav1.CreateOptions{}); err != nil {
		return Measurement{}, err
	}
	if err := w.tracker.Wait(ctx, 90*time.Second, 1, 2); err != nil {
		return Measurement{}, err
	}
	took := time.Since(started)
	beside := w.changing(ctx, "slow") == nil
	// The slow one has to end, too, before the next measurement.
	if err := w.tracker.Wait(ctx, 90*time.Second, 2, 2); err != nil {
		return Measurement{}, err
	}
	if err := w.setLatency(ctx, "slow", 0); err != nil {
		return Measurement{}, err
	}
	for _, name := range []string{"slow", "quick"} {
		if err := w.Kube.CoreV1().Pods(bed.Space).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
			return Measurement{}, err
		}
	}
	return Measurement{
		Row: Row{Name: "other-scale-set"}, Now: meter.Brief(took), Value: took.Seconds(), Unit: "s", Ratio: Times(v1OtherVMSS, took), OK: beside && took <= 3*time.Second,
		Note: fmt.Sprintf("ARM takes 2 s for it and %s for the other, which was still under way: %t", long, beside),
	}, w.tracker.Wait(ctx, time.Minute, 0, 0)
}

func (w *wave) changing(ctx context.Context, machine string) error {
	s, err := w.Stats(ctx)
	if err == nil && s.UnderWay[machine] == 0 {
		err = fmt.Errorf("%s is not being changed", machine)
	}
	return err
}

// setLatency says how long changes of one machine take from now on.
func (w *wave) setLatency(ctx context.Context, machine string, d time.Duration) error {
	return w.Post(ctx, bed.CloudURL()+standin.LatencyPath, url.Values{"machine": {machine}, "latency": {d.String()}})
}

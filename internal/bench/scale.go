package bench

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/lanyard-id/lanyard/internal/bench/bed"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
)

func scale() Experiment {
	return Experiment{
		Name: "scale", What: "many pods on many nodes that kwok simulates", Limit: 6 * time.Minute, Run: measureScale,
		Rows: []Row{{"scale", "10,000 pods on 500 simulated nodes, all running and assigned", "-", "converges"}},
	}
}

func measureScale(ctx context.Context, r *Runner) (m []Measurement, err error) {
	pods, nodes, limit := 10000, 500, 4*time.Minute
	if r.Quick {
		pods, nodes, limit = 1000, 50, time.Minute
	}
	b, err := bed.New(ctx, r.Config)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close(ctx)) }()
	w := &wave{Bed: b}
	if w.tracker, err = b.Track(ctx); err != nil {
		return nil, err
	}
	kwok, err := startKwok(ctx, b)
	if err != nil {
		return nil, err
	}
	if err := b.Namespace(ctx, bed.Space); err != nil {
		return nil, err
	}
	if err := b.Identities(ctx, bed.Space, 1, 100); err != nil {
		return nil, err
	}
	b.Step("creating %d nodes", nodes)
	var names []string
	for i := range 10 {
		set, err := b.ScaleSet(ctx, fmt.Sprintf("pool%d", i), nodes/10)
		if err != nil {
			return nil, err
		}
		names = append(names, set...)
	}
	if err := kwok.Ready(ctx, time.Minute, func() error { return nodesReady(ctx, b, len(names)) }); err != nil {
		return nil, err
	}
	mic, err := b.StartMIC(ctx)
	if err != nil {
		return nil, err
	}
	running, err := countRunning(ctx, b)
	if err != nil {
		return nil, err
	}
	kwokBefore, _ := meter.CPU(kwok.PID())
	up, err := w.up(ctx, pods, 100, names, limit)
	if err != nil {
		return nil, fmt.Errorf("%w (%d pods run)", err, running.Load())
	}
	started := time.Now()
	err = bed.Until(ctx, limit, func() error {
		if n := running.Load(); n != int64(pods) {
			return fmt.Errorf("%d of %d pods run", n, pods)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	up.took += time.Since(started)
	kwokAfter, _ := meter.CPU(kwok.PID())
	note := fmt.Sprintf("%d pods on %d nodes of 10 scale sets, %s of it to create the pods; %s; processor time of mic %s, of the API server %s, of kwok %s",
		pods, nodes, meter.Brief(up.creating), up.cloud, meter.Brief(up.mic), meter.Brief(up.api), meter.Brief(kwokAfter-kwokBefore))
	if used, err := meter.MemoryOf(mic.PID()); err == nil {
		note += fmt.Sprintf("; mic holds %s, at most %s", meter.Megabytes(used.Resident), meter.Megabytes(used.Peak))
	}
	return []Measurement{{Row: Row{Name: "scale"}, Now: fmt.Sprintf("%d pods in %s", pods, meter.Brief(up.took)), Value: up.took.Seconds(), Unit: "s", OK: true, Note: note}}, nil
}

// stages say what kwok does with nodes and pods.
//
//go:embed kwok.yaml
var stages []byte

// startKwok starts kwok, which plays the kubelet of every node.
func startKwok(ctx context.Context, b *bed.Bed) (*bed.Child, error) {
	kubeconfig, err := b.Kubeconfig(ctx, "kwok")
	if err != nil {
		return nil, err
	}
	config := filepath.Join(b.Dir, "kwok.yaml")
	if err := os.WriteFile(config, stages, 0o600); err != nil {
		return nil, err
	}
	return b.Start("kwok", nil, filepath.Join(b.Bin, "kwok"), "--kubeconfig="+kubeconfig, "--config="+config, "--manage-all-nodes=true", "--node-lease-duration-seconds=200")
}

func nodesReady(ctx context.Context, b *bed.Bed, n int) error {
	list, err := b.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return err
	}
	ready := 0
	for _, node := range list.Items {
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				ready++
			}
		}
	}
	if ready < n {
		return fmt.Errorf("%d of %d nodes are ready", ready, n)
	}
	return nil
}

// countRunning follows how many pods run, until ctx ends.
func countRunning(ctx context.Context, b *bed.Bed) (*atomic.Int64, error) {
	running := &atomic.Int64{}
	lw := toolscache.NewListWatchFromClient(b.Kube.CoreV1().RESTClient(), "pods", metav1.NamespaceAll, fields.OneTermEqualSelector("status.phase", "Running"))
	_, informer := toolscache.NewInformerWithOptions(toolscache.InformerOptions{
		ListerWatcher: lw, ObjectType: &corev1.Pod{},
		Transform: func(o any) (any, error) {
			if p, ok := o.(*corev1.Pod); ok {
				return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, ResourceVersion: p.ResourceVersion}}, nil
			}
			return o, nil
		},
		Handler: toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { running.Add(1) },
			DeleteFunc: func(any) { running.Add(-1) },
		},
	})
	go informer.RunWithContext(ctx)
	if !toolscache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil, ctx.Err()
	}
	return running, nil
}

package processnode

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/lanyard-id/lanyard/internal/lab/netns"
)

// A pod is one pod of the node. Its goroutine is run.
type pod struct {
	node    *Node
	object  *corev1.Pod // as it was first seen: what matters of it never changes
	cancel  context.CancelFunc
	deleted chan time.Duration // how long its containers may take to end
	started time.Time

	net  *netns.NS
	own  bool // net is the pod's own
	addr netip.Addr

	mu         sync.Mutex
	containers map[string]*container
	problem    string // why it does not start
}

func newPod(n *Node, object *corev1.Pod) *pod {
	return &pod{node: n, object: object, deleted: make(chan time.Duration, 1), started: time.Now(), containers: map[string]*container{}}
}

// delete asks the pod to end. Only the first call counts.
func (p *pod) delete(seconds *int64) {
	grace := p.grace()
	if seconds != nil {
		grace = time.Duration(*seconds) * time.Second
	}
	select {
	case p.deleted <- grace:
	default:
	}
}

func (p *pod) dir() string                 { return filepath.Join(p.node.Dir, string(p.object.UID)) }
func (p *pod) volume(name string) string   { return filepath.Join(p.dir(), "volumes", name) }
func (p *pod) log(container string) string { return filepath.Join(p.dir(), container+".log") }

// run runs the pod until it has ended, is deleted or ctx ends.
func (p *pod) run(ctx context.Context) {
	work, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := p.live(work); err != nil && work.Err() == nil {
			p.fail(ctx, err)
		}
	}()
	var object *corev1.Pod
	select {
	case <-ended: // it may be over long before it is deleted
		select {
		case <-p.deleted:
			object = p.object
		case <-ctx.Done():
		}
	case grace := <-p.deleted:
		p.end(ctx, grace)
		object = p.object
	case <-ctx.Done():
		p.end(context.WithoutCancel(ctx), 0)
	}
	stop()
	p.end(context.WithoutCancel(ctx), 0) // what was just about to start
	<-ended
	if p.own {
		if err := p.net.Close(); err != nil {
			p.node.Logger.WarnContext(ctx, "closing a pod's network", "pod", p.object.Name, "err", err)
		}
	}
	if err := os.RemoveAll(p.dir()); err != nil {
		p.node.Logger.WarnContext(ctx, "removing a pod's files", "pod", p.object.Name, "err", err)
	}
	if object != nil {
		p.node.remove(ctx, object)
	}
	if p.own {
		p.node.give(p.addr) // not before the API server knows that it is free
	}
}

// live does what a kubelet does for a pod, in its order.
func (p *pod) live(ctx context.Context) error {
	if err := os.MkdirAll(p.dir(), 0o700); err != nil {
		return err
	}
	if err := p.connect(); err != nil {
		return err
	}
	p.report(ctx)
	renew, err := p.volumes(ctx)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	defer running.Wait()
	if !renew.IsZero() {
		running.Go(func() { p.renew(ctx, renew) })
	}
	var sidecars []*container
	for _, spec := range p.object.Spec.InitContainers {
		c := p.add(spec)
		if spec.RestartPolicy != nil && *spec.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			running.Go(func() { c.keep(ctx, corev1.RestartPolicyAlways) })
			if err := c.begun(ctx); err != nil {
				return err
			}
			sidecars = append(sidecars, c)
			continue
		}
		policy := p.object.Spec.RestartPolicy
		if policy == corev1.RestartPolicyAlways {
			policy = corev1.RestartPolicyOnFailure
		}
		if code := c.keep(ctx, policy); code != 0 {
			return fmt.Errorf("init container %s ended with exit status %d", spec.Name, code)
		}
	}
	var mains sync.WaitGroup
	for _, spec := range p.object.Spec.Containers {
		c := p.add(spec)
		mains.Go(func() { c.keep(ctx, p.object.Spec.RestartPolicy) })
		running.Go(func() { c.probe(ctx) })
	}
	mains.Wait()
	for _, c := range sidecars { // they live as long as what they serve (KEP-753)
		c.end(ctx, p.grace())
	}
	return nil
}

// grace is how long the containers may take to end when nobody says otherwise.
func (p *pod) grace() time.Duration {
	if s := p.object.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return 30 * time.Second
}

func (p *pod) add(spec corev1.Container) *container {
	c := &container{pod: p, spec: spec, running: make(chan struct{}), over: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.containers[spec.Name] = c
	return c
}

func (p *pod) connect() error {
	if p.object.Spec.HostNetwork {
		p.net, p.addr = p.node.Net, p.node.Address
		return nil
	}
	addr, err := p.node.address()
	if err != nil {
		return err
	}
	ns, err := netns.New()
	if err != nil {
		p.node.give(addr)
		return err
	}
	p.net, p.addr, p.own = ns, addr, true
	b := addr.As4()
	port := fmt.Sprintf("pod%d-%d", b[2], b[3])
	return p.node.Net.Connect("cni0", port, ns, netip.PrefixFrom(addr, p.node.Pods.Bits()), p.node.Pods.Addr().Next())
}

// volumes fills the volumes, however long what they need takes to appear.
func (p *pod) volumes(ctx context.Context) (time.Time, error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		renew, err := p.fill(ctx)
		if err == nil {
			p.explain("")
			return renew, nil
		}
		p.explain(err.Error())
		p.report(ctx)
		select {
		case <-ctx.Done():
			return renew, ctx.Err()
		case <-tick.C:
		}
	}
}

func (p *pod) explain(problem string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problem = problem
}

func (p *pod) renew(ctx context.Context, at time.Time) {
	for {
		timer := time.NewTimer(max(time.Until(at), time.Second))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		next, err := p.fill(ctx)
		if err != nil {
			p.node.Logger.WarnContext(ctx, "renewing a pod's tokens", "namespace", p.object.Namespace, "pod", p.object.Name, "err", err)
			next = time.Now().Add(10 * time.Second)
		}
		at = next
	}
}

// end ends the containers, all at once.
func (p *pod) end(ctx context.Context, grace time.Duration) {
	p.mu.Lock()
	all := make([]*container, 0, len(p.containers))
	for _, c := range p.containers {
		all = append(all, c)
	}
	p.mu.Unlock()
	var each sync.WaitGroup
	for _, c := range all {
		each.Go(func() { c.end(ctx, grace) })
	}
	each.Wait()
}

func (p *pod) fail(ctx context.Context, err error) {
	p.explain(err.Error())
	p.node.Logger.WarnContext(ctx, "running a pod", "namespace", p.object.Namespace, "pod", p.object.Name, "err", err)
	p.report(ctx)
}

// field is the downward API. Format: the fieldPath of an ObjectFieldSelector.
func (p *pod) field(path string) (string, error) {
	o := p.object
	if kind, key, ok := strings.Cut(strings.TrimSuffix(path, "']"), "['"); ok {
		switch kind {
		case "metadata.labels":
			return o.Labels[key], nil
		case "metadata.annotations":
			return o.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return o.Name, nil
	case "metadata.namespace":
		return o.Namespace, nil
	case "metadata.uid":
		return string(o.UID), nil
	case "spec.nodeName":
		return o.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return o.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return p.node.Address.String(), nil
	case "status.podIP", "status.podIPs":
		return p.addr.String(), nil
	}
	return "", fmt.Errorf("the simulated node has no field %s", path)
}

// resolv is the pod's resolv.conf.
func (p *pod) resolv() string {
	switch policy := p.object.Spec.DNSPolicy; {
	case policy == corev1.DNSClusterFirstWithHostNet, policy == corev1.DNSClusterFirst && !p.object.Spec.HostNetwork:
		return fmt.Sprintf("search %s.svc.cluster.local svc.cluster.local cluster.local\nnameserver %s\noptions ndots:5\n", p.object.Namespace, p.node.DNS)
	}
	return ""
}

func (p *pod) hostname() string {
	switch {
	case p.object.Spec.HostNetwork:
		return p.node.Name
	case p.object.Spec.Hostname != "":
		return p.object.Spec.Hostname
	}
	return p.object.Name
}

var errMissingImage = errors.New("the image is not on the simulated node; add it with LoadImages")

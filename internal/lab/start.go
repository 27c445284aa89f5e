package lab

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/lab/controlplane"
	"github.com/lanyard-id/lanyard/internal/lab/image"
	"github.com/lanyard-id/lanyard/internal/lab/node"
	"github.com/lanyard-id/lanyard/internal/lab/process"
	"github.com/lanyard-id/lanyard/internal/lab/processnode"
)

// Main is what the command line in Config.Self must call, with the arguments
// that follow it: the first process of a node or of a simulated container.
func Main(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	switch {
	case len(args) == 0:
		return node.Main(ctx, in, out)
	case len(args) == 1 && args[0] == "container":
		return processnode.Main(in)
	}
	return fmt.Errorf("unknown arguments %q: this command is for the lab itself", args)
}

func (l *Lab) startControlPlane(ctx context.Context) (err error) {
	api := l.cfg.APIServer
	l.control, err = controlplane.Start(ctx, l.Netns, controlplane.Config{
		Kube: l.program("kube"), Dir: l.claim.path("cluster"),
		Address: netip.AddrPortFrom(NodeAddress, apiPort), Nodes: map[string]netip.Addr{l.cfg.Node.Name: NodeAddress},
		Issuer: api.Issuer, AuthenticationConfig: api.AuthenticationConfig, AuthorizationConfig: api.AuthorizationConfig,
		AuditPolicy: api.AuditPolicy, APIServerArgs: api.Args,
		Progress: func(step string) { l.tell("control plane: %s", step) },
	})
	if err != nil {
		return err
	}
	return l.claim.record(l.control.PID())
}

// startRuntime starts a real node's containerd.
func (l *Lab) startRuntime(ctx context.Context) error {
	n, err := node.Start(ctx, l.Netns, l.cfg.Self, node.Config{
		Name: l.cfg.Node.Name, Address: NodeAddress, ProviderID: l.cfg.Node.ProviderID, Labels: l.cfg.Node.Labels,
		Pods: PodRange, DNS: DNSAddress,
		Dir: l.claim.path("node"), Cgroup: l.claim.state.Cgroup, Keep: []string{l.cfg.StateDir, l.cfg.BinDir}, Kube: l.program("kube"),
	})
	if err != nil {
		return err
	}
	l.node, l.real = n, n
	l.tell("node: containerd is ready")
	if err := l.claim.record(n.PID()); err != nil {
		return err
	}
	return l.LoadImages(ctx, image.Image{Ref: node.PauseImage, Binary: l.program("pause")})
}

// join makes a real node part of the cluster.
func (l *Lab) join(ctx context.Context) error {
	corefile, err := l.writeCorefile(NodeAddress)
	if err != nil {
		return err
	}
	if err := serveDNS(ctx, l.Client, DNSAddress, NodeAddress); err != nil {
		return err
	}
	cert, key := l.servingFiles()
	return l.real.Join(ctx, node.Join{
		KubeletKubeconfig: l.control.Kubeconfig("kubelet-" + l.cfg.Node.Name),
		ProxyKubeconfig:   l.control.Kubeconfig("kube-proxy"),
		ClientCA:          l.control.File("ca.crt"),
		ServingCert:       cert,
		ServingKey:        key,
		Corefile:          corefile,
	})
}

// simulate starts a node whose pods are local processes.
func (l *Lab) simulate(ctx context.Context) error {
	cert, key := l.servingFiles()
	n, err := processnode.Start(ctx, processnode.Config{
		Name: l.cfg.Node.Name, Address: NodeAddress, ProviderID: l.cfg.Node.ProviderID, Labels: l.cfg.Node.Labels,
		Pods: PodRange, DNS: DNSAddress,
		Dir: l.claim.path("node"), Self: l.cfg.Self, Client: l.Client, Net: l.Netns,
		ServingCert: cert, ServingKey: key, ClientCA: l.control.File("ca.crt"), Logger: l.cfg.Logger,
	})
	if err != nil {
		return err
	}
	l.node, l.process = n, n
	l.tell("node: simulated, pods are local processes")
	corefile, err := l.writeCorefile(NodeAddress, DNSAddress)
	if err != nil {
		return err
	}
	if err := serveDNS(ctx, l.Client, DNSAddress, NodeAddress); err != nil {
		return err
	}
	return l.startDNS(corefile)
}

func (l *Lab) servingFiles() (cert, key string) {
	name := "kubelet-serving-" + l.cfg.Node.Name
	return l.control.File(name + ".crt"), l.control.File(name + ".key")
}

func (l *Lab) writeCorefile(bind ...netip.Addr) (string, error) {
	content, err := formatCorefile(bind, CloudAddress, l.control.Kubeconfig("coredns"), l.cfg.Hosts)
	if err != nil {
		return "", err
	}
	file := l.claim.path("node", "Corefile")
	return file, os.WriteFile(file, content, 0o600)
}

// startDNS runs CoreDNS as a part of the lab, where no node does.
func (l *Lab) startDNS(corefile string) error {
	file := l.claim.path("node", "coredns.log")
	log, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(l.program("kube"), "coredns", "-conf", corefile)
	cmd.Env = []string{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := l.Netns.Start(cmd); err != nil {
		return fmt.Errorf("starting cluster DNS: %w", err)
	}
	l.Serve(func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() {
			_ = cmd.Process.Signal(unix.SIGKILL) // it keeps nothing
		})
		defer stop()
		if err := cmd.Wait(); ctx.Err() == nil {
			return fmt.Errorf("cluster DNS ended: %w; the end of its log:\n%s", err, process.Tail(file, 10))
		}
		return nil
	})
	return l.claim.record(cmd.Process.Pid)
}

// waitReady waits until pods can run and find each other.
func (l *Lab) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with this function
		select {
		case <-l.node.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	g, both := errgroup.WithContext(ctx)
	began := time.Now()
	g.Go(func() error { return l.waitNode(both) })
	g.Go(func() error { return l.waitDNS(both) })
	if err := g.Wait(); err != nil {
		return cmp.Or(l.node.Err(), err) // why nobody answers, if it is known
	}
	l.tell("node: %s and cluster DNS are ready after %.1f s", l.cfg.Node.Name, time.Since(began).Seconds())
	return nil
}

// Package lab starts a whole Kubernetes cluster as one value with Stop, and
// changes nothing else on the machine.
//
//	Start
//	  1 claim         the state directory is ours; what a killed lab left there goes
//	  2 netns         bridge node0 10.250.0.1/24 + the cloud's 10.250.0.10, 169.254.169.254 on lo
//	  3 controlplane  bin/kube server  ┐ at the same time
//	  4 node          containerd       ┘ then kubelet, kube-proxy, CoreDNS
//	  5 forward       127.0.0.1:random of the host -> API server; kubeconfig for people
//	Stop              the same backwards; no process, mount, cgroup, namespace or file is left
//
// Without root or containerd, Config.ProcessNode simulates the node of step 4
// with local processes; Missing says when that is needed, RunInUserNamespace
// makes up for root.
//
// It knows nothing of a cloud: whoever starts one listens on CloudAddress and
// MetadataAddress through Lab.Netns, and says in Config.Hosts which names
// cluster DNS answers with CloudAddress.
package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/lanyard-id/lanyard/internal/lab/controlplane"
	"github.com/lanyard-id/lanyard/internal/lab/netns"
	"github.com/lanyard-id/lanyard/internal/lab/node"
	"github.com/lanyard-id/lanyard/internal/lab/processnode"
)

// The lab's addresses, all inside its own network namespace. bin/kube has the
// ranges of pods and services built in.
var (
	NodeAddress     = netip.AddrFrom4([4]byte{10, 250, 0, 1})      // node and API server
	CloudAddress    = netip.AddrFrom4([4]byte{10, 250, 0, 10})     // for the local cloud
	MetadataAddress = netip.AddrFrom4([4]byte{169, 254, 169, 254}) // for the node's IMDS
	DNSAddress      = netip.AddrFrom4([4]byte{10, 96, 0, 10})      // cluster DNS
	PodRange        = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, 0, 0}), 24)

	gateway = netip.AddrFrom4([4]byte{10, 250, 0, 254}) // nobody: there is no way out
)

const apiPort = 6443

// Config describes a lab. StateDir, BinDir, Self and Node must be set.
type Config struct {
	StateDir string   // made if missing; one lab at a time
	BinDir   string   // holds kube and pause
	Self     []string // command line of this program that calls Main, for example {"/proc/self/exe", "lab", "internal"}
	Node     NodeSpec

	ProcessNode bool // simulate the node: pods are local processes

	Hosts     []string // names that cluster DNS answers with CloudAddress: "login.microsoftonline.com", "*.vault.azure.net"
	APIServer APIServer

	Step   func(format string, args ...any) // tells what is being done; one call at a time; nil means silence
	Logger *slog.Logger                     // nil means slog.Default
}

// APIServer are the settings of kube-apiserver. The zero value is fine.
type APIServer struct {
	Issuer               string   // of ServiceAccount tokens; empty means the cluster's own name
	AuthenticationConfig string   // file with an AuthenticationConfiguration; empty means none
	AuthorizationConfig  string   // file with an AuthorizationConfiguration; empty means none
	AuditPolicy          string   // file with an audit Policy; empty means no audit log
	Args                 []string // more flags, "name=value"
}

// A NodeSpec is what a cloud says about its machine.
type NodeSpec struct {
	Name       string // "aks-nodepool1-0"
	ProviderID string // "azure:///subscriptions/..."
	Labels     map[string]string
}

// A machine runs pods.
type machine interface {
	Stop(ctx context.Context) error
	Done() <-chan struct{}
	Err() error
}

// A Lab is a running cluster.
type Lab struct {
	Netns      *netns.NS // the machine's network: listen and dial here
	Kubeconfig string    // path; the cluster's administrator, reachable from the host
	Client     kubernetes.Interface

	cfg     Config
	claim   *claim
	control *controlplane.ControlPlane
	node    machine           // real or simulated
	real    *node.Node        // nil if simulated
	process *processnode.Node // nil if real
	rest    *rest.Config
	failed  chan error

	mu       sync.Mutex // guards parts, and Step
	parts    []func() error
	stopping sync.Once
	stopErr  error
}

// Start starts a lab and returns when a pod can run. After an error nothing
// is left.
func Start(ctx context.Context, cfg Config) (*Lab, error) {
	var err error
	if cfg, err = cfg.complete(); err != nil {
		return nil, err
	}
	l := &Lab{cfg: cfg, failed: make(chan error, 1)}
	if l.claim, err = claimDir(ctx, cfg.StateDir); err != nil {
		return nil, err
	}
	if err := l.start(ctx); err != nil {
		return nil, errors.Join(err, l.Stop(context.WithoutCancel(ctx)))
	}
	return l, nil
}

func (c Config) complete() (Config, error) {
	for name, value := range map[string]string{"StateDir": c.StateDir, "BinDir": c.BinDir, "Node.Name": c.Node.Name, "Node.ProviderID": c.Node.ProviderID} {
		if value == "" {
			return c, fmt.Errorf("lab config: %s is not set", name)
		}
	}
	if len(c.Self) == 0 {
		return c, errors.New("lab config: Self is not set")
	}
	if _, err := hostPattern(c.Hosts); err != nil {
		return c, fmt.Errorf("lab config: %w", err)
	}
	var err error
	if c.StateDir, err = filepath.Abs(c.StateDir); err != nil {
		return c, err
	}
	if c.BinDir, err = filepath.Abs(c.BinDir); err != nil {
		return c, err
	}
	for _, program := range []string{"kube", "pause"} {
		if _, err := os.Stat(filepath.Join(c.BinDir, program)); err != nil {
			return c, fmt.Errorf("a program of the lab is missing: %w (run make build)", err)
		}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, nil
}

// start does everything that stop undoes.
func (l *Lab) start(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("it takes too long"))
	defer cancel()
	ns, err := netns.New()
	if err != nil {
		return err
	}
	l.Netns = ns
	if err := ns.Setup(network()); err != nil {
		return fmt.Errorf("making the machine's network: %w", err)
	}
	startNode, join := l.startRuntime, l.join
	if l.cfg.ProcessNode {
		startNode, join = func(context.Context) error { return nil }, l.simulate
	}
	g, both := errgroup.WithContext(ctx) // they do not need each other yet
	g.Go(func() error { return l.startControlPlane(both) })
	g.Go(func() error { return startNode(both) })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := l.connect(ctx); err != nil {
		return err
	}
	if err := join(ctx); err != nil {
		return err
	}
	if err := l.waitReady(ctx); err != nil {
		return err
	}
	if err := l.claim.save(func(s *State) { s.Kubeconfig, s.Ready = l.Kubeconfig, true }); err != nil {
		return err
	}
	l.tell("the cluster is ready after %.1f s", time.Since(began).Seconds())
	return nil
}

func network() netns.Setup {
	return netns.Setup{
		Bridge:          "node0",
		BridgeAddresses: []netip.Prefix{netip.PrefixFrom(NodeAddress, 24), netip.PrefixFrom(CloudAddress, 32)},
		Loopback:        []netip.Prefix{netip.PrefixFrom(MetadataAddress, 32)},
		Gateway:         gateway,
		Sysctls:         map[string]string{"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/route_localnet": "1"},
	}
}

// connect makes the API server reachable from the host.
func (l *Lab) connect(ctx context.Context) error {
	address, err := l.Forward(ctx, l.control.Address())
	if err != nil {
		return err
	}
	if l.rest, err = l.writeKubeconfig(address); err != nil {
		return err
	}
	l.Client, err = kubernetes.NewForConfig(l.rest)
	return err
}

// Forward opens a port on the host's 127.0.0.1 that leads to an address
// inside, until the lab is stopped. It returns the port's address.
func (l *Lab) Forward(ctx context.Context, inside string) (net.Addr, error) {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("opening a port for %s: %w", inside, err)
	}
	l.Serve(func(ctx context.Context) error {
		return netns.Forward(ctx, listener, l.Netns.DialContext, inside, l.cfg.Logger)
	})
	return listener.Addr(), nil
}

// Serve runs a server on listeners of Netns as a part of the lab: Stop ends
// its context and waits for it, and Wait returns when it fails. It must not be
// called after Stop.
func (l *Lab) Serve(run func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background()) // Stop ends it, whoever called us may be gone by then
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		if err = run(ctx); err != nil && ctx.Err() == nil {
			select {
			case l.failed <- err:
			default: // the first one is enough to end the lab
			}
		}
	}()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parts = append(l.parts, func() error {
		cancel()
		<-done
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	})
}

// Wait returns nil when ctx ends, and an error when a part of the lab ends by
// itself. The lab has to be stopped in both cases.
func (l *Lab) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-l.control.Done():
		return l.control.Err()
	case <-l.node.Done():
		return l.node.Err()
	case err := <-l.failed:
		return err
	}
}

// RestartAPIServer ends the control plane and starts it again with the key
// files that are in KeyDir now. Objects stay; the node and what runs on it go on
// meanwhile, as in any cluster whose API server is away for some seconds. It
// returns when the API server answers.
func (l *Lab) RestartAPIServer(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("it takes too long"))
	defer cancel()
	if err := l.control.Restart(ctx); err != nil {
		return fmt.Errorf("restarting the API server: %w", err)
	}
	return l.claim.record(l.control.PID())
}

// KeyDir holds the key files of service-account tokens: sa.key, with which the
// API server signs, and sa.pub, the bundle of those with which it verifies. They
// count from the next RestartAPIServer on.
func (l *Lab) KeyDir() string { return filepath.Dir(l.control.File("sa.key")) }

// Stop ends everything and removes what Start made. It may be called again
// and by several callers.
func (l *Lab) Stop(ctx context.Context) error {
	l.stopping.Do(func() { l.stopErr = l.stop(ctx) })
	return l.stopErr
}

func (l *Lab) stop(ctx context.Context) error {
	var errs []error
	l.mu.Lock()
	parts := l.parts
	l.mu.Unlock()
	for _, end := range slices.Backward(parts) {
		errs = append(errs, end())
	}
	// The node needs no API server to end, nor the other way round.
	var both sync.WaitGroup
	var nodeErr, controlErr error
	if l.node != nil {
		both.Go(func() { nodeErr = l.node.Stop(ctx) })
	}
	if l.control != nil {
		both.Go(func() { controlErr = l.control.Stop(ctx) })
	}
	both.Wait()
	errs = append(errs, nodeErr, controlErr)
	if l.Netns != nil {
		errs = append(errs, l.Netns.Close())
	}
	return errors.Join(append(errs, l.claim.release())...)
}

// RESTConfig is the administrator's, for clients in this process.
func (l *Lab) RESTConfig() *rest.Config { return rest.CopyConfig(l.rest) }

func (l *Lab) program(name string) string { return filepath.Join(l.cfg.BinDir, name) }

func (l *Lab) tell(format string, args ...any) {
	if l.cfg.Step == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cfg.Step(format, args...)
}

// Command nmi is the node agent of Pod Identity: see package nmi. It takes the
// flags of Pod Identity v1, so that a DaemonSet that runs v1 today changes
// only its image.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/nmi"
	"github.com/lanyard-id/lanyard/internal/redirect"
)

// rulesInterval is how often the netfilter rules are looked at.
const rulesInterval = 5 * time.Second

// version is set at link time.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

const usage = `nmi answers, for the pods of one node, the metadata service's token endpoint.

  nmi --node=$(NODENAME)     as a DaemonSet in the host's network, with CAP_NET_ADMIN
  nmi --remove               take the redirection away and end: pods then reach
                             the node's own metadata service

Flags:
`

// config is what the flags and the environment say.
type config struct {
	node            string
	kubeconfig      string
	listen          string
	port            uint
	metadataIP      string
	metadataPort    uint
	probePort       uint
	metricsPort     uint
	forceNamespaced bool
	headerRequired  bool
	blockInstance   bool
	setRetryAfter   bool
	wait            time.Duration
	remove          bool
	logFormat       string
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	c, done, code := parse(args, getenv, stdout, stderr)
	if done {
		return code
	}
	if err := c.run(ctx, getenv, stdout); err != nil && ctx.Err() == nil {
		fmt.Fprintln(stderr, "nmi:", err)
		return 1
	}
	return 0
}

// parse reads the command line. done means that there is nothing left to do.
func parse(args []string, getenv func(string) string, stdout, stderr io.Writer) (c config, done bool, code int) {
	f := flag.NewFlagSet("nmi", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
	}
	f.StringVar(&c.node, "node", getenv("NODENAME"), "name of this node")
	f.StringVar(&c.kubeconfig, "kubeconfig", getenv("KUBECONFIG"), "kubeconfig `file`; empty means the pod's service account")
	f.StringVar(&c.listen, "nmi-listen-address", "", "`address` of this node to listen on; empty or v1's 127.0.0.1 means the one that pods reach it by ($HOST_IP if set)")
	f.UintVar(&c.port, "nmi-port", 2579, "port to listen on")
	f.StringVar(&c.metadataIP, "metadata-ip", "169.254.169.254", "address of the metadata service")
	f.UintVar(&c.metadataPort, "metadata-port", 80, "port of the metadata service")
	f.UintVar(&c.probePort, "http-probe-port", 8085, "port of /healthz")
	f.UintVar(&c.metricsPort, "prometheus-port", 9090, "port of /metrics; 0 means none")
	force, err := strconv.ParseBool(getenv("FORCENAMESPACED"))
	f.BoolVar(&c.forceNamespaced, "forceNamespaced", err == nil && force, "limit every binding to pods of its own namespace")
	f.BoolVar(&c.headerRequired, "metadata-header-required", true, `refuse requests without the header "Metadata: true"`)
	f.BoolVar(&c.blockInstance, "block-instance-metadata", false, "refuse /metadata/instance")
	f.BoolVar(&c.setRetryAfter, "set-retry-after-header", false, "answer 503 with Retry-After instead of 404 when an identity is not assigned yet")
	f.DurationVar(&c.wait, "assignment-wait", 20*time.Second, "how long a request waits for an assignment that is under way")
	f.BoolVar(&c.remove, "remove", false, "take the redirection away and end")
	f.StringVar(&c.logFormat, "log-format", "json", "text or json")
	showVersion := f.Bool("version", false, "print the version and end")
	acceptV1(f)
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return c, true, 0
	case err != nil:
		return c, true, 2
	}
	if *showVersion {
		fmt.Fprintln(stdout, "nmi", version)
		return c, true, 0
	}
	if err := c.check(f.Args()); err != nil {
		fmt.Fprintln(stderr, "nmi:", err)
		return c, true, 2
	}
	return c, false, 0
}

// acceptV1 takes flags of v1 that have nothing to set here: what they tuned
// is gone, or always on.
func acceptV1(f *flag.FlagSet) {
	for name, why := range map[string]string{
		"ipt-update-interval-sec":      "netfilter rules outlive the agent, and are looked at every 5 s",
		"retry-attempts-for-created":   "a request waits by watching; see --assignment-wait",
		"retry-attempts-for-assigned":  "a request waits by watching; see --assignment-wait",
		"find-identity-retry-interval": "a request waits by watching; see --assignment-wait",
		"MICNamespace":                 "no pod is trusted for its name",
		"kubelet-config":               "no network plugin is refused",
		"custom-user-agent":            "",
		"v":                            "verbosity of v1's log",
	} {
		f.String(name, "", "accepted for v1's manifests, without effect: "+why)
	}
	for name, why := range map[string]string{
		"enableScaleFeatures":          "always on",
		"enableProfile":                "never on",
		"enable-conntrack-deletion":    "always on",
		"allow-network-plugin-kubenet": "no network plugin is refused",
		"logtostderr":                  "the log goes to standard output",
	} {
		f.Bool(name, false, "accepted for v1's manifests, without effect: "+why)
	}
	f.Func("operation-mode", `only "standard" is served`, func(mode string) error {
		if mode != "standard" {
			return fmt.Errorf("mode %q is not served by this version", mode)
		}
		return nil
	})
}

func (c config) check(rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("unexpected argument %q: every setting is a flag (see nmi --help)", rest[0])
	}
	if c.node == "" && !c.remove {
		return errors.New("the node's name is missing: set --node, or NODENAME from spec.nodeName")
	}
	for name, port := range map[string]uint{"nmi-port": c.port, "metadata-port": c.metadataPort, "http-probe-port": c.probePort} {
		if port == 0 || port > 65535 {
			return fmt.Errorf("--%s=%d is not a port", name, port)
		}
	}
	if c.metricsPort > 65535 {
		return fmt.Errorf("--prometheus-port=%d is not a port", c.metricsPort)
	}
	if ip, err := netip.ParseAddr(c.metadataIP); err != nil || !ip.Is4() {
		return fmt.Errorf("--metadata-ip=%s is not an IPv4 address", c.metadataIP)
	}
	if c.logFormat != "text" && c.logFormat != "json" {
		return fmt.Errorf("--log-format=%s: only text and json exist", c.logFormat)
	}
	return nil
}

func (c config) metadata() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(c.metadataIP), uint16(c.metadataPort))
}

func (c config) run(ctx context.Context, getenv func(string) string, stdout io.Writer) error {
	logger := slog.New(slog.NewJSONHandler(stdout, nil))
	if c.logFormat == "text" {
		logger = slog.New(slog.NewTextHandler(stdout, nil))
	}
	log.SetLogger(logr.FromSlogHandler(logger.Handler()))
	if c.remove {
		return redirect.Remove(c.metadata())
	}
	kube, err := kubeConfig(c.kubeconfig)
	if err != nil {
		return err
	}
	kube.UserAgent = "lanyard/nmi/" + version
	agent, err := c.agent(ctx, getenv, kube)
	if err != nil {
		return err
	}
	watcher, err := nmi.NewWatcher(ctx, nmi.WatcherConfig{Kubernetes: kube, Node: c.node, ForceNamespaced: c.forceNamespaced})
	if err != nil {
		return err
	}
	events, stopEvents, err := recorder(kube, c.node)
	if err != nil {
		return err
	}
	defer stopEvents()
	metrics := nmi.NewMetrics()
	upstream := &url.URL{Scheme: "http", Host: c.metadata().String()}
	server := &nmi.Server{
		Node:          watcher,
		Tokens:        &imds.Client{BaseURL: upstream.String()},
		Recorder:      &nmi.Events{Events: events, Audit: logger},
		Upstream:      upstream,
		Wait:          c.wait,
		BlockInstance: c.blockInstance,
		Rules:         imds.Rules{HeaderOptional: !c.headerRequired},
		Logger:        logger,
	}
	if c.setRetryAfter {
		server.RetryAfter = 20 * time.Second // v1's value
	}
	// The rules come first: from here on no pod of this node reaches the
	// node's own metadata service.
	rules := redirect.Rules{Metadata: c.metadata(), Agent: agent}
	if err := redirect.Install(rules); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", agent.String())
	if err != nil {
		return fmt.Errorf("listening for pods: %w", err)
	}
	var active atomic.Bool
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return watcher.Run(ctx) })
	g.Go(func() error {
		return redirect.Keep(ctx, rules, rulesInterval, func() {
			logger.WarnContext(ctx, "somebody else removed the redirection; installing it again")
		})
	})
	g.Go(func() error { return c.serveProbes(ctx, &active, metrics, agent.Addr()) })
	g.Go(func() error {
		if !watcher.Synced(ctx) {
			return ctx.Err()
		}
		active.Store(true)
		logger.Info("answering pods", "address", agent.String(), "node", c.node, "version", version)
		return serve(ctx, listener, metrics.Measure(server))
	})
	return g.Wait()
}

func kubeConfig(file string) (*rest.Config, error) {
	if file == "" {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("no --kubeconfig, and not in a cluster: %w", err)
		}
		return c, nil
	}
	return clientcmd.BuildConfigFromFlags("", file)
}

// agent is the address to listen on: the one that the node itself uses to
// talk to the API server, unless flag or environment name another.
func (c config) agent(ctx context.Context, getenv func(string) string, kube *rest.Config) (netip.AddrPort, error) {
	for _, s := range []string{c.listen, getenv("HOST_IP")} {
		if s == "" || s == "127.0.0.1" {
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("the address to listen on: %w", err)
		}
		return netip.AddrPortFrom(a, uint16(c.port)), nil
	}
	api, err := url.Parse(kube.Host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("the API server's address: %w", err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp4", net.JoinHostPort(api.Hostname(), "9")) // sends nothing: it only chooses a route
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("finding this node's address (set HOST_IP from status.hostIP): %w", err)
	}
	defer conn.Close()
	own, err := netip.ParseAddrPort(conn.LocalAddr().String())
	return netip.AddrPortFrom(own.Addr(), uint16(c.port)), err
}

func recorder(kube *rest.Config, node string) (record.EventRecorder, func(), error) {
	client, err := kubernetes.NewForConfig(kube)
	if err != nil {
		return nil, nil, err
	}
	scheme, err := nmi.Scheme()
	if err != nil {
		return nil, nil, err
	}
	// The default drops events of an object after 25: a binding is what many
	// pods share, and its record must not have holes that early.
	broadcaster := record.NewBroadcaster(record.WithCorrelatorOptions(record.CorrelatorOptions{BurstSize: 500, QPS: 1}))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return broadcaster.NewRecorder(scheme, corev1.EventSource{Component: "nmi", Host: node}), broadcaster.Shutdown, nil
}

// serveProbes answers /healthz with v1's texts and /metrics.
func (c config) serveProbes(ctx context.Context, active *atomic.Bool, metrics *nmi.Metrics, ip netip.Addr) error {
	probes := http.NewServeMux()
	probes.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if active.Load() {
			fmt.Fprint(w, "Active")
		} else {
			fmt.Fprint(w, "Not Active")
		}
	})
	probes.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !active.Load() {
			http.Error(w, "the caches are not filled yet", http.StatusServiceUnavailable)
		}
	})
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	scrape := http.NewServeMux()
	scrape.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	g, ctx := errgroup.WithContext(ctx)
	for port, handler := range map[uint]http.Handler{c.probePort: probes, c.metricsPort: scrape} {
		if port == 0 {
			continue
		}
		g.Go(func() error {
			l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(ip, uint16(port)).String())
			if err != nil {
				return fmt.Errorf("listening for probes and metrics: %w", err)
			}
			return serve(ctx, l, handler)
		})
	}
	return g.Wait()
}

// serve answers until the context ends and lets running requests finish.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	done := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		done <- s.Shutdown(ctx)
	})
	err := s.Serve(l)
	if stop() {
		return err
	}
	return <-done
}

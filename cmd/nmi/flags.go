package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/nmi"
)

const usage = `nmi answers, for the pods of one node, the metadata service's token endpoint.

It runs as a DaemonSet in the host's network, with CAP_NET_ADMIN:

  nmi --node=$(NODENAME)                     identities are assigned by mic
  nmi --node=$(NODENAME) --operation-mode=managed --forceNamespaced
                                             identities are on the machines already
  nmi --node=$(NODENAME) --block-host-network
                                             and keep processes of the host's network from the
                                             node's own metadata service
  nmi --node=$(NODENAME) --host-token-callers=kube-system/csi-secrets-store-provider-azure
                                             and let this driver alone ask for pods' tokens (/host/token)
  nmi --remove                               take the redirection away and end: pods then reach
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
	listen6         string
	metadataIP6     string
	probePort       uint
	metricsPort     uint
	managed         bool
	forceNamespaced bool
	headerRequired  bool
	blockInstance   bool
	blockHost       bool
	collect         bool // when to collect garbage is ours to say: there is no GOGC
	guard           bool
	setRetryAfter   bool
	wait            time.Duration
	podInflight     uint
	podRate         float64
	hostCallers     string
	crossSecrets    bool
	authorities     string
	prefetch        string
	remove          bool
	logFormat       string
	userAgent       string
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
	f.UintVar(&c.port, "nmi-port", 2579, "port to listen on, for pods and, at 127.0.0.1, for drivers")
	f.StringVar(&c.metadataIP, "metadata-ip", "169.254.169.254", "address of the metadata service")
	f.UintVar(&c.metadataPort, "metadata-port", 80, "port of the metadata service")
	f.StringVar(&c.metadataIP6, "metadata-ipv6", "", "IPv6 `address` that pods of an IPv6 cluster ask instead, such as fd00:ec2::254; it needs --nmi-listen-address-ipv6; empty means that IPv6 is not led")
	f.StringVar(&c.listen6, "nmi-listen-address-ipv6", "", "IPv6 `address` of this node that --metadata-ipv6 is led to")
	f.UintVar(&c.probePort, "http-probe-port", 8085, "port of /healthz and /readyz")
	f.UintVar(&c.metricsPort, "prometheus-port", 9090, "port of /metrics; 0 means none")
	force, err := strconv.ParseBool(getenv("FORCENAMESPACED"))
	f.BoolVar(&c.forceNamespaced, "forceNamespaced", err == nil && force, "limit every binding to pods of its own namespace")
	f.BoolVar(&c.headerRequired, "metadata-header-required", true, `refuse requests without the header "Metadata: true"`)
	f.BoolVar(&c.blockInstance, "block-instance-metadata", false, "refuse /metadata/instance")
	f.BoolVar(&c.blockHost, "block-host-network", false, "keep processes in the host's network, other pods' and the machine's own, from the metadata service; the agent itself still reaches it")
	f.BoolVar(&c.guard, "guard-sources", true, "take an address for a pod's only by the network port that the pod is behind; false trusts the network plugin to keep pods from using others' addresses")
	f.BoolVar(&c.setRetryAfter, "set-retry-after-header", false, "answer 503 with Retry-After instead of 404 when an identity is not assigned yet")
	f.DurationVar(&c.wait, "assignment-wait", 20*time.Second, "how long a request waits for an assignment that is under way")
	f.UintVar(&c.podInflight, "pod-max-inflight", 100, "requests of one pod at a time; more are answered 429; 0 means without limit")
	f.Float64Var(&c.podRate, "pod-qps", 1000, "requests of one pod a second, twice as many at once; more are answered 429; 0 means without limit")
	f.StringVar(&c.hostCallers, "host-token-callers", nmi.DefaultHostCallers, "comma-separated `namespace/name` of the service accounts that may ask for other pods' tokens at 127.0.0.1/host/token; empty means nobody, and that nothing listens there")
	f.BoolVar(&c.crossSecrets, "allow-cross-namespace-secrets", false, "let an AzureIdentity name a Secret of a namespace that is not its own, as Pod Identity v1 did")
	f.StringVar(&c.authorities, "allowed-authority-hosts", "", "comma-separated `hosts` besides those of the Azure clouds that an AzureIdentity may name as its adEndpoint; * allows every one")
	f.StringVar(&c.prefetch, "prefetch-resources", "", "comma-separated `resources` whose tokens are fetched as soon as a pod is bound, besides those that were asked for before")
	f.BoolVar(&c.remove, "remove", false, "take the redirection away and end")
	f.StringVar(&c.logFormat, "log-format", "json", "text or json")
	f.StringVar(&c.userAgent, "custom-user-agent", "", "is added to the user agent of requests to the API server")
	f.Func("operation-mode", "`mode`: standard, or managed, which needs --forceNamespaced: identities are on the machines already, and no assignment is waited for (default standard)", func(mode string) error {
		switch mode {
		case "standard", "managed":
			c.managed = mode == "managed"
			return nil
		}
		return fmt.Errorf("there is no mode %q: use standard or managed", mode)
	})
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
		"MICNamespace":                 "no pod is trusted for its name; an AzurePodIdentityException lets mic through",
		"kubelet-config":               "no network plugin is refused",
		"v":                            "verbosity of v1's log",
		"vmodule":                      "verbosity of v1's log",
		"stderrthreshold":              "the log goes to standard output",
		"log_dir":                      "the log goes to standard output",
		"log_file":                     "the log goes to standard output",
		"log_file_max_size":            "the log goes to standard output",
		"log_backtrace_at":             "the log goes to standard output",
	} {
		f.String(name, "", "accepted for v1's manifests, without effect: "+why)
	}
	for name, why := range map[string]string{
		"enableScaleFeatures":          "always on",
		"enableProfile":                "never on",
		"enable-conntrack-deletion":    "always on",
		"allow-network-plugin-kubenet": "no network plugin is refused: --guard-sources holds pods to their addresses",
		"logtostderr":                  "the log goes to standard output",
		"alsologtostderr":              "the log goes to standard output",
		"skip_headers":                 "the log goes to standard output",
		"skip_log_headers":             "the log goes to standard output",
		"add_dir_header":               "the log goes to standard output",
		"one_output":                   "the log goes to standard output",
	} {
		f.Bool(name, false, "accepted for v1's manifests, without effect: "+why)
	}
}

func (c config) check(rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("unexpected argument %q: every setting is a flag (see nmi --help)", rest[0])
	}
	if c.node == "" && !c.remove {
		return errors.New("the node's name is missing: set --node, or NODENAME from spec.nodeName")
	}
	if c.managed && !c.forceNamespaced {
		return errors.New("--operation-mode=managed needs --forceNamespaced (or FORCENAMESPACED=true), as in Pod Identity v1: without mic nothing else keeps a namespace's identities to itself")
	}
	for name, port := range map[string]uint{"nmi-port": c.port, "metadata-port": c.metadataPort, "http-probe-port": c.probePort} {
		if port == 0 || port > 65535 {
			return fmt.Errorf("--%s=%d is not a port", name, port)
		}
	}
	if c.metricsPort > 65535 {
		return fmt.Errorf("--prometheus-port=%d is not a port", c.metricsPort)
	}
	if c.podRate < 0 || c.podInflight > 1<<20 {
		return errors.New("--pod-qps and --pod-max-inflight must be limits, or 0 for none")
	}
	if ip, err := netip.ParseAddr(c.metadataIP); err != nil || !ip.Is4() {
		return fmt.Errorf("--metadata-ip=%s is not an IPv4 address", c.metadataIP)
	}
	if (c.metadataIP6 == "") != (c.listen6 == "") && !c.remove {
		return errors.New("--metadata-ipv6 and --nmi-listen-address-ipv6 belong together: set both, or none")
	}
	for name, s := range map[string]string{"metadata-ipv6": c.metadataIP6, "nmi-listen-address-ipv6": c.listen6} {
		if ip, err := netip.ParseAddr(s); s != "" && (err != nil || !ip.Is6() || ip.Is4In6()) {
			return fmt.Errorf("--%s=%s is not an IPv6 address", name, s)
		}
	}
	for _, account := range list(c.hostCallers) {
		if namespace, name, ok := strings.Cut(account, "/"); !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
			return fmt.Errorf("--host-token-callers: %q is not namespace/name of a service account", account)
		}
	}
	if c.logFormat != "text" && c.logFormat != "json" {
		return fmt.Errorf("--log-format=%s: only text and json exist", c.logFormat)
	}
	return nil
}

// list reads a comma-separated list.
func list(s string) []string {
	var all []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" && !slices.Contains(all, part) {
			all = append(all, part)
		}
	}
	return all
}

// six returns the metadata service's and the agent's IPv6 addresses; zero if
// IPv6 is not led.
func (c config) six() (metadata, agent netip.AddrPort) {
	if c.metadataIP6 != "" {
		metadata = netip.AddrPortFrom(netip.MustParseAddr(c.metadataIP6), uint16(c.metadataPort))
	}
	if c.listen6 != "" {
		agent = netip.AddrPortFrom(netip.MustParseAddr(c.listen6), uint16(c.port))
	}
	return metadata, agent
}

func (c config) metadata() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(c.metadataIP), uint16(c.metadataPort))
}

// Package controlplane runs a real Kubernetes control plane as one process.
//
//	ParseFlags ──> Config ──> Run
//	                 1 pki        certificates and kubeconfig files in DIR
//	                 2 etcd       on a unix socket: no port, no certificates
//	                 3 apiserver  until /readyz answers 200
//	                 4 rbac       what the lab's own components may do
//	                 5 kube-controller-manager, kube-scheduler
//	                 6 DIR/ready.json and one line on stdout
//	                 7 SIGTERM, or the parent's end: components, then etcd
//
// The components are those of k8s.io/kubernetes, unchanged. Feature gates, klog
// and metrics are global in them, so a process runs one control plane at most.
package controlplane

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/lab/kubernetes/internal/pki"
)

// Addresses inside the cluster. The node must use the same.
const (
	ServiceCIDR       = "10.96.0.0/16"
	PodCIDR           = "10.244.0.0/16"
	kubernetesService = "10.96.0.1" // the first address of ServiceCIDR
)

const defaultIssuer = "https://kubernetes.default.svc.cluster.local"

// A Config describes one control plane.
type Config struct {
	Dir       string // all state; made if missing, reused if not
	Bind      net.IP
	Port      int    // 0 means the port of the last start in Dir, else a free one
	Advertise net.IP // what nodes and pods connect to; nil means Bind

	Issuers              []string // the first signs; all are accepted
	JWKSURI              string   // empty means the first issuer's /openid/v1/jwks
	Audiences            []string // nil means Issuers
	AuthenticationConfig string   // file; empty means client certificates and ServiceAccounts
	AuthorizationConfig  string   // file; empty means Node and RBAC
	AuditPolicyFile      string   // empty means no audit log
	AuditLogPath         string   // empty means Dir/audit.log
	APIServerArgs        []string // "flag=value", after all others

	Nodes               []pki.Node
	Controllers         []string // nil means the defaults of kube-controller-manager
	NoControllerManager bool
	NoScheduler         bool

	Ephemeral     bool // remove Dir at the end
	DieWithParent bool
	Verbosity     int
	LogToStderr   bool // instead of Dir/server.log
}

const usage = `Run etcd, kube-apiserver, kube-controller-manager and kube-scheduler in one process.

usage: kube server --dir DIR [flags]

All state is below DIR: certificates, etcd's data, the log. A DIR that was used
before is used again, with its objects, authorities and port. When everything
answers, DIR/ready.json is written and one line is printed; progress and errors
go to stderr. SIGTERM and SIGINT stop cleanly.

  DIR/ready.json                {"server","kubeconfig","pid","startedAt","readySeconds"}; exists only while ready
  DIR/admin.kubeconfig          cluster administrator (its authority is pki/local-accounts-ca.crt)
  DIR/kubelet-NODE.kubeconfig   for each --node; serving certificate in pki/kubelet-serving-NODE.{crt,key}
  DIR/kube-proxy.kubeconfig     DIR/coredns.kubeconfig
  DIR/pki/ca.crt                the cluster's authority; pki/client-ca.crt is what the API server accepts from clients
  DIR/server.log                what the components log

Examples:

  A control plane for tests, gone without a trace when the test process ends:
    kube server --dir "$(mktemp -d)" --ephemeral --die-with-parent --no-scheduler

  One node, an issuer that the outside world can reach:
    kube server --dir /var/lib/lab --bind 10.250.0.1 --port 6443 --node node1=10.250.0.1 \
      --service-account-issuer https://oidc.example/cluster-0/

  Users from an OIDC issuer, decisions from a webhook, an audit log:
    kube server --dir lab --authentication-config authn.yaml --authorization-config authz.yaml \
      --audit-policy-file policy.yaml --audit-log-path audit.log

Flags:
`

// A list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

// ParseFlags reads the arguments of "kube server". For --help it prints the
// usage to stdout and returns flag.ErrHelp.
func ParseFlags(args []string, stdout io.Writer) (Config, error) {
	var c Config
	var bind, advertise, controllers string
	var issuers, audiences, apiserverArgs, nodes list
	fs := flag.NewFlagSet("server", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&c.Dir, "dir", "", "`DIR`ectory of all state (required)")
	fs.StringVar(&bind, "bind", "127.0.0.1", "`ADDRESS` to listen on")
	fs.IntVar(&c.Port, "port", 0, "`PORT` to listen on; 0 means the port of the last start in DIR, or else a free one")
	fs.StringVar(&advertise, "advertise", "", "`ADDRESS` that nodes and pods connect to (default the --bind address; none if that is loopback)")
	fs.Var(&issuers, "service-account-issuer", "`URL` in the iss claim of ServiceAccount tokens, kept to the letter (default "+defaultIssuer+"); repeat to accept tokens of former issuers")
	fs.StringVar(&c.JWKSURI, "service-account-jwks-uri", "", "`URL` of the keys in the discovery document (default: the issuer's openid/v1/jwks)")
	fs.Var(&audiences, "api-audiences", "`AUDIENCE`S of tokens for the API server, separated by commas; may be repeated (default the issuers)")
	fs.StringVar(&c.AuthenticationConfig, "authentication-config", "", "`FILE` with an AuthenticationConfiguration; read again when it changes")
	fs.StringVar(&c.AuthorizationConfig, "authorization-config", "", "`FILE` with an AuthorizationConfiguration; read again when it changes")
	fs.StringVar(&c.AuditPolicyFile, "audit-policy-file", "", "`FILE` with an audit Policy; switches the audit log on")
	fs.StringVar(&c.AuditLogPath, "audit-log-path", "", "`FILE` of the audit log (default DIR/audit.log); - means stdout")
	fs.Var(&apiserverArgs, "apiserver-arg", "`FLAG=VALUE` for kube-apiserver, for example feature-gates=X=true; may be repeated")
	fs.Var(&nodes, "node", "`NAME=IP` of a node that gets certificates and a kubeconfig; may be repeated")
	fs.StringVar(&controllers, "controllers", "", "`NAMES` for kube-controller-manager, separated by commas (default: its own default)")
	fs.BoolVar(&c.NoControllerManager, "no-controller-manager", false, "run no kube-controller-manager: no default ServiceAccounts, no garbage collection")
	fs.BoolVar(&c.NoScheduler, "no-scheduler", false, "run no kube-scheduler")
	fs.BoolVar(&c.Ephemeral, "ephemeral", false, "remove DIR at the end; DIR must be missing, or empty but for a directory config with files for other flags")
	fs.BoolVar(&c.DieWithParent, "die-with-parent", false, "stop when the process that started this one ends, however it ends")
	fs.IntVar(&c.Verbosity, "v", 1, "`LEVEL` of detail in the components' log")
	fs.BoolVar(&c.LogToStderr, "logtostderr", false, "write the components' log to stderr instead of DIR/server.log")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(stdout, usage)
			fs.SetOutput(stdout)
			fs.PrintDefaults()
			return Config{}, err
		}
		return Config{}, fmt.Errorf("%w (kube server --help lists the flags)", err)
	}
	if fs.NArg() > 0 {
		return Config{}, fmt.Errorf("unexpected argument %q (kube server --help lists the flags)", fs.Arg(0))
	}

	c.Issuers, c.APIServerArgs = issuers, apiserverArgs
	if len(c.Issuers) == 0 {
		c.Issuers = []string{defaultIssuer}
	}
	for _, a := range audiences {
		c.Audiences = append(c.Audiences, strings.Split(a, ",")...)
	}
	if controllers != "" {
		c.Controllers = strings.Split(controllers, ",")
	}
	var err error
	if c.Bind, err = parseIP("bind", bind); err != nil {
		return Config{}, err
	}
	if advertise != "" {
		if c.Advertise, err = parseIP("advertise", advertise); err != nil {
			return Config{}, err
		}
	}
	for _, n := range nodes {
		node, err := parseNode(n)
		if err != nil {
			return Config{}, err
		}
		c.Nodes = append(c.Nodes, node)
	}
	return c, c.complete()
}

func parseIP(name, value string) (net.IP, error) {
	ip := net.ParseIP(value)
	if ip == nil {
		return nil, fmt.Errorf("--%s %q is not an IP address", name, value)
	}
	return ip, nil
}

func parseNode(value string) (pki.Node, error) {
	name, address, ok := strings.Cut(value, "=")
	ip := net.ParseIP(address)
	// The name becomes part of file names.
	if !ok || name == "" || ip == nil || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" || strings.HasPrefix(name, ".") {
		return pki.Node{}, fmt.Errorf("--node %q is not NAME=IP with a lower-case DNS name, for example node1=10.250.0.1", value)
	}
	return pki.Node{Name: name, IP: ip}, nil
}

// complete checks what the flags say together and makes paths absolute: the
// components must not depend on the working directory.
func (c *Config) complete() error {
	if c.Dir == "" {
		return errors.New("--dir is required: the directory for certificates, data and log")
	}
	if c.Port < 0 || c.Port > 65535 {
		return fmt.Errorf("--port %d is not between 0 and 65535", c.Port)
	}
	if c.Bind.IsUnspecified() && c.Advertise == nil {
		return fmt.Errorf("--bind %s needs --advertise: the address that nodes and pods connect to", c.Bind)
	}
	if c.Advertise != nil && (c.Advertise.IsLoopback() || c.Advertise.IsUnspecified()) {
		return fmt.Errorf("--advertise %s cannot be reached by pods: give an address of the node network, or leave it out", c.Advertise)
	}
	if c.AuditLogPath != "" && c.AuditPolicyFile == "" {
		return errors.New("--audit-log-path needs --audit-policy-file: without a policy nothing is logged")
	}
	for _, a := range c.APIServerArgs {
		if name, _, ok := strings.Cut(a, "="); !ok || name == "" || strings.HasPrefix(name, "-") {
			return fmt.Errorf("--apiserver-arg %q is not FLAG=VALUE without dashes, for example feature-gates=X=true", a)
		}
	}
	if c.NoControllerManager && len(c.Controllers) > 0 {
		return errors.New("--controllers and --no-controller-manager exclude each other")
	}
	for _, path := range []*string{&c.Dir, &c.AuthenticationConfig, &c.AuthorizationConfig, &c.AuditPolicyFile, &c.AuditLogPath} {
		if *path == "" || *path == "-" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return fmt.Errorf("resolving %s: %w", *path, err)
		}
		*path = abs
	}
	for _, file := range []string{c.AuthenticationConfig, c.AuthorizationConfig, c.AuditPolicyFile} {
		if file == "" {
			continue
		}
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("reading a configuration file: %w", err)
		}
	}
	if c.AuditPolicyFile != "" && c.AuditLogPath == "" {
		c.AuditLogPath = filepath.Join(c.Dir, "audit.log")
	}
	return nil
}

// advertised returns the address that nodes and pods connect to, nil if there
// is none because the server listens on loopback only.
func (c *Config) advertised() net.IP {
	if c.Advertise == nil && !c.Bind.IsLoopback() {
		return c.Bind
	}
	return c.Advertise
}

// addresses returns every address under which the API server is known.
func (c *Config) addresses() []net.IP {
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, net.ParseIP(kubernetesService)}
	for _, ip := range []net.IP{c.Bind, c.advertised()} {
		if ip != nil && !ip.IsUnspecified() && !slices.ContainsFunc(ips, ip.Equal) {
			ips = append(ips, ip)
		}
	}
	return ips
}

// Command federation is the federation controller: see package federation. It
// takes the credentials that mic takes, and workload identity.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/federation"
)

var version = "devel" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "federation:", err)
		os.Exit(1)
	}
}

const usage = `federation keeps the federated credentials of annotated service accounts in Azure,
as FederationPolicies allow.

  federation                          in the cluster, as whom the environment says:
                                      TENANT_ID, CLIENT_ID and CLIENT_SECRET, or
                                      USE_MSI=true [USER_ASSIGNED_MSI_CLIENT_ID], or
                                      workload identity (AZURE_FEDERATED_TOKEN_FILE);
                                      and CLOUD
  federation --cloudconfig=/etc/kubernetes/azure.json
                                      as whom the cluster itself acts
  federation --kubeconfig=$HOME/.kube/config --leader-election-namespace=
                                      outside the cluster

Flags:
`

// settings are the flags and the environment.
type settings struct {
	kubeconfig, cloudConfig, logFormat string
	leaderNamespace, leaderName        string
	issuer, clusterID, audience        string
	leaderDuration, interval, abandon  time.Duration
	probeDelay                         time.Duration
	probe, version                     bool
	probePort, metricsPort             uint
	getenv                             func(string) string
	stdout                             io.Writer
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	s, err := parse(args, getenv, stdout, stderr)
	if err != nil {
		return err
	}
	if s.version {
		fmt.Fprintln(stdout, "federation", version)
		return nil
	}
	config, err := s.config()
	if err != nil {
		return err
	}
	// Libraries below log through their own globals.
	klog.SetSlogLogger(config.Logger)
	log.SetLogger(logr.FromSlogHandler(config.Logger.Handler()))
	config.Logger.InfoContext(ctx, "starting", "version", version)
	// controller-runtime serves this registry, with what it counts itself.
	if config.Metrics, err = federation.NewMetrics(ctrlmetrics.Registry); err != nil {
		return err
	}
	return federation.Run(ctx, config)
}

func parse(args []string, getenv func(string) string, stdout, stderr io.Writer) (settings, error) {
	s := settings{getenv: getenv, stdout: stdout}
	f := flag.NewFlagSet("federation", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
	}
	f.StringVar(&s.kubeconfig, "kubeconfig", getenv("KUBECONFIG"), "kubeconfig `file`; empty means the pod's service account")
	f.StringVar(&s.cloudConfig, "cloudconfig", "", "azure.json `file`; empty means the environment")
	f.StringVar(&s.issuer, "issuer", "", "`URL` of the issuer of service-account tokens; empty means what the API server's discovery document says")
	f.StringVar(&s.clusterID, "cluster-id", "", "`text` that no other cluster has: it is in the names of credentials; empty means the UID of the namespace kube-system")
	f.StringVar(&s.audience, "audience", "", "`audience` of tokens for Entra; empty means the cloud's own")
	f.DurationVar(&s.interval, "interval", 10*time.Minute, "how often the credentials of each identity are compared with Azure")
	f.DurationVar(&s.abandon, "abandon-after", time.Hour, "how long the removal of a credential may fail before its FederatedIdentity goes without; 0 means for ever")
	f.BoolVar(&s.probe, "probe", true, "try each new credential until Entra accepts it; without, Usable stays Unknown")
	f.DurationVar(&s.probeDelay, "probe-delay", 10*time.Second, "how long after its creation a credential is first tried: Entra remembers for minutes that it did not find one")
	f.StringVar(&s.leaderNamespace, "leader-election-namespace", "lanyard-system", "`namespace` of the Lease; empty means no election")
	f.StringVar(&s.leaderName, "leader-election-name", "lanyard-federation", "`name` of the Lease")
	f.DurationVar(&s.leaderDuration, "leader-election-duration", 15*time.Second, "how long a Lease lasts without renewal")
	f.UintVar(&s.probePort, "http-probe-port", 8080, "port of /healthz and /readyz; 0 means none")
	f.UintVar(&s.metricsPort, "prometheus-port", 8888, "port of /metrics; 0 means none")
	f.StringVar(&s.logFormat, "log-format", "json", "text or json")
	f.BoolVar(&s.version, "version", false, "print the version and end")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	return s, s.check(f.Args())
}

func (s settings) check(rest []string) error {
	switch {
	case s.version:
		return nil
	case len(rest) > 0:
		return fmt.Errorf("unexpected argument %q: every setting is a flag (see federation --help)", rest[0])
	case s.logFormat != "text" && s.logFormat != "json":
		return fmt.Errorf("--log-format=%s: only text and json exist", s.logFormat)
	case s.probePort > 65535 || s.metricsPort > 65535:
		return errors.New("--http-probe-port and --prometheus-port must be ports: 0 to 65535")
	case s.leaderNamespace != "" && s.leaderName == "":
		return errors.New("--leader-election-name is empty: name the Lease, or set --leader-election-namespace= for no election")
	case s.leaderDuration < time.Second:
		return fmt.Errorf("--leader-election-duration=%s: at least a second is needed", s.leaderDuration)
	case s.interval < 10*time.Second:
		return fmt.Errorf("--interval=%s: at least 10s, because Azure allows few listings per identity", s.interval)
	case s.abandon < 0 || s.probeDelay <= 0:
		return errors.New("--abandon-after must not be negative, and --probe-delay must be more than 0s")
	}
	return nil
}

func (s settings) config() (federation.Config, error) {
	logger := slog.New(slog.NewJSONHandler(s.stdout, nil))
	if s.logFormat == "text" {
		logger = slog.New(slog.NewTextHandler(s.stdout, nil))
	}
	azure := &account{load: s.account, file: s.cloudConfig, logger: logger}
	as, err := azure.open()
	if err != nil {
		return federation.Config{}, err
	}
	kube, err := kubeConfig(s.kubeconfig)
	if err != nil {
		return federation.Config{}, err
	}
	kube.UserAgent = "lanyard/federation/" + version
	kube.QPS = -1 // the server protects itself
	if s.audience == "" {
		s.audience = audience(as.cloud.Name)
	}
	c := federation.Config{
		Kubernetes: kube, Azure: azure, Issuer: s.issuer, Audience: s.audience, TenantID: as.login.TenantID, ClusterID: s.clusterID,
		Interval: s.interval, AbandonAfter: s.abandon, HealthAddress: address(s.probePort), MetricsAddress: address(s.metricsPort), Logger: logger,
	}
	if s.probe {
		c.Exchange, c.ProbeDelay = &entra.Client{Authority: as.cloud.Authority}, s.probeDelay
		if c.ProbeResource = as.cloud.ManagerAudience; c.ProbeResource == "" {
			c.ProbeResource = as.cloud.Manager
		}
	}
	if s.leaderNamespace != "" {
		c.Election = &federation.Election{Namespace: s.leaderNamespace, Name: s.leaderName, Duration: s.leaderDuration}
	}
	return c, nil
}

func kubeConfig(file string) (*rest.Config, error) {
	if file != "" {
		return clientcmd.BuildConfigFromFlags("", file)
	}
	c, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("no --kubeconfig, and not in a cluster: %w", err)
	}
	return c, nil
}

func address(port uint) string {
	if port == 0 {
		return ""
	}
	return fmt.Sprintf(":%d", port)
}

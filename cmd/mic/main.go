// Command mic is the managed identity controller of Pod Identity: see package
// mic. It takes the flags and the environment of Pod Identity v1, so that a
// Deployment that runs v1 today changes only its image.
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
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/lanyard-id/lanyard/internal/mic"
)

var version = "devel" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "mic:", err)
		os.Exit(1)
	}
}

const usage = `mic makes each machine of the cluster carry the managed identities that its pods
may use.

  mic                                 in the cluster, as whom the environment says:
                                      TENANT_ID, CLIENT_ID and CLIENT_SECRET, or
                                      USE_MSI=true [USER_ASSIGNED_MSI_CLIENT_ID], and CLOUD
  mic --cloudconfig=/etc/kubernetes/azure.json
                                      as whom the cluster itself acts
  mic --kubeconfig=$HOME/.kube/config --leader-election-namespace=default
                                      outside the cluster

Flags:
`

// settings are the flags and the environment.
type settings struct {
	kubeconfig, cloudConfig, logFormat string
	leaderNamespace, leaderName        string
	leaderDuration, recheck            time.Duration
	forceNamespaced, version           bool
	immutable                          string
	qps                                float64
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
		fmt.Fprintln(stdout, "mic", version)
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
	return mic.Run(ctx, config)
}

func parse(args []string, getenv func(string) string, stdout, stderr io.Writer) (settings, error) {
	s := settings{getenv: getenv, stdout: stdout}
	f := flag.NewFlagSet("mic", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
	}
	f.StringVar(&s.kubeconfig, "kubeconfig", getenv("KUBECONFIG"), "kubeconfig `file`; empty means the pod's service account")
	f.StringVar(&s.cloudConfig, "cloudconfig", "", "azure.json `file`; empty means the environment")
	force, err := strconv.ParseBool(getenv("FORCENAMESPACED"))
	f.BoolVar(&s.forceNamespaced, "forceNamespaced", err == nil && force, "limit every binding to pods of its own namespace")
	f.StringVar(&s.leaderNamespace, "leader-election-namespace", "default", "`namespace` of the Lease; empty means no election")
	f.StringVar(&s.leaderName, "leader-election-name", "aad-pod-identity-mic", "`name` of the Lease")
	f.DurationVar(&s.leaderDuration, "leader-election-duration", 15*time.Second, "how long a Lease lasts without renewal")
	f.DurationVar(&s.recheck, "identity-assignment-reconcile-interval", 3*time.Minute, "how often each machine is compared with the cloud; 0 means only on changes")
	f.StringVar(&s.immutable, "immutable-user-msis", "", "comma-separated `client ids` of identities that are never taken away from a machine")
	f.Float64Var(&s.qps, "clientQps", 0, "limit of requests to the API server per second; 0 leaves it to the server's own fairness")
	f.UintVar(&s.probePort, "http-probe-port", 8080, "port of /healthz and /readyz; 0 means none")
	f.UintVar(&s.metricsPort, "prometheus-port", 8888, "port of /metrics; 0 means none")
	f.StringVar(&s.logFormat, "log-format", "json", "text or json")
	f.BoolVar(&s.version, "version", false, "print the version and end")
	acceptV1(f)
	if err := f.Parse(args); err != nil {
		return s, err
	}
	return s, s.check(f.Args())
}

// acceptV1 takes flags of v1 that have nothing to set here.
func acceptV1(f *flag.FlagSet) {
	for name, why := range map[string]string{
		"syncRetryDuration":              "failures are retried with back-off",
		"leader-election-instance":       "each process names itself",
		"createDeleteBatch":              "pods are handled side by side",
		"config-map-name":                "old spellings are rewritten as they come",
		"type-upgrade-status-key":        "old spellings are rewritten as they come",
		"update-user-msi-max-retry":      "identities that Azure refuses are told apart at once",
		"update-user-msi-retry-interval": "identities that Azure refuses are told apart at once",
		"custom-user-agent":              "",
		"v":                              "verbosity of v1's log",
	} {
		f.String(name, "", "accepted for v1's manifests, without effect: "+why)
	}
	for name, why := range map[string]string{
		"enable-type-upgrade": "old spellings are rewritten as they come",
		"enableScaleFeatures": "always on",
		"enableProfile":       "never on",
		"logtostderr":         "the log goes to standard output",
	} {
		f.Bool(name, false, "accepted for v1's manifests, without effect: "+why)
	}
}

func (s settings) check(rest []string) error {
	switch {
	case s.version:
		return nil
	case len(rest) > 0:
		return fmt.Errorf("unexpected argument %q: every setting is a flag (see mic --help)", rest[0])
	case s.logFormat != "text" && s.logFormat != "json":
		return fmt.Errorf("--log-format=%s: only text and json exist", s.logFormat)
	case s.probePort > 65535 || s.metricsPort > 65535:
		return errors.New("--http-probe-port and --prometheus-port must be ports: 0 to 65535")
	case s.leaderNamespace != "" && s.leaderName == "":
		return errors.New("--leader-election-name is empty: name the Lease, or set --leader-election-namespace= for no election")
	case s.leaderDuration < time.Second:
		return fmt.Errorf("--leader-election-duration=%s: at least a second is needed", s.leaderDuration)
	case s.recheck < 0 || s.qps < 0:
		return errors.New("--identity-assignment-reconcile-interval and --clientQps must not be negative")
	}
	return nil
}

func (s settings) config() (mic.Config, error) {
	logger := slog.New(slog.NewJSONHandler(s.stdout, nil))
	if s.logFormat == "text" {
		logger = slog.New(slog.NewTextHandler(s.stdout, nil))
	}
	account, err := s.account()
	if err != nil {
		return mic.Config{}, err
	}
	cloud, err := account.Connect()
	if err != nil {
		return mic.Config{}, err
	}
	kube, err := kubeConfig(s.kubeconfig)
	if err != nil {
		return mic.Config{}, err
	}
	kube.UserAgent = "lanyard/mic/" + version
	kube.QPS = -1
	if s.qps > 0 {
		kube.QPS, kube.Burst = float32(s.qps), max(1, int(s.qps))
	}
	var immutable []string
	for id := range strings.SplitSeq(s.immutable, ",") {
		if id = strings.TrimSpace(id); id != "" {
			immutable = append(immutable, id)
		}
	}
	return mic.Config{
		Kubernetes:              kube,
		Cloud:                   cloud,
		Assignee:                account.Assignee(),
		ForceNamespaced:         s.forceNamespaced,
		ImmutableClientIDs:      immutable,
		Recheck:                 s.recheck,
		LeaderElection:          s.leaderNamespace != "",
		LeaderElectionNamespace: s.leaderNamespace,
		LeaderElectionName:      s.leaderName,
		LeaseDuration:           s.leaderDuration,
		HealthAddress:           address(s.probePort),
		MetricsAddress:          address(s.metricsPort),
		Logger:                  logger,
	}, nil
}

// account is as whom the controller acts: an azure.json, or v1's environment.
func (s settings) account() (mic.Account, error) {
	var a mic.Account
	if s.cloudConfig != "" {
		data, err := os.ReadFile(s.cloudConfig)
		if err != nil {
			return a, fmt.Errorf("reading --cloudconfig: %w", err)
		}
		if a, err = mic.ParseAccount(data); err != nil {
			return a, err
		}
	} else {
		a = mic.Account{
			Cloud:        s.getenv("CLOUD"),
			TenantID:     s.getenv("TENANT_ID"),
			ClientID:     s.getenv("CLIENT_ID"),
			ClientSecret: s.getenv("CLIENT_SECRET"),
			MSIClientID:  s.getenv("USER_ASSIGNED_MSI_CLIENT_ID"),
		}
		if text := s.getenv("USE_MSI"); text != "" {
			use, err := strconv.ParseBool(text)
			if err != nil {
				return a, fmt.Errorf("USE_MSI=%q: write true or false", text)
			}
			a.UseMSI = use
		}
	}
	if path := s.getenv("AZURE_ENVIRONMENT_FILEPATH"); path != "" && strings.EqualFold(a.Cloud, "AzureStackCloud") {
		data, err := os.ReadFile(path)
		if err != nil {
			return a, fmt.Errorf("reading AZURE_ENVIRONMENT_FILEPATH: %w", err)
		}
		e, err := mic.ParseEndpoints(data)
		if err != nil {
			return a, err
		}
		a.Endpoints = &e
	}
	return a, nil
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

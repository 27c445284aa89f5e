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
	_ "time/tzdata" // schedules name time zones, and the image has no other files

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	protocol "github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/mic"
	"github.com/lanyard-id/lanyard/internal/mic/arm"
	"github.com/lanyard-id/lanyard/internal/mic/taint"
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
  mic crds                            apply this version's CRDs, and end

Flags:
`

// settings are the flags and the environment.
type settings struct {
	kubeconfig, cloudConfig, logFormat string
	leaderNamespace, leaderName        string
	leaderInstance                     string
	leaderEndpoints                    bool
	leaderDuration, recheck, lead      time.Duration
	startupTaint, agents, userAgent    string
	forceNamespaced, version           bool
	immutable                          string
	qps                                float64
	probePort, metricsPort             uint
	getenv                             func(string) string
	stdout                             io.Writer
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "crds" {
		return crds(ctx, args[1:], getenv, stdout, stderr)
	}
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
	// controller-runtime serves this registry, with what it counts itself.
	if config.Metrics, err = mic.NewMetrics(ctrlmetrics.Registry); err != nil {
		return err
	}
	if cloud, ok := config.Cloud.(*arm.Client); ok {
		cloud.Observe = config.Metrics.Cloud
	}
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
	f.StringVar(&s.leaderInstance, "leader-election-instance", hostname(), "`name` of this replica in the Lease")
	f.BoolVar(&s.leaderEndpoints, "leader-election-endpoints-record", false, "also write who leads into the annotation of the Endpoints of that name, where Pod Identity v1 did")
	f.DurationVar(&s.lead, "window-lead", 2*time.Minute, "how long before a binding opens its identity is put on the machine")
	f.StringVar(&s.startupTaint, "startup-taint", "", "`key` of a taint that goes from a node when nmi is ready there, such as lanyard.id/nmi-not-ready; empty leaves nodes alone")
	f.StringVar(&s.agents, "startup-taint-nmi", "", "label `selector` of nmi's pods, in mic's own namespace; empty means component=nmi or app.kubernetes.io/component=nmi")
	f.StringVar(&s.userAgent, "custom-user-agent", "", "`text` that requests to Azure and the API server bear beside mic's name")
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
		"createDeleteBatch":              "pods are handled side by side",
		"config-map-name":                "old spellings are rewritten as they come",
		"type-upgrade-status-key":        "old spellings are rewritten as they come",
		"update-user-msi-max-retry":      "identities that Azure refuses are told apart at once",
		"update-user-msi-retry-interval": "identities that Azure refuses are told apart at once",
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
	case s.leaderNamespace != "" && s.leaderInstance == "":
		return errors.New("--leader-election-instance is empty: name this replica")
	case s.leaderEndpoints && s.leaderNamespace == "":
		return errors.New("--leader-election-endpoints-record needs --leader-election-namespace: without an election nobody leads")
	case s.recheck < 0 || s.qps < 0 || s.lead < 0:
		return errors.New("--identity-assignment-reconcile-interval, --window-lead and --clientQps must not be negative")
	case strings.ContainsAny(s.userAgent, "\r\n"):
		return errors.New("--custom-user-agent must be one line")
	}
	if _, err := labels.Parse(s.agents); err != nil {
		return fmt.Errorf("--startup-taint-nmi: %w", err)
	}
	return nil
}

func (s settings) config() (mic.Config, error) {
	logger := slog.New(slog.NewJSONHandler(s.stdout, nil))
	if s.logFormat == "text" {
		logger = slog.New(slog.NewTextHandler(s.stdout, nil))
	}
	files := &arm.Files{Paths: s.files(), Load: s.account, Logger: logger}
	if err := files.Open(); err != nil {
		return mic.Config{}, err
	}
	cloud := &arm.Client{Source: files}
	kube, err := kubeConfig(s.kubeconfig)
	if err != nil {
		return mic.Config{}, err
	}
	kube.UserAgent = strings.TrimSpace("lanyard/mic/" + version + " " + s.userAgent)
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
	agents := taint.Agents{Namespace: s.getenv("MIC_POD_NAMESPACE"), Selectors: mic.AgentSelectors()}
	if agents.Namespace == "" {
		agents.Namespace = "default"
	}
	if s.agents != "" {
		selector, err := labels.Parse(s.agents)
		if err != nil {
			return mic.Config{}, fmt.Errorf("--startup-taint-nmi: %w", err)
		}
		agents.Selectors = []labels.Selector{selector}
	}
	c := mic.Config{
		Kubernetes:         kube,
		Cloud:              cloud,
		Assignee:           cloud.Assignee,
		ForceNamespaced:    s.forceNamespaced,
		ImmutableClientIDs: immutable,
		Recheck:            s.recheck,
		WindowLead:         s.lead,
		StartupTaint:       s.startupTaint,
		Agents:             agents,
		HealthAddress:      address(s.probePort),
		MetricsAddress:     address(s.metricsPort),
		Logger:             logger,
	}
	if s.leaderNamespace != "" {
		c.Election = &mic.Election{Namespace: s.leaderNamespace, Name: s.leaderName, Instance: s.leaderInstance, Duration: s.leaderDuration, EndpointsRecord: s.leaderEndpoints}
	}
	return c, nil
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "" // then the flag is needed
	}
	return name
}

// files are those that the account is read from.
func (s settings) files() []string {
	var out []string
	for _, f := range []string{s.cloudConfig, s.getenv("AZURE_ENVIRONMENT_FILEPATH")} {
		if f != "" {
			out = append(out, f)
		}
	}
	return out
}

// account is as whom the controller acts: an azure.json, or v1's environment.
func (s settings) account() (arm.Account, error) {
	var a arm.Account
	if s.cloudConfig != "" {
		data, err := os.ReadFile(s.cloudConfig)
		if err != nil {
			return a, fmt.Errorf("reading --cloudconfig: %w", err)
		}
		if a, err = arm.ParseAccount(data); err != nil {
			return a, err
		}
	} else {
		a = arm.Account{
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
	a.UserAgent = s.userAgent
	if path := s.getenv("AZURE_ENVIRONMENT_FILEPATH"); path != "" && a.Custom() {
		data, err := os.ReadFile(path)
		if err != nil {
			return a, fmt.Errorf("reading AZURE_ENVIRONMENT_FILEPATH: %w", err)
		}
		e, err := protocol.ParseCloud(data)
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

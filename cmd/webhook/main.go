// Command webhook is the admission webhook of Workload Identity: a drop-in for
// the one of azure-workload-identity v1.6, with its flags and environment.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/webhook"
	"github.com/lanyard-id/lanyard/internal/webhook/servingcert"
)

var version = "devel" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "webhook:", err)
		os.Exit(1)
	}
}

// settings are the flags and the environment.
type settings struct {
	webhook.Config

	kubeconfig                                    string
	webhookAddr, healthAddr, metricsAddr          string
	certDir, namespace, configuration, servedName string
	disableRotation, version                      bool
	tlsMin                                        uint16
	level                                         slog.Level
	shutdownDelay                                 time.Duration
}

func parse(args []string, getenv func(string) string, stderr io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("webhook", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.Audience, "audience", "", "audience of the projected token (default "+workloadidentity.Audience+")")
	flags.StringVar(&s.AuthorityHost, "authority-host", "", "AZURE_AUTHORITY_HOST for the pods (default: the one of AZURE_ENVIRONMENT)")
	layout := flags.String("token-layout", string(webhook.LayoutV16), `where the token is in a container: "v1.6", or "legacy" as before v1.6 and on AKS`)
	flags.StringVar(&s.webhookAddr, "webhook-addr", ":9443", "address for the API server's calls")
	flags.StringVar(&s.healthAddr, "health-addr", ":9440", "address of /healthz and /readyz")
	flags.StringVar(&s.metricsAddr, "metrics-addr", ":8095", `address of /metrics; "0" serves none`)
	backend := flags.String("metrics-backend", "prometheus", "prometheus is the only one")
	flags.StringVar(&s.certDir, "webhook-cert-dir", "/certs", "directory of tls.crt and tls.key, read only with --disable-cert-rotation")
	flags.BoolVar(&s.disableRotation, "disable-cert-rotation", false, "serve the certificate of --webhook-cert-dir and leave the Secret and the caBundle alone")
	minimum := flags.String("tls-min-version", "1.3", "lowest TLS version to accept: 1.2 or 1.3")
	flags.StringVar(&s.configuration, "webhook-configuration", workloadidentity.WebhookConfiguration, "name of the MutatingWebhookConfiguration to keep the caBundle of")
	flags.StringVar(&s.servedName, "serving-names", "", "comma-separated host names and addresses for the serving certificate (default: the Service's name)")
	flags.StringVar(&s.kubeconfig, "kubeconfig", "", "kubeconfig file (default: the pod's service account)")
	level := flags.String("log-level", "", "debug, info, warn or error; trace and all mean debug (default info)")
	flags.DurationVar(&s.shutdownDelay, "shutdown-delay", 5*time.Second, "how long to serve on after SIGTERM, no longer ready")
	flags.BoolVar(&s.version, "version", false, "print the version as JSON and exit")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("unexpected argument %q: every setting is a flag, see --help", flags.Arg(0))
	}
	s.Layout, s.TenantID, s.namespace = webhook.Layout(*layout), getenv("AZURE_TENANT_ID"), getenv("POD_NAMESPACE")
	if s.namespace == "" {
		s.namespace = workloadidentity.Namespace
	}
	if s.servedName == "" {
		s.servedName = workloadidentity.WebhookService + "." + s.namespace + ".svc"
	}
	if s.version {
		return s, nil
	}
	var errs []error
	if s.AuthorityHost == "" {
		var err error
		s.AuthorityHost, err = webhook.AuthorityHost(getenv("AZURE_ENVIRONMENT"))
		errs = append(errs, err)
	}
	if s.AuthorityHost != "" {
		errs = append(errs, s.Validate())
	}
	if *backend != "prometheus" {
		errs = append(errs, fmt.Errorf("--metrics-backend %q is unknown: use prometheus", *backend))
	}
	switch *minimum {
	case "1.2":
		s.tlsMin = tls.VersionTLS12
	case "1.3":
		s.tlsMin = tls.VersionTLS13
	default:
		errs = append(errs, fmt.Errorf("--tls-min-version %q is not supported: use 1.2 or 1.3", *minimum))
	}
	switch *level {
	case "", "info":
	case "trace", "all":
		s.level = slog.LevelDebug
	default:
		if err := s.level.UnmarshalText([]byte(*level)); err != nil {
			errs = append(errs, fmt.Errorf("--log-level %q is unknown: use debug, info, warn or error", *level))
		}
	}
	return s, errors.Join(errs...)
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	s, err := parse(args, getenv, stderr)
	if err != nil {
		return err
	}
	if s.version {
		return json.NewEncoder(stdout).Encode(map[string]string{
			"buildVersion": version, "goVersion": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
		})
	}
	logger := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: s.level}))
	klog.SetSlogLogger(logger)

	config, err := clientConfig(s.kubeconfig)
	if err != nil {
		return err
	}
	accounts := &webhook.AccountCache{}
	if accounts.Client, err = metadata.NewForConfig(config); err != nil {
		return fmt.Errorf("making the metadata client: %w", err)
	}
	registry := prometheus.NewRegistry()
	metrics := webhook.NewMetrics(accounts.Len)
	registry.MustRegister(metrics, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	server := &webhook.Server{
		Admission:     &webhook.Handler{ServiceAccounts: accounts, Config: s.Config, Metrics: metrics, Logger: logger},
		TLS:           &tls.Config{MinVersion: s.tlsMin},
		Ready:         []func() error{accounts.Ready},
		Metrics:       promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
		ShutdownDelay: s.shutdownDelay,
		Logger:        logger,
	}
	// What the server calls runs until the server has answered its last request.
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	g, running := errgroup.WithContext(background)
	if s.disableRotation {
		files := &servingcert.Files{Dir: s.certDir}
		server.TLS.GetCertificate = files.GetCertificate
		server.Ready = append(server.Ready, files.Ready)
	} else {
		certificates := &servingcert.Keeper{
			Namespace: s.namespace, Secret: workloadidentity.CertificateSecret,
			Configuration: s.configuration, Webhook: workloadidentity.WebhookName,
			Names: strings.Split(s.servedName, ","), Replaced: metrics.CertificateExpires, Logger: logger,
		}
		if certificates.Client, err = dynamic.NewForConfig(config); err != nil {
			return fmt.Errorf("making the dynamic client: %w", err)
		}
		server.TLS.GetCertificate = certificates.GetCertificate
		server.Ready = append(server.Ready, certificates.Ready)
		g.Go(func() error { return certificates.Run(running) })
	}
	if err := s.listen(ctx, server); err != nil {
		return err
	}
	metricsAddr := "none"
	if l := server.Listen.Metrics; l != nil {
		metricsAddr = l.Addr().String()
	}
	logger.InfoContext(ctx, "webhook started", "version", version, "tenantID", s.TenantID, "authorityHost", s.AuthorityHost, "tokenLayout", s.Layout,
		"webhookAddr", server.Listen.Admission.Addr().String(), "healthAddr", server.Listen.Health.Addr().String(), "metricsAddr", metricsAddr)
	g.Go(func() error { return accounts.Run(running) })
	g.Go(func() error {
		defer cancel()
		return server.Run(ctx)
	})
	return g.Wait()
}

// listen opens every port or none.
func (s settings) listen(ctx context.Context, server *webhook.Server) error {
	ports := []struct {
		flag, addr string
		listener   *net.Listener
	}{
		{"--webhook-addr", s.webhookAddr, &server.Listen.Admission},
		{"--health-addr", s.healthAddr, &server.Listen.Health},
		{"--metrics-addr", s.metricsAddr, &server.Listen.Metrics},
	}
	for i, p := range ports {
		if p.addr == "0" && p.flag == "--metrics-addr" {
			continue
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.addr)
		if err != nil {
			for _, opened := range ports[:i] {
				_ = (*opened.listener).Close()
			}
			return fmt.Errorf("listening on %s %s: %w", p.flag, p.addr, err)
		}
		*p.listener = l
	}
	return nil
}

func clientConfig(kubeconfig string) (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("finding the API server: %w; outside a pod name a file with --kubeconfig", err)
	}
	config.UserAgent = "azure-workload-identity/webhook/" + version + " (" + runtime.GOOS + "/" + runtime.GOARCH + ")"
	// One live read per pod whose service account has no annotation: the
	// default of 5 a second would stall a rollout. The API server's own
	// priority and fairness protects it.
	config.QPS, config.Burst = 200, 400
	return config, nil
}

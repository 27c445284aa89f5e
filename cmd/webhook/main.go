// Command webhook is the admission webhook of Workload Identity: a drop-in for
// the one of azure-workload-identity v1.6, with its flags and environment.
package main

import (
	"context"
	"crypto/rand"
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
	"runtime/debug"
	"strings"
	"syscall"

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
	"github.com/lanyard-id/lanyard/internal/webhook/doctor"
	"github.com/lanyard-id/lanyard/internal/webhook/servingcert"
)

// Set by the linker.
var (
	version        = "devel"
	commit         = "unknown"
	date           = "unknown"
	proxyImage     = "lanyard/proxy:dev"
	proxyInitImage = "lanyard/proxy-init:dev"
)

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

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	s, err := parse(args, getenv, stderr)
	if err != nil {
		return err
	}
	if s.version {
		return json.NewEncoder(stdout).Encode(map[string]string{
			"buildVersion": version, "gitCommit": commit, "buildDate": date, "goVersion": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
		})
	}
	logger := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: s.level}))
	klog.SetSlogLogger(logger)

	config, err := clientConfig(s.kubeconfig)
	if err != nil {
		return err
	}
	accounts := &webhook.AccountCache{Listed: settle(getenv("GOGC") == ""), Logger: logger}
	if accounts.Client, err = metadata.NewForConfig(config); err != nil {
		return fmt.Errorf("making the metadata client: %w", err)
	}
	serverVersion := &webhook.ServerVersion{Logger: logger}
	if serverVersion.Get, err = webhook.GetVersion(config); err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	metrics := webhook.NewMetrics(accounts.Len)
	registry.MustRegister(metrics, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	server := &webhook.Server{
		Admission:     &webhook.Handler{ServiceAccounts: accounts, Config: s.Config, NativeSidecars: serverVersion.NativeSidecars, Metrics: metrics, Logger: logger},
		TLS:           &tls.Config{MinVersion: s.tlsMin},
		Ready:         []func() error{accounts.Ready, serverVersion.Ready},
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
	looksAfter, err := s.newDoctor(config, accounts, server.Ready)
	if err != nil {
		return err
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
	for _, note := range s.notes {
		logger.WarnContext(ctx, "setting", "note", note)
	}
	g.Go(func() error { return accounts.Run(running) })
	g.Go(func() error { return serverVersion.Run(running) })
	if looksAfter != nil {
		looksAfter.NativeSidecars, looksAfter.Logger = serverVersion.NativeSidecars, logger
		registry.MustRegister(looksAfter.Metrics)
		acting, stop := context.WithCancel(running)
		defer stop()
		context.AfterFunc(ctx, stop) // at the first sign: another replica is to take over
		g.Go(func() error { return looksAfter.Run(acting) })
	}
	g.Go(func() error {
		defer cancel()
		return server.Run(ctx)
	})
	return g.Wait()
}

// newDoctor returns the doctor, nil if it is off.
func (s settings) newDoctor(config *rest.Config, accounts *webhook.AccountCache, ready []func() error) (*doctor.Doctor, error) {
	if s.doctor == "off" {
		return nil, nil
	}
	api, err := doctor.NewAPI(config)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("naming this replica: %w", err)
	}
	return &doctor.Doctor{
		API: api, Accounts: accounts, Config: s.Config, Configuration: s.configuration, Webhook: workloadidentity.WebhookName,
		Namespace: s.namespace, Identity: host + "_" + rand.Text(),
		Evict: s.doctor == "evict", EvictStale: s.doctorEvictStale, Interval: s.doctorInterval,
		Ready: func() error {
			for _, part := range ready {
				if err := part(); err != nil {
					return err
				}
			}
			return nil
		},
		Metrics: doctor.NewMetrics(),
	}, nil
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

// How much may be made before the garbage is collected, in percent of what
// lives. The list of a large cluster's accounts is the most that is ever held
// at a time; later a collection for every few hundred reviews would cost as
// much as they do.
const (
	whileListing   = 40
	whileAnswering = 75
)

// settle sets the first percentage and returns what is to be done when the
// list is complete. An operator who sets GOGC decides.
func settle(ours bool) func() {
	if !ours {
		return nil
	}
	debug.SetGCPercent(whileListing)
	return func() {
		debug.FreeOSMemory()
		debug.SetGCPercent(whileAnswering)
	}
}

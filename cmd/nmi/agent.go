package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/client-go/rest"

	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/nmi"
	"github.com/lanyard-id/lanyard/internal/nmi/caller"
	"github.com/lanyard-id/lanyard/internal/nmi/journal"
	"github.com/lanyard-id/lanyard/internal/nmi/nodewatch"
	"github.com/lanyard-id/lanyard/internal/nmi/source"
	"github.com/lanyard-id/lanyard/internal/redirect"
	"github.com/lanyard-id/lanyard/internal/sandbox"
	"github.com/lanyard-id/lanyard/internal/token"
)

// An agent is the parts of nmi, wired.
type agent struct {
	watcher *nodewatch.Watcher
	journal *journal.Journal
	source  *source.Source
	server  *nmi.Server
	host    *nmi.Host
	metrics *nmi.Metrics
	state   *state
}

// agents wires the parts. ports is nil if sources are not guarded.
func (c config) agents(kube *rest.Config, ports *sandbox.Table, logger *slog.Logger) (*agent, error) {
	httpClient, err := rest.HTTPClientFor(kube)
	if err != nil {
		return nil, fmt.Errorf("talking to the API server: %w", err)
	}
	events, err := nodewatch.API(kube, httpClient, eventsv1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	core, err := nodewatch.API(kube, httpClient, corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	reviews, err := nodewatch.API(kube, httpClient, authenticationv1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	upstream := &url.URL{Scheme: "http", Host: c.metadata().String()}
	transport := c.transport()
	metrics := nmi.NewMetrics()
	a := &agent{metrics: metrics, state: &state{}}
	a.journal = &journal.Journal{
		Events: journal.Client{API: events, Failed: func() { metrics.KubernetesError(nmi.OperationEvent) }},
		Audit:  logger, Log: logger, Node: c.node,
	}
	a.source = &source.Source{
		Machine: &imds.Client{BaseURL: upstream.String(), HTTP: &http.Client{
			Transport: transport, Timeout: 30 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}},
		Secrets: core, CrossNamespaceSecrets: c.crossSecrets, AuthorityHosts: list(c.authorities), Resources: list(c.prefetch),
		Observe: func(o source.Operation) { metrics.Upstream(o.Type, o.Took, o.Err) },
		Cached:  metrics.Cached, Report: a.journal.Credential, Logger: logger,
	}
	a.server = &nmi.Server{
		Tokens: a.source, Metadata: metadata{a.source}, Recorder: a.journal, Upstream: upstream, Transport: transport,
		Wait: c.wait, BlockInstance: c.blockInstance, Rules: imds.Rules{HeaderOptional: !c.headerRequired},
		Limits: &nmi.Limits{Inflight: int(c.podInflight), Rate: c.podRate}, Metrics: metrics, Logger: logger,
	}
	if c.setRetryAfter {
		a.server.RetryAfter = 20 * time.Second // v1's value
	}
	watch := nodewatch.Config{
		Kubernetes: kube, Node: c.node, ForceNamespaced: c.forceNamespaced, Managed: c.managed, Began: time.Now(),
		Changed: a.podChanged,
		Trouble: func(ctx context.Context, err error) {
			metrics.KubernetesError(nmi.OperationWatch)
			logger.WarnContext(ctx, "a watch failed; what was known holds", "err", err)
		},
	}
	if ports != nil {
		watch.Arrivals = nodewatch.Routed{Arrivals: ports}
	}
	if a.watcher, err = nodewatch.New(watch); err != nil {
		return nil, err
	}
	a.server.Node = a.watcher
	a.host = &nmi.Host{
		Server: a.server, Processes: caller.Finder{}, Callers: list(c.hostCallers), Node: c.node,
		Reviewer: &caller.Reviewer{API: reviews, Audience: nmi.ReviewAudience, Failed: func() { metrics.KubernetesError(nmi.OperationReview) }},
	}
	return a, nil
}

// podChanged fetches the tokens of a pod that was bound before it asks, and
// warns of bindings that match a pod of the host's network in vain.
func (a *agent) podChanged(ctx context.Context, pod binding.Pod, hostNetwork bool) {
	view := a.watcher.View(pod)
	if hostNetwork {
		bound, _ := binding.Of(view.Pod, view.World)
		for _, b := range bound {
			a.journal.HostNetwork(pod, b.Binding)
		}
		return
	}
	candidates, _ := binding.Candidates(view.Pod, view.World, time.Now())
	for _, b := range candidates {
		a.source.Prefetch(ctx, b.Identity)
	}
}

// transport reaches the node's metadata service; with BlockHost it is what is
// let through.
func (c config) transport() *http.Transport {
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	if c.blockHost {
		dialer.Control = redirect.Control
	}
	return &http.Transport{
		Proxy:                 nil, // the metadata service must not be reached through one
		DialContext:           dialer.DialContext,
		ResponseHeaderTimeout: 15 * time.Second,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       90 * time.Second,
	}
}

// state is what the probes tell.
type state struct {
	active atomic.Bool  // rules in force, caches filled, ports read, listeners open
	at     atomic.Int64 // when the rules were last found missing, in nanoseconds of Unix time; zero: never
}

func (s *state) lost(now time.Time) { s.at.Store(now.UnixNano()) }

// ready says why the agent is not ready; empty if it is. The rules are written
// again at once when they are missing; an agent whose rules somebody keeps
// taking away is not ready.
func (s *state) ready(now time.Time) string {
	if !s.active.Load() {
		return "the caches are not filled yet"
	}
	if at := s.at.Load(); at != 0 && now.Sub(time.Unix(0, at)) < rulesInterval {
		return "somebody else removed the redirection a moment ago"
	}
	return ""
}

// serveProbes answers /healthz with v1's texts, /readyz and /metrics.
func (c config) serveProbes(ctx context.Context, a *agent, ip netip.Addr) error {
	probes := http.NewServeMux()
	probes.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if a.state.active.Load() {
			fmt.Fprint(w, "Active")
		} else {
			fmt.Fprint(w, "Not Active")
		}
	})
	probes.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := a.state.ready(time.Now()); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "ok")
	})
	registry := prometheus.NewRegistry()
	registry.MustRegister(a.metrics, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
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
			return serve(ctx, l, handler, 0)
		})
	}
	return g.Wait()
}

// metadata is the source's way to the metadata service, for pods with an
// exception.
type metadata struct{ *source.Source }

// Token implements token.Source.
func (m metadata) Token(ctx context.Context, r token.Request) (token.Token, error) {
	return m.Metadata(ctx, r)
}

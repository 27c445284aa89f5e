package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// A Server holds the webhook's listeners. All fields but Metrics,
// ShutdownDelay and Logger must be set; Run closes the listeners.
type Server struct {
	Admission http.Handler                                      // answers reviews under /mutate-v1-pod
	TLS       *tls.Config                                       // with GetCertificate
	Ready     []func() error                                    // each nil when its part can serve
	Listen    struct{ Admission, Health, Metrics net.Listener } // Metrics may be nil
	Metrics   http.Handler                                      // nil means none

	// ShutdownDelay is how long the server still answers, no longer ready,
	// after the context has ended: the API server learns late that a replica
	// has gone.
	ShutdownDelay time.Duration
	Logger        *slog.Logger // nil means slog.Default

	closing atomic.Bool
}

// Run serves until the context ends and every request in flight is answered.
func (s *Server) Run(ctx context.Context) error {
	admission := http.NewServeMux()
	admission.Handle(workloadidentity.WebhookPath, s.partingWith(s.Admission))
	health := http.NewServeMux()
	health.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	health.HandleFunc("GET /readyz", s.readyz)

	reviews, probes := s.server(admission), s.server(health)
	reviews.TLSConfig = s.TLS
	servers := []*http.Server{reviews, probes}
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error { return served(reviews.ServeTLS(s.Listen.Admission, "", "")) })
	g.Go(func() error { return served(probes.Serve(s.Listen.Health)) })
	if s.Listen.Metrics != nil && s.Metrics != nil {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", s.Metrics)
		metrics := s.server(mux)
		servers = append(servers, metrics)
		g.Go(func() error { return served(metrics.Serve(s.Listen.Metrics)) })
	}
	g.Go(func() error {
		<-running.Done()
		s.closing.Store(true)
		if ctx.Err() != nil && s.ShutdownDelay > 0 { // not when a listener has failed
			<-time.After(s.ShutdownDelay)
		}
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		defer cancel()
		var errs []error
		for _, server := range servers {
			errs = append(errs, server.Shutdown(limit))
		}
		return errors.Join(errs...)
	})
	return g.Wait()
}

func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving: %w", err)
}

func (s *Server) server(h http.Handler) *http.Server {
	logger := s.Logger
	if logger == nil {
		logger = slog.Default()
	}
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      40 * time.Second, // the longest timeout of a webhook is 30 s
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug), // handshakes of strangers
	}
}

// partingWith makes callers, once the server is about to end, come back on a new
// connection, and so to another replica. The API server keeps its connections
// open: a request on one in the instant in which it is closed fails with EOF.
func (s *Server) partingWith(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.closing.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// readyz says of each part that is not ready what it waits for.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	var waiting []error
	if s.closing.Load() {
		waiting = append(waiting, errors.New("shutting down"))
	}
	for _, ready := range s.Ready {
		if err := ready(); err != nil {
			waiting = append(waiting, err)
		}
	}
	if err := errors.Join(waiting...); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok")
}

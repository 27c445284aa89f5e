package door2

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"time"

	"github.com/lanyard-id/lanyard/internal/bench"
	"github.com/lanyard-id/lanyard/internal/bench/bed"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
	"github.com/lanyard-id/lanyard/internal/bench/standin"
)

const (
	frontPort    = 6444
	away         = 3 * time.Second // how long nobody listens where the API server is to be
	versionDelay = 3 * time.Second // v1.6's measurement had the same
)

// webhookStart starts a webhook whose API server is away at first, and then
// slow with its version.
func webhookStart(ctx context.Context, r *bench.Runner) (m []bench.Measurement, err error) {
	h, err := newHook(ctx, r.Config)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.Close(ctx)) }()
	if err := h.accounts(ctx, spaces); err != nil {
		return nil, err
	}
	cert, _ := h.Certificate()
	kubeconfig, err := h.KubeconfigFor(ctx, "webhook", "https://"+bed.At(frontPort).String(), cert)
	if err != nil {
		return nil, err
	}
	body, err := review(accountName(0), nil)
	if err != nil {
		return nil, err
	}
	h.Step("starting the webhook without an API server")
	w, err := h.start(kubeconfig, nil)
	if err != nil {
		return nil, err
	}
	if err := bed.Pause(ctx, away); err != nil {
		return nil, err
	}
	if err := w.Ready(ctx, 5*time.Second, func() error {
		err := h.ready(ctx)
		if err == nil {
			return bed.Fatal{Err: errors.New("it says that it is ready without an API server")}
		}
		if refused(err) {
			return err
		}
		return nil
	}); err != nil {
		return nil, err
	}
	h.Step("the API server comes, and takes %s for its version", versionDelay)
	if err := h.front(ctx); err != nil {
		return nil, err
	}
	came := time.Now()
	if err := h.trust(ctx); err != nil {
		return nil, err
	}
	c := call(h.Bed, h.pool, false)
	defer c.close()
	if err := w.Ready(ctx, time.Minute, func() error { return h.ready(ctx) }); err != nil {
		return nil, err
	}
	ready := time.Since(came)
	_, took, err := c.admit(ctx, body, standin.ClientID(1))
	if err != nil {
		return nil, fmt.Errorf("the webhook said that it was ready: %w", err)
	}
	return []bench.Measurement{{
		Row: bench.Row{Name: "webhook-honest"}, Now: meter.Brief(took), Value: meter.InMillis(took), Unit: "ms", OK: took <= reachHonest,
		Note: fmt.Sprintf("lived %s without an API server (v1.6 panics), was ready %s after it came, with GET /version delayed by %s; the first request then, with a new TLS connection, was admitted and mutated", away, meter.Brief(ready), versionDelay),
	}}, nil
}

// front serves the API server at another port of the machine until the bed's
// end, GET /version late.
func (h *hook) front(ctx context.Context) error {
	next, err := h.Front()
	if err != nil {
		return err
	}
	certFile, keyFile := h.Certificate()
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return err
	}
	l, err := h.NS.Listen(ctx, "tcp", bed.At(frontPort).String())
	if err != nil {
		return err
	}
	s := &http.Server{
		ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/version" && bed.Pause(r.Context(), versionDelay) != nil {
				return
			}
			next.ServeHTTP(w, r)
		}),
	}
	go func() { _ = s.ServeTLS(l, "", "") }() // ends with Close
	h.End(func(context.Context) error { return s.Close() })
	return nil
}

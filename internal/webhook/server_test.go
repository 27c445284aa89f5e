package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/webhook/servingcert"
)

func TestAServerThatEndsAnswersWhatItHasBegun(t *testing.T) {
	certified := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	certified.Close()
	leaks := goleak.IgnoreCurrent()
	inFlight, finish := make(chan struct{}), make(chan struct{})
	var broken atomic.Bool
	s := &Server{
		Admission: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(inFlight)
			<-finish
			_, _ = io.WriteString(w, "done")
		}),
		TLS: &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &certified.TLS.Certificates[0], nil
		}},
		Ready: []func() error{
			func() error { return nil },
			func() error {
				if broken.Load() {
					return errors.New("the cache is cold")
				}
				return nil
			},
		},
		ShutdownDelay: 200 * time.Millisecond,
	}
	s.Listen.Admission, s.Listen.Health = listen(t), listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()

	roots := x509.NewCertPool()
	roots.AddCert(certified.Certificate())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	client := &http.Client{Transport: transport}
	health := "http://" + s.Listen.Health.Addr().String()
	get := func(path string) (int, string) {
		resp, err := client.Get(health + path)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	if status, text := get("/readyz"); status != 200 || text != "ok" {
		t.Errorf("readyz: %d %s", status, text)
	}
	broken.Store(true)
	if status, text := get("/readyz"); status != 503 || !strings.Contains(text, "the cache is cold") {
		t.Errorf("readyz: %d %s", status, text)
	}
	if status, _ := get("/healthz"); status != 200 {
		t.Errorf("healthz: %d for a process that only waits", status)
	}
	broken.Store(false)

	answers := make(chan string, 1)
	go func() {
		resp, err := client.Post("https://"+s.Listen.Admission.Addr().String()+"/mutate-v1-pod", "application/json", strings.NewReader("{}"))
		if err != nil {
			answers <- err.Error()
			return
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		answers <- string(text)
	}()
	<-inFlight
	cancel()
	labtest.Eventually(t, context.Background(), func() error {
		if status, text := get("/readyz"); status != 503 || !strings.Contains(text, "shutting down") {
			return errors.New("still ready: " + text)
		}
		return nil
	})
	close(finish)
	if got := <-answers; got != "done" {
		t.Errorf("the request in flight got %q", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	transport.CloseIdleConnections()
	goleak.VerifyNone(t, leaks)
}

func TestAListenerThatFailsEndsTheServerAtOnce(t *testing.T) {
	s := &Server{Admission: http.NotFoundHandler(), TLS: &tls.Config{GetCertificate: (&servingcert.Files{Dir: t.TempDir()}).GetCertificate}, ShutdownDelay: time.Hour}
	s.Listen.Admission, s.Listen.Health = listen(t), listen(t)
	if err := s.Listen.Health.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ended with %v", err)
	}
}

func TestAServerThatEndsAsksCallersToComeBackOnANewConnection(t *testing.T) {
	var s Server
	front := httptest.NewServer(s.partingWith(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "done") })))
	defer front.Close()
	closes := func() bool {
		t.Helper()
		resp, err := front.Client().Get(front.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.Close
	}
	if closes() {
		t.Error("a connection is closed before its time")
	}
	s.closing.Store(true)
	if !closes() {
		t.Error("a connection outlives the announcement that the server ends")
	}
}

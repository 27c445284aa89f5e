package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

func TestAServerThatEndsAnswersWhatItHasBegun(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	m, _ := renewed(t, Policy{}.withDefaults(), keyMaterial{}, time.Now())
	inFlight, finish := make(chan struct{}), make(chan struct{})
	var broken atomic.Bool
	s := &Server{
		Admission: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(inFlight)
			<-finish
			_, _ = io.WriteString(w, "done")
		}),
		TLS: &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &m.leaf, nil }},
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
	roots.AppendCertsFromPEM(m.bundle())
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
	s := &Server{Admission: http.NotFoundHandler(), TLS: &tls.Config{GetCertificate: (&CertificateFiles{Dir: t.TempDir()}).GetCertificate}, ShutdownDelay: time.Hour}
	s.Listen.Admission, s.Listen.Health = listen(t), listen(t)
	if err := s.Listen.Health.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ended with %v", err)
	}
}

func TestCertificateFilesFollowTheDirectory(t *testing.T) {
	dir := t.TempDir()
	files := &CertificateFiles{Dir: dir}
	if err := files.Ready(); err == nil || !strings.Contains(err.Error(), "tls.crt") {
		t.Errorf("an empty directory: %v", err)
	}
	serial := func() string {
		c, err := files.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.String()
	}
	write := func(age time.Duration) string {
		m, _ := renewed(t, Policy{}.withDefaults(), keyMaterial{}, time.Now())
		data, err := m.data()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"tls.crt", "tls.key"} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, data[name], 0o600); err != nil {
				t.Fatal(err)
			}
			at := time.Now().Add(-age)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
		return m.leaf.Leaf.SerialNumber.String()
	}
	first := write(time.Minute)
	if got := serial(); got != first {
		t.Errorf("serves %s, want %s", got, first)
	}
	if err := os.WriteFile(filepath.Join(dir, "tls.crt"), []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != first {
		t.Errorf("a half-written pair is served: %s", got)
	}
	second := write(0)
	if got := serial(); got != second {
		t.Errorf("serves %s, want the new %s", got, second)
	}
}

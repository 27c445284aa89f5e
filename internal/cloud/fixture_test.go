package cloud

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A fixture is a running cloud on loopback, with a proxy in front.
type fixture struct {
	*Cloud
	t      *testing.T
	config Config
	log    *syncBuffer
	tenant directory.Tenant
	addr   string // of the TLS listener
	proxy  *url.URL
	stop   func()
}

func start(t *testing.T, config Config) *fixture {
	t.Helper()
	f := &fixture{t: t, config: config, log: &syncBuffer{}}
	if f.config.StateDir == "" {
		f.config.StateDir = t.TempDir()
	}
	f.config.Logger = slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c, err := Open(f.config)
	if err != nil {
		t.Fatal(err)
	}
	f.Cloud = c
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	front, door := listen(t), listen(t)
	f.addr = front.Addr().String()
	f.proxy = &url.URL{Scheme: "http", Host: door.Addr().String()}
	wg.Go(func() {
		if err := c.Serve(ctx, front); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := c.ServeProxy(ctx, door, f.dial); err != nil {
			t.Error(err)
		}
	})
	f.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(f.stop)
	f.update(func(tx *state.Tx) (err error) {
		f.tenant, err = directory.HomeTenant(tx)
		if err != nil {
			f.tenant, err = directory.PutTenant(tx, directory.Tenant{ID: demoTenant, DisplayName: "Contoso"})
		}
		return err
	})
	return f
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// restart opens the same state again.
func (f *fixture) restart() *fixture {
	f.t.Helper()
	f.stop()
	return start(f.t, f.config)
}

func (f *fixture) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, f.addr)
}

func (f *fixture) update(fn func(*state.Tx) error) {
	f.t.Helper()
	if err := f.db.Update(fn); err != nil {
		f.t.Fatal(err)
	}
	if err := f.db.View(directory.Check); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(f.CACertPEM())
	return pool
}

// proxied is a client as a user's: it knows the proxy and the authority.
func (f *fixture) proxied() *http.Client {
	return f.client(&http.Transport{Proxy: http.ProxyURL(f.proxy), ForceAttemptHTTP2: true})
}

// direct is a client for which DNS leads every name to the cloud.
func (f *fixture) direct() *http.Client {
	return f.client(&http.Transport{DialContext: f.dial, ForceAttemptHTTP2: true})
}

func (f *fixture) client(t *http.Transport) *http.Client {
	t.TLSClientConfig = &tls.Config{RootCAs: f.roots()}
	f.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 20 * time.Second}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func getRequest(t *testing.T, address string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

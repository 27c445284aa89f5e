package cloud

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// raw sends one request to the proxy, byte for byte, and reads the answer.
func (f *fixture) raw(t *testing.T, request string) (status int, body string, conn net.Conn) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", f.proxy.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		raw, err := io.ReadAll(resp.Body)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		body = string(raw)
	}
	return resp.StatusCode, body, conn
}

func TestProxyLeadsToTheCloudOnly(t *testing.T) {
	f := start(t, Config{Hosts: map[string]http.Handler{issuerHost: http.NotFoundHandler()}})
	const names = "login.microsoftonline.com"
	for name, tt := range map[string]struct {
		request string
		status  int
		text    string
	}{
		"the token service":                 {"CONNECT login.microsoftonline.com:443 HTTP/1.1\r\nHost: login.microsoftonline.com:443\r\nProxy-Connection: keep-alive\r\n\r\n", 200, ""},
		"any vault":                         {"CONNECT some-vault.vault.azure.net:443 HTTP/1.1\r\nHost: x\r\n\r\n", 200, ""},
		"a host of the configuration":       {"CONNECT oidc.cluster.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", 200, ""},
		"another case and a dot at the end": {"CONNECT Login.MicrosoftOnline.COM.:443 HTTP/1.1\r\nHost: x\r\n\r\n", 200, ""},
		"another host":                      {"CONNECT example.com:443 HTTP/1.1\r\nHost: login.microsoftonline.com:443\r\n\r\n", 403, names},
		"loopback":                          {"CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: x\r\n\r\n", 403, names},
		"loopback by IPv6":                  {"CONNECT [::1]:443 HTTP/1.1\r\nHost: x\r\n\r\n", 403, names},
		"localhost":                         {"CONNECT localhost:443 HTTP/1.1\r\nHost: x\r\n\r\n", 403, names},
		"the metadata service":              {"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n", 403, names},
		"another port":                      {"CONNECT login.microsoftonline.com:22 HTTP/1.1\r\nHost: x\r\n\r\n", 403, "port 443 only"},
		"a named port":                      {"CONNECT login.microsoftonline.com:https HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""},
		"no port":                           {"CONNECT login.microsoftonline.com HTTP/1.1\r\nHost: x\r\n\r\n", 400, "host:port"},
		"no host":                           {"CONNECT :443 HTTP/1.1\r\nHost: x\r\n\r\n", 403, names},
		"a vault below a vault":             {"CONNECT a.b.vault.azure.net:443 HTTP/1.1\r\nHost: x\r\n\r\n", 403, names},
		"a name that ends like ours":        {"CONNECT evillogin.microsoftonline.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", 403, names},
		"a name that starts like ours":      {"CONNECT login.microsoftonline.com.evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", 403, names},
		"a user part":                       {"CONNECT login.microsoftonline.com:443@evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""},
		"plain http":                        {"GET http://login.microsoftonline.com/ HTTP/1.1\r\nHost: login.microsoftonline.com\r\nConnection: close\r\n\r\n", 405, "NO_PROXY"},
		"plain http to the metadata":        {"GET http://169.254.169.254/metadata HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n", 405, "NO_PROXY"},
		"a request to the proxy itself":     {"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 405, "CONNECT only"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body, conn := f.raw(t, tt.request)
			if status != tt.status || !strings.Contains(body, tt.text) {
				t.Fatalf("status %d, %q, want %d, %q", status, body, tt.status, tt.text)
			}
			if status != http.StatusOK {
				return
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if !strings.Contains(f.log.String(), `msg="proxy refused" method=CONNECT target=127.0.0.1:443 status=403`) {
		t.Errorf("the log lacks the refusal: %s", f.log.String())
	}
}

// TestProxyPassesEarlyBytes sends the TLS hello in the same packet as CONNECT.
func TestProxyPassesEarlyBytes(t *testing.T) {
	f := start(t, Config{})
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", f.proxy.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	tc := tls.Client(&eager{Conn: conn, prefix: "CONNECT management.azure.com:443 HTTP/1.1\r\nHost: x\r\n\r\n"}, &tls.Config{ServerName: "management.azure.com", RootCAs: f.roots()})
	if err := tc.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tc, "GET / HTTP/1.1\r\nHost: management.azure.com\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(tc), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("x-ms-request-id") == "" {
		t.Errorf("status %d, not from Resource Manager", resp.StatusCode)
	}
}

// eager sends prefix with the first bytes, and swallows the proxy's answer.
type eager struct {
	net.Conn
	prefix string
	sent   bool
	in     *bufio.Reader
}

func (e *eager) Write(p []byte) (int, error) {
	if e.sent {
		return e.Conn.Write(p)
	}
	e.sent = true
	n, err := e.Conn.Write(append([]byte(e.prefix), p...))
	return max(0, n-len(e.prefix)), err
}

func (e *eager) Read(p []byte) (int, error) {
	if e.in == nil {
		e.in = bufio.NewReader(e.Conn)
		resp, err := http.ReadResponse(e.in, &http.Request{Method: http.MethodConnect})
		if err != nil {
			return 0, err
		}
		if resp.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("status %d", resp.StatusCode)
		}
	}
	return e.in.Read(p)
}

func TestProxySaysWhenTheCloudCannotBeReached(t *testing.T) {
	f := start(t, Config{})
	ln := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- f.ServeProxy(ctx, ln, func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no way") })
	}()
	f.proxy.Host = ln.Addr().String()
	if status, body, _ := f.raw(t, "CONNECT login.microsoftonline.com:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); status != 502 || strings.Contains(body, "no way") {
		t.Errorf("status %d, %q, want 502", status, body)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestCloseEndsTunnels: the HTTP server has forgotten the connections.
func TestCloseEndsTunnels(t *testing.T) {
	f := start(t, Config{})
	status, _, conn := f.raw(t, "CONNECT login.microsoftonline.com:443 HTTP/1.1\r\nHost: x\r\n\r\n")
	if status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	f.stop()
	if n, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v from a tunnel of a closed cloud", n, err)
	}
}

// TestProxyAnswersInProcess needs no listener behind it.
func TestProxyAnswersInProcess(t *testing.T) {
	f := start(t, Config{})
	ln := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.ServeProxy(ctx, ln, nil) }()
	f.proxy.Host = ln.Addr().String()
	client := f.proxied()
	resp, err := client.Do(getRequest(t, "https://login.microsoftonline.com/common/discovery/keys"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status %d", resp.StatusCode)
	}
	client.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

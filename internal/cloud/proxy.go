package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	maxTunnels     = 1024
	connectTimeout = 10 * time.Second
	// tunnelIdle ends a tunnel through which nothing went for so long.
	tunnelIdle = 10 * time.Minute
)

// Proxy is an HTTP CONNECT proxy for the cloud's hosts on port 443 and
// nothing else: HTTPS_PROXY for clients that know only Azure's real names.
// dial must lead to the cloud's TLS listener whatever addr says, which is
// the host that the client named; it is called for hosts of the cloud only.
// nil means that the cloud answers in process. Tunnels end with Close.
func (c *Cloud) Proxy(dial func(ctx context.Context, network, addr string) (net.Conn, error)) http.Handler {
	if dial == nil {
		dial = c.loop.dial
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status, why := c.connect(w, r, dial); status != 0 {
			c.logger.InfoContext(r.Context(), "proxy refused", "method", r.Method, "target", clip(r.RequestURI), "status", status)
			if status == http.StatusMethodNotAllowed {
				w.Header().Set("Allow", http.MethodConnect)
			}
			plain(w, status, why)
		}
	})
}

// connect serves one request. A status other than 0 is a refusal that has
// yet to be written.
func (c *Cloud) connect(w http.ResponseWriter, r *http.Request, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (status int, why string) {
	if r.Method != http.MethodConnect {
		return http.StatusMethodNotAllowed, "this proxy answers CONNECT only, for " + c.served() +
			"; plain http does not belong here (set NO_PROXY=169.254.169.254,localhost,127.0.0.1 for the metadata service and local addresses)"
	}
	host, port, err := net.SplitHostPort(r.RequestURI)
	if err != nil {
		return http.StatusBadRequest, "CONNECT needs host:port"
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if c.handler(host) == nil {
		return http.StatusForbidden, fmt.Sprintf("this proxy leads to the local cloud only, not to %q; it serves %s", clip(host), c.served())
	}
	if port != "443" {
		return http.StatusForbidden, fmt.Sprintf("this proxy connects to port 443 only, not to %q", clip(port))
	}
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		return http.StatusHTTPVersionNotSupported, "this proxy speaks HTTP/1.1"
	}
	ctx, cancel := context.WithTimeout(r.Context(), connectTimeout)
	defer cancel()
	up, err := dial(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		c.logger.ErrorContext(ctx, "proxy cannot reach the cloud", "target", host, "err", err)
		return http.StatusBadGateway, "the local cloud cannot be reached"
	}
	down, buffered, err := hijacker.Hijack()
	if err != nil {
		c.logger.ErrorContext(ctx, "proxy cannot take over the connection", "err", err)
		return http.StatusInternalServerError, errors.Join(errors.New("this proxy cannot take over the connection"), up.Close()).Error()
	}
	t := &tunnel{up: up, down: down}
	if !c.tunnels.add(t) {
		_, _ = io.WriteString(down, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		t.close()
		return 0, ""
	}
	defer c.tunnels.remove(t)
	// Shutdown does not see hijacked connections; the server's context does.
	defer context.AfterFunc(r.Context(), t.close)()
	// The server set deadlines for reading a request; they end here.
	_ = down.SetDeadline(time.Time{})
	// What the client sent right behind its request is in the buffer.
	early := make([]byte, buffered.Reader.Buffered())
	if _, err := io.ReadFull(buffered, early); err != nil {
		t.close()
		return 0, ""
	}
	c.logger.InfoContext(r.Context(), "proxy connected", "target", host)
	t.run(early)
	return 0, ""
}

// A tunnel is one connected pair.
type tunnel struct {
	up, down net.Conn
}

// run copies until both directions have ended.
func (t *tunnel) run(early []byte) {
	defer t.close()
	if _, err := io.WriteString(t.down, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	if _, err := t.up.Write(early); err != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { t.copy(t.up, t.down) })
	wg.Go(func() { t.copy(t.down, t.up) })
	wg.Wait()
}

// copy copies one direction; at its end the other side is told that no more
// comes, or, if that cannot be said or something broke, both are closed.
func (t *tunnel) copy(dst, src net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		_ = src.SetReadDeadline(time.Now().Add(tunnelIdle))
		n, err := src.Read(buf)
		if n > 0 {
			// Traffic in one direction keeps the other alive.
			_ = dst.SetReadDeadline(time.Now().Add(tunnelIdle))
			if _, err := dst.Write(buf[:n]); err != nil {
				t.close()
				return
			}
		}
		if err == nil {
			continue
		}
		if half, ok := dst.(interface{ CloseWrite() error }); ok && errors.Is(err, io.EOF) && half.CloseWrite() == nil {
			return
		}
		t.close()
		return
	}
}

func (t *tunnel) close() {
	_ = t.up.Close()
	_ = t.down.Close()
}

// tunnelSet knows the open tunnels, which the HTTP server forgot when they
// were hijacked.
type tunnelSet struct {
	mu     sync.Mutex
	open   map[*tunnel]bool
	closed bool
	wg     sync.WaitGroup
}

func (s *tunnelSet) add(t *tunnel) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.open) >= maxTunnels {
		return false
	}
	if s.open == nil {
		s.open = map[*tunnel]bool{}
	}
	s.open[t] = true
	s.wg.Add(1)
	return true
}

func (s *tunnelSet) remove(t *tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, t)
	s.wg.Done()
}

// closeAll ends all tunnels, waits for them, and lets none in any more.
func (s *tunnelSet) closeAll() {
	s.mu.Lock()
	s.closed = true
	for t := range s.open {
		t.close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// clip shortens what a client sent before it is shown.
func clip(s string) string { return shorten(s, 100) }

func shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "..."
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}

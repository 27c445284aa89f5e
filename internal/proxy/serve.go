package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// maxConnections bounds the connections of one listener.
const maxConnections = 1024

// goodbye is how long requests may go on once the end is asked for: the pod's
// containers have ended before a sidecar is asked to.
const goodbye = 3 * time.Second

// Listen listens on the port of both loopback addresses, where redirected
// connections arrive. A pod without IPv6 has but one.
func Listen(ctx context.Context, port uint16, logger *slog.Logger) ([]net.Listener, error) {
	var all []net.Listener
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if host == "::1" && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)) {
			logger.InfoContext(ctx, "no IPv6 in this pod", "err", err)
			break
		}
		if err != nil {
			for _, open := range all {
				open.Close()
			}
			return nil, fmt.Errorf("listening for the pod's programs: %w", err)
		}
		all = append(all, &few{Listener: l})
	}
	return all, nil
}

// Serve answers until ctx ends, and lets running requests finish for a moment.
func Serve(ctx context.Context, listeners []net.Listener, h http.Handler, logger *slog.Logger) error {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       time.Minute,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			return server.Close() // whoever still waits has had its time
		}
		return nil
	})
	return g.Wait()
}

// A few listener has a bounded number of connections: those beyond are closed,
// so that a program that leaves its own open cannot take all memory.
type few struct {
	net.Listener
	open atomic.Int64
}

func (f *few) Accept() (net.Conn, error) {
	for {
		c, err := f.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if f.open.Add(1) > maxConnections {
			f.open.Add(-1)
			c.Close()
			continue
		}
		return &counted{Conn: c, gone: sync.OnceFunc(func() { f.open.Add(-1) })}, nil
	}
}

type counted struct {
	net.Conn
	gone func()
}

func (c *counted) Close() error {
	c.gone()
	return c.Conn.Close()
}

// Probe asks a proxy at this base URL whether it is ready, again every interval
// until ctx ends: a container's postStart runs while the proxy still starts. The
// error says what the last answer was.
func Probe(ctx context.Context, base string, interval time.Duration) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := ask(ctx, client, base+ReadyPath)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the proxy is not ready: %w", err)
		case <-tick.C:
		}
	}
}

func ask(ctx context.Context, client *http.Client, url string) error {
	// Asking once more than ctx allows keeps its end out of the last answer.
	req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 4<<10))
	if err != nil || res.StatusCode != http.StatusOK {
		return errors.Join(fmt.Errorf("%s answered %d: %s", url, res.StatusCode, body), err)
	}
	return nil
}

// Command nmi is the node agent of Pod Identity: see package nmi. It takes the
// flags of Pod Identity v1, so that a DaemonSet that runs v1 today changes
// only its image.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"
	_ "time/tzdata" // schedules name time zones, and the image has no other files

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/lanyard-id/lanyard/internal/nmi"
	"github.com/lanyard-id/lanyard/internal/nmi/journal"
	"github.com/lanyard-id/lanyard/internal/redirect"
	"github.com/lanyard-id/lanyard/internal/sandbox"
)

// rulesInterval is how often the netfilter rules are looked at.
const rulesInterval = 5 * time.Second

// version is set at link time.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	c, done, code := parse(args, getenv, stdout, stderr)
	if done {
		return code
	}
	if err := c.run(ctx, getenv, stdout); err != nil && ctx.Err() == nil {
		fmt.Fprintln(stderr, "nmi:", err)
		return 1
	}
	return 0
}

func (c config) run(ctx context.Context, getenv func(string) string, stdout io.Writer) error {
	if c.remove {
		led := []netip.AddrPort{c.metadata()}
		if six, _ := c.six(); six.IsValid() {
			led = append(led, six)
		}
		return redirect.Remove(led...)
	}
	c.collect = getenv("GOGC") == ""
	c.collectAt(whileReading)
	backlog := &journal.Backlog{To: stdout}
	logger := slog.New(slog.NewJSONHandler(backlog, nil))
	if c.logFormat == "text" {
		logger = slog.New(slog.NewTextHandler(backlog, nil))
	}
	klog.SetSlogLogger(logger)
	kube, err := kubeConfig(c.kubeconfig)
	if err != nil {
		return err
	}
	kube.UserAgent = "lanyard/nmi/" + version
	// Each Secret in use is listed and watched: client-go's default of five
	// requests a second would take a minute for those of a full node.
	kube.QPS, kube.Burst = 50, 100
	if c.userAgent != "" {
		kube.UserAgent += " " + c.userAgent
	}
	address, err := c.agent(ctx, getenv, kube)
	if err != nil {
		return err
	}
	// The log outlives what it tells of.
	logging, stopLogging := context.WithCancel(context.WithoutCancel(ctx))
	written := make(chan error, 1)
	go func() { written <- backlog.Run(logging) }()
	err = c.serve(ctx, kube, address, backlog, logger)
	stopLogging()
	return errors.Join(err, <-written)
}

// serve leads pods to the agent and answers them until the context ends.
func (c config) serve(ctx context.Context, kube *rest.Config, address netip.AddrPort, backlog *journal.Backlog, logger *slog.Logger) error {
	// The rules come first: from here on no pod of this node reaches the
	// node's own metadata service.
	metadata6, address6 := c.six()
	rules := &redirect.Writer{Logger: logger, Rules: redirect.Rules{
		Metadata: c.metadata(), Agent: address, Metadata6: metadata6, Agent6: address6, Guard: c.guard, BlockHost: c.blockHost,
	}}
	if err := rules.Install(); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	defer func() {
		stop()
		_ = g.Wait() // what it says is the result already, or follows from that
	}()
	var ports *sandbox.Table
	if c.guard {
		ports = &sandbox.Table{Known: rules.Known(), Admit: rules.Admit, Logger: logger}
		looked := ports.Changed()
		g.Go(func() error { return ports.Run(ctx) })
		select {
		case <-looked:
		case <-ctx.Done():
			return g.Wait()
		}
	}
	a, err := c.agents(kube, ports, logger)
	if err != nil {
		return err
	}
	a.metrics.Lost(backlog.Lost, a.journal.Lost)
	listeners, err := c.listeners(ctx, address, address6)
	if err != nil {
		return err
	}
	g.Go(func() error {
		return rules.Keep(ctx, rulesInterval, func() {
			a.state.lost(time.Now())
			logger.WarnContext(ctx, "somebody else removed the redirection; installing it again")
		})
	})
	g.Go(func() error { return release(ctx) })
	g.Go(func() error { return a.watcher.Run(ctx) })
	g.Go(func() error { return a.journal.Run(ctx) })
	g.Go(func() error { return a.source.Run(ctx) })
	g.Go(func() error { return c.serveProbes(ctx, a, address.Addr()) })
	g.Go(func() error {
		if !a.watcher.Synced(ctx) {
			return ctx.Err()
		}
		c.collectAt(whileAnswering)
		a.state.active.Store(true)
		logger.InfoContext(ctx, "answering pods", "address", address.String(), "node", c.node, "version", version)
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return serve(ctx, listeners.pods, a.server, c.wait) })
		if listeners.pods6 != nil {
			g.Go(func() error { return serve(ctx, listeners.pods6, a.server, c.wait) })
		}
		if listeners.drivers != nil {
			g.Go(func() error { return serve(ctx, listeners.drivers, a.host, c.wait) })
		}
		return g.Wait()
	})
	return g.Wait()
}

func kubeConfig(file string) (*rest.Config, error) {
	if file == "" {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("no --kubeconfig, and not in a cluster: %w", err)
		}
		return c, nil
	}
	return clientcmd.BuildConfigFromFlags("", file)
}

// agent is the address to listen on: the one that the node itself uses to
// talk to the API server, unless flag or environment name another.
func (c config) agent(ctx context.Context, getenv func(string) string, kube *rest.Config) (netip.AddrPort, error) {
	for _, s := range []string{c.listen, getenv("HOST_IP")} {
		if s == "" || s == "127.0.0.1" {
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("the address to listen on: %w", err)
		}
		return netip.AddrPortFrom(a, uint16(c.port)), nil
	}
	api, err := url.Parse(kube.Host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("the API server's address: %w", err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp4", net.JoinHostPort(api.Hostname(), "9")) // sends nothing: it only chooses a route
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("finding this node's address (set HOST_IP from status.hostIP): %w", err)
	}
	defer conn.Close()
	own, err := netip.ParseAddrPort(conn.LocalAddr().String())
	return netip.AddrPortFrom(own.Addr(), uint16(c.port)), err
}

// listeners are the addresses that are answered at. pods6 is nil if IPv6 is
// not led, drivers if nobody may ask there.
type listeners struct{ pods, pods6, drivers net.Listener }

func (c config) listeners(ctx context.Context, address, address6 netip.AddrPort) (l listeners, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, open := range []net.Listener{l.pods, l.pods6, l.drivers} {
			if open != nil {
				open.Close()
			}
		}
	}()
	listen := net.ListenConfig{Control: impatient}
	if l.pods, err = listen.Listen(ctx, "tcp", address.String()); err != nil {
		return l, fmt.Errorf("listening for pods: %w", err)
	}
	if address6.IsValid() {
		if l.pods6, err = listen.Listen(ctx, "tcp6", address6.String()); err != nil {
			return l, fmt.Errorf("listening for pods over IPv6: %w", err)
		}
	}
	if len(list(c.hostCallers)) == 0 {
		return l, nil
	}
	loopback := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(c.port))
	if l.drivers, err = (&net.ListenConfig{}).Listen(ctx, "tcp", loopback.String()); err != nil {
		return l, fmt.Errorf("listening for drivers (--host-token-callers= turns this off): %w", err)
	}
	return l, nil
}

// unacknowledged is how long an answer is sent again.
const unacknowledged = 5 * time.Second

// impatient ends connections whose other end says nothing more. The kernel would
// go on for a quarter of an hour to send an answer to a pod that has ended, and
// another pod may have its address by then.
func impatient(_, _ string, c syscall.RawConn) error {
	var inner error
	err := c.Control(func(fd uintptr) { // those that are accepted take it over
		inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledged.Milliseconds()))
	})
	return errors.Join(err, inner)
}

// serve answers until the context ends and lets running requests finish.
func serve(ctx context.Context, l net.Listener, h http.Handler, wait time.Duration) error {
	s := nmi.NewHTTPServer(h, wait)
	done := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		done <- s.Shutdown(ctx)
	})
	err := s.Serve(l)
	if stop() {
		return err
	}
	return <-done
}

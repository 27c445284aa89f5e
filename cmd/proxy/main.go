// Command proxy is the sidecar of Workload Identity that answers the instance
// metadata service's token endpoint in a pod, and its init container: see
// packages proxy and redirect/pod. It takes the flags and the environment of
// azure-workload-identity v1.6.
//
//	proxy [flags]             the sidecar
//	proxy --probe             its postStart hook
//	proxy init, proxy-init    the init container: the second is a name for the same file
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/proxy"
)

// Set at link time.
var (
	version = "devel"
	commit  = "unknown"
	date    = "unknown"
)

// A pod's sidecar answers from a cache of kilobytes: the memory that the runtime
// may take before it collects garbage hard is more than it ever needs.
const memory = 12 << 20

// How long and how often --probe asks.
const (
	probeTime     = 10 * time.Second
	probeInterval = 100 * time.Millisecond
)

const usage = `proxy answers, in a pod, the metadata service's token endpoint with tokens for the pod's federated token.

The webhook of Workload Identity adds it to pods with the annotation azure.workload.identity/inject-proxy-sidecar: "true":

  proxy --proxy-port=8000            the sidecar; AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_FEDERATED_TOKEN_FILE
                                     and AZURE_AUTHORITY_HOST are the webhook's
  proxy --proxy-port=8000 --probe    wait until the sidecar is ready, for its postStart hook
  proxy init                         lead the pod's programs to it, with CAP_NET_ADMIN; PROXY_PORT=8000, PROXY_UID=1501,
                                     METADATA_IP=169.254.169.254, METADATA_PORT=80 and METADATA_IPV6 (none) say how

Flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args, os.Getenv, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

// run takes the whole command line, with the program's name.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if filepath.Base(args[0]) == "proxy-init" {
		return initialize(args[1:], getenv, stdout, stderr)
	}
	if len(args) > 1 && args[1] == "init" {
		return initialize(args[2:], getenv, stdout, stderr)
	}
	c, err := parse(args[1:], stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	case c.version:
		return writeVersion(stdout)
	case c.probe:
		ctx, cancel := context.WithTimeout(ctx, probeTime)
		defer cancel()
		return proxy.Probe(ctx, "http://"+net.JoinHostPort("127.0.0.1", strconv.Itoa(int(c.port))), probeInterval)
	}
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memory)
	}
	return c.serve(ctx, getenv, slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: c.level})))
}

// config is what the flags say.
type config struct {
	port           uint16
	probe, version bool
	level          slog.Level
}

func parse(args []string, stderr io.Writer) (config, error) {
	var c config
	f := flag.NewFlagSet("proxy", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
	}
	number := f.Uint("proxy-port", workloadidentity.DefaultProxyPort, "port of the loopback addresses to answer at")
	f.BoolVar(&c.probe, "probe", false, "wait until the proxy at that port is ready, and end")
	level := f.String("log-level", "", `what to log: "" (warnings), info, debug; trace and all mean debug`)
	f.BoolVar(&c.version, "version", false, "print the version as JSON, and end")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if f.NArg() > 0 {
		return c, fmt.Errorf("%q is no flag: see --help", f.Arg(0))
	}
	if *number == 0 || *number > math.MaxUint16 {
		return c, fmt.Errorf("--proxy-port=%d: a port is 1 to 65535", *number)
	}
	c.port = uint16(*number)
	switch *level {
	case "":
		c.level = slog.LevelWarn
	case "info":
		c.level = slog.LevelInfo
	case "debug", "trace", "all":
		c.level = slog.LevelDebug
	default:
		return c, fmt.Errorf(`--log-level=%s: use "", info, debug, trace or all`, *level)
	}
	return c, nil
}

func writeVersion(w io.Writer) error {
	return json.NewEncoder(w).Encode(map[string]string{
		"buildVersion": version, "gitCommit": commit, "buildDate": date, "goVersion": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
	})
}

// serve answers the pod's programs until the context ends.
func (c config) serve(ctx context.Context, getenv func(string) string, logger *slog.Logger) error {
	tenant := getenv(workloadidentity.EnvTenantID)
	if tenant == "" {
		return errors.New(workloadidentity.EnvTenantID + " not set: the webhook sets it for pods with the label " + workloadidentity.LabelUse + `: "true"`)
	}
	file := entra.AssertionFile(getenv(workloadidentity.EnvFederatedTokenFile))
	if file == "" {
		return errors.New(workloadidentity.EnvFederatedTokenFile + " not set: the webhook sets it for pods with the label " + workloadidentity.LabelUse + `: "true"`)
	}
	authority := getenv(workloadidentity.EnvAuthorityHost)
	if authority == "" {
		authority = entra.DefaultAuthority
	}
	if _, err := entra.Endpoint(authority, tenant, false); err != nil {
		return fmt.Errorf("%s and %s: %w", workloadidentity.EnvAuthorityHost, workloadidentity.EnvTenantID, err)
	}
	metadata, err := metadata(getenv)
	if err != nil {
		return err
	}
	tokens := &proxy.Tokens{
		Tenant: tenant, ClientID: getenv(workloadidentity.EnvClientID), File: file,
		Entra: &entra.Client{Authority: authority}, Logger: logger,
	}
	server := &proxy.Server{Tokens: tokens, TokenFile: file, Upstream: &url.URL{Scheme: "http", Host: host(metadata)}, Logger: logger}
	listeners, err := proxy.Listen(ctx, c.port, logger)
	if err != nil {
		return err
	}
	if getenv(workloadidentity.EnvTokenProxy) != "" {
		// The federated token is for that endpoint then, and Entra will say so.
		logger.WarnContext(ctx, "the custom token endpoint is not used: tokens come from the authority", "variable", workloadidentity.EnvTokenProxy)
	}
	logger.InfoContext(ctx, "answering the pod's programs", "port", c.port, "tenant", tenant, "clientID", tokens.ClientID, "authority", authority, "version", version)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return tokens.Run(ctx) })
	g.Go(func() error { return proxy.Serve(ctx, listeners, server, logger) })
	return g.Wait()
}

// host is an address as URLs and the Host header spell it: without the port that
// is understood.
func host(a netip.AddrPort) string {
	if a.Port() != 80 {
		return a.String()
	}
	if a.Addr().Is6() {
		return "[" + a.Addr().String() + "]"
	}
	return a.Addr().String()
}

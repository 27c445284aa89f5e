// Package cloud is a local Azure: the token service, Resource Manager, Key
// Vaults and the metadata service of simulated machines, on real host names,
// from one state directory.
//
//	client ── CONNECT ──> Proxy ──┐          (or cluster DNS, or a direct dial)
//	                              v
//	                      TLS, one certificate of our own authority
//	                              v
//	                      Handler: by Host
//	     login.microsoftonline.com ...  login         who are you
//	     management.azure.com ...       management    what exists, who may what
//	     graph.microsoft.com            graph         applications, service principals
//	     *.vault.azure.net              vault         secrets
//	     *.blob.core.windows.net        blob          blobs of storage accounts
//	     Config.Hosts                   the caller's own, such as a cluster's issuer
//	pod ── IMDS ──────────> Metadata(machine)         in process, plain http
//	owner ── control.sock ─> faults, clock, request log, settings
//
// Every request passes the faults that its owner has put in force (package
// fault) and is written to the request log (package journal). All parts tell
// the time by one clock, which can be shifted.
//
// All parts share one state file: an ARM request that creates an identity is
// one transaction over management's and directory's values.
package cloud

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/authority"
	"github.com/lanyard-id/lanyard/internal/cloud/blob"
	"github.com/lanyard-id/lanyard/internal/cloud/control"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/cloud/graph"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
	"github.com/lanyard-id/lanyard/internal/cloud/login"
	"github.com/lanyard-id/lanyard/internal/cloud/management"
	"github.com/lanyard-id/lanyard/internal/cloud/management/compute"
	"github.com/lanyard-id/lanyard/internal/cloud/management/identity"
	"github.com/lanyard-id/lanyard/internal/cloud/metadata"
	"github.com/lanyard-id/lanyard/internal/cloud/registration"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/cloud/vault"
)

const (
	stateFile         = "cloud.db"
	logFile           = "requests.log"
	readHeaderTimeout = 10 * time.Second
	readTimeout       = time.Minute
	idleTimeout       = 2 * time.Minute
	maxHeader         = 64 << 10
	shutdownTimeout   = 5 * time.Second
)

// Config says what a cloud is made of.
type Config struct {
	// StateDir holds everything that survives a restart. It is made with
	// mode 0700 if it does not exist; one process at a time can use it.
	StateDir string
	// Now is the base of the clock of tokens, secrets and resources, which
	// Clock can shift; nil means time.Now. Certificates follow the real one.
	Now func() time.Time
	// Settings are how honest the cloud is about time and limits. The zero
	// value is quick.
	Settings control.Settings
	// Control opens the door for the cloud's owner, STATEDIR/control.sock.
	Control bool
	// Issuers fetches the discovery documents and keys of external OIDC
	// issuers. nil means a client that trusts the cloud's own authority
	// and the system's roots; hosts in Hosts are asked in process.
	Issuers *http.Client
	Logger  *slog.Logger // nil means slog.Default
	// Hosts are further https host names and what answers there, such as
	// the issuer of a cluster.
	Hosts map[string]http.Handler
}

// A Cloud is an open local Azure. Its methods may be called concurrently.
type Cloud struct {
	db      *state.DB
	now     func() time.Time
	logger  *slog.Logger
	ca      *authority.Authority
	hosts   map[string]http.Handler // exact names
	tunnels tunnelSet
	loop    *loop
	stop    context.CancelFunc // ends the servers on loop and at the door
	stopped chan error         // their last words
	servers int

	faults   fault.Set
	clock    control.Clock
	journal  *journal.Journal
	settings atomic.Pointer[control.Settings]

	login      *login.Server
	management *management.Server
	graph      *graph.Server
	vault      *vault.Server
	blob       *blob.Server
	metadata   *metadata.Server
}

// Open opens or creates the cloud in a state directory. The error wraps
// state.ErrInUse if another process has it.
func Open(c Config) (*Cloud, error) {
	if c.StateDir == "" {
		return nil, errors.New("opening cloud: Config.StateDir is not set")
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("opening cloud: %w", err)
	}
	db, err := state.Open(filepath.Join(c.StateDir, stateFile))
	if err != nil {
		return nil, fmt.Errorf("opening cloud: %w", err)
	}
	cloud, err := open(c, db)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening cloud: %w", err), db.Close())
	}
	return cloud, nil
}

func open(config Config, db *state.DB) (*Cloud, error) {
	c := &Cloud{db: db, logger: config.Logger, hosts: map[string]http.Handler{}, loop: newLoop()}
	c.clock.Base = config.Now
	c.now = c.clock.Now
	c.settings.Store(&config.Settings)
	c.faults.OnHit = func(r *http.Request, id string) { journal.NoteOf(r.Context()).Fault = id }
	if c.logger == nil {
		c.logger = slog.Default()
	}
	for name, h := range config.Hosts {
		if err := checkHost(name, h); err != nil {
			return nil, err
		}
		c.hosts[strings.ToLower(name)] = h
	}
	var err error
	if c.ca, err = authority.Open(db, append(builtinHosts(), slices.Sorted(maps.Keys(c.hosts))...)); err != nil {
		return nil, err
	}
	issuers := config.Issuers
	if issuers == nil {
		issuers = c.issuerClient()
	}
	if c.login, err = login.New(login.Config{
		DB: db, Issuers: issuers, Now: c.now, Logger: c.logger,
		Refetch: func() time.Duration { return time.Duration(c.Settings().JWKSRefetch) },
		Propagation: func() login.Propagation {
			s := c.Settings()
			return login.Propagation{Delay: time.Duration(s.FederatedPropagation), Cache: time.Duration(s.FederatedCache)}
		},
	}); err != nil {
		return nil, err
	}
	c.management = &management.Server{
		DB: db, Verify: c.login.Verify, VaultDeleted: vault.DeleteVault, StorageDeleted: blob.DeleteAccount, Compute: c.computeSettings, Now: c.now, Logger: c.logger,
		Limits: func() bool { return c.Settings().Limits },
		Identity: identity.Config{
			Changed:   c.login.FederatedChanged,
			WriteTime: func() time.Duration { return time.Duration(c.Settings().FederatedWrite) },
		},
	}
	c.metadata = &metadata.Server{
		DB: db, Tokens: c.login.ManagedIdentityToken, Settle: c.management.Settle, Now: c.now, Logger: c.logger,
		Limits:  func() bool { return c.Settings().Limits },
		Updates: func() bool { return c.Settings().MetadataUpdates },
	}
	c.vault = &vault.Server{DB: db, Verify: c.login.Verify, Now: c.now, Logger: c.logger}
	c.blob = &blob.Server{DB: db, Verify: c.login.Verify, Now: c.now, Logger: c.logger}
	for _, h := range azure.LoginHosts() {
		c.hosts[h] = c.login.Handler()
	}
	for _, h := range []string{azure.HostManagement, azure.HostManagementClassic} {
		c.hosts[h] = c.management.Handler()
	}
	c.graph = &graph.Server{DB: db, Verify: c.login.Verify, Changed: c.login.FederatedChanged, Now: c.now, Logger: c.logger}
	c.hosts[azure.HostGraph] = c.graph.Handler()
	for _, h := range []string{hostGraphClassic, azure.SuffixVault} {
		c.hosts[h] = http.HandlerFunc(c.notServed)
	}
	if c.journal, err = journal.Open(filepath.Join(config.StateDir, logFile)); err != nil {
		return nil, err
	}
	var door net.Listener
	if config.Control {
		if door, err = control.Listen(context.Background(), config.StateDir); err != nil {
			return nil, errors.Join(err, c.journal.Close())
		}
	}
	c.serve(door)
	return c, nil
}

// serve serves the in-process listener and the door, if there is one, until
// Close.
func (c *Cloud) serve(door net.Listener) {
	ctx, stop := context.WithCancel(context.Background())
	c.stop, c.stopped, c.servers = stop, make(chan error, 2), 1
	go func() { c.stopped <- c.Serve(ctx, c.loop) }()
	if door == nil {
		return
	}
	c.servers++
	owner := control.Server{Faults: &c.faults, Clock: &c.clock, Journal: c.journal, Settings: c.Settings, SetSettings: c.SetSettings}
	s := &http.Server{
		Handler: owner.Handler(), ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog:    slog.NewLogLogger(c.logger.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx }, // whoever follows the log is let go
	}
	go func() { c.stopped <- run(ctx, s, door) }()
}

// Faults are the faults in force.
func (c *Cloud) Faults() *fault.Set { return &c.faults }

// Clock is what all parts of the cloud tell the time by.
func (c *Cloud) Clock() *control.Clock { return &c.clock }

// Journal is the request log.
func (c *Cloud) Journal() *journal.Journal { return c.journal }

// Registry is the app registrations of the cloud's tenant.
func (c *Cloud) Registry() *registration.Registry {
	return &registration.Registry{DB: c.db, Now: c.now}
}

// Settings are those in force.
func (c *Cloud) Settings() control.Settings { return *c.settings.Load() }

// SetSettings changes them for the requests to come.
func (c *Cloud) SetSettings(s control.Settings) { c.settings.Store(&s) }

func (c *Cloud) computeSettings() compute.Settings {
	s := c.Settings()
	return compute.Settings{
		Duration: time.Duration(s.OperationDuration), RetryAfter: time.Duration(s.OperationRetryAfter),
		IdentitiesPerPatch: s.IdentitiesPerPatch, IdentitiesPerMachine: s.IdentitiesPerMachine,
	}
}

const hostGraphClassic = "graph.windows.net"

// builtinHosts are the names on the server certificate whatever the config.
func builtinHosts() []string {
	return append(azure.LoginHosts(), azure.HostManagement, azure.HostManagementClassic, azure.HostGraph, hostGraphClassic,
		azure.SuffixVault, "*."+azure.SuffixVault, "*."+azure.SuffixBlob)
}

func checkHost(name string, h http.Handler) error {
	lower := strings.ToLower(name)
	switch {
	case h == nil:
		return fmt.Errorf("host %q has no handler", name)
	case slices.Contains(builtinHosts(), lower) || strings.HasSuffix(lower, "."+azure.SuffixVault) || strings.HasSuffix(lower, "."+azure.SuffixBlob):
		return fmt.Errorf("host %q is the cloud's own", name)
	case strings.Trim(lower, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || !strings.Contains(lower, ".") ||
		strings.HasPrefix(lower, ".") || strings.HasSuffix(lower, ".") || strings.Contains(lower, "..") || net.ParseIP(lower) != nil:
		return fmt.Errorf("host %q is not a full host name such as oidc.example.com (no port, no wildcard)", name)
	}
	return nil
}

// Handler serves all hosts; which one, the Host header says, without its
// port and without case. Unknown hosts are answered 404 with what exists.
func (c *Cloud) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostname(r.Host)
		h := c.handler(host)
		if h == nil {
			h = http.HandlerFunc(c.notServed)
		}
		c.record(c.faults.Wrap(h, host, "", failureForm(host)), host, "").ServeHTTP(w, r)
	})
}

// handler is nil for a host that is not served.
func (c *Cloud) handler(host string) http.Handler {
	switch label, suffix, _ := strings.Cut(host, "."); {
	case label == "":
	case suffix == azure.SuffixVault:
		return c.vault.Handler()
	case suffix == azure.SuffixBlob:
		return c.blob.Handler()
	}
	return c.hosts[host]
}

// notServed answers in the form that clients of Azure print; az, which asks
// Graph, ends in a traceback if an error is not JSON.
func (c *Cloud) notServed(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Error struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	body.Error.Code = "HostNotServed"
	body.Error.Message = fmt.Sprintf("this local cloud does not serve %s; it serves %s", clip(r.Host), c.served())
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusNotFound)
	_ = json.NewEncoder(w).Encode(body) // the client is gone: nobody is left to tell
}

// served lists the hosts for people.
func (c *Cloud) served() string {
	var names []string
	for name := range c.hosts {
		if name != hostGraphClassic && name != azure.SuffixVault {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(append(names, "*."+azure.SuffixVault, "*."+azure.SuffixBlob), ", ")
}

// hostname is the host of a Host header, as the table has it.
func hostname(hostport string) string {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// Metadata is the instance metadata service of one virtual machine or scale
// set instance, by its ARM id, with the identities that ARM put on it. It is
// plain http, for 169.254.169.254 on that machine.
func (c *Cloud) Metadata(machineID string) http.Handler {
	h := c.faults.Wrap(c.metadata.Handler(machineID), azure.AddressMetadata, machineID, failureForm(azure.AddressMetadata))
	return c.record(h, azure.AddressMetadata, machineID)
}

// TLSConfig is for servers in front of Handler: one certificate for all
// names, HTTP/2 and HTTP/1.1.
func (c *Cloud) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: c.ca.Certificate,
	}
}

// CACertPEM is the certificate of the authority that clients must trust. It
// stays the same as long as the state directory lives, unless Hosts gets a
// name that it does not permit: then the same key gets a wider certificate.
func (c *Cloud) CACertPEM() []byte { return c.ca.PEM() }

// Serve answers on a listener with TLS until ctx ends, then lets running
// requests finish for some seconds. It closes the listener.
func (c *Cloud) Serve(ctx context.Context, ln net.Listener) error {
	s := &http.Server{
		Handler: c.Handler(), ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(c.logger.Handler(), slog.LevelDebug),
	}
	// Nobody waits for requests that hang on a fault.
	defer context.AfterFunc(ctx, func() { _, _ = c.faults.Clear() })()
	return run(ctx, s, tls.NewListener(ln, c.TLSConfig()))
}

// ServeProxy answers CONNECT requests on a listener, without TLS, until ctx
// ends; then its tunnels end too. It closes the listener.
func (c *Cloud) ServeProxy(ctx context.Context, ln net.Listener, dial func(ctx context.Context, network, addr string) (net.Conn, error)) error {
	s := &http.Server{
		Handler: c.Proxy(dial), ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog:    slog.NewLogLogger(c.logger.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	return run(ctx, s, ln)
}

func run(ctx context.Context, s *http.Server, ln net.Listener) error {
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		err := s.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = s.Close() // whoever is not done by now is cut off
		}
		ended <- err
	})
	err := s.Serve(ln)
	if stop() { // the server broke by itself
		return fmt.Errorf("serving on %s: %w", ln.Addr(), err)
	}
	return <-ended
}

// issuerClient asks issuers on hosts of this cloud (Config.Hosts, blobs) in
// process and all others over the network; it trusts the cloud's authority and
// the system's roots.
func (c *Cloud) issuerClient() *http.Client {
	roots, err := x509.SystemCertPool()
	if err != nil {
		c.logger.Warn("no system roots: only issuers with the cloud's own certificate can be asked", "err", err)
		roots = x509.NewCertPool()
	}
	roots.AddCert(c.ca.Root())
	var network net.Dialer
	t := &http.Transport{
		Proxy: nil, // a proxy of the environment may be our own
		DialContext: func(ctx context.Context, netw, addr string) (net.Conn, error) {
			if c.handler(hostname(addr)) != nil {
				return c.loop.dial(ctx, netw, addr)
			}
			return network.DialContext(ctx, netw, addr)
		},
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 10 * time.Second,
		// Keys are fetched once a day: an idle connection would only linger.
		DisableKeepAlives: true,
	}
	return &http.Client{Transport: t, Timeout: 15 * time.Second}
}

// Check verifies what must hold between any two requests. For tests that make
// the cloud fail, and for whoever suspects a state directory.
func (c *Cloud) Check() error {
	return errors.Join(c.db.View(management.Check), c.db.View(directory.Check), c.db.View(blob.Check))
}

// Close ends all tunnels and releases the state directory. Servers in front
// of Handler must have ended before.
func (c *Cloud) Close() error {
	c.tunnels.closeAll()
	c.stop()
	var errs []error
	for range c.servers {
		errs = append(errs, <-c.stopped)
	}
	return errors.Join(append(errs, c.journal.Close(), c.db.Close())...)
}

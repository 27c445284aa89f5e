// Package issuer tells who issues the cluster's service-account tokens, as
// federated credentials must name it: byte for byte, with or without the slash
// at the end.
//
//	API server ── /.well-known/openid-configuration ──> Source ── Changed ──> the controllers
package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/event"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
)

// discovery is where the API server says what its issuer is (KEP-1393).
const discovery = "/.well-known/openid-configuration"

// maxLength is what a federated credential can hold.
const maxLength = 600

// A Source reads the issuer from the API server, again and again: it changes
// when somebody restarts the API server with another one.
type Source struct {
	API      rest.Interface
	Interval time.Duration // between two looks; zero means a minute
	Logger   *slog.Logger  // nil means slog.Default

	changed chan event.GenericEvent
	once    sync.Once
	mu      sync.Mutex
	issuer  string
	err     error
}

// Check says why Entra cannot trust an issuer.
func Check(issuer string) error {
	u, err := url.Parse(issuer)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("the issuer %.200q is not a URL such as https://HOST/PATH, so Entra cannot read its keys: start the API server with --service-account-issuer=https://..., or set --issuer", issuer)
	case len(issuer) > maxLength || strings.ContainsFunc(issuer, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return fmt.Errorf("the issuer %.200q is longer than %d characters or has white space in it, which a federated credential cannot hold", issuer, maxLength)
	case inside(u.Hostname()):
		return fmt.Errorf("the issuer %s is a name that only the cluster knows, so Entra cannot read its keys: publish them with lanyard issuer, and start the API server with --service-account-issuer of that place", issuer)
	}
	return nil
}

func inside(host string) bool {
	return host == "localhost" || host == "kubernetes.default" || strings.HasSuffix(host, ".svc") || strings.HasSuffix(host, ".cluster.local")
}

// Issuer returns the issuer, as it was last read.
func (s *Source) Issuer() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.issuer == "" && s.err == nil {
		return "", errors.New("the API server was not asked for its issuer yet")
	}
	return s.issuer, s.err
}

// Changed has an event for each change. It has one reader.
func (s *Source) Changed() <-chan event.GenericEvent { return s.channel() }

func (s *Source) channel() chan event.GenericEvent {
	s.once.Do(func() { s.changed = make(chan event.GenericEvent, 1) })
	return s.changed
}

// Start looks until the context ends.
func (s *Source) Start(ctx context.Context) error {
	interval := s.Interval
	if interval == 0 {
		interval = time.Minute
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		s.Look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Look asks once. An API server that does not answer changes nothing.
func (s *Source) Look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	document, err := s.API.Get().AbsPath(discovery).DoRaw(ctx)
	var d struct {
		Issuer string `json:"issuer"`
	}
	if err == nil {
		if err = json.Unmarshal(document, &d); err == nil {
			s.note(ctx, d.Issuer, Check(d.Issuer))
			return
		}
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	s.logger().WarnContext(ctx, "the API server does not say what its issuer is", "path", discovery, "err", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.issuer == "" {
		s.err = fmt.Errorf("the API server does not say what its issuer is: %w", err)
	}
}

func (s *Source) note(ctx context.Context, issuer string, err error) {
	if err != nil {
		issuer = ""
	}
	s.mu.Lock()
	was, same := s.issuer, s.issuer == issuer && (s.err == nil) == (err == nil)
	s.issuer, s.err = issuer, err
	s.mu.Unlock()
	if same {
		return
	}
	s.logger().InfoContext(ctx, "issuer of the cluster's service-account tokens", "issuer", issuer, "was", was, "err", err)
	select {
	case s.channel() <- event.GenericEvent{Object: &lanyard.FederatedIdentity{}}:
	default: // one is waiting already
	}
}

func (s *Source) logger() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}

// A Teller knows the issuer, and tells when it changes.
type Teller interface {
	Issuer() (string, error)
	Changed() <-chan event.GenericEvent
}

// Fixed is an issuer that never changes.
type Fixed string

// Issuer returns it.
func (f Fixed) Issuer() (string, error) { return string(f), nil }

// Changed returns nil: it does not.
func (f Fixed) Changed() <-chan event.GenericEvent { return nil }

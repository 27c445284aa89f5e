// Package login is the token service of the local cloud: what answers under
// login.microsoftonline.com.
//
//	GET  /common/discovery/instance                    who is an Entra host
//	GET  /{tenant}[/v2.0]/.well-known/openid-configuration
//	GET  /{tenant}/discovery[/v2.0]/keys               the keys that sign tokens
//	POST /{tenant}/oauth2[/v2.0]/token
//	       entra.ParseTokenRequest                     what is asked
//	       tenant -> client (directory)                by whom
//	       secret | certificate | federated assertion  is it really
//	       resource                                    for what
//	       issue                                       the token
//	       log -> entra.WriteToken / WriteError        the record, the answer
//
// The other hosts of the cloud call it in process: Verify for the bearer
// tokens they are sent, ManagedIdentityToken for the metadata service.
//
// Not served yet: users (device code, password, authorization code, refresh,
// on behalf of), and managed identities as assertions of applications.
package login

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

// Config is what a Server needs.
type Config struct {
	DB *state.DB
	// Issuers fetches the discovery documents and keys of external OIDC
	// issuers; nil means a client that trusts the system's roots.
	Issuers *http.Client
	// Refetch is the least time between two fetches of an issuer's keys for
	// the sake of an unknown key id, read at each request; nil or 0 means one
	// minute. With another value the keys are forgotten.
	Refetch func() time.Duration
	// Propagation is how late federated credentials count, read at each
	// request; nil means at once.
	Propagation func() Propagation

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default
}

// A Server is the token service. Its methods may be called concurrently.
type Server struct {
	db      *state.DB
	issuers atomic.Pointer[oidc.Client]
	refetch func() time.Duration

	propagation func() Propagation
	replica     replica

	now    func() time.Time
	logger *slog.Logger
	keys   atomic.Pointer[keyring]
}

// New opens the token service on a state file: the signing keys in it are
// loaded, or made if there are none.
func New(c Config) (*Server, error) {
	if c.DB == nil {
		return nil, errors.New("login: Config.DB is not set")
	}
	s := &Server{db: c.DB, now: c.Now, logger: c.Logger, refetch: c.Refetch, propagation: c.Propagation}
	if s.refetch == nil {
		s.refetch = func() time.Duration { return 0 }
	}
	if s.propagation == nil {
		s.propagation = func() Propagation { return Propagation{} }
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.logger == nil {
		s.logger = slog.Default()
	}
	s.issuers.Store(&oidc.Client{HTTP: c.Issuers, Now: s.now})
	if err := s.loadKeys(); err != nil {
		return nil, fmt.Errorf("loading signing keys: %w", err)
	}
	return s, nil
}

const minRefetch = 100 * time.Millisecond

// issuerKeys finds the keys of issuers, as often as the setting allows.
func (s *Server) issuerKeys() *oidc.Client {
	c, want := s.issuers.Load(), s.refetch()
	if want > 0 {
		want = max(want, minRefetch) // what was just fetched must last until it is read
	}
	if c.Refetch == want {
		return c
	}
	s.issuers.CompareAndSwap(c, &oidc.Client{HTTP: c.HTTP, Now: s.now, Refetch: want})
	return s.issuers.Load()
}

// FederatedChanged says that the federated credentials of a parent (object id
// of the application, principal id of the identity) change now, and what they
// were before. Who changes them calls it, inside the transaction.
func (s *Server) FederatedChanged(parentID string, before []directory.FederatedCredential) {
	s.replica.changed(parentID, before, s.now(), s.propagation())
}

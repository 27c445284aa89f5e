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

	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

// Config is what a Server needs.
type Config struct {
	DB *state.DB
	// Issuers fetches the discovery documents and keys of external OIDC
	// issuers; nil means a client that trusts the system's roots.
	Issuers *http.Client
	Now     func() time.Time // nil means time.Now
	Logger  *slog.Logger     // nil means slog.Default
}

// A Server is the token service. Its methods may be called concurrently.
type Server struct {
	db      *state.DB
	issuers *oidc.Client
	now     func() time.Time
	logger  *slog.Logger
	keys    atomic.Pointer[keyring]
}

// New opens the token service on a state file: the signing keys in it are
// loaded, or made if there are none.
func New(c Config) (*Server, error) {
	if c.DB == nil {
		return nil, errors.New("login: Config.DB is not set")
	}
	s := &Server{db: c.DB, now: c.Now, logger: c.Logger}
	if s.now == nil {
		s.now = time.Now
	}
	if s.logger == nil {
		s.logger = slog.Default()
	}
	s.issuers = &oidc.Client{HTTP: c.Issuers, Now: s.now}
	if err := s.loadKeys(); err != nil {
		return nil, fmt.Errorf("loading signing keys: %w", err)
	}
	return s, nil
}

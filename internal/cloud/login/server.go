package login

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/entra"
)

// Handler serves login.microsoftonline.com and its aliases. Paths are
// matched without case and empty segments are ignored, as Entra does; no
// request is redirected.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	x := exchange{Exchange: entra.Exchange{TraceID: uuid.NewString(), CorrelationID: correlation(r), Time: s.now()}}
	if err := s.route(w, r, &x); err != nil {
		s.refuse(w, r, x, err)
	}
}

// An exchange is one request and what the log should say about it.
type exchange struct {
	entra.Exchange
	client string // as the client names itself, proved or not
}

// refuse is the one place where errors are logged and written.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, x exchange, err error) {
	var e *entra.Error
	if !errors.As(err, &e) {
		e = entra.Internal(err)
	}
	level := slog.LevelInfo
	if e.Status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	s.logger.Log(r.Context(), level, "login refused", "path", r.URL.Path, "status", e.Status, "code", e.Code, "client", x.client, "correlationID", x.CorrelationID, "err", err)
	x.WriteHeaders(w.Header())
	if err := entra.WriteError(w, x.Exchange, e); err != nil {
		s.logger.DebugContext(r.Context(), "answer not delivered", "path", r.URL.Path, "err", err)
	}
}

// route finds the endpoint: /{tenant}/{what}.
func (s *Server) route(w http.ResponseWriter, r *http.Request, x *exchange) error {
	segments := strings.FieldsFunc(r.URL.Path, func(c rune) bool { return c == '/' })
	if len(segments) < 2 {
		return entra.NotServed("This is the token service of a local cloud; it serves /{tenant}/oauth2/v2.0/token and its discovery documents.")
	}
	tenant, what := segments[0], strings.ToLower(strings.Join(segments[1:], "/"))
	var document func() error
	switch what {
	case "oauth2/v2.0/token":
		return s.serveToken(w, r, x, tenant, entra.V2)
	case "oauth2/token":
		return s.serveToken(w, r, x, tenant, entra.V1)
	case "discovery/instance":
		document = func() error { return s.serveInstance(w, r) }
	case "v2.0/.well-known/openid-configuration":
		document = func() error { return s.serveConfiguration(w, r, tenant, entra.V2) }
	case ".well-known/openid-configuration":
		document = func() error { return s.serveConfiguration(w, r, tenant, entra.V1) }
	case "discovery/v2.0/keys":
		document = func() error { return s.serveKeys(w, tenant, entra.V2) }
	case "discovery/keys":
		document = func() error { return s.serveKeys(w, tenant, entra.V1) }
	default:
		return entra.NotServed("No endpoint has this path; this local cloud serves /{tenant}/oauth2/v2.0/token, /{tenant}/oauth2/token and their discovery documents.")
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		e := entra.NotServed("This endpoint only accepts GET requests.")
		e.Status = http.StatusMethodNotAllowed
		w.Header().Set("Allow", "GET, HEAD")
		return e
	}
	x.WriteHeaders(w.Header())
	return document()
}

// tenantPath is the tenant of a path: a real one, or one of the names that
// stand for any (common, organizations, consumers).
type tenantPath struct {
	directory.Tenant
	any string
}

func (s *Server) tenant(name string) (tenantPath, error) {
	if any := strings.ToLower(name); any == "common" || any == "organizations" || any == "consumers" {
		return tenantPath{any: any}, nil
	}
	if uuid.Validate(name) != nil && !strings.Contains(name, ".") || len(name) > 253 || strings.ContainsAny(name, " '\"<>%\\:;,") {
		return tenantPath{}, entra.InvalidTenantName(name)
	}
	var p tenantPath
	err := s.db.View(func(tx *state.Tx) error {
		t, ok, err := directory.TenantByName(tx, name)
		if err == nil && !ok {
			err = entra.TenantNotFound(name)
		}
		p.Tenant = t
		return err
	})
	return p, err
}

// correlation is the id that the client gave its request, or a new one.
func correlation(r *http.Request) string {
	for _, id := range []string{r.Header.Get("client-request-id"), r.URL.Query().Get("client-request-id")} {
		if uuid.Validate(id) == nil {
			return id
		}
	}
	return uuid.NewString()
}

// endpoint is the base of the URLs that we send to a client: the real host,
// and its port if the client did not come by 443.
func endpoint(r *http.Request) string {
	base := "https://" + azure.HostLogin
	if _, port, err := net.SplitHostPort(r.Host); err == nil && port != "443" && strings.Trim(port, "0123456789") == "" {
		base += ":" + port
	}
	return base
}

func ownHost(host string) bool {
	return slices.Contains(azure.LoginHosts(), strings.ToLower(host))
}

// Package graph is the local cloud's Microsoft Graph: the directory's
// applications, service principals and federated credentials over HTTP.
//
//	request
//	   1 authenticate   our own token for https://graph.microsoft.com      (Server.Verify)
//	   2 route          /{v1.0|beta}/applications/{id}/... -> one row of the table
//	   -- one transaction --
//	   3 authorise      directory role, or a permission of Graph; with ...OwnedBy only what one owns
//	   4 the row's handler reads or changes the directory
//	   -- committed --
//	   5 answer         @odata.context, one writer for answers, one for errors
//
// Permissions count from the moment they are granted, not from the next
// token. Applications are gone when they are deleted: there is no recycle
// bin. There are no users and no groups: lists of them are empty.
//
// Source: https://learn.microsoft.com/graph/api/overview
package graph

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/login"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	wire "github.com/lanyard-id/lanyard/internal/graph"
)

// maxBody is what Graph takes of a request.
const maxBody = 1 << 20

// A Server answers for graph.microsoft.com. DB and Verify must be set.
type Server struct {
	DB *state.DB

	// Verify checks a bearer token and returns who it speaks for. The token must be for one of the audiences.
	Verify func(ctx context.Context, bearer string, audiences ...string) (login.Claims, error)

	// Changed is told, inside the transaction, that the federated credentials of an application (its object id)
	// change, and what they were. nil means nobody wants to know.
	Changed func(parentID string, before []directory.FederatedCredential)

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default
}

// Handler returns the host's handler.
func (s *Server) Handler() http.Handler { return s }

// A call is one request of an authenticated caller.
type call struct {
	*Server
	tx      *state.Tx
	caller  login.Claims
	access  access
	base    string // https://graph.microsoft.com/v1.0
	version string
	route   row
	// key is the object as the path names it, id (once it is resolved) its object id, sub what the path names below it.
	key, id, sub string
	query        url.Values
	body         []byte
	now          time.Time
}

// An answer is a success; a nil body means none.
type answer struct {
	status   int
	body     any
	location string
}

// ServeHTTP answers one request. All errors are written and logged here.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ids := stamp(w.Header(), r)
	a, err := s.serve(r)
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = &Error{Status: http.StatusInternalServerError, Code: "Service_InternalServerError", Message: "The server encountered an internal error.", Err: err}
		}
		level := slog.LevelInfo
		if e.Status >= http.StatusInternalServerError {
			level = slog.LevelError
		}
		s.logger().Log(r.Context(), level, "graph request refused", "method", r.Method, "path", r.URL.EscapedPath(), "status", e.Status, "err", e)
		if e.Status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="", authorization_uri="https://login.microsoftonline.com/common/oauth2/authorize", client_id="`+azure.AppGraph+`"`)
		}
		a = answer{status: e.Status, body: e.body(s.now(), ids)}
	}
	if a.location != "" {
		w.Header().Set("Location", a.location)
	}
	if a.body == nil {
		w.WriteHeader(a.status)
		return
	}
	w.Header().Set("Content-Type", "application/json;odata.metadata=minimal;odata.streaming=true;IEEE754Compatible=false;charset=utf-8")
	w.Header().Set("OData-Version", "4.0")
	w.WriteHeader(a.status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(a.body) // the client is gone: nobody is left to tell
}

func (s *Server) serve(r *http.Request) (answer, error) {
	caller, err := s.authenticate(r)
	if err != nil {
		return answer{}, err
	}
	c := &call{Server: s, caller: caller, now: s.now().UTC()}
	if err := c.locate(r.Method, r.URL.EscapedPath()); err != nil {
		return answer{}, err
	}
	c.base = "https://" + r.Host + "/" + c.version
	if c.query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		return answer{}, badRequest("The query string is malformed.")
	}
	if c.body, err = readBody(r); err != nil {
		return answer{}, err
	}
	run := s.DB.Update
	if c.route.need.reads() {
		run = s.DB.View
	}
	var a answer
	err = run(func(tx *state.Tx) (err error) {
		c.tx = tx
		if err := c.authorize(); err != nil {
			return err
		}
		a, err = c.route.handler(c)
		return err
	})
	return a, err
}

func readBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, fault(http.StatusRequestEntityTooLarge, "Request_EntityTooLarge", "The request is larger than %d bytes.", maxBody)
	case err != nil:
		return nil, badRequest("The request could not be read.")
	case len(body) == 0:
		return nil, nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return nil, badRequest("Write requests (excluding DELETE) must contain the Content-Type header declaration application/json.")
	}
	return body, nil
}

// authenticate finds out who calls.
func (s *Server) authenticate(r *http.Request) (login.Claims, error) {
	refuse := func(message string, err error) (login.Claims, error) {
		return login.Claims{}, &Error{Status: http.StatusUnauthorized, Code: wire.CodeInvalidToken, Message: message, Err: err}
	}
	values := r.Header.Values("Authorization")
	if len(values) == 0 || values[0] == "" {
		return refuse("Access token is empty.", nil)
	}
	scheme, bearer, _ := strings.Cut(values[0], " ")
	if len(values) > 1 || !strings.EqualFold(scheme, "Bearer") || bearer == "" {
		return refuse("CompactToken parsing failed: the Authorization header must be 'Bearer' and one token.", nil)
	}
	resource, _ := azure.FindResource(azure.ResourceGraph)
	caller, err := s.Verify(r.Context(), strings.TrimSpace(bearer), resource.Audiences...)
	var e *login.TokenError
	switch {
	case err == nil:
		return caller, nil
	case !errors.As(err, &e):
		return login.Claims{}, err
	case errors.Is(e.Kind, login.ErrTokenAudience):
		return refuse("Access token validation failure. Invalid audience.", err)
	case errors.Is(e.Kind, login.ErrTokenExpired):
		return refuse("Lifetime validation failed, the token is expired.", err)
	case errors.Is(e.Kind, login.ErrTokenIssuer):
		return refuse("Access token validation failure. Invalid issuer.", err)
	}
	return refuse("Access token validation failure. Signature is invalid.", err)
}

// requestIDs are what an answer tells about its request.
type requestIDs struct{ server, client string }

// stamp sets the headers that every answer carries.
func stamp(h http.Header, r *http.Request) requestIDs {
	ids := requestIDs{server: uuid.NewString(), client: r.Header.Get("client-request-id")}
	if uuid.Validate(ids.client) != nil {
		ids.client = ids.server
	}
	h.Set("request-id", ids.server)
	h.Set("client-request-id", ids.client)
	h.Set("Cache-Control", "no-cache")
	h.Set("Strict-Transport-Security", "max-age=31536000")
	h.Set("X-Content-Type-Options", "nosniff")
	return ids
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Server) logger() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}

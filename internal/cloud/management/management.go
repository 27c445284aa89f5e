// Package management is the local cloud's Azure Resource Manager.
//
//	request
//	   1 authenticate    whose token is it                          (Server.Verify)
//	   2 route           path and method -> one entry of the table, and the id it is about
//	   -- one transaction --
//	   3 authorise       does the subscription exist, may this principal do this here (azrbac)
//	   4 the entry's handler reads or changes state
//	   -- committed --
//	   5 answer          one writer for successes, one for errors
//
// table.go lists every resource type with its handlers; the actions that RBAC knows follow from the type and the
// method. There is no second way in: Do runs steps 2 to 5 for callers inside the process (the cloud's seed, tests) with
// a principal that they name, and only CreateSubscription, which makes the first role assignment, goes around RBAC.
//
// Everything is answered synchronously, which clients accept; an answer carries its status and headers, so a handler
// can also answer 202 with an Azure-AsyncOperation.
package management

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/login"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// maxBody is above any template that a client of ours sends; real Resource Manager takes 4 MiB.
const maxBody = 1 << 20

// A Server answers for management.azure.com. DB and Verify must be set.
type Server struct {
	DB *state.DB

	// Verify checks a bearer token and returns who it speaks for. The token must be for one of the audiences.
	Verify func(ctx context.Context, bearer string, audiences ...string) (login.Claims, error)

	// VaultDeleted is told, inside the transaction, that a vault (its UniqueID) is gone, so that what it held goes too.
	// nil means nobody wants to know.
	VaultDeleted func(tx *state.Tx, uniqueID string) error

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default

	built   sync.Once
	tab     table    // read through types
	writers sync.Map // keys of identities whose federated credentials are being written
}

// An answer is a success. A nil body means none.
type answer struct {
	status int
	body   any
	header http.Header // may be nil
}

func ok(body any) answer { return answer{status: http.StatusOK, body: body} }

// A call is one authorised request inside its transaction.
type call struct {
	*Server
	tx     *state.Tx
	caller login.Claims
	target
	method string
	query  url.Values
	body   []byte
	now    time.Time
}

type handler func(*call) (answer, error)

// Handler returns s as a handler. It must see the path as it was sent: a ServeMux in front would clean it.
func (s *Server) Handler() http.Handler { return s }

// ServeHTTP answers one request. All errors are written and logged here.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a, err := s.serve(r)
	stamp(w.Header(), r, s.now())
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = &Error{Status: http.StatusInternalServerError, Code: "InternalServerError", Message: "The server encountered an internal error.", Err: err}
		}
		level := slog.LevelInfo
		if e.Status >= http.StatusInternalServerError {
			level = slog.LevelError
		}
		s.logger().Log(r.Context(), level, "management request refused", "method", r.Method, "path", r.URL.EscapedPath(), "status", e.Status, "err", e)
		if e.Challenge != "" {
			w.Header().Set("WWW-Authenticate", e.Challenge)
		}
		a = answer{status: e.Status, body: errorBody(e)}
	}
	for k, vs := range a.header {
		w.Header()[k] = vs
	}
	write(w, r, a)
}

func (s *Server) serve(r *http.Request) (answer, error) {
	path, err := cleanPath(r.URL.EscapedPath())
	if err != nil {
		return answer{}, err
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return answer{}, badRequest("The query string is malformed.")
	}
	if strings.EqualFold(path, "/metadata/endpoints") {
		return endpoints(r.Method, query)
	}
	caller, err := s.authenticate(r, path)
	if err != nil {
		return answer{}, err
	}
	if err := checkMedia(r); err != nil {
		return answer{}, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return answer{}, fault(http.StatusRequestEntityTooLarge, "RequestContentTooLarge", "The request content size exceeds the maximum size of %d bytes.", maxBody)
		}
		return answer{}, badRequest("The request content could not be read.")
	}
	return s.do(caller, r.Method, path, query, body)
}

// Do performs one request for a caller inside the process, with the same routing, authorisation and handlers as a
// request over HTTP. path has no query; in is marshalled to the body unless nil, and the answer is unmarshalled into
// out unless nil. Refusals are *Error.
func (s *Server) Do(_ context.Context, caller login.Claims, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("encoding the body of %s %s: %w", method, path, err)
		}
	}
	a, err := s.do(caller, method, path, url.Values{"api-version": {"internal"}}, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if out == nil || a.body == nil {
		return nil
	}
	raw, err := json.Marshal(a.body)
	if err != nil {
		return fmt.Errorf("encoding the answer of %s %s: %w", method, path, err)
	}
	return json.Unmarshal(raw, out)
}

func (s *Server) do(caller login.Claims, method, path string, query url.Values, body []byte) (answer, error) {
	if version, ok := parameter(query, "api-version"); !ok || version == "" {
		return answer{}, fault(http.StatusBadRequest, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
	}
	head := method == http.MethodHead
	if head {
		method = http.MethodGet
	}
	t, h, err := s.types().route(method, path)
	if err != nil {
		return answer{}, err
	}
	c := &call{Server: s, caller: caller, target: t, method: method, query: query, body: body, now: s.now().UTC()}
	run := s.DB.Update
	if method == http.MethodGet {
		run = s.DB.View
	}
	release, err := c.claim()
	if err != nil {
		return answer{}, err
	}
	defer release()
	var a answer
	err = run(func(tx *state.Tx) (err error) {
		c.tx = tx
		if err := c.authorize(); err != nil {
			return err
		}
		a, err = h(c)
		return err
	})
	if err != nil {
		return answer{}, err
	}
	if head {
		return answer{status: http.StatusNoContent, header: a.header}, nil
	}
	return a, nil
}

// parameter returns a query parameter; Resource Manager ignores the case of its name.
func parameter(q url.Values, name string) (string, bool) {
	for k, vs := range q {
		if strings.EqualFold(k, name) && len(vs) > 0 {
			return vs[0], true
		}
	}
	return "", false
}

// decode reads the body into v. An empty body leaves v as it is.
func (c *call) decode(v any) error {
	if len(bytes.TrimSpace(c.body)) == 0 {
		return nil
	}
	if err := json.Unmarshal(c.body, v); err != nil {
		return invalidBody(err)
	}
	return nil
}

func checkMedia(r *http.Request) error {
	if r.Method != http.MethodPut && r.Method != http.MethodPatch {
		return nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" && kind != "text/json" {
		return fault(http.StatusUnsupportedMediaType, "UnsupportedMediaType", "The content media type '%.100s' is not supported. Only 'application/json' is supported.", r.Header.Get("Content-Type"))
	}
	return nil
}

func errorBody(e *Error) any {
	type inner struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	return struct {
		Error inner `json:"error"`
	}{inner{e.Code, e.Message}}
}

// stamp sets the headers that every answer carries.
func stamp(h http.Header, r *http.Request, now time.Time) {
	request := uuid.NewString()
	correlation := r.Header.Get("x-ms-correlation-request-id")
	if uuid.Validate(correlation) != nil {
		correlation = uuid.NewString()
	}
	h.Set("x-ms-request-id", request)
	h.Set("x-ms-correlation-request-id", correlation)
	h.Set("x-ms-routing-request-id", "EASTUS:"+now.UTC().Format("20060102T150405Z")+":"+request)
	if id := r.Header.Get("x-ms-client-request-id"); uuid.Validate(id) == nil && strings.EqualFold(r.Header.Get("x-ms-return-client-request-id"), "true") {
		h.Set("x-ms-client-request-id", id)
	}
	// Guard reads a missing header as 0 and closes its connections; the numbers are the published hourly limits.
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		h.Set("x-ms-ratelimit-remaining-subscription-reads", "11999")
	case http.MethodDelete:
		h.Set("x-ms-ratelimit-remaining-subscription-deletes", "14999")
	default:
		h.Set("x-ms-ratelimit-remaining-subscription-reads", "11999")
		h.Set("x-ms-ratelimit-remaining-subscription-writes", "1199")
	}
	h.Set("Cache-Control", "no-cache")
	h.Set("Pragma", "no-cache")
	h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
	h.Set("X-Content-Type-Options", "nosniff")
}

func write(w http.ResponseWriter, r *http.Request, a answer) {
	if a.body == nil || r.Method == http.MethodHead {
		w.WriteHeader(a.status)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(a.status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(a.body) // the client is gone: nobody is left to tell
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

// claim makes writes to the federated credentials of one identity exclusive: Azure refuses the second of two that
// overlap, instead of letting it wait. Somebody who may not write cannot hold the claim.
// Source: https://learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations
func (c *call) claim() (release func(), err error) {
	if !c.id.Is(azure.TypeFederatedCredential) || c.method == http.MethodGet {
		return func() {}, nil
	}
	if err := c.DB.View(func(tx *state.Tx) error { c.tx = tx; return c.authorize() }); err != nil {
		return nil, err
	}
	key := c.id.Parent().Key()
	if _, taken := c.writers.LoadOrStore(key, true); taken {
		return nil, fault(http.StatusConflict, "ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity",
			"Too many Federated Identity Credentials are written concurrently for the managed identity '%s'. Concurrent Federated Identity Credentials writes under the same managed identity are not supported.", c.id.Parent().IdentityString())
	}
	return func() { c.writers.Delete(key) }, nil
}

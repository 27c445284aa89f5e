// Package arm is what all resource providers of the local cloud's Resource Manager share: how a request is taken apart,
// authorised and answered, and how tracked resources are kept. The providers are its neighbours (compute, identity, …);
// package management puts them together.
//
//	request
//	   1 authenticate    whose token is it                          (Server.Verify)
//	   2 throttle        how much of its hourly budget is left
//	   3 route           path and method -> one Type of the table, and the id it is about
//	   4 Server.Before   long operations that are due, end
//	   -- one transaction --
//	   5 authorise       does the subscription exist, may this principal do this here (azrbac)
//	   6 the type's handler reads or changes state
//	   -- committed --
//	   7 answer          one writer for successes, one for errors
package arm

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
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/login"
	"github.com/lanyard-id/lanyard/internal/cloud/management/budget"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// maxBody is above any template that a client of ours sends; real Resource Manager takes 4 MiB.
const maxBody = 1 << 20

// A Server answers for management.azure.com. DB, Verify and Types must be set.
type Server struct {
	DB    *state.DB
	Types Table

	// Verify checks a bearer token and returns who it speaks for. The token must be for one of the audiences.
	Verify func(ctx context.Context, bearer string, audiences ...string) (login.Claims, error)

	// Public answers paths that need no token; it reports false for all others. nil means there are none.
	Public func(method, path string, query url.Values) (Answer, bool, error)
	// Before runs before each request, outside its transaction; nil means nothing.
	Before func(now time.Time) error
	// Limits says whether a caller that has used up its budget is refused; nil means it never is.
	Limits func() bool

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default

	budgets budget.Budgets
	rates   budget.Rates
	writers sync.Map // keys that Call.Exclusive holds
}

// An Answer is a success. A nil body means none.
type Answer struct {
	Status int
	Body   any
	Header http.Header // may be nil
}

// OK is an answer with status 200.
func OK(body any) Answer { return Answer{Status: http.StatusOK, Body: body} }

// Page is a list in one page.
func Page[T any](items []T) Answer {
	if items == nil {
		items = []T{}
	}
	return OK(struct {
		Value []T `json:"value"`
	}{items})
}

// A Call is one authorised request inside its transaction.
type Call struct {
	*Server
	Tx     *state.Tx
	Caller login.Claims
	Target
	Context context.Context // of the request
	Header  http.Header     // of the request; nil for calls inside the process
	Method  string
	Query   url.Values
	Body    []byte
	Now     time.Time
}

// A Handler answers one method of a type.
type Handler func(*Call) (Answer, error)

// ServeHTTP answers one request. It must see the path as it was sent: a ServeMux in front would clean it. All errors
// are written and logged here.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	left := budget.Unused(r.Method)
	a, err := s.serve(r, &left)
	stamp(w.Header(), r, s.now())
	left.Write(w.Header())
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
		a = e.answer()
	}
	for k, vs := range a.Header {
		w.Header()[k] = vs
	}
	write(w, r, a)
}

func (s *Server) serve(r *http.Request, left *budget.Left) (Answer, error) {
	path, err := CleanPath(r.URL.EscapedPath())
	if err != nil {
		return Answer{}, err
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return Answer{}, BadRequest("The query string is malformed.")
	}
	if s.Public != nil {
		if a, public, err := s.Public(r.Method, path, query); public || err != nil {
			return a, err
		}
	}
	caller, err := s.authenticate(r, path)
	if err != nil {
		return Answer{}, err
	}
	var exhausted *budget.Exhausted
	*left, exhausted = s.budgets.Spend(caller.ObjectID, caller.TenantID, r.Method, path, s.now(), s.Limits != nil && s.Limits())
	if exhausted != nil {
		return Answer{}, throttled(*exhausted)
	}
	if err := checkMedia(r); err != nil {
		return Answer{}, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return Answer{}, Fault(http.StatusRequestEntityTooLarge, "RequestContentTooLarge", "The request content size exceeds the maximum size of %d bytes.", maxBody)
		}
		return Answer{}, BadRequest("The request content could not be read.")
	}
	return s.do(&Call{Server: s, Context: r.Context(), Header: r.Header, Caller: caller, Method: r.Method, Query: query, Body: body}, path)
}

// Do performs one request for a caller inside the process, with the same routing, authorisation and handlers as a
// request over HTTP. path has no query; in is marshalled to the body unless nil, and the answer is unmarshalled into
// out unless nil. Refusals are *Error.
func (s *Server) Do(ctx context.Context, caller login.Claims, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("encoding the body of %s %s: %w", method, path, err)
		}
	}
	a, err := s.do(&Call{Server: s, Context: ctx, Caller: caller, Method: method, Query: url.Values{"api-version": {"internal"}}, Body: body}, path)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if out == nil || a.Body == nil {
		return nil
	}
	raw, err := json.Marshal(a.Body)
	if err != nil {
		return fmt.Errorf("encoding the answer of %s %s: %w", method, path, err)
	}
	return json.Unmarshal(raw, out)
}

func (s *Server) do(c *Call, path string) (Answer, error) {
	if version, ok := Parameter(c.Query, "api-version"); !ok || version == "" {
		return Answer{}, Fault(http.StatusBadRequest, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
	}
	head := c.Method == http.MethodHead
	if head {
		c.Method = http.MethodGet
	}
	t, h, err := s.Types.Route(c.Method, path)
	if err != nil {
		return Answer{}, err
	}
	c.Target, c.Now = t, s.now().UTC()
	if s.Before != nil {
		if err := s.Before(c.Now); err != nil {
			return Answer{}, err
		}
	}
	if err := c.takeRate(); err != nil {
		return Answer{}, err
	}
	run := s.DB.Update
	if c.Method == http.MethodGet {
		run = s.DB.View
	}
	release, err := c.claim()
	if err != nil {
		return Answer{}, err
	}
	defer release()
	var a Answer
	err = run(func(tx *state.Tx) (err error) {
		c.Tx = tx
		if err := c.authorize(); err != nil {
			return err
		}
		a, err = h(c)
		return err
	})
	if err != nil {
		return Answer{}, err
	}
	if head {
		return Answer{Status: http.StatusNoContent, Header: a.Header}, nil
	}
	return a, nil
}

// claim makes writes exclusive where the type asks for it: Azure refuses the second of two that overlap, instead of
// letting it wait. Somebody who may not write cannot hold the claim.
func (c *Call) claim() (release func(), err error) {
	if c.Type.Exclusive == nil || c.Method == http.MethodGet {
		return func() {}, nil
	}
	if err := c.DB.View(func(tx *state.Tx) error { c.Tx = tx; return c.authorize() }); err != nil {
		return nil, err
	}
	key, refusal := c.Type.Exclusive(c)
	if _, taken := c.writers.LoadOrStore(key, true); taken {
		return nil, refusal
	}
	release = func() { c.writers.Delete(key) }
	if c.Type.WriteTime == nil {
		return release, nil
	}
	if err := pause(c.Context, c.Type.WriteTime()); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// takeRate refuses the call if its provider gets too many in a second.
func (c *Call) takeRate() error {
	if c.Type.Rate == nil || c.Limits == nil || !c.Limits() {
		return nil
	}
	rate, resource := c.Type.Rate(c)
	scope, wait := c.rates.Take(c.Method, c.Caller.TenantID, azure.Fold(c.ID.SubscriptionID), resource.Key(), rate, c.Now)
	if scope == "" {
		return nil
	}
	e := Fault(http.StatusTooManyRequests, "TooManyRequests", "The request rate for the %s has been exceeded. Please retry after %d seconds.", scope, wait)
	e.Header = http.Header{"Retry-After": {strconv.Itoa(wait)}}
	return e
}

// Parameter returns a query parameter; Resource Manager ignores the case of its name.
func Parameter(q url.Values, name string) (string, bool) {
	for k, vs := range q {
		if strings.EqualFold(k, name) && len(vs) > 0 {
			return vs[0], true
		}
	}
	return "", false
}

// Decode reads the body into v. An empty body leaves v as it is.
func (c *Call) Decode(v any) error {
	if len(bytes.TrimSpace(c.Body)) == 0 {
		return nil
	}
	if err := json.Unmarshal(c.Body, v); err != nil {
		return InvalidBody(err)
	}
	return nil
}

func checkMedia(r *http.Request) error {
	if r.Method != http.MethodPut && r.Method != http.MethodPatch {
		return nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" && kind != "text/json" {
		return Fault(http.StatusUnsupportedMediaType, "UnsupportedMediaType", "The content media type '%.100s' is not supported. Only 'application/json' is supported.", r.Header.Get("Content-Type"))
	}
	return nil
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
	h.Set("Cache-Control", "no-cache")
	h.Set("Pragma", "no-cache")
	h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
	h.Set("X-Content-Type-Options", "nosniff")
}

func write(w http.ResponseWriter, r *http.Request, a Answer) {
	if a.Body == nil || r.Method == http.MethodHead {
		w.WriteHeader(a.Status)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(a.Status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(a.Body) // the client is gone: nobody is left to tell
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

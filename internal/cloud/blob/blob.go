// Package blob is the data plane of the local cloud's storage accounts: block blobs under
// https://NAME.blob.core.windows.net.
//
//	request
//	   1 which account        by the Host header; Resource Manager made it
//	   2 route                /, /CONTAINER, /CONTAINER/BLOB, restype and comp -> one operation
//	   3 authenticate         a token for https://storage.azure.com, or nobody      (Server.Verify)
//	   4 authorise            role assignments; nobody reads what a container shows to everybody
//	   5 body                 not before, so that nobody fills the memory
//	   -- one transaction --
//	   6 authorise again, conditions (If-Match, ...), read or change
//	   -- committed --
//	   7 answer               headers, XML
//
// A blob has at most 64 MiB. Not served: keys and signatures (SAS), page and append blobs, leases, snapshots, versions,
// soft deletion, tags, copies, tables, queues, files.
//
// Source: https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api
package blob

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/login"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
	"github.com/lanyard-id/lanyard/internal/cloud/management/storage"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// MaxBlob is how many bytes a blob, and a block, can have.
const MaxBlob = 64 << 20

// A Server answers for all storage accounts. DB and Verify must be set.
type Server struct {
	DB *state.DB

	// Verify checks a bearer token and returns who it speaks for. The token must be for one of the audiences.
	Verify func(ctx context.Context, bearer string, audiences ...string) (login.Claims, error)

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default
}

// Handler returns the handler for *.blob.core.windows.net.
func (s *Server) Handler() http.Handler { return s }

// A call is one request inside its transaction.
type call struct {
	tx        *state.Tx
	account   storage.Account
	caller    *login.Claims // nil: nobody
	operation operation
	container string
	blob      string
	query     url.Values
	header    http.Header
	body      []byte
	now       time.Time
}

// An answer is a success: with a body of XML, or with bytes, or with none.
type answer struct {
	status  int
	header  http.Header
	xml     any
	content []byte
}

// ServeHTTP answers one request. All errors are written and logged here.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := uuid.NewString()
	stamp(w.Header(), r, id)
	a, err := s.serve(r)
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = &Error{Status: http.StatusInternalServerError, Code: "InternalError", Message: "The server encountered an internal error. Please retry the request.", Err: err}
		}
		level := slog.LevelInfo
		if e.Status >= http.StatusInternalServerError {
			level = slog.LevelError
		}
		s.logger().Log(r.Context(), level, "blob request refused", "method", r.Method, "host", r.Host, "path", r.URL.EscapedPath(), "status", e.Status, "err", e)
		a = e.answer(id, s.now())
	}
	for k, vs := range a.header {
		w.Header()[k] = vs
	}
	if a.xml != nil {
		raw, err := xml.Marshal(a.xml)
		if err != nil {
			s.logger().ErrorContext(r.Context(), "answer cannot be encoded", "err", err)
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/xml")
		a.content = append([]byte(xml.Header), raw...)
	}
	if w.Header().Get("Content-Length") == "" && a.status != http.StatusNotModified && a.status != http.StatusNoContent {
		w.Header().Set("Content-Length", strconv.Itoa(len(a.content)))
	}
	w.WriteHeader(a.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(a.content) // the client is gone: nobody is left to tell
	}
}

func (s *Server) serve(r *http.Request) (answer, error) {
	account, err := s.find(r.Host)
	if err != nil {
		return answer{}, err
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return answer{}, badRequest("InvalidUri", "The requested URI does not represent any resource on the server.")
	}
	c := &call{account: account, query: query, header: r.Header, now: s.now().UTC()}
	if err := c.locate(r.Method, r.URL.Path); err != nil {
		return answer{}, err
	}
	if c.caller, err = s.authenticate(r, account); err != nil {
		return answer{}, err
	}
	if err := s.DB.View(func(tx *state.Tx) error { c.tx = tx; return c.authorize() }); err != nil {
		return answer{}, err
	}
	if c.body, err = io.ReadAll(http.MaxBytesReader(nil, r.Body, MaxBlob)); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return answer{}, fault(http.StatusRequestEntityTooLarge, "RequestBodyTooLarge", "The request body is too large and exceeds the maximum permissible limit: %d bytes in this cloud.", MaxBlob)
		}
		return answer{}, badRequest("InvalidInput", "The request body could not be read.")
	}
	run := s.DB.Update
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		run = s.DB.View
	}
	var a answer
	err = run(func(tx *state.Tx) (err error) {
		c.tx = tx
		var ok bool
		if c.account, ok, err = storage.Find(tx, account.Name); err != nil || !ok {
			return errors.Join(err, noAccount(account.Name))
		}
		if err := c.authorize(); err != nil {
			return err
		}
		a, err = c.operation.handler(c)
		return err
	})
	return a, err
}

func noAccount(name string) error {
	return fault(http.StatusNotFound, "ResourceNotFound", "The storage account '%.100s' does not exist. Create it with Resource Manager first.", name)
}

// find reads the account that a Host header names.
func (s *Server) find(host string) (a storage.Account, err error) {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	name, _ := strings.CutSuffix(azure.Fold(strings.TrimSuffix(host, ".")), "."+azure.SuffixBlob)
	err = s.DB.View(func(tx *state.Tx) error {
		found, ok, err := storage.Find(tx, name)
		if err == nil && !ok {
			err = noAccount(name)
		}
		a = found
		return err
	})
	return a, err
}

// authenticate finds out who calls; nil is nobody.
func (s *Server) authenticate(r *http.Request, a storage.Account) (*login.Claims, error) {
	if r.URL.Query().Has("sig") {
		return nil, fault(http.StatusForbidden, "KeyBasedAuthenticationNotPermitted", "Key based authentication is not permitted on this storage account.")
	}
	values := r.Header.Values("Authorization")
	if len(values) == 0 || values[0] == "" {
		return nil, nil
	}
	scheme, bearer, _ := strings.Cut(values[0], " ")
	switch {
	case strings.EqualFold(scheme, "SharedKey") || strings.EqualFold(scheme, "SharedKeyLite"):
		return nil, fault(http.StatusForbidden, "KeyBasedAuthenticationNotPermitted", "Key based authentication is not permitted on this storage account.")
	case len(values) > 1 || !strings.EqualFold(scheme, "Bearer") || bearer == "":
		return nil, badRequest("InvalidAuthenticationInfo", "Authentication information is not given in the correct format. Check the value of Authorization header.")
	case r.Header.Get("x-ms-version") < "2017-11-09":
		return nil, badRequest("InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: a token needs x-ms-version 2017-11-09 or later.")
	}
	resource, _ := azure.FindResource(azure.ResourceStorage)
	caller, err := s.Verify(r.Context(), strings.TrimSpace(bearer), resource.Audiences...)
	var e *login.TokenError
	if err != nil && !errors.As(err, &e) {
		return nil, err
	}
	if err == nil && caller.TenantID == a.TenantID {
		return &caller, nil
	}
	refused := unauthenticated(a, "InvalidAuthenticationInfo", "Server failed to authenticate the request. Please refer to the information in the www-authenticate header.")
	switch {
	case err == nil || errors.Is(err, login.ErrTokenIssuer):
		refused.Detail = "Issuer validation failed. Issuer did not match."
	case errors.Is(err, login.ErrTokenAudience):
		refused.Detail = "Audience validation failed. Audience did not match."
	case errors.Is(err, login.ErrTokenExpired):
		refused.Detail = "Lifetime validation failed. The token is expired."
	default:
		refused.Detail = "Signature validation failed."
	}
	refused.Err = err
	return nil, refused
}

func unauthenticated(a storage.Account, code, message string) *Error {
	e := fault(http.StatusUnauthorized, code, "%s", message)
	e.Challenge = fmt.Sprintf("Bearer authorization_uri=https://%s/%s/oauth2/authorize resource_id=%s", azure.HostLogin, a.TenantID, azure.ResourceStorage)
	return e
}

// authorize refuses the call unless a role allows it, or the container is open.
func (c *call) authorize() error {
	if c.caller == nil {
		return c.authorizeNobody()
	}
	scope := c.account.ID
	if c.container != "" {
		scope = scope.Child("blobServices", "default").Child("containers", c.container)
	}
	d, err := roles.Authorize(c.tx, c.caller.ObjectID, azure.TypeStorageAccount+"/blobServices/"+c.operation.action, c.operation.data, scope.String())
	if err != nil || d.Allowed {
		return err
	}
	e := fault(http.StatusForbidden, "AuthorizationPermissionMismatch", "This request is not authorized to perform this operation using this permission.")
	e.Err = fmt.Errorf("denied to %s: %s at %s: %s", c.caller.ObjectID, c.operation.action, scope, d.Reason)
	return e
}

// authorizeNobody lets nobody read where the container says so and the account agrees.
func (c *call) authorizeNobody() error {
	if c.operation.public != accessNone && c.account.Public {
		have, ok, err := c.findContainer()
		if err != nil {
			return err
		}
		if ok && (have.Access == accessContainer || have.Access == accessBlob && c.operation.public == accessBlob) {
			return nil
		}
	}
	switch {
	case c.operation.public == accessNone || c.header.Get("x-ms-version") >= "2019-12-12":
		// From that version on clients are told where to get a token.
		return unauthenticated(c.account, "NoAuthenticationInformation", "Server failed to authenticate the request. Please refer to the information in the www-authenticate header.")
	case !c.account.Public:
		return fault(http.StatusConflict, "PublicAccessNotPermitted", "Public access is not permitted on this storage account.")
	}
	return fault(http.StatusNotFound, "ResourceNotFound", "The specified resource does not exist.")
}

// stamp sets the headers that every answer carries.
func stamp(h http.Header, r *http.Request, id string) {
	h.Set("Server", "Windows-Azure-Blob/1.0 Microsoft-HTTPAPI/2.0")
	h.Set("x-ms-request-id", id)
	h.Set("X-Content-Type-Options", "nosniff")
	if v := r.Header.Get("x-ms-version"); len(v) == len("2017-11-09") && strings.Trim(v, "0123456789-") == "" {
		h.Set("x-ms-version", v)
	} else {
		h.Set("x-ms-version", "2009-09-19")
	}
	if id := r.Header.Get("x-ms-client-request-id"); uuid.Validate(id) == nil {
		h.Set("x-ms-client-request-id", id)
	}
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

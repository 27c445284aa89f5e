// Package vault is the data plane of the local cloud's Key Vaults: secrets under https://NAME.vault.azure.net.
//
//	request
//	   1 which vault          by the Host header; Resource Manager made it
//	   2 challenge            no token: 401 that says where to get one, before anything else is read
//	   3 authenticate         signature, issuer, audience, time       (Server.Verify)
//	   -- one transaction --
//	   4 authorise            role assignments with data actions, or the vault's access policies
//	   5 read or change       one record per secret, with all its versions
//	   -- committed --
//	   6 answer
//
// Deleted secrets stay recoverable for the vault's retention time. Keys and certificates are not served.
//
// Source: https://learn.microsoft.com/rest/api/keyvault/
package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/login"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
	"github.com/lanyard-id/lanyard/internal/cloud/management/vaults"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

const maxBody = 1 << 20

// A Server answers for all vaults. DB and Verify must be set.
type Server struct {
	DB *state.DB

	// Verify checks a bearer token and returns who it speaks for. The token must be for one of the audiences.
	Verify func(ctx context.Context, bearer string, audiences ...string) (login.Claims, error)

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default
}

// Handler returns the handler for *.vault.azure.net.
func (s *Server) Handler() http.Handler { return s }

// A call is one request of an authenticated caller.
type call struct {
	tx     *state.Tx
	vault  vaults.Vault
	caller login.Claims
	target target
	query  url.Values
	body   []byte
	now    time.Time
}

// An answer is a success; a nil body means none.
type answer struct {
	status int
	body   any
}

func ok(body any) (answer, error) { return answer{http.StatusOK, body}, nil }

// ServeHTTP answers one request. All errors are written and logged here.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a, err := s.serve(r)
	stamp(w.Header(), r)
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = &Error{Status: http.StatusInternalServerError, Code: "InternalServerError", Message: "The server encountered an internal error.", Err: err}
		}
		level := slog.LevelInfo
		if e.Status >= http.StatusInternalServerError {
			level = slog.LevelError
		}
		s.logger().Log(r.Context(), level, "vault request refused", "method", r.Method, "host", r.Host, "path", r.URL.EscapedPath(), "status", e.Status, "err", e)
		if e.Challenge != "" {
			w.Header().Set("WWW-Authenticate", e.Challenge)
		}
		a = answer{e.Status, e.body()}
	}
	if a.body == nil {
		w.WriteHeader(a.status)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(a.status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(a.body) // the client is gone: nobody is left to tell
}

func (s *Server) serve(r *http.Request) (answer, error) {
	v, err := s.find(r.Host)
	if err != nil {
		return answer{}, err
	}
	caller, err := s.authenticate(r, v)
	if err != nil {
		return answer{}, err
	}
	t, err := route(r.Method, r.URL.EscapedPath())
	if err != nil {
		return answer{}, err
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return answer{}, badParameter("The query string is malformed.")
	}
	if query.Get("api-version") == "" {
		return answer{}, badParameter("api-version must be specified.")
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		return answer{}, badParameter("The request body could not be read or is larger than %d bytes.", maxBody)
	}
	c := &call{vault: v, caller: caller, target: t, query: query, body: body, now: s.now().UTC()}
	run := s.DB.Update
	if r.Method == http.MethodGet {
		run = s.DB.View
	}
	var a answer
	err = run(func(tx *state.Tx) (err error) {
		c.tx = tx
		// The vault may have been deleted since it was found.
		if c.vault, err = find(tx, v.Name); err != nil {
			return err
		}
		if err := c.authorize(); err != nil {
			return err
		}
		a, err = t.handler(c)
		return err
	})
	return a, err
}

// find reads the vault that a Host header names.
func (s *Server) find(host string) (v vaults.Vault, err error) {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	name, found := strings.CutSuffix(azure.Fold(strings.TrimSuffix(host, ".")), "."+azure.SuffixVault)
	if !found {
		return v, fault(http.StatusNotFound, "VaultNotFound", "", "The host '%.300s' is not a vault: vaults are NAME.%s.", host, azure.SuffixVault)
	}
	err = s.DB.View(func(tx *state.Tx) (err error) { v, err = find(tx, name); return err })
	return v, err
}

func find(tx *state.Tx, name string) (vaults.Vault, error) {
	v, found, err := vaults.Find(tx, name)
	if err == nil && !found {
		err = fault(http.StatusNotFound, "VaultNotFound", "", "The vault '%.100s' does not exist. Create it with Resource Manager first.", name)
	}
	return v, err
}

// authenticate finds out who calls.
func (s *Server) authenticate(r *http.Request, v vaults.Vault) (login.Claims, error) {
	refuse := func(message string, err error) (login.Claims, error) {
		return login.Claims{}, &Error{Status: http.StatusUnauthorized, Code: "Unauthorized", Message: message, Err: err,
			// Clients split this at spaces and then at "=": one of each per part, and none in a value.
			Challenge: fmt.Sprintf(`Bearer authorization="https://login.windows.net/%s", resource="%s"`, v.TenantID, azure.ResourceVault)}
	}
	values := r.Header.Values("Authorization")
	if len(values) == 0 || values[0] == "" {
		return refuse("AKV10000: Request is missing a Bearer or PoP token.", nil)
	}
	scheme, bearer, _ := strings.Cut(values[0], " ")
	if len(values) > 1 || !strings.EqualFold(scheme, "Bearer") || bearer == "" {
		return refuse("AKV10000: Request is missing a Bearer or PoP token.", errors.New("malformed Authorization header"))
	}
	caller, err := s.Verify(r.Context(), strings.TrimSpace(bearer), azure.VaultAudiences()...)
	var e *login.TokenError
	switch {
	case err != nil && !errors.As(err, &e):
		return login.Claims{}, err
	case err == nil && caller.TenantID == v.TenantID:
		return caller, nil
	case err == nil || errors.Is(e.Kind, login.ErrTokenIssuer):
		found := "https://sts.windows.net/" + caller.TenantID + "/"
		if e != nil {
			found = e.Found
		}
		return refuse(fmt.Sprintf("AKV10032: Invalid issuer. Expected one of https://sts.windows.net/%s/, found %.300s.", v.TenantID, found), err)
	case errors.Is(e.Kind, login.ErrTokenAudience):
		return refuse(fmt.Sprintf("AKV10022: Invalid audience. Expected %s, found: %.300s.", azure.ResourceVault, e.Found), err)
	case errors.Is(e.Kind, login.ErrTokenExpired):
		return refuse("Error validating token: it has expired.", err)
	}
	return refuse("Error validating token: it is invalid.", err)
}

// A target is what a request asks for.
type target struct {
	name, version string
	action        string // of RBAC, without the common prefix
	permission    string // of access policies
	wholeVault    bool   // the action is on the vault, not on one secret
	handler       func(*call) (answer, error)
}

var (
	validName    = regexp.MustCompile(`^[0-9a-zA-Z-]{1,127}$`)
	validVersion = regexp.MustCompile(`^[0-9a-fA-F]{32}$`)
)

// route finds the operation. Names of secrets have no character that needs an escape, so an escaped path names none.
func route(method, path string) (target, error) {
	segments := strings.Split(strings.Trim(path, "/"), "/")
	unknown := fault(http.StatusNotFound, "NotFound", "", "Nothing is served under this path. This vault knows /secrets and /deletedsecrets.")
	if slices.Contains(segments, "") || len(segments) > 3 {
		return target{}, unknown
	}
	var t target
	switch segments[0] {
	case "secrets":
		t = routeSecrets(method, segments[1:])
	case "deletedsecrets":
		t = routeDeleted(method, segments[1:])
	default:
		return target{}, unknown
	}
	if t.handler == nil {
		return target{}, fault(http.StatusMethodNotAllowed, "MethodNotAllowed", "", "The method %s is not allowed here.", method)
	}
	if !t.wholeVault && !validName.MatchString(t.name) {
		return target{}, badParameter("The request URI contains an invalid name: %.200s", t.name)
	}
	if t.version != "" && !validVersion.MatchString(t.version) {
		return target{}, notFound(t.name + "/" + t.version)
	}
	return t, nil
}

func routeSecrets(method string, rest []string) target {
	switch len(rest) {
	case 0:
		if method == http.MethodGet {
			return target{action: "readMetadata/action", permission: "list", wholeVault: true, handler: (*call).list}
		}
	case 1:
		t := target{name: rest[0]}
		switch method {
		case http.MethodGet:
			t.action, t.permission, t.handler = "getSecret/action", "get", (*call).get
		case http.MethodPut:
			t.action, t.permission, t.handler = "setSecret/action", "set", (*call).set
		case http.MethodPatch:
			t.action, t.permission, t.handler = "update/action", "set", (*call).update
		case http.MethodDelete:
			t.action, t.permission, t.handler = "delete", "delete", (*call).remove
		case http.MethodPost:
			if rest[0] == "restore" {
				t = target{action: "restore/action", permission: "restore", wholeVault: true, handler: (*call).restore}
			}
		}
		return t
	case 2:
		t := target{name: rest[0]}
		switch {
		case method == http.MethodGet && rest[1] == "versions":
			t.action, t.permission, t.handler = "readMetadata/action", "list", (*call).versions
		case method == http.MethodPost && rest[1] == "backup":
			t.action, t.permission, t.handler = "backup/action", "backup", (*call).backup
		case method == http.MethodGet:
			t.version, t.action, t.permission, t.handler = rest[1], "getSecret/action", "get", (*call).get
		case method == http.MethodPatch:
			t.version, t.action, t.permission, t.handler = rest[1], "update/action", "set", (*call).update
		}
		return t
	}
	return target{}
}

func routeDeleted(method string, rest []string) target {
	switch {
	case len(rest) == 0 && method == http.MethodGet:
		return target{action: "readMetadata/action", permission: "list", wholeVault: true, handler: (*call).listDeleted}
	case len(rest) == 1 && method == http.MethodGet:
		return target{name: rest[0], action: "readMetadata/action", permission: "get", handler: (*call).getDeleted}
	case len(rest) == 1 && method == http.MethodDelete:
		return target{name: rest[0], action: "purge/action", permission: "purge", handler: (*call).purge}
	case len(rest) == 2 && method == http.MethodPost && rest[1] == "recover":
		return target{name: rest[0], action: "recover/action", permission: "recover", handler: (*call).recover}
	}
	return target{}
}

// authorize refuses the call unless a role (or an access policy) allows it.
func (c *call) authorize() error {
	if !c.vault.RBAC() {
		return c.authorizePolicy()
	}
	scope := c.vault.ID
	if !c.target.wholeVault {
		scope = scope.Child("secrets", c.target.name)
	}
	action := azure.TypeVault + "/secrets/" + c.target.action
	d, err := roles.Authorize(c.tx, c.caller.ObjectID, action, true, scope.String())
	if err != nil || d.Allowed {
		return err
	}
	shown := scope
	shown.Provider = azure.Fold(shown.Provider)
	e := fault(http.StatusForbidden, "Forbidden", "ForbiddenByRbac",
		"Caller is not authorized to perform action on resource.\r\n"+
			"If role assignments, deny assignments or role definitions were changed recently, please observe propagation time.\r\n"+
			"Caller: %s\r\nAction: '%s'\r\nResource: '%s'\r\nAssignment: (not found)\r\nDenyAssignmentId: null\r\nDecisionReason: 'DeniedWithNoValidRBAC' \r\nVault: %s;location=%s\r\n",
		c.callerText(), action, shown.IdentityString(), c.vault.Name, c.vault.Location)
	e.Err = fmt.Errorf("denied: %s", d.Reason)
	return e
}

func (c *call) authorizePolicy() error {
	for _, p := range c.vault.AccessPolicies {
		if azure.Fold(p.ObjectID) != azure.Fold(c.caller.ObjectID) || azure.Fold(p.TenantID) != azure.Fold(c.caller.TenantID) {
			continue
		}
		for _, have := range p.Permissions.Secrets {
			if strings.EqualFold(have, c.target.permission) || strings.EqualFold(have, "all") && c.target.permission != "purge" {
				return nil
			}
		}
	}
	return fault(http.StatusForbidden, "Forbidden", "AccessDenied",
		"The user, group or application '%s' does not have secrets %s permission on key vault '%s;location=%s'. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125287",
		c.callerText(), c.target.permission, c.vault.Name, c.vault.Location)
}

func (c *call) callerText() string {
	return fmt.Sprintf("appid=%s;oid=%s;iss=https://sts.windows.net/%s/", c.caller.AppID, c.caller.ObjectID, c.caller.TenantID)
}

// stamp sets the headers that every answer carries.
func stamp(h http.Header, r *http.Request) {
	h.Set("Cache-Control", "no-cache")
	h.Set("Pragma", "no-cache")
	h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("x-ms-keyvault-region", "eastus")
	h.Set("x-ms-keyvault-service-version", "1.9.3019.1")
	h.Set("x-ms-request-id", uuid.NewString())
	if id := r.Header.Get("x-ms-client-request-id"); uuid.Validate(id) == nil {
		h.Set("x-ms-client-request-id", id)
	}
	if address, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		h.Set("x-ms-keyvault-network-info", "conn_type=Ipv4;addr="+address+";act_addr_fam=InterNetwork;")
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

package entra

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/token"
)

// DefaultAuthority is that of the public cloud.
const DefaultAuthority = "https://login.microsoftonline.com/"

// AuthorityHosts are the hosts of the token services of the Azure clouds.
func AuthorityHosts() []string {
	return append(azure.LoginHosts(), "login.microsoftonline.us", "login.usgovcloudapi.net",
		"login.partner.microsoftonline.cn", "login.chinacloudapi.cn")
}

// An Application is who asks for a token, and where.
type Application struct {
	Authority string // base URL of the token service; empty means the client's
	Tenant    string // id or domain name
	ClientID  string
}

// A Credential authenticates an application.
type Credential interface {
	// Form returns the parameters for clientID at the endpoint with the URL
	// audience.
	Form(clientID, audience string, now time.Time) (url.Values, error)
}

// A Client asks token endpoints for tokens of applications. It keeps none:
// that is a token.Cache's business. The zero value is ready to use.
type Client struct {
	Authority string       // empty means DefaultAuthority
	HTTP      *http.Client // nil means one of its own: proxies of the environment, no redirects
	AllowHTTP bool         // accept an authority without TLS: in tests only

	Now func() time.Time // nil means time.Now

	once sync.Once
	own  *http.Client
}

// ErrUnusable is wrapped by errors that say what is wrong with the question:
// nothing was sent.
var ErrUnusable = errors.New("the request cannot be made")

// Token asks for a token by client credentials (RFC 6749, section 4.4) at the
// v2.0 endpoint. Its scope is the resource with "/.default" behind it, also
// behind a "/": the audience of "https://management.azure.com//.default" is
// "https://management.azure.com/". Errors are a *Refusal if Entra answered,
// wrap ErrUnusable or the context's error, or say that Entra was not reached.
func (c *Client) Token(ctx context.Context, app Application, cred Credential, resource string) (token.Token, error) {
	endpoint, err := Endpoint(cmp.Or(app.Authority, c.Authority, DefaultAuthority), app.Tenant, c.AllowHTTP)
	if err != nil {
		return token.Token{}, err
	}
	if resource == "" || strings.ContainsFunc(resource, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return token.Token{}, fmt.Errorf("%w: the resource %q is no single identifier", ErrUnusable, resource)
	}
	now := c.now()
	t, err := c.post(ctx, endpoint, app.ClientID, cred, resource, now)
	if r, ok := errors.AsType[*Refusal](err); ok && r.hasCode(codeAssertionTime) && !r.Date.IsZero() && r.Date.Sub(now).Abs() > time.Minute {
		// This node's clock is wrong; Entra's own is good enough to sign with.
		t, err = c.post(ctx, endpoint, app.ClientID, cred, resource, r.Date)
	}
	return t, err
}

// CloseIdleConnections closes the connections that wait for another use.
func (c *Client) CloseIdleConnections() { c.client().CloseIdleConnections() }

// post makes one request. It uses x/oauth2 for the form, the answer and their
// limits; its own token reuse is of no use here.
func (c *Client) post(ctx context.Context, endpoint, clientID string, cred Credential, resource string, signed time.Time) (token.Token, error) {
	form, err := cred.Form(clientID, endpoint, signed)
	if err != nil {
		return token.Token{}, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	config := clientcredentials.Config{
		ClientID: clientID, TokenURL: endpoint, Scopes: []string{resource + "/.default"},
		EndpointParams: form, AuthStyle: oauth2.AuthStyleInParams,
	}
	now, started := c.now(), time.Now()
	t, err := config.Token(context.WithValue(ctx, oauth2.HTTPClient, c.client()))
	if err != nil {
		return token.Token{}, c.failure(ctx, err)
	}
	if t.Expiry.IsZero() {
		return token.Token{}, errors.New("asking Entra: no expires_in in the answer")
	}
	// Counted from before the request: rather too early than too late.
	elapsed := time.Since(started)
	return token.Token{
		AccessToken: t.AccessToken, Resource: resource, ClientID: clientID,
		ExpiresOn: now.Add(time.Until(t.Expiry) - elapsed).Truncate(time.Second),
	}, nil
}

func (c *Client) failure(ctx context.Context, err error) error {
	if r, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		return newRefusal(r.Response, r.Body)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("asking Entra: %w", ctx.Err())
	}
	if _, ok := errors.AsType[*url.Error](err); ok {
		return fmt.Errorf("asking Entra: %w", err)
	}
	return errors.New("asking Entra: the answer is not the JSON of a token") // err could quote it
}

func (c *Client) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

func (c *Client) client() *http.Client {
	if c.HTTP != nil {
		return c.HTTP
	}
	c.once.Do(func() {
		c.own = &http.Client{
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				Proxy:               http.ProxyFromEnvironment,
				DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
				TLSHandshakeTimeout: 5 * time.Second,
				MaxIdleConnsPerHost: 8,
				IdleConnTimeout:     90 * time.Second,
				ForceAttemptHTTP2:   true,
			},
		}
	})
	return c.own
}

// tenants are ids and domain names: nothing that could lead a path elsewhere.
var tenants = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

// Endpoint returns the URL of a tenant's v2.0 token endpoint. Errors wrap
// ErrUnusable.
func Endpoint(authority, tenant string, allowHTTP bool) (string, error) {
	u, err := url.Parse(authority)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: the authority %q is no URL", ErrUnusable, authority)
	case u.Scheme != "https" && (!allowHTTP || u.Scheme != "http"):
		return "", fmt.Errorf("%w: the authority %q does not begin with https://", ErrUnusable, authority)
	case u.Host == "" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(u.Path, ".."):
		return "", fmt.Errorf("%w: the authority %q is more or less than https://HOST/", ErrUnusable, authority)
	case !tenants.MatchString(tenant) || strings.Contains(tenant, ".."):
		return "", fmt.Errorf("%w: the tenant %q is neither an id nor a domain name", ErrUnusable, tenant)
	}
	return u.JoinPath(tenant, "oauth2/v2.0/token").String(), nil
}

// Numbers that a client tells apart.
const (
	codeAssertionTime     = 700024
	codeAssertionAudience = 700023
)

// A Refusal is what a token endpoint answered instead of a token.
type Refusal struct {
	Status     int           // HTTP status
	Name       string        // OAuth error, such as invalid_client; empty if the body was not Entra's
	Text       string        // error_description as it came, at most 2 KiB of one line
	Codes      []int         // the numbers after AADSTS
	RetryAfter time.Duration // at most an hour; zero if it was not said
	Date       time.Time     // of the answer, by the server's clock; may be zero
}

// Error says what Entra said; it holds no secret.
func (r *Refusal) Error() string {
	if r.Name == "" && r.Text == "" {
		return fmt.Sprintf("Entra answered %d", r.Status)
	}
	return fmt.Sprintf("Entra answered %d %s: %s", r.Status, r.Name, r.Text)
}

// hasCode reports whether the number is among the refusal's.
func (r *Refusal) hasCode(code int) bool { return slices.Contains(r.Codes, code) }

// Transient reports whether asking again later may help without a change.
func (r *Refusal) Transient() bool {
	return r.Status >= 500 || r.Status == http.StatusTooManyRequests || r.Status == http.StatusRequestTimeout || r.Status < 400 ||
		r.Name == "temporarily_unavailable" || r.Name == "server_error" || r.hasCode(codeAssertionTime)
}

// BadCredential reports whether another credential might be accepted: a wrong
// or expired secret, an unknown or expired certificate.
func (r *Refusal) BadCredential() bool {
	return r.Name == "invalid_client" && !r.Transient() && !r.hasCode(codeAssertionAudience)
}

// BadTime reports whether the assertion was refused for its age: it has expired,
// or a clock is wrong.
func (r *Refusal) BadTime() bool { return r.hasCode(codeAssertionTime) }

func newRefusal(res *http.Response, body []byte) *Refusal {
	r := &Refusal{Status: res.StatusCode}
	var b ErrorBody
	if json.Unmarshal(body, &b) == nil {
		r.Name, r.Text, r.Codes = oneLine(b.Error, 64), oneLine(b.Description, 2<<10), b.Codes
	}
	if at, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		r.Date = at
	}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
		r.RetryAfter = time.Duration(min(s, 3600)) * time.Second
	} else if at, err := http.ParseTime(res.Header.Get("Retry-After")); err == nil && !r.Date.IsZero() {
		r.RetryAfter = min(time.Hour, max(0, at.Sub(r.Date)))
	}
	return r
}

// oneLine makes what a server wrote fit for a log and an event.
func oneLine(s string, most int) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

package imds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lanyard-id/lanyard/internal/token"
)

// DefaultBaseURL is where every Azure machine finds its metadata service.
const DefaultBaseURL = "http://169.254.169.254"

// apiVersion is the one that every SDK sends.
const apiVersion = "2018-02-01"

// maxBody bounds an answer; tokens with many groups reach some 20 KiB.
const maxBody = 1 << 20

// A Client asks a metadata service for tokens. It implements token.Source. The
// zero value is ready to use.
type Client struct {
	BaseURL string       // empty means DefaultBaseURL
	HTTP    *http.Client // nil means one of its own: no proxy, no redirects, 30 s

	once sync.Once
	own  *http.Client
}

// Token asks for a token. The error is an *Error (with the status that the
// service answered, or 502 or 503 if it answered nonsense or nothing), or
// it wraps the context's error.
func (c *Client) Token(ctx context.Context, r token.Request) (token.Token, error) {
	q := url.Values{"api-version": {apiVersion}, "resource": {r.Resource}}
	for name, v := range map[string]string{"client_id": r.ClientID, "object_id": r.ObjectID, "msi_res_id": r.ResourceID} {
		if v != "" {
			q.Set(name, v)
		}
	}
	base := c.BaseURL
	if base == "" {
		base = DefaultBaseURL
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+TokenPath+"?"+q.Encode(), nil)
	if err != nil {
		return token.Token{}, fmt.Errorf("asking the metadata service: %w", err)
	}
	req.Header.Set("Metadata", "true")
	res, err := c.client().Do(req)
	if err != nil {
		return token.Token{}, unreachable(ctx, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	switch {
	case err != nil:
		return token.Token{}, unreachable(ctx, err)
	case len(body) > maxBody:
		return token.Token{}, nonsense(errors.New("the answer is larger than 1 MiB"))
	case res.StatusCode != http.StatusOK:
		return token.Token{}, upstream(res, body)
	}
	return decodeToken(body, r, time.Now())
}

// CloseIdleConnections closes the connections of the client's own transport.
func (c *Client) CloseIdleConnections() { c.client().CloseIdleConnections() }

func (c *Client) client() *http.Client {
	if c.HTTP != nil {
		return c.HTTP
	}
	c.once.Do(func() {
		c.own = &http.Client{
			Timeout:       30 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				// Proxy stays nil: the metadata service is link-local and must
				// never be asked through HTTP_PROXY.
				DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
				MaxIdleConnsPerHost: 64, // it counts on being asked by a whole node
				IdleConnTimeout:     90 * time.Second,
			},
		}
	})
	return c.own
}

func unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("asking the metadata service: %w", ctx.Err())
	}
	return &Error{Status: http.StatusServiceUnavailable, Code: CodeUnknown, Description: "the metadata service of the node does not answer", RetryAfter: time.Second, Err: err}
}

func nonsense(err error) error {
	return &Error{Status: http.StatusBadGateway, Code: CodeUnknown, Description: "the metadata service of the node gave an answer that is not a token", Err: err}
}

func upstream(res *http.Response, body []byte) error {
	var b errorBody
	e := &Error{Status: res.StatusCode}
	if err := json.Unmarshal(body, &b); err != nil || b.Error == "" && b.Description == "" {
		e.Description = fmt.Sprintf("the metadata service of the node answered %d", res.StatusCode)
	} else {
		e.Code, e.Description = b.Error, b.Description
	}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(min(s, 3600)) * time.Second
	}
	if res.StatusCode < 400 {
		e.Status = http.StatusBadGateway
	}
	return e
}

// A seconds is a count that some services write as a string, others as a number.
type seconds int64

func (s *seconds) UnmarshalJSON(b []byte) error {
	text := strings.Trim(string(b), `"`)
	if text == "" || text == "null" {
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	*s = seconds(n)
	return err
}

func decodeToken(body []byte, r token.Request, now time.Time) (token.Token, error) {
	var b struct {
		AccessToken string  `json:"access_token"`
		ClientID    string  `json:"client_id"`
		ExpiresIn   seconds `json:"expires_in"`
		ExpiresOn   seconds `json:"expires_on"`
		NotBefore   seconds `json:"not_before"`
	}
	if err := json.Unmarshal(body, &b); err != nil {
		return token.Token{}, nonsense(errors.New("the answer is not the JSON of a token")) // err could quote the token
	}
	t := token.Token{AccessToken: b.AccessToken, ClientID: b.ClientID, Resource: r.Resource}
	switch {
	case b.AccessToken == "":
		return token.Token{}, nonsense(errors.New("no access_token in the answer"))
	case b.ExpiresOn > 0:
		t.ExpiresOn = time.Unix(int64(b.ExpiresOn), 0)
	case b.ExpiresIn > 0:
		t.ExpiresOn = now.Add(time.Duration(min(b.ExpiresIn, 1<<30)) * time.Second)
	default:
		return token.Token{}, nonsense(errors.New("neither expires_on nor expires_in in the answer"))
	}
	if b.NotBefore > 0 {
		t.NotBefore = time.Unix(int64(b.NotBefore), 0)
	}
	if r.ClientID != "" && b.ClientID != "" && !strings.EqualFold(r.ClientID, b.ClientID) {
		return token.Token{}, nonsense(fmt.Errorf("asked for client %s, got a token of client %s", r.ClientID, b.ClientID))
	}
	if t.ClientID == "" {
		t.ClientID = r.ClientID
	}
	return t, nil
}

// Package graph is a small client of Microsoft Graph v1.0: applications,
// service principals, and the federated identity credentials of applications.
// The wire types are what a server needs as well.
//
//	Client ── azcore's pipeline: retries, bearer token ──> graph.microsoft.com/v1.0
//	*arm.Error <── what it refuses
//
// Microsoft's own SDK for Graph would add more than 100 MB to a binary.
package graph

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"github.com/lanyard-id/lanyard/internal/arm"
)

const (
	version = "v1.0"
	// maxPages bounds a listing: a server whose pages never end does not hold us.
	maxPages = 1000
	// maxAnswer is far above any page of what is read here.
	maxAnswer = 16 << 20
)

// ErrNotFound is what a look-up returns that finds nothing.
var ErrNotFound = errors.New("not found in the directory")

// A Client speaks with Graph. It is safe for concurrent use.
type Client struct {
	root     *url.URL // with the version
	pipeline runtime.Pipeline
}

// New makes a client; base carries transport, telemetry and retries.
func New(c arm.Cloud, credential azcore.TokenCredential, base policy.ClientOptions) (*Client, error) {
	if c.Graph == "" {
		return nil, fmt.Errorf("the cloud %s has no Microsoft Graph: its description needs microsoftGraphEndpoint; without it, use a managed identity by its resource id", c.Name)
	}
	root, err := url.Parse(strings.TrimSuffix(c.Graph, "/") + "/" + version)
	if err != nil {
		return nil, fmt.Errorf("the endpoint of Microsoft Graph: %w", err)
	}
	base.Cloud = c.Configuration()
	auth := runtime.NewBearerTokenPolicy(credential, []string{strings.TrimSuffix(c.Graph, "/") + "/.default"}, nil)
	return &Client{
		root:     root,
		pipeline: runtime.NewPipeline("lanyard", "v0.0.0", runtime.PipelineOptions{PerRetry: []policy.Policy{auth}}, &base),
	}, nil
}

// do sends one request and decodes the answer into out unless nil. A segment of
// path is one name, whatever it holds.
func (c *Client) do(ctx context.Context, method string, query url.Values, in, out any, path ...string) error {
	target := c.root.JoinPath(escaped(path)...)
	target.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	return c.send(ctx, method, target.String(), in, out)
}

func escaped(path []string) []string {
	out := make([]string, len(path))
	for i, segment := range path {
		// JoinPath would take "." and ".." for steps.
		out[i] = strings.ReplaceAll(url.PathEscape(segment), ".", "%2E")
	}
	return out
}

func (c *Client) send(ctx context.Context, method, target string, in, out any) error {
	req, err := runtime.NewRequest(ctx, method, target)
	if err != nil {
		return err
	}
	req.Raw().Header.Set("Accept", "application/json")
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		if err := req.SetBody(readSeekCloser{bytes.NewReader(data)}, "application/json"); err != nil {
			return err
		}
	}
	resp, err := c.pipeline.Do(req)
	if err != nil {
		return arm.AsError(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return arm.AsError(runtime.NewResponseError(resp))
	}
	if out == nil {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("reading the answer of Graph: %w", err)
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("the answer of Graph is not what it should be: %w", err)
	}
	return nil
}

type readSeekCloser struct{ *bytes.Reader }

func (readSeekCloser) Close() error { return nil }

// list reads all pages.
func list[T any](ctx context.Context, c *Client, query url.Values, path ...string) ([]T, error) {
	target := c.root.JoinPath(escaped(path)...)
	target.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	var out []T
	next := target.String()
	for range maxPages {
		var page Page[T]
		if err := c.send(ctx, http.MethodGet, next, nil, &page); err != nil {
			return nil, err
		}
		out = append(out, page.Value...)
		if page.NextLink == "" {
			return out, nil
		}
		// The link comes from the answer, the token goes with the request: it must
		// not leave the host that it is for.
		u, err := url.Parse(page.NextLink)
		if err != nil || u.Scheme != c.root.Scheme || !strings.EqualFold(u.Host, c.root.Host) || u.User != nil {
			return nil, errors.New("the next page of Graph's answer is not at " + c.root.Host + ": it is not followed")
		}
		next = u.String()
	}
	return nil, fmt.Errorf("the answer of Graph has more than %d pages", maxPages)
}

// filter is a query for objects whose property equals value. A quote within a
// string is doubled (OData 4.01 URL Conventions, section 5.1.1.6.1): a name
// with a quote must not become a condition.
func filter(property, value string) url.Values {
	return url.Values{"$filter": {property + " eq " + Quote(value)}}
}

// Quote makes a string of OData.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// NotFound reports whether err says that an object does not exist.
func NotFound(err error) bool {
	var e *arm.Error
	return errors.Is(err, ErrNotFound) || errors.As(err, &e) && e.Status == http.StatusNotFound
}

// Denied reports whether err says that the caller lacks a permission.
func Denied(err error) bool {
	var e *arm.Error
	return errors.As(err, &e) && e.Status == http.StatusForbidden
}

// Exists reports whether err says that there is an object with the same key.
func Exists(err error) bool {
	var e *arm.Error
	return errors.As(err, &e) && e.Code == CodeMultipleObjects
}

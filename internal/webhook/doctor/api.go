package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// API speaks to the API server in plain JSON: pods are read one at a time out
// of the answer, as raw JSON for the mutation, and no list of them is ever held.
type API struct {
	client *http.Client
	base   *url.URL
	ahead  atomic.Int64 // how much the server's clock is ahead of ours, in nanoseconds
}

// NewAPI returns a client with the credentials and the user agent of config.
func NewAPI(config *rest.Config) (*API, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("making the doctor's client: %w", err)
	}
	base, _, err := rest.DefaultServerURL(config.Host, "", schema.GroupVersion{}, config.CAData != nil || config.CAFile != "")
	if err != nil {
		return nil, fmt.Errorf("making the doctor's client: %w", err)
	}
	return &API{client: client, base: base}, nil
}

const (
	callLimit = 15 * time.Second
	maxAnswer = 8 << 20
	podPage   = 200
)

// call sends one request and decodes the answer into out, unless that is nil.
// Errors of the server are *apierrors.StatusError.
func (a *API) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	resp, err := a.send(ctx, method, path, nil, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	switch out := out.(type) {
	case nil:
	case *json.RawMessage:
		*out = text
	default:
		if err := json.Unmarshal(text, out); err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	return nil
}

// send returns an answer of 2xx; the caller closes its body.
func (a *API) send(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	u := a.base.JoinPath(path)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		if method == http.MethodPatch {
			req.Header.Set("Content-Type", "application/merge-patch+json")
		}
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		a.ahead.Store(int64(time.Until(date)))
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var status metav1.Status
	if err != nil || json.Unmarshal(text, &status) != nil || status.Code == 0 {
		status = metav1.Status{Status: metav1.StatusFailure, Code: int32(resp.StatusCode), Message: resp.Status} //nolint:gosec // an HTTP status
	}
	return nil, fmt.Errorf("%s %s: %w", method, path, &apierrors.StatusError{ErrStatus: status})
}

// now is the time of the server, for comparison with creationTimestamps. It
// may be up to a second late: a Date has no fractions.
func (a *API) now() time.Time { return time.Now().Add(time.Duration(a.ahead.Load())) }

func podQuery() url.Values {
	return url.Values{
		"labelSelector": {workloadidentity.LabelUse + "=true"},
		"fieldSelector": {"status.phase!=Succeeded,status.phase!=Failed"},
	}
}

// pods calls each with every labelled pod that has not finished, one page
// after the other, and returns the version of the list.
func (a *API) pods(ctx context.Context, each func(raw []byte)) (string, error) {
	query := podQuery()
	query.Set("limit", strconv.Itoa(podPage))
	for {
		version, next, err := a.page(ctx, query, each)
		if err != nil {
			return "", fmt.Errorf("listing pods: %w", err)
		}
		if next == "" {
			return version, nil
		}
		query.Set("continue", next)
	}
}

// page reads a list as it comes: the largest pods are a megabyte each.
func (a *API) page(ctx context.Context, query url.Values, each func(raw []byte)) (version, next string, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	resp, err := a.send(ctx, http.MethodGet, "/api/v1/pods", query, nil)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	if _, err := dec.Token(); err != nil {
		return "", "", err
	}
	for dec.More() {
		member, err := dec.Token()
		if err != nil {
			return "", "", err
		}
		switch member {
		case "metadata":
			var m struct{ ResourceVersion, Continue string }
			if err := dec.Decode(&m); err != nil {
				return "", "", err
			}
			version, next = m.ResourceVersion, m.Continue
		case "items":
			if err := items(dec, each); err != nil {
				return "", "", err
			}
		default:
			var skipped json.RawMessage
			if err := dec.Decode(&skipped); err != nil {
				return "", "", err
			}
		}
	}
	return version, next, nil
}

func items(dec *json.Decoder, each func(raw []byte)) error {
	start, err := dec.Token()
	if err != nil || start == nil { // null
		return err
	}
	var raw json.RawMessage
	for dec.More() {
		if err := dec.Decode(&raw); err != nil {
			return err
		}
		each(raw)
	}
	_, err = dec.Token()
	return err
}

// watch calls each with every change from a version on, for at most the given
// time, and returns the version it has reached. The server may end it sooner.
func (a *API) watch(ctx context.Context, version string, limit time.Duration, each func(kind string, raw []byte)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit+callLimit) // a connection may die silently
	defer cancel()
	query := podQuery()
	query.Set("watch", "1")
	query.Set("allowWatchBookmarks", "true")
	query.Set("resourceVersion", version)
	query.Set("timeoutSeconds", strconv.Itoa(max(1, int(limit.Seconds()))))
	resp, err := a.send(ctx, http.MethodGet, "/api/v1/pods", query, nil)
	if err != nil {
		return version, fmt.Errorf("watching pods: %w", err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var event struct {
			Type   string
			Object json.RawMessage
		}
		err := dec.Decode(&event)
		switch {
		case errors.Is(err, io.EOF):
			return version, nil
		case err != nil:
			return version, fmt.Errorf("watching pods: %w", err)
		case event.Type == "ERROR":
			return version, fmt.Errorf("watching pods: the server says %.200s", event.Object)
		}
		each(event.Type, event.Object)
		var o struct {
			Metadata struct{ ResourceVersion string }
		}
		if json.Unmarshal(event.Object, &o) == nil && o.Metadata.ResourceVersion != "" {
			version = o.Metadata.ResourceVersion
		}
	}
}

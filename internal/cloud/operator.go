package cloud

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// A refusal is an answer of one of the cloud's own hosts that is no success.
type refusal struct {
	method, path string
	status       int
	body         string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%s %s: status %d: %s", r.method, r.path, r.status, r.body)
}

// ensure makes an ARM resource if it does not exist, and reads it into out
// unless that is nil.
func (s *seeder) ensure(ctx context.Context, id string, body map[string]any, out any) error {
	err := s.arm(ctx, http.MethodGet, id, nil, out)
	var refused *refusal
	if !errors.As(err, &refused) || refused.status != http.StatusNotFound {
		return err
	}
	body["location"] = s.seed.Location
	return s.arm(ctx, http.MethodPut, id, body, out)
}

// arm sends a request to Resource Manager.
func (s *seeder) arm(ctx context.Context, method, path string, in, out any) error {
	return s.call(ctx, method, "https://"+azure.HostManagement+path+"?api-version=2024-11-01", azure.ResourceManagement, in, out)
}

// call sends the operator's request to one of the cloud's hosts, in process,
// with a token for audience.
func (s *seeder) call(ctx context.Context, method, address, audience string, in, out any) error {
	token, err := s.login.ApplicationToken(ctx, s.out.Operator.PrincipalID, audience)
	if err != nil {
		return err
	}
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding %s %s: %w", method, address, err)
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return fmt.Errorf("making %s %s: %w", method, address, err)
	}
	req.Header.Set("Authorization", "Bearer "+token.AccessToken)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.inProcess().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	const limit = 4 << 20
	answer, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	if err != nil {
		return fmt.Errorf("reading the answer of %s %s: %w", method, req.URL.Path, err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return &refusal{method, req.URL.Path, resp.StatusCode, shorten(string(answer), 1000)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("the answer of %s %s: %w", method, req.URL.Path, err)
	}
	return nil
}

// inProcess is a client of the cloud's own hosts.
func (c *Cloud) inProcess() *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(c.ca.Root())
	return &http.Client{
		Timeout: connectTimeout,
		Transport: &http.Transport{
			DialContext: c.loop.dial, DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		},
	}
}

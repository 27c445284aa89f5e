package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// A ServerVersion knows whether the API server has native sidecars.
type ServerVersion struct {
	// Get reads /version of the API server. It must be set.
	Get    func(ctx context.Context) ([]byte, error)
	Logger *slog.Logger // nil means slog.Default

	minor atomic.Int64 // 0 means not known yet
}

// GetVersion returns a reader of /version.
func GetVersion(config *rest.Config) (func(context.Context) ([]byte, error), error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("making the version client: %w", err)
	}
	base, _, err := rest.DefaultServerURL(config.Host, "", schema.GroupVersion{}, config.CAData != nil || config.CAFile != "")
	if err != nil {
		return nil, fmt.Errorf("making the version client: %w", err)
	}
	return func(ctx context.Context) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("version").String(), nil)
		if err != nil {
			return nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("GET %s: %s", req.URL, resp.Status)
		}
		return io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	}, nil
}

// How often the version is asked for: until the first answer, and then, since
// API servers are upgraded beneath a webhook that stays.
const (
	firstVersion = time.Second
	nextVersion  = 10 * time.Minute
)

// Run asks for the version until the context ends. While the API server does
// not answer it tries again, and what it knows stays.
func (v *ServerVersion) Run(ctx context.Context) error {
	for {
		wait := nextVersion
		if err := v.ask(ctx); err != nil && ctx.Err() == nil {
			logger := v.Logger
			if logger == nil {
				logger = slog.Default()
			}
			logger.WarnContext(ctx, "reading the API server's version", "err", err)
			wait = firstVersion
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (v *ServerVersion) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body, err := v.Get(ctx)
	if err != nil {
		return err
	}
	var version struct{ Major, Minor string }
	if err := json.Unmarshal(body, &version); err != nil {
		return fmt.Errorf("decoding /version: %w", err)
	}
	// Some distributions write a minor version such as "32+".
	digits := version.Minor
	if i := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = digits[:i]
	}
	minor, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || minor < 1 || version.Major != "1" {
		return fmt.Errorf("/version is %q.%q, not a version of Kubernetes 1", version.Major, version.Minor)
	}
	v.minor.Store(minor)
	return nil
}

// Ready reports whether the version is known.
func (v *ServerVersion) Ready() error {
	if v.minor.Load() == 0 {
		return errors.New("the API server's version is not known yet")
	}
	return nil
}

// NativeSidecars reports whether the sidecar may be an init container.
func (v *ServerVersion) NativeSidecars() bool {
	return v.minor.Load() >= workloadidentity.NativeSidecarMinor
}

package imds

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

// NewForwarder passes requests on to the metadata service at base, without
// following redirects. What may be passed on is decided before: see Classify and
// Rules.CheckHeaders; X-Forwarded-For, which the service would refuse, is lost
// on the way. A nil transport means one that waits 2 s for a connection and 10 s
// for an answer, and never uses a proxy.
func NewForwarder(base *url.URL, transport http.RoundTripper, logger *slog.Logger) *httputil.ReverseProxy {
	if transport == nil {
		transport = &http.Transport{
			Proxy:                 nil, // the metadata service must not be reached through one
			DialContext:           (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
			ResponseHeaderTimeout: 10 * time.Second,
			MaxIdleConnsPerHost:   8,
			IdleConnTimeout:       30 * time.Second,
		}
	}
	return &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = base.Scheme, base.Host
			p.Out.Host = base.Host
			// After a change of protocols (such as h2c) nobody would look at
			// the paths of further requests.
			p.Out.Header.Del("Connection")
			p.Out.Header.Del("Upgrade")
		},
		Transport: transport,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if !errors.Is(err, context.Canceled) {
				logger.WarnContext(r.Context(), "metadata service unreachable", "path", r.URL.Path, "err", err)
			}
			WriteError(w, &Error{Status: http.StatusBadGateway, Description: "the metadata service did not answer"})
		},
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

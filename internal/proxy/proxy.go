// Package proxy is the sidecar that answers the instance metadata service's
// token endpoint in a pod of Workload Identity: programs that only know managed
// identities get tokens for the pod's federated token.
//
//	program ── GET 169.254.169.254 ──> redirect/pod ──> Server
//	   1 imds.Classify, Parse   what is asked
//	   2 Tokens                 whose identity is meant; the token: cached, or from Entra
//	   3 imds.WriteToken        the answer
//	other paths ── Forwarder ──> the node's metadata service
//	               └─ with a mark: one that comes back is answered, not passed on again
//
// Everybody in the pod may have the pod's identities; there is nothing to decide
// but which one is meant, and when that is not sure the answer is an error: a
// token of another identity than was asked for is never given.
//
// It is in every pod that asks for it: no Kubernetes package is linked.
package proxy

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

// ReadyPath answers 200 as long as the federated token can be read.
const ReadyPath = "/readyz"

// maxInflight bounds the requests at a time: each takes memory of the pod.
const maxInflight = 256

// Of a request that is passed on.
const (
	maxForwarded     = 1 << 20 // bytes of its body
	forwardedTimeout = 30 * time.Second
)

// headerLoop carries the mark of requests that were passed on.
const headerLoop = "X-Lanyard-Proxy"

// A Server answers the programs of one pod. Tokens, TokenFile and Upstream must
// be set.
type Server struct {
	Tokens    token.Source        // usually a *Tokens
	TokenFile entra.AssertionFile // what ReadyPath looks at
	Upstream  *url.URL            // the metadata service that other paths go to

	Transport http.RoundTripper // reaches Upstream; nil means one of its own
	Now       func() time.Time  // nil means time.Now
	Logger    *slog.Logger      // nil means slog.Default

	once     sync.Once
	forward  *httputil.ReverseProxy
	mark     string // of this process
	refusals limited
	inflight atomic.Int64
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.once.Do(s.init)
	err := s.serve(w, r)
	if err == nil {
		return
	}
	e, ok := errors.AsType[*imds.Error](err)
	if !ok {
		e = &imds.Error{Status: http.StatusInternalServerError, Description: "internal error", Err: err}
		if errors.Is(err, context.Canceled) {
			e.Status, e.Description = http.StatusServiceUnavailable, "the caller has left"
		}
	}
	if dropped, ok := s.refusals.line(); ok {
		s.logger().WarnContext(r.Context(), "request refused", "path", shortened(r.URL.EscapedPath()), "status", e.Status, "err", e, "dropped", dropped)
	}
	imds.WriteError(w, e)
}

func (s *Server) init() {
	s.mark = rand.Text()
	s.forward = imds.NewForwarder(s.Upstream, s.Transport, s.logger())
	rewrite := s.forward.Rewrite
	s.forward.Rewrite = func(p *httputil.ProxyRequest) {
		rewrite(p)
		p.Out.Header.Set(headerLoop, s.mark)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	if p := r.URL.EscapedPath(); strings.TrimSuffix(p, "/") == ReadyPath && r.URL.Opaque == "" {
		return s.serveReady(w)
	}
	kind := imds.Classify(r.URL)
	if kind == imds.Refused || r.Method == http.MethodConnect {
		return &imds.Error{Status: http.StatusBadRequest, Code: imds.CodeInvalidRequest, Description: "Invalid request"}
	}
	// The forwarder replaces the header: the metadata service cannot look at it.
	if err := imds.CheckHost(r.Host); err != nil {
		return err
	}
	defer s.inflight.Add(-1)
	if s.inflight.Add(1) > maxInflight {
		return &imds.Error{Status: http.StatusTooManyRequests, Code: "too_many_requests", Description: "this pod asks its proxy too much at a time: at most " + strconv.Itoa(maxInflight) + " requests", RetryAfter: time.Second}
	}
	if kind == imds.TokenEndpoint {
		return s.serveToken(w, r)
	}
	return s.serveOther(w, r)
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) error {
	q, err := imds.ParseTokenRequest(r)
	if err != nil {
		return err
	}
	t, err := s.Tokens.Token(r.Context(), token.Request{ClientID: q.ClientID, ObjectID: q.ObjectID, ResourceID: q.ResourceID, Resource: q.Resource})
	if err != nil {
		return err
	}
	imds.WriteToken(w, t, s.now())
	return nil
}

func (s *Server) serveOther(w http.ResponseWriter, r *http.Request) error {
	for _, mark := range r.Header.Values(headerLoop) {
		if mark == s.mark {
			return &imds.Error{
				Status: http.StatusLoopDetected, Code: "loop_detected",
				Description: "a request that the proxy passed on came back to it: the redirect spares another user than the proxy's, which is " + strconv.Itoa(os.Getuid()) +
					"; remove runAsUser from the proxy's container, or set PROXY_UID of its init container to that user. Tokens are not affected",
			}
		}
	}
	// The metadata service looks at these itself, but X-Forwarded-For does not
	// get there. Whether Metadata is needed is for the service to say.
	if err := (imds.Rules{HeaderOptional: true}).CheckHeaders(r.Header); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), forwardedTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	r.Body = http.MaxBytesReader(w, r.Body, maxForwarded)
	s.logger().DebugContext(ctx, "passing a request on", "path", r.URL.EscapedPath())
	s.forward.ServeHTTP(w, r)
	return nil
}

func (s *Server) serveReady(w http.ResponseWriter) error {
	a, err := s.TokenFile.Read()
	if err == nil {
		_, err = a.Form("", "", time.Time{})
	}
	if err != nil {
		return &imds.Error{Status: http.StatusServiceUnavailable, Code: imds.CodeUnknown, Description: err.Error(), Err: err}
	}
	_, err = io.WriteString(w, "ok")
	return err
}

// shortened keeps a path, of which a program of the pod sends kilobytes, fit for
// a log line.
func shortened(path string) string { return path[:min(len(path), 128)] }

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

// Package nmi is the node agent of Pod Identity: it answers, for the pods of
// one node, the metadata service's token endpoint.
//
//	pod ── GET 169.254.169.254 ──> redirect ──> Server
//	   1 imds.Parse            what is asked
//	   2 Node.PodByIP          who asks
//	   3 binding.Select        may it, now; a request that comes before its assignment waits for it
//	   4 token.Source          the token, from the node's own metadata service
//	   5 Recorder              the record: events on the binding and the pod, one audit line
//	   6 imds.WriteToken       the answer
//
// Other paths below /metadata go on to the metadata service. A path that
// somebody else might read as the token endpoint goes nowhere.
package nmi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"sync"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

// codeNotFound is the error member of a refusal for want of an identity.
const codeNotFound = "not_found"

// unknownPodWait bounds how long a request waits for its own pod to be seen:
// a container may ask before its address has reached the API server's watch.
const unknownPodWait = 2 * time.Second

// A Node tells what is known about the pods of this node.
type Node interface {
	// PodByIP returns the one running pod that has the address to itself.
	PodByIP(ctx context.Context, ip netip.Addr) (binding.Pod, error)
	// World returns what the rules need to judge the pod, and the
	// exceptions of its namespace.
	World(ctx context.Context, pod binding.Pod) (binding.World, []*v1.AzurePodIdentityException, error)
	// Changed returns a channel that is closed at the next change of
	// anything that PodByIP or World would return.
	Changed() <-chan struct{}
}

// A Recorder keeps the record of decisions. It must not block.
type Recorder interface {
	Record(ctx context.Context, d Decision)
}

// A Decision is one answer to one request for a token.
type Decision struct {
	Pod      binding.Pod
	Binding  *v1.AzureIdentityBinding // nil if no binding was found, or none was needed
	Identity *v1.AzureIdentity        // nil likewise
	Excepted bool                     // an AzurePodIdentityException let the pod through
	Resource string
	Issued   bool
	Expires  time.Time // of the token
	Reason   string    // why not: a binding.Reason, or what the upstream said
	Text     string    // the same for people
}

// A Server answers the pods of one node. Node, Tokens, Recorder and Upstream
// must be set.
type Server struct {
	Node     Node
	Tokens   token.Source
	Recorder Recorder
	Upstream *url.URL // the metadata service that other paths go to

	// Wait is how long a request waits for an assignment that is under way;
	// zero means not at all.
	Wait time.Duration
	// RetryAfter, if not zero, turns the refusal of a request that waited in
	// vain from 404 into 503 with that Retry-After.
	RetryAfter time.Duration
	// BlockInstance refuses /metadata/instance.
	BlockInstance bool
	// Rules say how strictly requests are read.
	Rules imds.Rules

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default

	once  sync.Once
	proxy *httputil.ReverseProxy
}

// ServeHTTP answers one request. Refusals are written and logged here.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	err := s.serve(w, r)
	if err == nil {
		return
	}
	var e *imds.Error
	if !errors.As(err, &e) {
		e = &imds.Error{Status: http.StatusInternalServerError, Description: "internal error", Err: err}
	}
	s.logger().InfoContext(r.Context(), "request refused", "remote", r.RemoteAddr, "status", e.Status, "err", err)
	imds.WriteError(w, e)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	switch kind := imds.Classify(r.URL); kind {
	case imds.TokenEndpoint:
		return s.serveToken(w, r)
	case imds.Instance, imds.Other:
		if err := s.Rules.CheckHeaders(r.Header); err != nil {
			return err
		}
		if kind == imds.Instance && s.BlockInstance {
			return &imds.Error{Status: http.StatusForbidden, Code: imds.CodeInvalidRequest, Description: "access to instance metadata is blocked on this cluster"}
		}
		s.upstream().ServeHTTP(w, r)
		return nil
	case imds.Foreign:
		return &imds.Error{Status: http.StatusNotFound, Code: imds.CodeInvalidRequest, Description: "only paths below /metadata are served"}
	default:
		return &imds.Error{Status: http.StatusBadRequest, Code: imds.CodeInvalidRequest, Description: "Invalid request"}
	}
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) error {
	request, err := s.Rules.Parse(r)
	if err != nil {
		return err
	}
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return fmt.Errorf("the peer's address: %w", err)
	}
	d, err := s.decide(r.Context(), remote.Addr().Unmap(), request)
	if err != nil {
		return err
	}
	upstream := token.Request{Resource: request.Resource}
	if d.Excepted {
		upstream.ClientID, upstream.ObjectID, upstream.ResourceID = request.ClientID, request.ObjectID, request.ResourceID
	} else {
		// By resource id, because that is what mic was allowed to assign: an
		// AzureIdentity that pairs its own resource id with a foreign client
		// id must not get the foreign token.
		upstream.ResourceID = d.Identity.Spec.ResourceID
	}
	t, err := s.Tokens.Token(r.Context(), upstream)
	if err != nil {
		if r.Context().Err() != nil {
			return err // nobody waits for the answer any more
		}
		failure := tokenFailure(err)
		d.Reason, d.Text = failure.Code, failure.Description
		s.Recorder.Record(r.Context(), d)
		return failure
	}
	d.Issued, d.Expires = true, t.ExpiresOn
	s.Recorder.Record(r.Context(), d)
	imds.WriteToken(w, t, s.now())
	return nil
}

// tokenFailure is what the pod is told when the upstream gave no token. 403
// as in Pod Identity v1: SDKs do not retry it, and asking again does not help.
func tokenFailure(err error) *imds.Error {
	var e *imds.Error
	if !errors.As(err, &e) {
		return &imds.Error{Status: http.StatusServiceUnavailable, Description: "the metadata service did not answer", Err: err}
	}
	if e.Status == http.StatusBadRequest {
		return &imds.Error{Status: http.StatusForbidden, Code: e.Code, Description: "no token for this identity: " + e.Description, Err: err}
	}
	return e
}

// decide answers who asks and with which identity it may be served. A refusal
// is recorded.
func (s *Server) decide(ctx context.Context, ip netip.Addr, r imds.TokenRequest) (Decision, error) {
	start := s.now()
	for {
		changed := s.Node.Changed() // before looking, so that no change is missed
		d, refusal, err := s.look(ctx, ip, r)
		if err != nil || refusal == nil {
			return d, err
		}
		var patience time.Duration
		if refusal.wait {
			patience = s.Wait
			if d.Pod.Name == "" {
				patience = min(patience, unknownPodWait)
			}
		}
		left := patience - s.now().Sub(start)
		if left > 0 && wait(ctx, changed, left) {
			continue
		}
		if ctx.Err() != nil {
			return d, ctx.Err()
		}
		return d, s.refuse(ctx, d, refusal)
	}
}

// wait waits for a change and reports whether it came in time.
func wait(ctx context.Context, changed <-chan struct{}, most time.Duration) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-changed:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// A refusal is a decision against a request.
type refusal struct {
	status int
	reason string
	text   string
	wait   bool // whether a change may help soon
}

// look decides once, on what is known at this instant.
func (s *Server) look(ctx context.Context, ip netip.Addr, r imds.TokenRequest) (Decision, *refusal, error) {
	d := Decision{Resource: r.Resource}
	pod, err := s.Node.PodByIP(ctx, ip)
	var unknown *UnknownPodError
	if errors.As(err, &unknown) {
		return d, &refusal{status: http.StatusNotFound, reason: "UnknownPod", text: unknown.Error(), wait: unknown.Wait}, nil
	}
	if err != nil {
		return d, nil, err
	}
	d.Pod = pod
	world, exceptions, err := s.Node.World(ctx, pod)
	if err != nil {
		return d, nil, fmt.Errorf("reading what pod %s/%s is entitled to: %w", pod.Namespace, pod.Name, err)
	}
	if binding.Excepted(pod, exceptions) {
		d.Excepted = true
		return d, nil, nil
	}
	bound, err := binding.Select(pod, world, binding.Selector{ClientID: r.ClientID, ObjectID: r.ObjectID, ResourceID: r.ResourceID}, s.now())
	var no *binding.Refusal
	if errors.As(err, &no) {
		d.Binding, d.Identity = no.Binding, no.Identity
		return d, &refusal{status: status(no.Reason), reason: string(no.Reason), text: no.Text, wait: no.Wait()}, nil
	}
	d.Binding, d.Identity = bound.Binding, bound.Identity
	return d, nil, err
}

// status is Pod Identity v1's status for a reason.
func status(reason binding.Reason) int {
	switch reason {
	case binding.UnsupportedSelector:
		return http.StatusBadRequest
	case binding.InvalidIdentity, binding.UnsupportedType, binding.NotOpen:
		return http.StatusForbidden
	default:
		return http.StatusNotFound
	}
}

func (s *Server) refuse(ctx context.Context, d Decision, r *refusal) error {
	d.Reason, d.Text = r.reason, r.text
	s.Recorder.Record(ctx, d)
	e := &imds.Error{Status: r.status, Code: imds.CodeInvalidRequest, Description: r.text}
	if r.status == http.StatusNotFound {
		e.Code = codeNotFound
		if s.RetryAfter > 0 {
			e.Status, e.RetryAfter = http.StatusServiceUnavailable, s.RetryAfter
		}
	}
	return e
}

// upstream passes requests on to the metadata service as the node's own.
func (s *Server) upstream() http.Handler {
	s.once.Do(func() {
		s.proxy = &httputil.ReverseProxy{
			Rewrite: func(p *httputil.ProxyRequest) {
				p.Out.URL.Scheme, p.Out.URL.Host = s.Upstream.Scheme, s.Upstream.Host
				p.Out.Host = s.Upstream.Host
			},
			Transport: &http.Transport{
				Proxy:                 nil, // the metadata service must not be reached through one
				ResponseHeaderTimeout: 10 * time.Second,
				MaxIdleConnsPerHost:   8,
				IdleConnTimeout:       30 * time.Second,
			},
			ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
				s.logger().WarnContext(r.Context(), "metadata service unreachable", "path", r.URL.Path, "err", err)
				imds.WriteError(w, &imds.Error{Status: http.StatusBadGateway, Description: "the metadata service did not answer"})
			},
			ErrorLog: slog.NewLogLogger(s.logger().Handler(), slog.LevelDebug),
		}
	})
	return s.proxy
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

// An UnknownPodError says that no pod of this node can be held to be the
// sender of an address.
type UnknownPodError struct {
	IP   netip.Addr
	Why  string
	Wait bool // whether the pod may yet be seen
}

func (e *UnknownPodError) Error() string {
	return fmt.Sprintf("the address %s is not that of one pod on this node: %s", e.IP, e.Why)
}

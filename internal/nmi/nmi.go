// Package nmi is the node agent of Pod Identity: it answers, for the pods of
// one node, the metadata service's token endpoint.
//
//	pod ── GET 169.254.169.254 ──> redirect ──> Server
//	   1 imds.Parse            what is asked
//	   2 Node.Pod              who asks: the address, and the port that it is behind
//	   3 binding.Select        may it, now; a request that comes before its assignment waits for it
//	   4 Tokens                the token: cached, or from the node's metadata service or Entra
//	   5 Recorder              the record: events on the binding and the pod, one audit line
//	   6 answer                as Pod Identity v1 wrote it
//	CSI driver ── GET 127.0.0.1/host/token ──> Host: who calls is checked first, then 2 to 6 for the pod it names
//
// Other paths below /metadata go on to the metadata service. A path that
// somebody else might read as the token endpoint goes nowhere.
//
// Subpackages: nodewatch is the Node that Kubernetes and the node's network
// show (an address alone proves nothing: see there how it is tied to a pod),
// journal the Recorder, caller says which process calls Host, source gets tokens.
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
	"strings"
	"sync"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/sandbox"
	"github.com/lanyard-id/lanyard/internal/token"
)

// Who names a pod of this node in one of three ways: by Address, by UID, or by
// Namespace and Name.
type Who struct {
	Address         netip.Addr // unmapped
	UID             string
	Namespace, Name string
}

func (w Who) String() string {
	switch {
	case w.Address.IsValid():
		return "the address " + w.Address.String()
	case w.UID != "":
		return "the uid " + w.UID
	default:
		return w.Namespace + "/" + w.Name
	}
}

// A Node tells what is known about the pods of this node.
type Node interface {
	// Pod returns the one running pod that is meant. A pod is found by an
	// address only if it has the address to itself. The error is an
	// *UnknownPodError.
	Pod(who Who) (binding.Pod, error)
	// View returns what the rules need to judge the pod, with the pod as it is
	// now: another View after every change.
	View(pod binding.Pod) *View
	// Changes returns a channel that yields after changes of what the other
	// two would return for this pod, and a function that ends this.
	Changes(who Who) (<-chan struct{}, func())
}

// Arrivals tells which network port of the node an address is behind, which no
// pod can forge.
type Arrivals interface {
	// Behind is false if the address is behind none, or behind several.
	Behind(ip netip.Addr) (sandbox.Port, bool)
	// Changed returns a channel that is closed when Behind may have another answer.
	Changed() <-chan struct{}
}

// Tokens gets the tokens of an identity: one, or one per tenant with
// auxiliaryTenantIDs, the primary first. Errors are *imds.Error values or wrap
// the context's error.
type Tokens interface {
	Tokens(ctx context.Context, id *v1.AzureIdentity, resource string) ([]token.Token, error)
}

// A Recorder keeps the record of decisions. It must not block.
type Recorder interface {
	Record(ctx context.Context, d Decision)
}

// A Decision is one answer to one request for a token.
type Decision struct {
	Pod      binding.Pod
	Address  netip.Addr               // of the caller, if it was told by that
	For      string                   // the pod that asked in its name (Host); empty if itself
	Binding  *v1.AzureIdentityBinding // nil if no binding was found, or none was needed
	Identity *v1.AzureIdentity        // nil likewise
	Excepted bool                     // an AzurePodIdentityException let the pod through
	Resource string
	Agent    string // what the program calls itself (User-Agent), in printable ASCII, at most 128 bytes; proves nothing
	Issued   bool

	Expires      time.Time // what the pod was told
	TokenExpires time.Time // what the token says: later if the binding closes before

	Reason string // why not: a binding.Reason, or what the upstream said
	Text   string // the same for people
}

// Clipped reports whether the pod was told an earlier end than the token's.
func (d Decision) Clipped() bool { return d.Expires.Before(d.TokenExpires) }

// A Server answers the pods of one node. Node, Tokens, Metadata, Recorder and
// Upstream must be set.
type Server struct {
	Node     Node
	Tokens   Tokens
	Metadata token.Source // the metadata service, for pods with an exception
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
	// Limits bounds what one pod may ask; nil means without bounds.
	Limits *Limits
	// Metrics may be nil.
	Metrics *Metrics
	// Transport reaches Upstream; nil means one of its own.
	Transport http.RoundTripper

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default

	once    sync.Once
	proxy   *httputil.ReverseProxy
	buffers sync.Pool // of *[]byte
}

// arrival is how long a request may take to arrive.
const arrival = 5 * time.Second

// NewHTTPServer returns a server for a Server or a Host with their limits: wait
// is how long a request may wait for an assignment. One deadline holds for head
// and body of a request: net/http then sets it once.
func NewHTTPServer(h http.Handler, wait time.Duration) *http.Server {
	return &http.Server{
		Handler: h, ConnState: new(connections).follow, ReadHeaderTimeout: arrival, ReadTimeout: arrival, WriteTimeout: wait + time.Minute,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		DisableGeneralOptionsHandler: true, // OPTIONS * is refused like any path that is not served
	}
}

// ServeHTTP answers one request. Refusals are written and logged here.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	var o operation
	o.kind = imds.Classify(r.URL)
	err := s.serve(w, r, &o)
	if err != nil {
		o.status = s.fail(w, r, err)
	}
	s.Metrics.observe(o, time.Since(start))
}

// An operation is what the metrics tell of a request.
type operation struct {
	kind      imds.Kind
	host      bool
	status    int
	namespace string
	resource  string
}

// statusGone is what is counted when the client left before its answer.
const statusGone = 499

// fail writes an error and logs it.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) int {
	if r.Context().Err() != nil {
		return statusGone
	}
	var e *imds.Error
	if !errors.As(err, &e) {
		e = &imds.Error{Status: http.StatusInternalServerError, Description: "internal error", Err: err}
	}
	s.logger().InfoContext(r.Context(), "request refused", "remote", r.RemoteAddr, "status", e.Status, "err", err)
	imds.WriteError(w, e)
	return e.Status
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, o *operation) error {
	switch o.kind {
	case imds.TokenEndpoint, imds.Instance, imds.Other:
		if r.Method == http.MethodConnect {
			return &imds.Error{Status: http.StatusBadRequest, Code: imds.CodeInvalidRequest, Description: "Invalid request"}
		}
	case imds.Foreign:
		return &imds.Error{Status: http.StatusNotFound, Code: imds.CodeInvalidRequest, Description: "only paths below /metadata are served"}
	default:
		return &imds.Error{Status: http.StatusBadRequest, Code: imds.CodeInvalidRequest, Description: "Invalid request"}
	}
	// The contract comes before everything that costs or tells something: SDKs
	// probe without the header and give up after 0.3 s.
	if err := s.Rules.CheckHeaders(r.Header); err != nil {
		return err
	}
	if err := imds.CheckHost(r.Host); err != nil {
		return err
	}
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return fmt.Errorf("the peer's address: %w", err)
	}
	who := Who{Address: remote.Addr().Unmap().WithZone("")}
	pod, _ := s.Node.Pod(who) // an unknown one is limited by its address
	release, err := s.Limits.enter(pod.UID, who.Address, s.now())
	if err != nil {
		return err
	}
	defer release()
	if o.kind == imds.TokenEndpoint {
		return s.serveToken(w, r, who, o)
	}
	if o.kind == imds.Instance && s.BlockInstance {
		return &imds.Error{Status: http.StatusForbidden, Code: imds.CodeInvalidRequest, Description: "Request blocked by AAD Pod Identity NMI"}
	}
	seen := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	s.upstream().ServeHTTP(seen, r)
	o.status = seen.status
	return nil
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request, who Who, o *operation) error {
	q := request{who: who, agent: agent(r)}
	var err error
	if q.TokenRequest, err = s.Rules.Parse(r); err != nil {
		return spelled(err)
	}
	d, tokens, err := s.get(r.Context(), q)
	o.namespace, o.resource = d.Pod.Namespace, q.Resource
	if err != nil {
		return err
	}
	o.status = http.StatusOK
	s.writeTokens(w, tokens, d.Expires, s.now())
	return nil
}

// agent is the request's User-Agent as it may be recorded: whoever asks can write
// anything there.
func agent(r *http.Request) string {
	const limit = 128
	s := r.UserAgent()
	if len(s) > limit {
		s = s[:limit]
	}
	foreign := func(c rune) bool { return c < ' ' || c > '~' }
	if strings.IndexFunc(s, foreign) < 0 {
		return s
	}
	return strings.Map(func(c rune) rune {
		if foreign(c) {
			return '?'
		}
		return c
	}, s)
}

// spelled gives a refusal of the request the words of Pod Identity v1.
func spelled(err error) error {
	var e *imds.Error
	if errors.As(err, &e) && e.Description == imds.DescriptionNoResource {
		same := *e
		same.Description = "parameter resource cannot be empty"
		return &same
	}
	return err
}

// upstream passes requests on to the metadata service as the node's own.
func (s *Server) upstream() http.Handler {
	s.once.Do(func() {
		s.proxy = imds.NewForwarder(s.Upstream, s.Transport, s.logger())
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

// An UnknownPodError says that no pod of this node can be held to be meant.
type UnknownPodError struct {
	Who  Who
	Why  string
	Wait bool // whether the pod may yet be seen
}

func (e *UnknownPodError) Error() string {
	return fmt.Sprintf("%s is not that of one pod on this node: %s", e.Who, e.Why)
}

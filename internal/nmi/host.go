package nmi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/imds"
)

// HostPath is where drivers on the node ask for the token of a pod.
const HostPath = "/host/token"

// ReviewAudience is the audience of a service account token that a driver may
// send to be told by.
const ReviewAudience = "lanyard-nmi"

// DefaultHostCallers are the service accounts (namespace/name) that the Azure
// provider of the Secrets Store CSI driver runs as: with its own chart, and with
// the driver's. The provider, not the driver, asks for tokens; both run in one
// chart under either account.
const DefaultHostCallers = "kube-system/csi-secrets-store-provider-azure,kube-system/secrets-store-csi-driver"

// Processes tells the pod behind a connection from this node by what the
// kernel knows.
type Processes interface {
	PodUID(peer, local netip.AddrPort) (string, error)
}

// Reviewer tells whose service account token this is.
type Reviewer interface {
	// Review returns the user name and, if the token is bound to a node, its
	// name. An invalid token is an error.
	Review(ctx context.Context, bearer string) (user, node string, err error)
}

// Host answers drivers of this node that ask for a pod's token, on the loopback
// address and nowhere else. Pod Identity v1 believed whoever asked from there:
// every pod in the host's network could be any pod of the node. Here the caller
// must be a pod of one of a few service accounts: by its process (which
// unmodified drivers are told by), or by a token of that account. Server,
// Processes and Reviewer must be set.
type Host struct {
	Server    *Server
	Processes Processes
	Reviewer  Reviewer
	Callers   []string // namespace/name of service accounts
	Node      string   // of this agent

	identifying sync.Mutex // one at a time: it reads all processes of the node
}

// ServeHTTP answers one request.
func (h *Host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	o := operation{host: true}
	if err := h.serve(w, r, &o); err != nil {
		o.status = h.Server.fail(w, r, err)
	}
	h.Server.Metrics.observe(o, time.Since(start))
}

func (h *Host) serve(w http.ResponseWriter, r *http.Request, o *operation) error {
	if p := r.URL.EscapedPath(); r.URL.Opaque != "" || strings.TrimSuffix(p, "/") != HostPath {
		return &imds.Error{Status: http.StatusNotFound, Code: imds.CodeInvalidRequest, Description: "only " + HostPath + " is served here"}
	}
	peer, local, err := ends(r)
	if err != nil {
		return err
	}
	q := request{who: Who{Namespace: r.Header.Get("podns"), Name: r.Header.Get("podname")}}
	if len(r.Header.Values("podns")) > 1 || len(r.Header.Values("podname")) > 1 || q.who.Namespace == "" || q.who.Name == "" {
		return badRequest("missing 'podname' and 'podns' from request header")
	}
	if q.TokenRequest, err = (imds.Rules{HeaderOptional: true}).Parse(r); err != nil {
		return spelled(err)
	}
	asker, err := h.caller(r, peer, local)
	if err != nil {
		return h.stranger(r, q, err)
	}
	release, err := h.Server.Limits.enter(asker.UID, peer.Addr(), h.Server.now())
	if err != nil {
		return err
	}
	defer release()
	q.asker = asker.Namespace + "/" + asker.Name
	d, tokens, err := h.Server.get(r.Context(), q)
	o.namespace, o.resource = d.Pod.Namespace, q.Resource
	if err != nil {
		return err
	}
	o.status = http.StatusOK
	writeHostToken(w, tokens[0], d.Identity.Spec.ClientID, d.Expires, h.Server.now())
	return nil
}

// ends are the two ends of a connection over loopback.
func ends(r *http.Request) (peer, local netip.AddrPort, err error) {
	refused := &imds.Error{Status: http.StatusInternalServerError, Description: "request remote address is not from a host"}
	peer, err = netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !peer.Addr().Unmap().IsLoopback() {
		return peer, local, refused
	}
	address, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return peer, local, refused
	}
	if local, err = netip.ParseAddrPort(address.String()); err != nil {
		return peer, local, refused
	}
	return peer, local, nil
}

func badRequest(text string) error {
	return &imds.Error{Status: http.StatusBadRequest, Code: imds.CodeInvalidRequest, Description: text}
}

// stranger refuses a caller, and records for which pod it asked.
func (h *Host) stranger(r *http.Request, q request, err error) error {
	pod, unknown := h.Server.Node.Pod(q.who)
	if unknown == nil {
		h.Server.Recorder.Record(r.Context(), Decision{Pod: pod, For: "an unknown process", Resource: q.Resource, Reason: "UnknownCaller", Text: err.Error()})
	}
	return &imds.Error{Status: http.StatusForbidden, Code: imds.CodeInvalidRequest, Description: err.Error(), Err: err}
}

// caller returns the pod that asks. A caller who sends a token is judged by
// that alone.
func (h *Host) caller(r *http.Request, peer, local netip.AddrPort) (binding.Pod, error) {
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		user, node, err := h.Reviewer.Review(r.Context(), bearer)
		if err != nil {
			return binding.Pod{}, fmt.Errorf("the caller's token: %w", err)
		}
		if node != "" && node != h.Node {
			return binding.Pod{}, fmt.Errorf("the caller's token is for node %s, and this is %s", node, h.Node)
		}
		account, ok := strings.CutPrefix(user, "system:serviceaccount:")
		namespace, name, _ := strings.Cut(account, ":")
		if !ok || !h.allowed(namespace, name) {
			return binding.Pod{}, h.notAllowed(user)
		}
		return binding.Pod{Namespace: namespace, Name: name, UID: user}, nil
	}
	uid, err := h.identify(r.Context(), peer, local)
	if err != nil {
		return binding.Pod{}, fmt.Errorf("%w; or send a token of a service account in --host-token-callers with audience %s", err, ReviewAudience)
	}
	pod, err := h.Server.Node.Pod(Who{UID: uid})
	if err != nil {
		return binding.Pod{}, fmt.Errorf("the caller: %w", err)
	}
	if !h.allowed(pod.Namespace, pod.ServiceAccount) {
		return binding.Pod{}, h.notAllowed("pod " + pod.Namespace + "/" + pod.Name + " with service account " + pod.Namespace + "/" + pod.ServiceAccount)
	}
	return pod, nil
}

func (h *Host) identify(ctx context.Context, peer, local netip.AddrPort) (string, error) {
	h.identifying.Lock()
	defer h.identifying.Unlock()
	if ctx.Err() != nil {
		return "", fmt.Errorf("the caller has left: %w", ctx.Err())
	}
	return h.Processes.PodUID(peer, local)
}

func (h *Host) allowed(namespace, name string) bool {
	return name != "" && slices.Contains(h.Callers, namespace+"/"+name)
}

func (h *Host) notAllowed(who string) error {
	return errors.New(who + " may not ask for other pods' tokens: add its service account to --host-token-callers of the node agent if it should")
}

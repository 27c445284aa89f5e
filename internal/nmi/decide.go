package nmi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

// codeNotFound is the error member of a refusal for want of an identity.
const codeNotFound = "not_found"

// unknownPodWait bounds how long a request waits for its own pod to be seen:
// a container may ask before its address has reached the API server's watch.
const unknownPodWait = 2 * time.Second

// soon is how near an opening must be to be told in Retry-After: SDKs sleep
// as long as it says.
const soon = 5 * time.Minute

// A request is a question with who asks it.
type request struct {
	imds.TokenRequest
	who   Who
	asker string // Decision.For
	agent string // Decision.Agent
}

// A ruling is a decision before there is a token.
type ruling struct {
	Decision
	bound []binding.Bound // those to choose from: one, but for a request by object id
}

// A refusal is a decision against a request.
type refusal struct {
	status int
	reason string
	text   string
	wait   bool      // whether a change may help soon
	opens  time.Time // zero unless the binding is closed and will open
}

// get decides and gets the tokens. Every outcome is recorded, but for that of a
// caller who has left. The decision is returned in any case.
func (s *Server) get(ctx context.Context, q request) (Decision, []token.Token, error) {
	rule, no := s.decide(ctx, q)
	d := rule.Decision
	d.Agent = q.agent
	if ctx.Err() != nil {
		return d, nil, ctx.Err()
	}
	if no != nil {
		return d, nil, s.refuse(ctx, d, q, no)
	}
	tokens, bound, err := s.tokens(ctx, rule, q)
	d.Binding, d.Identity = bound.Binding, bound.Identity
	if err != nil {
		if ctx.Err() != nil {
			return d, nil, err // nobody waits for the answer any more
		}
		var other *noSuchObject
		if errors.As(err, &other) {
			return d, nil, s.refuse(ctx, d, q, &refusal{status: http.StatusNotFound, reason: string(binding.NotAllowed), text: other.Error()})
		}
		failure := tokenFailure(err)
		d.Reason, d.Text = "UpstreamRefused", failure.Description
		if failure.Status >= http.StatusInternalServerError || failure.Status == http.StatusTooManyRequests {
			d.Reason = "UpstreamUnavailable"
		}
		s.Recorder.Record(ctx, d)
		return d, nil, failure
	}
	// The token may have taken seconds, and the pod may have ended meanwhile:
	// then its address is the next pod's.
	if pod, err := s.Node.Pod(q.who); err != nil || pod.UID != d.Pod.UID {
		return d, nil, s.refuse(ctx, d, q, s.nobody(q, &UnknownPodError{Who: q.who, Why: "the pod that asked had it no more when the token came"}))
	}
	d.Issued, d.TokenExpires = true, tokens[0].ExpiresOn
	for _, t := range tokens {
		if t.ExpiresOn.Before(d.TokenExpires) {
			d.TokenExpires = t.ExpiresOn
		}
	}
	d.Expires = d.TokenExpires
	if closes := bound.Closes; !closes.IsZero() && closes.Before(d.Expires) {
		d.Expires = closes
	}
	s.Recorder.Record(ctx, d)
	return d, tokens, nil
}

// tokens gets those of a ruling, and says which binding they are by.
func (s *Server) tokens(ctx context.Context, rule ruling, q request) ([]token.Token, binding.Bound, error) {
	if rule.Excepted {
		t, err := s.Metadata.Token(ctx, token.Request{Resource: q.Resource, ClientID: q.ClientID, ObjectID: q.ObjectID, ResourceID: q.ResourceID})
		return []token.Token{t}, binding.Bound{}, err
	}
	if q.ObjectID == "" {
		tokens, err := s.Tokens.Tokens(ctx, rule.bound[0].Identity, q.Resource)
		return tokens, rule.bound[0], err
	}
	// An AzureIdentity does not say its object id; its token does. The id goes
	// nowhere else: it might be that of somebody else's identity.
	var failure error
	for _, b := range rule.bound {
		tokens, err := s.Tokens.Tokens(ctx, b.Identity, q.Resource)
		if err != nil {
			failure = err
			continue
		}
		if strings.EqualFold(objectID(tokens[0].AccessToken), q.ObjectID) {
			return tokens, b, nil
		}
	}
	if failure == nil {
		failure = &noSuchObject{rule.Pod, len(rule.bound)}
	}
	return nil, rule.bound[0], failure
}

// A noSuchObject says that a pod has no identity with an object id.
type noSuchObject struct {
	pod   binding.Pod
	among int
}

func (e *noSuchObject) Error() string {
	return fmt.Sprintf("none of the %d identities of pod %s/%s has the object id of the request", e.among, e.pod.Namespace, e.pod.Name)
}

// objectID reads the claim oid of an access token (RFC 7519 section 3); empty
// if there is none. Whoever gave us the token is trusted.
func objectID(access string) string {
	parts := strings.Split(access, ".")
	if len(parts) != 3 {
		return ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var claims struct {
		ObjectID string `json:"oid"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return ""
	}
	return claims.ObjectID
}

// tokenFailure is what the pod is told when the upstream gave no token. A
// refusal is 403 as in Pod Identity v1: SDKs do not retry it, and asking again
// does not help.
func tokenFailure(err error) *imds.Error {
	var e *imds.Error
	if !errors.As(err, &e) {
		return &imds.Error{Status: http.StatusServiceUnavailable, Description: "the metadata service did not answer", RetryAfter: time.Second, Err: err}
	}
	if e.Status >= http.StatusInternalServerError || e.Status == http.StatusTooManyRequests {
		return e
	}
	return &imds.Error{Status: http.StatusForbidden, Code: e.Code, Description: "no token for this identity: " + e.Description, Err: err}
}

// decide answers who asks and with which identity it may be served. A request
// that comes too early waits: first for its pod, then for its assignment.
func (s *Server) decide(ctx context.Context, q request) (ruling, *refusal) {
	rule, no := s.look(q)
	if no == nil || !no.wait || s.Wait <= 0 {
		return rule, no
	}
	start := s.now()
	changes, stop := s.Node.Changes(q.who)
	defer stop()
	for {
		rule, no = s.look(q) // after Changes, so that no change is missed
		if no == nil || !no.wait {
			return rule, no
		}
		patience := s.Wait
		if rule.Pod.Name == "" {
			patience = min(patience, unknownPodWait)
		}
		left := patience - s.now().Sub(start)
		if left <= 0 || !wait(ctx, changes, left) {
			return rule, no
		}
	}
}

// wait waits for a change and reports whether it came in time.
func wait(ctx context.Context, changes <-chan struct{}, most time.Duration) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-changes:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// look decides once, on what is known at this instant.
func (s *Server) look(q request) (ruling, *refusal) {
	rule := ruling{Decision: Decision{Resource: q.Resource, Address: q.who.Address, For: q.asker}}
	pod, err := s.Node.Pod(q.who)
	if err != nil {
		var unknown *UnknownPodError
		if errors.As(err, &unknown) {
			return rule, s.nobody(q, unknown)
		}
		return rule, &refusal{status: http.StatusInternalServerError, reason: "UnknownPod", text: err.Error()}
	}
	view := s.Node.View(pod)
	rule.Pod = view.Pod
	// A driver that asks for a pod never gets the node's own identity.
	if q.who.Address.IsValid() && binding.Excepted(view.Pod, view.Exceptions) {
		rule.Excepted = true
		return rule, nil
	}
	now := s.now()
	var no *binding.Refusal
	if q.ObjectID != "" {
		rule.bound, no = binding.Candidates(view.Pod, view.World, now)
	} else if b, err := view.Select(binding.Selector{ClientID: q.ClientID, ResourceID: q.ResourceID}, now); !errors.As(err, &no) {
		rule.bound = []binding.Bound{b}
	}
	if no != nil {
		rule.Binding, rule.Identity = no.Binding, no.Identity
		return rule, &refusal{status: status(no.Reason), reason: string(no.Reason), text: no.Text, wait: no.Wait(), opens: no.Opens}
	}
	rule.Binding, rule.Identity = rule.bound[0].Binding, rule.bound[0].Identity
	return rule, nil
}

// nobody refuses a request of an unknown pod with Pod Identity v1's answers.
func (s *Server) nobody(q request, e *UnknownPodError) *refusal {
	r := &refusal{status: http.StatusInternalServerError, reason: "UnknownPod", text: "pod list is empty: " + e.Error(), wait: e.Wait}
	if !q.who.Address.IsValid() {
		r.status, r.text = http.StatusNotFound, e.Error()
	}
	return r
}

// status is Pod Identity v1's status for a reason.
func status(reason binding.Reason) int {
	switch reason {
	case binding.InvalidIdentity, binding.UnsupportedType, binding.NotOpen, binding.AwaitingApproval, binding.WindowTooShort:
		return http.StatusForbidden
	default:
		return http.StatusNotFound
	}
}

func (s *Server) refuse(ctx context.Context, d Decision, q request, r *refusal) error {
	d.Reason, d.Text = r.reason, r.text
	s.Recorder.Record(ctx, d)
	e := &imds.Error{Status: r.status, Code: imds.CodeInvalidRequest, Description: r.text}
	switch {
	case r.status == http.StatusInternalServerError:
		e.Code = imds.CodeUnknown
	case r.status == http.StatusNotFound:
		e.Code = codeNotFound
		if s.RetryAfter > 0 && q.asker == "" {
			e.Status, e.RetryAfter = http.StatusServiceUnavailable, s.RetryAfter
		}
	case !r.opens.IsZero():
		if left := r.opens.Sub(s.now()); left > 0 && left <= soon {
			e.RetryAfter = left
		}
	}
	return e
}

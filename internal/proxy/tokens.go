package proxy

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

// Limits of what a program of the pod can make us hold and ask.
const (
	maxTokens   = 256 // client ids times resources
	maxFetches  = 8   // exchanges at a time, of all client ids
	maxByClient = 32  // exchanges of one client id that wait for a turn
)

const (
	// patience is how long a request waits for an exchange, as v1.6's does.
	patience = 10 * time.Second
	// refusedMax is how long Entra's last no is repeated: somebody may be
	// creating the federated credential at this moment.
	refusedMax = 10 * time.Second
)

// Tokens gets tokens for the pod's federated token. It is a token.Source. Tenant
// and File must be set. It must not be copied.
//
//	Token ── client_id, or none: the default ───────── cache ── Entra: client id + federated token
//	      ── object_id, msi_res_id ── whose tokens carry it? ── the same, and its token is looked at again
//
// What client ids there are is for Entra to say. The other two names are in no
// configuration of a pod; a token tells them of the identity that it was issued
// to (claims oid and xms_mirid), which is why only identities that were asked
// for by client id before, and the default one, can be found by them.
type Tokens struct {
	Tenant   string
	ClientID string              // of requests that name no identity; empty refuses them
	File     entra.AssertionFile // read anew for each exchange
	Entra    *entra.Client       // nil means the zero client

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default

	once    sync.Once
	cache   token.Cache[key]
	turns   chan struct{}
	fetches limited

	mu    sync.Mutex
	known map[string]identity // by client id
}

// A key is that of a cached token. The client id is lower case.
type key struct{ clientID, resource string }

// An identity is what a token says of whom it was issued to. Lower case; empty
// if it says nothing.
type identity struct{ objectID, resourceID string }

// Run keeps what is cached fresh until ctx ends, and then ends everything that
// runs in the background. Tokens works without Run too.
func (t *Tokens) Run(ctx context.Context) error {
	t.once.Do(t.init)
	defer t.Entra.CloseIdleConnections()
	return t.cache.Run(ctx)
}

func (t *Tokens) init() {
	if t.Entra == nil {
		t.Entra = &entra.Client{Now: t.Now}
	}
	t.turns, t.known = make(chan struct{}, maxFetches), map[string]identity{}
	t.cache.Fetch, t.cache.Judge, t.cache.OnFetch = t.fetch, imds.Judge, t.fetched
	t.cache.Max, t.cache.Patience, t.cache.RefusedMax, t.cache.Now = maxTokens, patience, refusedMax, t.Now
	// Entra throttles an application, not whoever asks for several.
	t.cache.Upstream = func(k key) string { return k.clientID }
	t.cache.Group, t.cache.GroupMax = t.cache.Upstream, maxByClient
}

// Token returns a token of the identity that r names. Errors are *imds.Error
// values or wrap the context's error.
func (t *Tokens) Token(ctx context.Context, r token.Request) (token.Token, error) {
	t.once.Do(t.init)
	switch {
	case r.ObjectID != "" || r.ResourceID != "":
		return t.find(ctx, r)
	case r.ClientID != "":
		return t.of(ctx, r.ClientID, r.Resource)
	case t.ClientID != "":
		return t.of(ctx, t.ClientID, r.Resource)
	}
	return token.Token{}, &imds.Error{
		Status: http.StatusBadRequest, Code: imds.CodeInvalidRequest,
		Description: "The client_id parameter or AZURE_CLIENT_ID environment variable must be set",
	}
}

func (t *Tokens) of(ctx context.Context, clientID, resource string) (token.Token, error) {
	got, err := t.cache.Token(ctx, key{strings.ToLower(clientID), resource})
	if err != nil {
		return token.Token{}, imds.FromCache(err)
	}
	return got, nil
}

// find returns a token of the identity with r's object id or resource id, which
// the token itself must confirm.
func (t *Tokens) find(ctx context.Context, r token.Request) (token.Token, error) {
	want := identity{strings.ToLower(r.ObjectID), strings.ToLower(r.ResourceID)}
	clientID, found := t.search(want)
	if !found {
		clientID = t.ClientID
	}
	if clientID == "" {
		return token.Token{}, notFound(r)
	}
	got, err := t.of(ctx, clientID, r.Resource)
	if err != nil {
		return token.Token{}, err
	}
	// A resource may have its tokens encrypted; others of the same client id
	// have told then.
	if is, readable := identityOf(got.AccessToken); readable && !is.matches(want) || !readable && !found {
		return token.Token{}, notFound(r)
	}
	return got, nil
}

// search finds the client id of an identity that was seen.
func (t *Tokens) search(want identity) (clientID string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for clientID, is := range t.known {
		if is.matches(want) {
			return clientID, true
		}
	}
	return "", false
}

func notFound(r token.Request) error {
	name, value := "object_id", r.ObjectID
	if r.ResourceID != "" {
		name, value = "msi_res_id", r.ResourceID
	}
	return &imds.Error{
		Status: http.StatusBadRequest, Code: imds.CodeInvalidRequest,
		Description: fmt.Sprintf("%s: no identity of this pod is known to have the %s %s; ask with client_id instead", imds.DescriptionIdentityNotFound, name, value),
	}
}

// matches reports whether i is the one identity that want names in one way.
func (i identity) matches(want identity) bool {
	if want.objectID != "" {
		return i.objectID == want.objectID
	}
	return want.resourceID != "" && i.resourceID == want.resourceID
}

// identityOf reads what a token says of its owner. It came from Entra itself, so
// nothing is to be verified.
func identityOf(accessToken string) (i identity, readable bool) {
	parts := strings.Split(accessToken, ".")
	if len(parts) != 3 {
		return i, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return i, false
	}
	var claims struct {
		ObjectID   string `json:"oid"`
		ResourceID string `json:"xms_mirid"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return i, false
	}
	return identity{strings.ToLower(claims.ObjectID), strings.ToLower(claims.ResourceID)}, true
}

func (t *Tokens) fetch(ctx context.Context, k key) (token.Token, error) {
	select {
	case t.turns <- struct{}{}:
		defer func() { <-t.turns }()
	case <-ctx.Done():
		return token.Token{}, fmt.Errorf("waiting for a turn: %w", ctx.Err())
	}
	got, err := t.Entra.Token(ctx, entra.Application{Tenant: t.Tenant, ClientID: k.clientID}, t.File, k.resource)
	if errors.Is(err, entra.ErrAssertion) {
		return token.Token{}, &imds.Error{Status: http.StatusServiceUnavailable, Code: imds.CodeUnknown, Description: err.Error(), Err: err}
	}
	if err != nil {
		e := imds.FromEntra(err, k.clientID, http.StatusBadRequest)
		if r, ok := errors.AsType[*entra.Refusal](err); ok && r.BadTime() {
			e.Description = fmt.Sprintf("the kubelet has not renewed %s, or a clock is wrong: %s", string(t.File), e.Description)
		}
		return token.Token{}, e
	}
	t.learn(k.clientID, got.AccessToken)
	return got, nil
}

// learn remembers whose token it is.
func (t *Tokens) learn(clientID, accessToken string) {
	is, readable := identityOf(accessToken)
	if !readable {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, seen := t.known[clientID]; !seen && len(t.known) >= maxTokens {
		return
	}
	t.known[clientID] = is
}

func (t *Tokens) fetched(k key, took time.Duration, err error) {
	logger := t.Logger
	if logger == nil {
		logger = slog.Default()
	}
	dropped, ok := t.fetches.line()
	if !ok {
		return
	}
	logger = logger.With("clientID", k.clientID, "resource", k.resource, "took", took.Round(time.Millisecond).String(), "dropped", dropped)
	if err != nil {
		logger.Warn("no token from Entra", "err", err)
		return
	}
	logger.Info("token from Entra")
}

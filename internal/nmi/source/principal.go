package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/credential"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

// tendInterval is how often refused credentials and unused Secrets are looked at.
const tendInterval = 5 * time.Second

// maxAuxiliary is v1's limit of auxiliaryTenantIDs.
const maxAuxiliary = 3

// A principal is an AzureIdentity of type 1 or 2 with all that its tokens
// depend on. The identity itself is part of it: a namespace that claims the
// client id of another must never meet the other's tokens.
type principal struct {
	identity  types.NamespacedName
	uid       types.UID
	kind      v1.IdentityType
	authority string
	clientID  string
	secret    types.NamespacedName
}

// A grant is the key of a cached token.
type grant struct {
	principal
	tenant   string
	resource string
}

// A rotation is the credential of a principal.
type rotation struct {
	credential.Rotation
	identity *v1.AzureIdentity
	usedAt   atomic.Int64 // in nanoseconds of Unix time

	mu      sync.Mutex
	version string // of the Secret that it took in
}

// principals gets the tokens of types 1 and 2.
type principals struct {
	source  *Source
	secrets secrets
	cache   token.Cache[grant]

	mu        sync.RWMutex
	rotations map[principal]*rotation
}

func newPrincipals(s *Source) *principals {
	p := &principals{source: s, rotations: map[principal]*rotation{}}
	p.secrets.api, p.secrets.changed, p.secrets.observe = s.Secrets, p.changed, s.observe
	p.cache.Fetch, p.cache.Judge = p.fetch, imds.Judge
	// Every application is an upstream of its own: a tenant that throttles one,
	// or an endpoint that hangs, delays no other.
	p.cache.Upstream = func(g grant) string { return g.authority + " " + g.tenant + " " + g.clientID }
	p.cache.Group, p.cache.GroupMax = func(g grant) string { return g.identity.String() }, applicationShare
	p.cache.Patience, p.cache.Now = s.Patience, s.Now
	p.cache.OnHit, p.cache.OnMiss = s.hit, s.miss
	return p
}

// tokens returns the primary tenant's token and those of the auxiliary tenants.
func (p *principals) tokens(ctx context.Context, id *v1.AzureIdentity, resource string) ([]token.Token, error) {
	who, err := p.principal(id)
	if err != nil {
		return nil, err
	}
	w, err := p.follow(ctx, who, id)
	if err != nil {
		return nil, err
	}
	if r := w.current(ctx); r != nil && r.gone {
		return nil, missing(who.secret) // whoever deletes it takes the identity away
	}
	if len(id.Spec.AuxiliaryTenantIDs) == 0 {
		t, err := p.cache.Token(ctx, grant{who, id.Spec.TenantID, resource})
		if err != nil {
			return nil, imds.FromCache(err)
		}
		return []token.Token{t}, nil
	}
	tenants := append([]string{id.Spec.TenantID}, id.Spec.AuxiliaryTenantIDs...)
	all := make([]token.Token, len(tenants))
	g, ctx := errgroup.WithContext(ctx)
	for i, tenant := range tenants {
		g.Go(func() error {
			t, err := p.cache.Token(ctx, grant{who, tenant, resource})
			all[i] = t
			return inTenant(tenant, imds.FromCache(err))
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return all, nil
}

// A nameOf is formatted only when something is wrong.
type nameOf struct{ *v1.AzureIdentity }

func (n nameOf) String() string { return n.Namespace + "/" + n.Name }

func inTenant(tenant string, err error) error {
	e, ok := errors.AsType[*imds.Error](err)
	if !ok {
		return err
	}
	named := *e
	named.Description = "tenant " + tenant + ": " + e.Description
	return &named
}

// principal reads an identity and refuses what cannot or must not work.
func (p *principals) principal(id *v1.AzureIdentity) (principal, error) {
	s := p.source
	ref := types.NamespacedName{Namespace: id.Spec.ClientPassword.Namespace, Name: id.Spec.ClientPassword.Name}
	if ref.Namespace == "" {
		ref.Namespace = id.Namespace
	}
	name := nameOf{id}
	switch {
	case s.Secrets == nil:
		return principal{}, unusable("AzureIdentity %s has type %d: service principals are not served here", name, id.Spec.Type)
	case id.Spec.TenantID == "" || id.Spec.ClientID == "":
		return principal{}, unusable("AzureIdentity %s has type %d: set spec.tenantID and spec.clientID", name, id.Spec.Type)
	case ref.Name == "":
		return principal{}, unusable("AzureIdentity %s has type %d: name its Secret in spec.clientPassword", name, id.Spec.Type)
	case ref.Namespace != id.Namespace && !s.CrossNamespaceSecrets:
		return principal{}, forbidden("AzureIdentity %s takes its credential from Secret %s: only Secrets of its own namespace are read; copy the Secret, or let nmi run with --allow-cross-namespace-secrets", name, ref)
	case len(id.Spec.AuxiliaryTenantIDs) > maxAuxiliary:
		return principal{}, unusable("AzureIdentity %s has %d auxiliaryTenantIDs: %d at most", name, len(id.Spec.AuxiliaryTenantIDs), maxAuxiliary)
	case !p.trusted(id.Spec.ADEndpoint):
		return principal{}, forbidden("AzureIdentity %s has adEndpoint %q, which is none of the authorities that credentials are sent to; let nmi run with --allowed-authority-hosts=HOST", name, id.Spec.ADEndpoint)
	}
	return principal{
		identity: types.NamespacedName{Namespace: id.Namespace, Name: id.Name}, uid: id.UID, kind: id.Spec.Type,
		authority: id.Spec.ADEndpoint, clientID: id.Spec.ClientID, secret: ref,
	}, nil
}

// trusted reports whether a credential may be sent to an authority. Whoever
// writes an AzureIdentity does not always see the Secret that it names.
func (p *principals) trusted(authority string) bool {
	if authority == "" {
		return true
	}
	u, err := url.Parse(authority)
	if err != nil {
		return false
	}
	known := slices.Concat(entra.AuthorityHosts(), p.source.AuthorityHosts)
	return slices.ContainsFunc(known, func(host string) bool { return host == "*" || strings.EqualFold(host, u.Host) })
}

// prefetch begins to fetch the tokens of an identity.
func (p *principals) prefetch(ctx context.Context, id *v1.AzureIdentity, resources []string) {
	who, err := p.principal(id)
	if err != nil {
		return // a request will be told
	}
	if _, err := p.follow(ctx, who, id); err != nil {
		return
	}
	for _, tenant := range append([]string{id.Spec.TenantID}, id.Spec.AuxiliaryTenantIDs...) {
		for _, resource := range resources {
			p.cache.Prefetch(ctx, grant{who, tenant, resource})
		}
	}
}

// follow has the principal's Secret watched, and its credential kept.
func (p *principals) follow(ctx context.Context, who principal, id *v1.AzureIdentity) (*secret, error) {
	w, err := p.secrets.follow(ctx, who.secret)
	if err != nil {
		return nil, unusable("Secret %s: %v", who.secret, err)
	}
	p.mu.RLock()
	r := p.rotations[who]
	p.mu.RUnlock()
	if r == nil {
		p.mu.Lock()
		if r = p.rotations[who]; r == nil {
			r = &rotation{identity: id}
			p.rotations[who] = r
		}
		p.mu.Unlock()
	}
	r.usedAt.Store(time.Now().UnixNano())
	return w, nil
}

// fetch gets one token with the newest credential that works.
func (p *principals) fetch(ctx context.Context, g grant) (token.Token, error) {
	w, err := p.secrets.follow(ctx, g.secret)
	if err != nil {
		return token.Token{}, unusable("Secret %s: %v", g.secret, err)
	}
	if err := w.wait(ctx); err != nil {
		return token.Token{}, &imds.Error{Status: http.StatusServiceUnavailable, Description: fmt.Sprintf("Secret %s cannot be read; look at the log of nmi and at its ClusterRole", g.secret), Err: err}
	}
	p.mu.RLock()
	r := p.rotations[g.principal]
	p.mu.RUnlock()
	if r == nil || !p.takeIn(r, g.principal, w) {
		return token.Token{}, missing(g.secret)
	}
	var t token.Token
	outcome, err := r.Use(func(c *credential.Credential) error {
		start := time.Now()
		var err error
		app := entra.Application{Authority: g.authority, Tenant: g.tenant, ClientID: g.clientID}
		t, err = p.source.Entra.Token(ctx, app, c, g.resource)
		p.source.observe(Operation{Type: OperationEntra, Took: time.Since(start), Err: err})
		return err
	}, badCredential)
	switch {
	case outcome.Accepted:
		p.source.report(r.identity, nil)
	case outcome.Refused != nil:
		p.source.report(r.identity, fmt.Errorf("the new credential in Secret %s is refused, the one before it stays in use: %w", g.secret, outcome.Refused))
	}
	if err != nil {
		return token.Token{}, refusal(g, err)
	}
	return t, nil
}

// takeIn offers a Secret's credential to the rotation once. It reports whether
// there is a Secret.
func (p *principals) takeIn(r *rotation, who principal, w *secret) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := w.last.Load() // within the lock, so that an older one never comes after it
	if now.gone {
		return false
	}
	if r.version == now.version {
		return true
	}
	r.version = now.version
	parse := credential.Password
	if who.kind == v1.ServicePrincipalCertificate {
		parse = credential.Certificate
	}
	c, err := parse(now.data)
	if err != nil {
		err = fmt.Errorf("%w: Secret %s: %w", errUnreadable, who.secret, err)
		if r.Break(err) {
			p.source.report(r.identity, fmt.Errorf("%w; the credential before it stays in use", err))
		}
		return true
	}
	if warning := c.Warning(p.source.now()); warning != "" {
		p.source.report(r.identity, fmt.Errorf("in Secret %s: %s", who.secret, warning))
	}
	r.Offer(c)
	return true
}

// changed is called when a Secret has become another, or is gone.
func (p *principals) changed(name types.NamespacedName, gone bool) {
	uses := func(g grant) bool { return g.secret == name }
	if !gone {
		p.cache.Renew(context.Background(), uses)
		return
	}
	p.forget(func(who principal, _ *rotation) bool { return who.secret == name })
	p.cache.Forget(uses)
}

// forget drops credentials.
func (p *principals) forget(match func(principal, *rotation) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.rotations, match)
}

// run keeps things going until ctx ends.
func (p *principals) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.cache.Run(ctx) })
	g.Go(func() error {
		ticker := time.NewTicker(tendInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				p.secrets.close()
				return nil
			case <-ticker.C:
				p.tend(ctx)
			}
		}
	})
	return g.Wait()
}

// tend tries refused credentials again and drops what is not used any more.
func (p *principals) tend(ctx context.Context) {
	p.mu.RLock()
	pending := map[principal]bool{}
	for who, r := range p.rotations {
		if r.Pending() {
			pending[who] = true
		}
	}
	p.mu.RUnlock()
	if len(pending) > 0 {
		p.cache.Renew(ctx, func(g grant) bool { return pending[g.principal] })
	}
	p.secrets.drop(secretIdle)
	longAgo := time.Now().Add(-secretIdle).UnixNano()
	unused := map[principal]bool{}
	p.forget(func(who principal, r *rotation) bool {
		unused[who] = r.usedAt.Load() < longAgo
		return unused[who]
	})
	if len(unused) > 0 {
		p.cache.Forget(func(g grant) bool { return unused[g.principal] })
	}
}

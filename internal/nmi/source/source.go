// Package source gets, for the node agent, the tokens of every kind of
// AzureIdentity.
//
//	Tokens(identity, resource)
//	   type 0     ── cache by resource id ── the node's metadata service
//	   types 1, 2 ── cache by identity, tenant and resource
//	                   ── secrets      the Secret, watched while it is in use
//	                   ── credential   the newest that works
//	                   ── entra        the tenant's token endpoint
//	Metadata(request)  ── cache ── the node's metadata service, for pods with an exception
//
// It decides nothing: whether a pod may have the identity is settled before,
// for every request. Errors that a caller may see are *imds.Error values.
package source

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

// The metadata service's limits for tokens are 20 requests a second and 5 at a
// time per machine (Azure documentation); other programs of the node need some.
const (
	metadataRate        = 18
	metadataConcurrency = 4
	metadataRefusedMax  = 10 * time.Second // an identity may be put on the machine any moment
)

// What one identity may have fetched at a time: pods choose the resource, and
// could take all turns with ever new ones. Applications have upstreams of their
// own, but share the memory.
const (
	metadataShare    = 8
	applicationShare = 16
)

// A Source gets tokens for one node. Machine must be set. Its zero limits are
// those of token.Cache. It must not be copied.
type Source struct {
	// Machine is the node's own metadata service.
	Machine token.Source
	// Secrets is the core group, for the Secrets of service principals; nil
	// refuses them.
	Secrets rest.Interface
	// CrossNamespaceSecrets lets an AzureIdentity name a Secret of a namespace
	// that is not its own.
	CrossNamespaceSecrets bool
	// Entra asks token endpoints; nil means the zero client.
	Entra *entra.Client
	// AuthorityHosts are hosts besides those of the Azure clouds that an
	// AzureIdentity may name as its adEndpoint; "*" allows every host.
	AuthorityHosts []string
	// Resources are fetched by Prefetch besides those that were asked for here.
	Resources []string
	// Patience is how long a request without a cached token waits.
	Patience time.Duration
	// Report is told when a new credential of an identity is refused while the
	// old one serves on, or warned of, and with a nil error when it works.
	// nil means nothing.
	Report func(id *v1.AzureIdentity, err error)
	// Observe is told of every request upstream. nil means nothing.
	Observe func(Operation)
	// Cached is told whether a request was answered from memory. nil means nothing.
	Cached func(hit bool)

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default

	once    sync.Once
	machine *token.Cache[token.Request]
	apps    *principals
	recent  recent
}

// An Operation is one request to an upstream, under v1's names.
type Operation struct {
	Type string // adal_token_msi, adal_token_msi_userassignedid, adal_token or get_secret
	Took time.Duration
	Err  error
}

// The types of operations: v1's values of the label operation_type.
const (
	OperationMSI          = "adal_token_msi"                // the metadata service, default identity
	OperationUserAssigned = "adal_token_msi_userassignedid" // the metadata service, a named identity
	OperationEntra        = "adal_token"                    // a tenant's token endpoint
	OperationSecret       = "get_secret"
)

// Run keeps what is cached fresh until ctx ends, and then ends everything that
// runs in the background. A Source works without Run too.
func (s *Source) Run(ctx context.Context) error {
	s.init()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.machine.Run(ctx) })
	g.Go(func() error { return s.apps.run(ctx) })
	return g.Wait()
}

// Tokens returns the tokens of an identity for a resource: one, or with
// auxiliaryTenantIDs one per tenant, the primary first. Errors are *imds.Error
// values or wrap the context's error.
func (s *Source) Tokens(ctx context.Context, id *v1.AzureIdentity, resource string) ([]token.Token, error) {
	s.init()
	var tokens []token.Token
	var err error
	switch id.Spec.Type {
	case v1.UserAssignedMSI:
		if id.Spec.ResourceID == "" {
			// Without it the metadata service would give the node's own token.
			return nil, unusable("AzureIdentity %s/%s has no spec.resourceID", id.Namespace, id.Name)
		}
		var t token.Token
		t, err = s.Metadata(ctx, request(id, resource))
		tokens = []token.Token{t}
	case v1.ServicePrincipal, v1.ServicePrincipalCertificate:
		tokens, err = s.apps.tokens(ctx, id, resource)
	default:
		err = unusable("AzureIdentity %s/%s has type %d, which does not exist: set spec.type to 0, 1 or 2", id.Namespace, id.Name, id.Spec.Type)
	}
	if err != nil {
		return nil, err
	}
	s.recent.add(resource)
	return tokens, nil
}

// request asks by resource id, because that is what mic was allowed to assign:
// an AzureIdentity that pairs its own resource id with a foreign client id must
// not get the foreign token.
func request(id *v1.AzureIdentity, resource string) token.Request {
	return token.Request{ResourceID: id.Spec.ResourceID, Resource: resource}
}

// asked groups requests by whom they ask for. Pods with an exception name whom
// they like: whatever is not a resource id is one group.
func asked(r token.Request) string { return r.ResourceID }

// Metadata asks the node's metadata service, for pods with an exception.
func (s *Source) Metadata(ctx context.Context, r token.Request) (token.Token, error) {
	s.init()
	t, err := s.machine.Token(ctx, r)
	if err != nil {
		return token.Token{}, imds.FromCache(err)
	}
	return t, nil
}

// Prefetch begins to fetch the tokens that a pod with this identity will ask
// for, and forgets that they were refused before. It does not wait.
func (s *Source) Prefetch(ctx context.Context, id *v1.AzureIdentity) {
	s.init()
	resources := s.recent.with(s.Resources)
	switch id.Spec.Type {
	case v1.UserAssignedMSI:
		if id.Spec.ResourceID == "" {
			return
		}
		for _, resource := range resources {
			s.machine.Prefetch(ctx, request(id, resource))
		}
	case v1.ServicePrincipal, v1.ServicePrincipalCertificate:
		s.apps.prefetch(ctx, id, resources)
	}
}

func (s *Source) init() {
	s.once.Do(func() {
		if s.Entra == nil {
			s.Entra = &entra.Client{Now: s.Now}
		}
		s.machine = &token.Cache[token.Request]{
			Fetch:       s.Machine.Token,
			Judge:       imds.Judge,
			Concurrency: metadataConcurrency, Rate: metadataRate, RefusedMax: metadataRefusedMax,
			Group: asked, GroupMax: metadataShare, Patience: s.Patience, Now: s.Now,
			OnHit: s.hit, OnMiss: s.miss,
			OnFetch: func(r token.Request, took time.Duration, err error) {
				kind := OperationUserAssigned
				if r.ClientID == "" && r.ResourceID == "" && r.ObjectID == "" {
					kind = OperationMSI
				}
				s.observe(Operation{Type: kind, Took: took, Err: err})
			},
		}
		s.apps = newPrincipals(s)
	})
}

func (s *Source) hit() { s.cached(true) }

func (s *Source) miss() { s.cached(false) }

func (s *Source) cached(hit bool) {
	if s.Cached != nil {
		s.Cached(hit)
	}
}

func (s *Source) observe(o Operation) {
	if s.Observe != nil {
		s.Observe(o)
	}
}

func (s *Source) report(id *v1.AzureIdentity, err error) {
	logger := s.Logger
	if logger == nil {
		logger = slog.Default()
	}
	if err != nil {
		logger.Warn("the credential of an identity needs attention", "namespace", id.Namespace, "identity", id.Name, "err", err)
	} else {
		logger.Info("a new credential is in use", "namespace", id.Namespace, "identity", id.Name)
	}
	if s.Report != nil {
		s.Report(id, err)
	}
}

func (s *Source) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

// A recent remembers the resources that tokens were issued for on this node,
// a handful, the oldest first.
type recent struct {
	mu        sync.RWMutex
	resources []string
}

const maxRecent = 8

func (r *recent) add(resource string) {
	r.mu.RLock()
	known := slices.Contains(r.resources, resource)
	r.mu.RUnlock()
	if known {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.resources, resource) {
		return
	}
	if len(r.resources) == maxRecent {
		r.resources = r.resources[1:]
	}
	r.resources = append(r.resources, resource)
}

// with returns the resources and those that are always wanted, each once.
func (r *recent) with(always []string) []string {
	r.mu.RLock()
	all := slices.Concat(always, r.resources)
	r.mu.RUnlock()
	slices.Sort(all)
	return slices.Compact(all)
}

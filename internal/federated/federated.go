// Package federated keeps federated credentials: what lets the token of a
// Kubernetes service account stand for an identity in Azure. One face for both
// kinds of identity that can have them.
//
//	Find, FindResource ──> Parent   an application, or a user-assigned managed identity
//	List, Put, Delete               Graph for applications, Resource Manager for managed identities
//	ErrTaken, ErrLimit, Throttled   what Azure says, to branch on
//
// Writes to one parent are serial, because Azure refuses concurrent ones; what
// another program writes at the same time is waited for.
package federated

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/msi/armmsi"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/graph"
)

const (
	// MaxPerParent is how many federated credentials Azure lets one application
	// or managed identity have.
	MaxPerParent = 20
	// Audience is what a service account's token is for when it is exchanged.
	Audience = "api://AzureADTokenExchange"
)

// A Kind of parent.
type Kind string

// The kinds of parents.
const (
	ManagedIdentity Kind = "ManagedIdentity"
	Application     Kind = "Application"
)

// A Parent is an identity that can have federated credentials.
type Parent struct {
	Kind        Kind   `json:"kind"`
	ResourceID  string `json:"resourceID,omitempty"` // ARM id; of managed identities only
	ObjectID    string `json:"objectID,omitempty"`   // of the application's registration; of applications only
	ClientID    string `json:"clientID"`
	TenantID    string `json:"tenantID,omitempty"`    // empty if Azure does not say
	PrincipalID string `json:"principalID,omitempty"` // of the service principal; empty if there is none
	DisplayName string `json:"displayName,omitempty"`
}

// String names the parent to a person.
func (p Parent) String() string {
	if p.Kind == ManagedIdentity {
		return "the managed identity " + p.ResourceID
	}
	return fmt.Sprintf("the application %s (client id %s)", p.DisplayName, p.ClientID)
}

func (p Parent) key() string { return azure.Fold(p.ResourceID + "|" + p.ObjectID) }

// A Credential says which token is accepted.
type Credential struct {
	Name        string `json:"name"` // unique within the parent; cannot be changed
	Issuer      string `json:"issuer"`
	Subject     string `json:"subject"`
	Audience    string `json:"audience"`              // empty means Audience
	Description string `json:"description,omitempty"` // managed identities have none
}

// Same reports whether both accept the same tokens.
func (c Credential) Same(other Credential) bool {
	return c.Issuer == other.Issuer && c.Subject == other.Subject && c.audience() == other.audience()
}

func (c Credential) audience() string {
	if c.Audience == "" {
		return Audience
	}
	return c.Audience
}

// What callers branch on.
var (
	// ErrNotFound: the parent does not exist.
	ErrNotFound = errors.New("no such identity")
	// ErrLimit: the parent has MaxPerParent credentials.
	ErrLimit = fmt.Errorf("it has %d federated credentials, which is Azure's limit", MaxPerParent)
	// ErrTaken: another credential of the parent has the same issuer and
	// subject. The error is a *Taken.
	ErrTaken = errors.New("another federated credential has the same issuer and subject")
	// ErrForbidden: a permission is missing; the text says which.
	ErrForbidden = errors.New("a permission is missing")
)

// Taken is ErrTaken with the credential that stands in the way.
type Taken struct{ By Credential }

func (t *Taken) Error() string { return fmt.Sprintf("%v: %s", ErrTaken, t.By.Name) }

// Is makes it an ErrTaken.
func (t *Taken) Is(target error) bool { return target == ErrTaken }

// Throttled: Azure asks to be left alone for a while.
type Throttled struct {
	RetryAfter time.Duration // zero if Azure does not say
	Err        error         // the cause
}

func (t *Throttled) Error() string {
	return fmt.Sprintf("Azure throttles; it asks to wait %s: %v", t.RetryAfter, t.Err)
}

// Unwrap returns the cause.
func (t *Throttled) Unwrap() error { return t.Err }

// A Client reads and writes federated credentials. Credential and Cloud must be
// set. It is safe for concurrent use.
type Client struct {
	Credential azcore.TokenCredential
	Cloud      arm.Cloud
	// Options carry transport, telemetry and retries. Unless they say which
	// status codes to retry, 429 is not among them: it becomes Throttled.
	Options policy.ClientOptions

	mu       sync.Mutex
	graph    *graph.Client
	managers map[string]*armmsi.ClientFactory // by subscription
	writing  map[string]chan struct{}         // by parent; of capacity 1
}

// AccountName is the name of the credential of a service account. It is not
// azwi's, which is the same for a-b/c and a/b-c and has characters that Resource
// Manager refuses. Nothing has to find credentials by it: what counts is issuer
// and subject.
func AccountName(namespace, name, issuer string) string {
	sum := sha256.Sum256([]byte(Subject(namespace, name) + " " + issuer))
	text := base64.RawURLEncoding.EncodeToString(sum[:])
	if strings.ContainsRune("-_", rune(text[0])) {
		return "x" + text // Azure wants a letter or digit first
	}
	return text
}

// Subject is what the API server writes into the tokens of a service account.
func Subject(namespace, name string) string {
	return "system:serviceaccount:" + namespace + ":" + name
}

// Find returns the application or managed identity with a client id. It needs
// to read the directory.
func (c *Client) Find(ctx context.Context, clientID string) (Parent, error) {
	g, err := c.directory()
	if err != nil {
		return Parent{}, err
	}
	principal, err := g.ServicePrincipalByAppID(ctx, clientID)
	if err != nil && !graph.NotFound(err) {
		return Parent{}, explain(err, "Microsoft Graph's permission Application.Read.All, or give the managed identity's resource id")
	}
	if principal.ServicePrincipalType == graph.TypeManagedIdentity {
		return managedParent(principal)
	}
	app, err := g.ApplicationByAppID(ctx, clientID)
	if graph.NotFound(err) {
		if principal.ID != "" {
			return Parent{}, fmt.Errorf("%w: %s is registered in another tenant (%s), and only there can it have federated credentials", ErrNotFound, clientID, principal.AppOwnerOrganizationID)
		}
		return Parent{}, fmt.Errorf("%w: the directory has no application or managed identity with client id %s", ErrNotFound, clientID)
	}
	if err != nil {
		return Parent{}, explain(err, "Microsoft Graph's permission Application.Read.All")
	}
	return Parent{
		Kind: Application, ObjectID: app.ID, ClientID: app.AppID, TenantID: principal.AppOwnerOrganizationID,
		PrincipalID: principal.ID, DisplayName: app.DisplayName,
	}, nil
}

func managedParent(p graph.ServicePrincipal) (Parent, error) {
	for _, name := range p.AlternativeNames {
		id, err := azure.ParseResourceID(name)
		if err != nil {
			continue
		}
		if !id.Is(azure.TypeManagedIdentity) {
			return Parent{}, fmt.Errorf("%w: %s is the system-assigned identity of %s, which cannot have federated credentials: use a user-assigned one", ErrNotFound, p.AppID, id)
		}
		return Parent{Kind: ManagedIdentity, ResourceID: id.String(), ClientID: p.AppID, PrincipalID: p.ID, DisplayName: p.DisplayName}, nil
	}
	return Parent{}, fmt.Errorf("%w: the directory does not say where the managed identity %s is: give its resource id", ErrNotFound, p.AppID)
}

// FindResource returns the user-assigned managed identity with an ARM id.
func (c *Client) FindResource(ctx context.Context, resourceID string) (Parent, error) {
	id, err := identityID(resourceID)
	if err != nil {
		return Parent{}, err
	}
	m, err := c.manager(id.SubscriptionID)
	if err != nil {
		return Parent{}, err
	}
	found, err := m.NewUserAssignedIdentitiesClient().Get(ctx, id.ResourceGroup, id.Name(), nil)
	if err != nil {
		return Parent{}, explain(notFound(err, "the managed identity "+id.String()), "the role Reader or Managed Identity Contributor on "+id.String())
	}
	p := Parent{Kind: ManagedIdentity, ResourceID: id.String(), DisplayName: id.Name()}
	if x := found.Properties; x != nil {
		p.ClientID, p.TenantID, p.PrincipalID = deref(x.ClientID), deref(x.TenantID), deref(x.PrincipalID)
	}
	return p, nil
}

func identityID(text string) (azure.ResourceID, error) {
	id, err := azure.ParseResourceID(text)
	if err != nil {
		return id, err
	}
	if !id.Is(azure.TypeManagedIdentity) || id.SubscriptionID == "" || id.ResourceGroup == "" {
		return id, fmt.Errorf("%q is not the resource id of a user-assigned managed identity: /subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/%s/NAME", text, azure.TypeManagedIdentity)
	}
	return id, nil
}

// List returns the credentials of a parent, by name.
func (c *Client) List(ctx context.Context, p Parent) ([]Credential, error) {
	s, err := c.store(p)
	if err != nil {
		return nil, err
	}
	all, err := s.list(ctx)
	if err != nil {
		return nil, s.explain(err)
	}
	out := make([]Credential, len(all))
	for i, x := range all {
		out[i] = x.Credential
	}
	slices.SortFunc(out, func(a, b Credential) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Put makes the credential what want says, by its name. What is so already is
// not written.
func (c *Client) Put(ctx context.Context, p Parent, want Credential) error {
	s, err := c.store(p)
	if err != nil {
		return err
	}
	want.Audience = want.audience()
	return c.serially(ctx, p, func() error { return s.explain(put(ctx, s, want)) })
}

func put(ctx context.Context, s store, want Credential) error {
	have, err := admit(ctx, s, want)
	if err != nil || have.Same(want) && (have.Description == want.Description || !s.describes()) {
		return err
	}
	err = s.write(ctx, have, want)
	var e *arm.Error
	if errors.As(err, &e) && e.Status == http.StatusBadRequest {
		// Another program may have been faster: then this is what it means.
		if _, reason := admit(ctx, s, want); reason != nil {
			return reason
		}
	}
	return err
}

// admit returns what has the name of want already, and refuses what Azure would.
func admit(ctx context.Context, s store, want Credential) (have stored, err error) {
	all, err := s.list(ctx)
	if err != nil {
		return have, err
	}
	for _, x := range all {
		switch {
		case strings.EqualFold(x.Name, want.Name):
			have = x
		case x.Issuer == want.Issuer && x.Subject == want.Subject:
			return have, &Taken{By: x.Credential}
		}
	}
	if have.Name == "" && len(all) >= MaxPerParent {
		return have, ErrLimit
	}
	return have, nil
}

// Delete removes the credential with a name. It reports whether there was one;
// that there is none, or no parent any more, is no error.
func (c *Client) Delete(ctx context.Context, p Parent, name string) (existed bool, err error) {
	s, err := c.store(p)
	if err != nil {
		return false, err
	}
	err = c.serially(ctx, p, func() error {
		var err error
		existed, err = s.remove(ctx, name)
		if errors.Is(err, ErrNotFound) {
			err = nil
		}
		return s.explain(err)
	})
	return existed, err
}

const (
	maxConflicts  = 8
	firstConflict = 250 * time.Millisecond
)

// serially runs write when no other write to the parent runs, and again while
// Azure says that another program writes. What write finds out it finds out anew.
func (c *Client) serially(ctx context.Context, p Parent, write func() error) error {
	c.mu.Lock()
	if c.writing == nil {
		c.writing = map[string]chan struct{}{}
	}
	turn := c.writing[p.key()]
	if turn == nil {
		turn = make(chan struct{}, 1)
		c.writing[p.key()] = turn
	}
	c.mu.Unlock()
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	delay := firstConflict
	for n := 1; ; n++ {
		err := write()
		var e *arm.Error
		if !errors.As(err, &e) || e.Status != http.StatusConflict || n == maxConflicts {
			return err
		}
		t := time.NewTimer(max(delay, e.RetryAfter))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return errors.Join(err, ctx.Err())
		}
		delay = min(2*delay, 8*time.Second)
	}
}

// explain turns Azure's refusals into what callers branch on; need says what
// permits the request.
func explain(err error, need string) error {
	var e *arm.Error
	err = arm.AsError(err)
	if !errors.As(err, &e) {
		return err
	}
	switch e.Status {
	case http.StatusForbidden:
		return fmt.Errorf("%w: it needs %s (%w)", ErrForbidden, need, err)
	case http.StatusTooManyRequests:
		return &Throttled{RetryAfter: e.RetryAfter, Err: err}
	}
	return err
}

// notFound makes an ErrNotFound of a 404.
func notFound(err error, what string) error {
	var e *arm.Error
	if err = arm.AsError(err); errors.As(err, &e) && e.Status == http.StatusNotFound {
		return fmt.Errorf("%w: %s does not exist (%w)", ErrNotFound, what, err)
	}
	return err
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

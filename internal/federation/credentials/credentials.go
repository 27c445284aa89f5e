// Package credentials keeps the federated credentials in Azure. It works by
// identity, not by object: what belongs to one identity is listed once and
// written one after the other, and one that Azure throttles delays no other.
//
//	FederatedIdentities, policies, accounts, namespaces, issuer ── watches ──> an identity's key
//	   1 judge     policy.Decide, before anything is asked in Azure
//	   2 find      the identity, if a claim on it may be allowed
//	   3 list      its credentials; again after the interval
//	   4 plan.Make
//	   5 apply     removals, then the finalizer, then the credential
//	   6 record    conditions and events
//
// A FederatedIdentity whose credential may be in Azure has a finalizer, and what
// is to be removed is found by its name, never by a status. Before a credential
// is changed the status says so, and afterwards how it went: a controller that
// ends in between loses nothing.
package credentials

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/federation/record"
)

// A Directory finds identities.
type Directory interface {
	Find(ctx context.Context, clientID string) (federated.Parent, error)
	FindResource(ctx context.Context, resourceID string) (federated.Parent, error)
}

// A Store holds the credentials of identities. Errors are those of package federated.
type Store interface {
	List(ctx context.Context, p federated.Parent) ([]federated.Credential, error)
	PutListed(ctx context.Context, p federated.Parent, listed []federated.Credential, want federated.Credential) error
	Delete(ctx context.Context, p federated.Parent, name string) (existed bool, err error)
}

// A Controller keeps credentials. All fields but those with a comment must be
// set before SetUp.
type Controller struct {
	Client    client.Client
	Live      client.Reader // past the cache
	Directory Directory
	Store     Store
	Events    record.Events

	ClusterID string
	Issuer    func() (string, error) // of the service accounts' tokens
	Changed   <-chan event.GenericEvent
	Audience  string        // of tokens whose FederatedIdentity names none
	TenantID  string        // that the controller works in; empty if not known
	Probed    bool          // package probe looks after Usable
	Interval  time.Duration // between two comparisons with Azure
	Retry     time.Duration // after a failure, at first; zero means 5 s
	// AbandonAfter is how long a removal may fail until the object goes without;
	// zero means for ever.
	AbandonAfter time.Duration
	Abandoned    func()           // counts; nil means nobody does
	Now          func() time.Time // nil means time.Now
	Logger       *slog.Logger     // nil means slog.Default

	mu      sync.Mutex
	targets map[string]*target
}

// A target is what is known of an identity besides what is in the cluster. All
// of it may be lost at any time. One reconcile at a time has it, but for parent.
type target struct {
	mu     sync.Mutex
	parent federated.Parent // zero: not found yet

	have  []federated.Credential
	known bool          // have was read
	next  time.Time     // when it is read again
	until time.Time     // Azure is left alone
	why   failure       // the reason for until
	delay time.Duration // the last one after a failure
	full  time.Duration // the last one without room
}

func (t *target) found() (federated.Parent, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.parent, t.parent.Kind != ""
}

func (t *target) set(p federated.Parent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.parent = p
}

// A claim is one FederatedIdentity in a batch.
type claim struct {
	*lanyard.FederatedIdentity
	verdict verdict
	why     failure // of verdicts drop and hold
}

type verdict int

const (
	hold verdict = iota // nothing is known: nothing changes
	want
	drop
)

// marked reports whether its credential may be in Azure.
func (c *claim) marked() bool { return slices.Contains(c.Finalizers, lanyard.FinalizerCredential) }

func (c *claim) going() bool { return !c.DeletionTimestamp.IsZero() }

// A failure is why something is not as it should be.
type failure struct {
	reason, message string
}

// A batch is all that concerns one identity.
type batch struct {
	*target
	key    string
	claims []*claim
	listed bool          // have was read in this batch
	wait   time.Duration // until the next look; zero means none is needed
}

// soon makes the next look no later than after d.
func (b *batch) soon(d time.Duration) {
	if d = max(d, time.Millisecond); b.wait == 0 || d < b.wait {
		b.wait = d
	}
}

// Reconcile looks after one identity, whose key is the request's name.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var list lanyard.FederatedIdentityList
	if err := c.Client.List(ctx, &list, client.MatchingFields{record.IndexIdentity: req.Name}); err != nil {
		return reconcile.Result{}, fmt.Errorf("listing FederatedIdentities: %w", err)
	}
	if len(list.Items) == 0 {
		c.forget(req.Name)
		return reconcile.Result{}, nil
	}
	b := &batch{target: c.remember(req.Name), key: req.Name}
	for i := range list.Items {
		b.claims = append(b.claims, &claim{FederatedIdentity: &list.Items[i]})
	}
	// The oldest has the first right to what there is too little of.
	slices.SortFunc(b.claims, func(x, y *claim) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	err := c.work(ctx, b)
	switch {
	case ctx.Err() != nil:
		return reconcile.Result{}, nil // the end: nothing is lost
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: 100 * time.Millisecond}, nil // the watch brings the newer one
	case err != nil:
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: b.wait}, nil
}

func (c *Controller) work(ctx context.Context, b *batch) error {
	j, err := c.judge(ctx, b)
	if err != nil {
		return err
	}
	if j.ask {
		if wait := b.until.Sub(c.now()); wait > 0 {
			b.soon(wait)
			return c.stuck(ctx, b, b.why)
		}
		if err := c.find(ctx, b, j); err != nil {
			return c.failed(ctx, b, err)
		}
	}
	for _, x := range b.claims {
		if err := c.accepted(ctx, x); err != nil {
			return err
		}
		if x.verdict == drop && !x.marked() {
			if err := c.dropped(ctx, x); err != nil {
				return err
			}
		}
	}
	if !slices.ContainsFunc(b.claims, func(x *claim) bool { return x.verdict == want || x.verdict == drop && x.marked() }) {
		return nil
	}
	if err := c.settle(ctx, b); err != nil {
		return c.failed(ctx, b, err)
	}
	b.delay, b.until = 0, time.Time{}
	if b.known {
		b.soon(b.next.Sub(c.now()))
	}
	return nil
}

// mostThrottled is the longest that an identity waits beyond the time that
// Azure asks for.
const mostThrottled = time.Minute

// failed notes why Azure could not be asked or changed, and when to try again.
func (c *Controller) failed(ctx context.Context, b *batch, err error) error {
	var refused *refusal
	if !errors.As(err, &refused) || ctx.Err() != nil {
		return err // the cluster's, or the end
	}
	first := cmp.Or(c.Retry, 5*time.Second)
	b.delay = min(max(2*b.delay, first), max(c.Interval, first))
	wait := b.delay
	why := failure{record.ReasonAzureError, refused.Error()}
	var throttled *federated.Throttled
	switch {
	case errors.As(err, &throttled):
		why.reason = record.ReasonThrottled
		if throttled.RetryAfter > 0 { // Azure knows when: what has grown long in a storm does not outlast it
			wait = max(throttled.RetryAfter, min(wait, mostThrottled))
		}
	case errors.Is(err, federated.ErrForbidden):
		why.reason = record.ReasonForbidden
	case errors.Is(err, federated.ErrNotFound):
		why = failure{record.ReasonIdentityNotFound, refused.Error() + "; check the id, or delete this claim"}
		b.set(federated.Parent{})
	}
	// What began together must not stay together.
	wait += rand.N(wait/10 + 1)
	b.known, b.until, b.why = false, c.now().Add(wait), why
	b.soon(wait)
	c.logger().WarnContext(ctx, "the identity's credentials are not in order", "identity", b.key, "reason", why.reason, "wait", wait, "err", err)
	return c.stuck(ctx, b, why)
}

// A refusal is an error from Azure.
type refusal struct{ err error }

func (r *refusal) Error() string { return record.Clip(r.err.Error(), 2000) }

func (r *refusal) Unwrap() error { return r.err }

// asked marks an error as Azure's.
func asked(err error) error {
	if err == nil {
		return nil
	}
	return &refusal{err}
}

// stuck tells everybody who waits for Azure why. What is there stays.
func (c *Controller) stuck(ctx context.Context, b *batch, why failure) error {
	gone := why.reason == record.ReasonIdentityNotFound
	for _, x := range b.claims {
		if gone && x.verdict == hold {
			x.deny()
		}
		err := c.accepted(ctx, x)
		if err != nil {
			return err
		}
		switch {
		case x.verdict == drop && gone:
			err = c.release(ctx, x)
		case x.verdict == drop && x.marked():
			err = c.unremoved(ctx, b, x, why)
		case x.verdict == drop:
			err = c.dropped(ctx, x)
		case x.verdict == hold:
			err = c.held(ctx, x, why)
		case gone:
			err = c.created(ctx, x, metav1.ConditionFalse, why)
		case !record.Is(x.FederatedIdentity, lanyard.ConditionCreated, metav1.ConditionTrue):
			err = c.created(ctx, x, metav1.ConditionFalse, why)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Controller) remember(key string) *target {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.targets[key]
	if t == nil {
		if c.targets == nil {
			c.targets = map[string]*target{}
		}
		t = &target{}
		c.targets[key] = t
	}
	return t
}

func (c *Controller) forget(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.targets, key)
}

func (c *Controller) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Controller) logger() *slog.Logger {
	if c.Logger != nil {
		return c.Logger
	}
	return slog.Default()
}

// spread varies a time by a fifth.
func spread(d time.Duration) time.Duration { return d + rand.N(d/5+1) }

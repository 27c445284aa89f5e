// Package probe finds out whether a federated credential works, by doing what
// the service account's pods will do:
//
//	Created is True ── Delay ──> TokenRequest, ten minutes, Entra's audience ──> exchange at Entra
//	    accepted                        Usable, usableSince; never asked again for this credential
//	    AADSTS70021, 700211, 700213     not known yet: again, ever more rarely
//	    anything else                   the condition says what to do
//
// Entra remembers for some minutes that it did not find a credential, so the
// first attempt waits a moment: asking too early makes all wait longer, the pods
// too. The tokens of both sides are dropped at once and appear nowhere.
package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/federation/record"
)

// lifetime of the tokens: the shortest that the API server makes.
const lifetime = 10 * time.Minute

// A Controller probes. All fields but those with a comment must be set before SetUp.
type Controller struct {
	Client   client.Client
	Live     client.Reader // past the cache
	Exchange Exchanger
	Events   record.Events
	// Resource is what the token is asked for; any that the tenant knows will do.
	Resource string
	// TenantID of identities whose FederatedIdentity names none.
	TenantID string
	// Audiences that tokens may be asked for: those of Entra's clouds. A token
	// for anything else could be used against its owner.
	Audiences []string
	Delay     time.Duration // before the first attempt, and after it at first
	Counts    func(result string)
	Now       func() time.Time // nil means time.Now
	Logger    *slog.Logger     // nil means slog.Default

	mu       sync.Mutex
	attempts map[types.NamespacedName]attempt
	until    time.Time // Entra is left alone
	pinned   time.Time // when the admission policy is looked at next
}

// An attempt is the last one; it may be forgotten at any time.
type attempt struct {
	uid    types.UID
	since  time.Time // of Created
	usable bool
	next   time.Time
	delay  time.Duration
}

// SetUp registers the controller.
func (c *Controller) SetUp(m manager.Manager) error {
	return builder.ControllerManagedBy(m).
		Named("probe").
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		For(&lanyard.FederatedIdentity{}).
		Complete(c)
}

// Reconcile looks after one FederatedIdentity.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var f lanyard.FederatedIdentity
	if err := c.Client.Get(ctx, req.NamespacedName, &f); err != nil || !f.DeletionTimestamp.IsZero() {
		c.forget(req.NamespacedName)
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	created := meta.FindStatusCondition(f.Status.Conditions, lanyard.ConditionCreated)
	if created == nil || created.Status != metav1.ConditionTrue {
		c.forget(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	a := c.last(req.NamespacedName, &f, created.LastTransitionTime.Time)
	if record.Is(&f, lanyard.ConditionUsable, metav1.ConditionTrue) && f.Status.UsableSince != nil && a.usable {
		return reconcile.Result{}, nil
	}
	if wait := c.wait(a); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	return c.attempt(ctx, &f, a)
}

// last returns the last attempt at the credential as it is now. What a status
// says that another process wrote is believed once.
func (c *Controller) last(key types.NamespacedName, f *lanyard.FederatedIdentity, since time.Time) attempt {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.attempts[key]
	if ok && a.uid == f.UID && a.since.Equal(since) {
		return a
	}
	a = attempt{uid: f.UID, since: since, next: since.Add(c.Delay)}
	if !ok {
		a.usable = record.Is(f, lanyard.ConditionUsable, metav1.ConditionTrue) && f.Status.UsableSince != nil
	}
	c.keep(key, a)
	return a
}

func (c *Controller) keep(key types.NamespacedName, a attempt) {
	if c.attempts == nil {
		c.attempts = map[types.NamespacedName]attempt{}
	}
	c.attempts[key] = a
}

func (c *Controller) forget(key types.NamespacedName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.attempts, key)
}

func (c *Controller) wait(a attempt) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(a.next.Sub(c.now()), c.until.Sub(c.now()))
}

// attempt tries once and records what came of it.
func (c *Controller) attempt(ctx context.Context, f *lanyard.FederatedIdentity, a attempt) (reconcile.Result, error) {
	now := c.now()
	found := c.try(ctx, f, now.Sub(a.since))
	if ctx.Err() != nil {
		return reconcile.Result{}, nil // the end: nothing is lost
	}
	a.usable = found.usable
	wait := found.wait
	if found.grow {
		a.delay = min(max(2*a.delay, c.Delay, 100*time.Millisecond), most)
		wait = max(wait, a.delay)
	}
	wait += rand.N(wait/10 + 1)
	a.next = c.now().Add(wait)
	c.mu.Lock()
	c.keep(client.ObjectKeyFromObject(f), a)
	if found.reason == reasonThrottled && a.next.After(c.until) {
		c.until = a.next
	}
	c.mu.Unlock()
	c.count(found)
	if err := c.write(ctx, f, a, found); err != nil {
		return reconcile.Result{}, err
	}
	if found.usable {
		return reconcile.Result{}, nil
	}
	return reconcile.Result{RequeueAfter: wait}, nil
}

func (c *Controller) count(found finding) {
	result := found.reason
	if found.usable {
		result = "Usable"
	}
	if c.Counts != nil {
		c.Counts(result)
	}
}

func (c *Controller) write(ctx context.Context, f *lanyard.FederatedIdentity, a attempt, found finding) error {
	since, news := metav1.NewTime(c.now().Truncate(time.Second)), false
	_, _, err := record.Write(ctx, c.Client, c.Live, f, func(f *lanyard.FederatedIdentity) {
		created := meta.FindStatusCondition(f.Status.Conditions, lanyard.ConditionCreated)
		if created == nil || created.Status != metav1.ConditionTrue || !created.LastTransitionTime.Time.Equal(a.since) {
			news = false
			return // it was about another credential
		}
		if found.usable {
			news = record.Set(f, lanyard.ConditionUsable, metav1.ConditionTrue, record.ReasonExchanged, "Entra accepted a token of the service account")
			if f.Status.UsableSince == nil || news {
				f.Status.UsableSince = &since
			}
			return
		}
		f.Status.UsableSince = nil
		status := metav1.ConditionFalse
		if found.reason == record.ReasonNotProbed {
			status = metav1.ConditionUnknown
		}
		news = record.Set(f, lanyard.ConditionUsable, status, found.reason, found.message)
	})
	if err != nil || !news {
		return err
	}
	if found.usable {
		c.logger().InfoContext(ctx, "federated credential is usable", "namespace", f.Namespace, "federatedIdentity", f.Name, "serviceAccount", f.Spec.ServiceAccountName, "clientID", f.Status.ClientID, "after", c.now().Sub(a.since).Round(time.Millisecond))
		c.Events.About(ctx, f, false, "Usable", "Probe", "Entra accepts tokens of the service account for "+f.Status.ClientID)
		return nil
	}
	c.logger().InfoContext(ctx, "federated credential is not usable", "namespace", f.Namespace, "federatedIdentity", f.Name, "reason", found.reason, "message", found.message)
	if found.reason != reasonPropagating && found.reason != record.ReasonNotProbed {
		c.Events.About(ctx, f, true, found.reason, "Probe", found.message)
	}
	return nil
}

// try exchanges once. The tokens do not leave it.
func (c *Controller) try(ctx context.Context, f *lanyard.FederatedIdentity, age time.Duration) finding {
	if !slices.Contains(c.Audiences, f.Status.Audience) {
		return finding{reason: record.ReasonNotProbed, wait: slow, message: fmt.Sprintf("tokens for the audience %q are not asked for: the probe asks for Entra's own audiences only", f.Status.Audience)}
	}
	tenant := f.Spec.TenantID
	if tenant == "" {
		tenant = c.TenantID
	}
	if tenant == "" {
		return finding{reason: record.ReasonNotProbed, wait: slow, message: "the tenant is not known: set the controller's tenant (AZURE_TENANT_ID), or tenantID"}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	seconds := int64(lifetime / time.Second)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{f.Status.Audience}, ExpirationSeconds: &seconds}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: f.Namespace, Name: f.Spec.ServiceAccountName}}
	c.checkPinned(ctx, account)
	if err := c.Client.SubResource("token").Create(ctx, account, request); err != nil {
		if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
			return finding{reason: reasonTokenRefused, wait: most, message: "the API server gives the controller no token of the service account: " + err.Error()}
		}
		return finding{reason: reasonTokenRefused, grow: true, message: "the API server gives no token of the service account: " + err.Error()}
	}
	_, err := c.Exchange.Token(ctx, entra.Application{Tenant: tenant, ClientID: f.Status.ClientID}, entra.Assertion(request.Status.Token), c.Resource)
	if errors.Is(err, context.DeadlineExceeded) {
		return finding{reason: reasonUnreachable, grow: true, message: "Entra does not answer within 30 s"}
	}
	return judge(err, age)
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

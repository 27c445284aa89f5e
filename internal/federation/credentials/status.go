package credentials

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/federation/record"
)

// action is what events say was being done.
const action = "Federate"

func (c *Controller) update(ctx context.Context, x *claim, change func(*lanyard.FederatedIdentity)) error {
	f, _, err := record.Write(ctx, c.Client, c.Live, x.FederatedIdentity, change)
	x.FederatedIdentity = f
	return err
}

// accepted records what policy says; a claim that cannot be judged keeps the
// verdict that it had.
func (c *Controller) accepted(ctx context.Context, x *claim) error {
	if x.going() || x.verdict == hold {
		return nil
	}
	status, why := metav1.ConditionTrue, failure{record.ReasonAllowed, "a FederationPolicy allows it"}
	if x.verdict == drop && refuses(x.why.reason) {
		status, why = metav1.ConditionFalse, x.why
	}
	news := false
	err := c.update(ctx, x, func(f *lanyard.FederatedIdentity) {
		news = record.Set(f, lanyard.ConditionAccepted, status, why.reason, why.message)
		if f.Status.ClientID == "" {
			f.Status.ClientID = azure.Fold(f.Spec.ClientID)
		}
	})
	if err == nil && news && status == metav1.ConditionFalse {
		c.Events.About(ctx, x.FederatedIdentity, true, why.reason, action, why.message)
	}
	return err
}

// refuses reports whether a reason is one of Accepted.
func refuses(reason string) bool {
	return reason == record.ReasonNotAllowed || reason == record.ReasonOtherTenant || reason == record.ReasonInvalid
}

// held tells a new claim why it cannot be judged.
func (c *Controller) held(ctx context.Context, x *claim, why failure) error {
	if slices.ContainsFunc(x.Status.Conditions, func(k metav1.Condition) bool {
		return k.Type == lanyard.ConditionAccepted && k.Status != metav1.ConditionUnknown
	}) {
		return nil
	}
	reason := record.ReasonLookupFailed
	if why.reason == record.ReasonForbidden {
		reason = record.ReasonLookupForbidden
	}
	return c.update(ctx, x, func(f *lanyard.FederatedIdentity) {
		record.Set(f, lanyard.ConditionAccepted, metav1.ConditionUnknown, reason, "the identity could not be looked up, and policies name it in another way: "+why.message)
	})
}

// there records that the credential is in Azure; story says what was done to it,
// if that is worth an event.
func (c *Controller) there(ctx context.Context, x *claim, p federated.Parent, have federated.Credential, why failure, story failure) error {
	news := false
	err := c.update(ctx, x, func(f *lanyard.FederatedIdentity) {
		s := &f.Status
		other := s.Issuer != have.Issuer || s.CredentialName != have.Name || s.Audience != have.Audience
		news = record.Set(f, lanyard.ConditionCreated, metav1.ConditionTrue, why.reason, why.message)
		if news || other {
			c.usable(f, record.ReasonWaiting, "waiting until Entra accepts the credential")
		}
		s.Issuer, s.Subject, s.Audience, s.CredentialName = have.Issuer, have.Subject, have.Audience, have.Name
		s.ParentID, s.ClientID = p.ResourceID, azure.Fold(p.ClientID)
		if p.Kind == federated.Application {
			s.ParentID = p.ObjectID
		}
	})
	switch {
	case err != nil:
		return err
	case story.reason != "":
		c.Events.About(ctx, x.FederatedIdentity, true, story.reason, action, "the federated credential "+have.Name+" at "+p.String()+" "+story.message)
	case news:
		c.Events.About(ctx, x.FederatedIdentity, false, why.reason, action, why.message)
	}
	return nil
}

// created records that the credential is not in Azure, or not known to be, and
// tells people unless it is only a matter of time.
func (c *Controller) created(ctx context.Context, x *claim, status metav1.ConditionStatus, why failure) error {
	news := false
	err := c.update(ctx, x, func(f *lanyard.FederatedIdentity) {
		news = record.Set(f, lanyard.ConditionCreated, status, why.reason, why.message)
		c.usable(f, record.ReasonPending, "there is no credential yet")
	})
	if err == nil && news && why.reason != record.ReasonChanging && why.reason != record.ReasonNotAccepted {
		c.Events.About(ctx, x.FederatedIdentity, true, why.reason, action, why.message)
	}
	return err
}

// usable starts over: what was found out about an earlier credential is void.
func (c *Controller) usable(f *lanyard.FederatedIdentity, reason, message string) {
	f.Status.UsableSince = nil
	if !c.Probed {
		record.Set(f, lanyard.ConditionUsable, metav1.ConditionUnknown, record.ReasonNotProbed, "the controller runs with --probe=false: nobody tries the credential")
		return
	}
	record.Set(f, lanyard.ConditionUsable, metav1.ConditionFalse, reason, message)
}

// dropped records that a claim has no credential.
func (c *Controller) dropped(ctx context.Context, x *claim) error {
	if x.going() {
		return nil
	}
	why := x.why
	if refuses(why.reason) {
		why = failure{record.ReasonNotAccepted, "no credential without acceptance"}
	}
	err := c.created(ctx, x, metav1.ConditionFalse, why)
	if err == nil && (x.Status.CredentialName != "" || x.Status.ParentID != "") {
		err = c.update(ctx, x, func(f *lanyard.FederatedIdentity) {
			f.Status.Issuer, f.Status.Subject, f.Status.Audience, f.Status.CredentialName, f.Status.ParentID = "", "", "", "", ""
		})
	}
	return err
}

// unremoved tells why a credential is still in Azure, and gives up at last.
func (c *Controller) unremoved(ctx context.Context, b *batch, x *claim, why failure) error {
	if x.going() && c.AbandonAfter > 0 {
		left := x.DeletionTimestamp.Add(c.AbandonAfter).Sub(c.now())
		if left <= 0 {
			c.logger().WarnContext(ctx, "federated credential left behind in Azure", "identity", b.key, "namespace", x.Namespace, "federatedIdentity", x.Name, "credential", x.Status.CredentialName, "reason", why.reason)
			c.Events.About(ctx, x.FederatedIdentity, true, record.ReasonAbandoned, action, fmt.Sprintf("the federated credential could not be removed for %s and is left behind at %s; remove it there: %s", c.AbandonAfter, b.key, why.message))
			if c.Abandoned != nil {
				c.Abandoned()
			}
			return c.unmark(ctx, x)
		}
		b.soon(left)
	}
	news := false
	err := c.update(ctx, x, func(f *lanyard.FederatedIdentity) {
		message := "the credential could not be removed yet: " + why.message
		if x.going() {
			message += "; " + c.patience()
		}
		news = record.Set(f, lanyard.ConditionCreated, metav1.ConditionUnknown, why.reason, message)
	})
	if err == nil && news {
		c.Events.About(ctx, x.FederatedIdentity, true, why.reason, action, "the credential could not be removed yet: "+why.message)
	}
	return err
}

func (c *Controller) patience() string {
	const now = "to let it go now, and leave the credential behind, remove the finalizer " + lanyard.FinalizerCredential
	if c.AbandonAfter == 0 {
		return now
	}
	return fmt.Sprintf("it is given up after %s; %s", c.AbandonAfter.Round(time.Second), now)
}

// release records that nothing of a claim is in Azure any more.
func (c *Controller) release(ctx context.Context, x *claim) error {
	if err := c.dropped(ctx, x); err != nil || !x.marked() {
		return err
	}
	return c.unmark(ctx, x)
}

// mark adds the finalizer.
func (c *Controller) mark(ctx context.Context, x *claim) error {
	if x.marked() {
		return nil
	}
	return c.finalizers(ctx, x, append(slices.Clone(x.Finalizers), lanyard.FinalizerCredential))
}

func (c *Controller) unmark(ctx context.Context, x *claim) error {
	return client.IgnoreNotFound(c.finalizers(ctx, x, slices.DeleteFunc(slices.Clone(x.Finalizers), func(f string) bool { return f == lanyard.FinalizerCredential })))
}

// finalizers writes on exactly the version that was judged: a claim that was
// deleted meanwhile is judged again.
func (c *Controller) finalizers(ctx context.Context, x *claim, all []string) error {
	next := x.DeepCopy()
	next.Finalizers = all
	if err := c.Client.Patch(ctx, next, client.MergeFromWithOptions(x.FederatedIdentity, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("writing the finalizers of FederatedIdentity %s/%s: %w", x.Namespace, x.Name, err)
	}
	// The answer to a patch of the object has the status, too.
	x.FederatedIdentity = next
	return nil
}

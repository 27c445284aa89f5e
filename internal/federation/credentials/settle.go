package credentials

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/federation/plan"
	"github.com/lanyard-id/lanyard/internal/federation/record"
)

// Without room the identity is looked at again after firstFull, and then ever
// more rarely until the interval is reached.
const firstFull = time.Minute

// settle makes the credentials in Azure what the claims say. Errors are a refusal
// unless the cluster's.
func (c *Controller) settle(ctx context.Context, b *batch) error {
	p, _ := b.found()
	if err := c.drop(ctx, b, p); err != nil {
		return err
	}
	issuer, noIssuer := c.Issuer()
	var (
		wanted  []*claim
		right   []federated.Credential
		dropped []string
		kept    = map[string]bool{}
	)
	for _, x := range b.claims {
		if x.verdict != want {
			continue
		}
		kept[c.name(x)] = true
		if noIssuer == nil {
			wanted, right = append(wanted, x), append(right, c.credential(x, issuer))
		}
	}
	for _, x := range b.claims {
		if x.verdict == drop && x.marked() && !kept[c.name(x)] {
			dropped = append(dropped, c.name(x))
		}
	}
	if err := c.list(ctx, b, p); err != nil {
		return err
	}
	made := plan.Make(b.have, right, dropped)
	for _, name := range made.Remove {
		if err := c.remove(ctx, b, p, name); err != nil {
			return err
		}
	}
	for _, x := range b.claims {
		var err error
		switch {
		case x.verdict == drop:
			err = c.release(ctx, x)
		case x.verdict == want && noIssuer != nil:
			b.soon(10 * time.Second)
			if !record.Is(x.FederatedIdentity, lanyard.ConditionCreated, metav1.ConditionTrue) {
				err = c.created(ctx, x, metav1.ConditionUnknown, failure{record.ReasonNoIssuer, noIssuer.Error()})
			}
		}
		if err != nil {
			return err
		}
	}
	full := false
	for i, s := range made.Steps {
		if err := c.step(ctx, b, p, wanted[i], s, &full); err != nil {
			return err
		}
	}
	c.again(b, full)
	return nil
}

// again notes when room is looked for.
func (c *Controller) again(b *batch, full bool) {
	if !full {
		b.full = 0
		return
	}
	if b.full == 0 || b.listed {
		b.full = min(max(2*b.full, min(firstFull, c.Interval)), c.Interval)
	}
	if next := c.now().Add(spread(b.full)); next.Before(b.next) {
		b.next = next
	}
}

// drop finds claims that lose although policy allows them: a service account
// that is gone, and the second claim of one service account.
func (c *Controller) drop(ctx context.Context, b *batch, p federated.Parent) error {
	type account struct{ namespace, name string }
	first := map[account]*claim{}
	for _, x := range b.claims {
		key := account{x.Namespace, x.Spec.ServiceAccountName}
		switch x.verdict {
		case want:
			got := record.Account()
			err := c.Client.Get(ctx, client.ObjectKey{Namespace: x.Namespace, Name: x.Spec.ServiceAccountName}, got)
			if client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("reading the service account: %w", err)
			}
			if err != nil || !got.DeletionTimestamp.IsZero() {
				x.verdict, x.why = drop, failure{record.ReasonNoServiceAccount, "there is no service account " + x.Spec.ServiceAccountName + ": make it, and the credential follows"}
				continue
			}
			if other := first[key]; other != nil {
				x.double(other.Name)
				continue
			}
			o, err := c.rival(ctx, x.FederatedIdentity, p, true)
			if err != nil {
				return err
			}
			if o != nil {
				x.double(o.Name)
				continue
			}
			first[key] = x
		case drop, hold:
		}
	}
	return nil
}

func (c *claim) double(other string) {
	c.verdict = drop
	c.why = failure{record.ReasonDuplicate, "FederatedIdentity " + other + " has the credential of this service account at this identity: delete one of them"}
}

// name is the own credential of a claim.
func (c *Controller) name(x *claim) string {
	return plan.Name(c.ClusterID, x.Namespace, x.Spec.ServiceAccountName)
}

func (c *Controller) credential(x *claim, issuer string) federated.Credential {
	audience := x.Spec.Audience
	if audience == "" {
		audience = c.Audience
	}
	return federated.Credential{
		Name: c.name(x), Issuer: issuer, Subject: federated.Subject(x.Namespace, x.Spec.ServiceAccountName),
		Audience: audience, Description: "Kept by Lanyard for the service account " + record.Clip(x.Namespace+"/"+x.Spec.ServiceAccountName, 400),
	}
}

func (c *Controller) list(ctx context.Context, b *batch, p federated.Parent) error {
	if b.known && c.now().Before(b.next) {
		return nil
	}
	have, err := c.Store.List(ctx, p)
	if err != nil {
		return asked(err)
	}
	b.have, b.known, b.listed, b.next = have, true, true, c.now().Add(spread(c.Interval))
	return nil
}

// remove removes an own credential that no claim needs.
func (c *Controller) remove(ctx context.Context, b *batch, p federated.Parent, name string) error {
	for _, x := range b.claims {
		if c.name(x) != name || x.verdict != drop {
			continue
		}
		// The same identity may be claimed by another kind of name.
		if o, err := c.rival(ctx, x.FederatedIdentity, p, false); err != nil || o != nil {
			return err
		}
	}
	existed, err := c.Store.Delete(ctx, p, name)
	if err != nil {
		return asked(err)
	}
	b.have = slices.DeleteFunc(slices.Clone(b.have), func(x federated.Credential) bool { return x.Name == name })
	c.logger().InfoContext(ctx, "federated credential removed", "identity", b.key, "credential", name, "existed", existed)
	return nil
}

// step does what the plan says about one claim.
func (c *Controller) step(ctx context.Context, b *batch, p federated.Parent, x *claim, s plan.Step, full *bool) error {
	switch s.Outcome {
	case plan.Present:
		if !x.marked() { // somebody took the finalizer away
			if err := c.mark(ctx, x); err != nil {
				return err
			}
		}
		return c.there(ctx, x, p, s.Want, failure{record.ReasonCreated, "the federated credential " + s.Want.Name + " is at " + p.String()}, failure{})
	case plan.Foreign:
		return c.there(ctx, x, p, s.Other, failure{record.ReasonForeign, "the federated credential " + s.Other.Name + " at " + p.String() + " does the same; it is somebody else's and left alone"}, failure{})
	case plan.Taken:
		return c.created(ctx, x, metav1.ConditionFalse, taken(s.Other))
	case plan.Full:
		*full = true
		return c.created(ctx, x, metav1.ConditionFalse, limit(p))
	case plan.Write:
	}
	return c.write(ctx, b, p, x, s, full)
}

func (c *Controller) write(ctx context.Context, b *batch, p federated.Parent, x *claim, s plan.Step, full *bool) error {
	if err := c.mark(ctx, x); err != nil {
		return err
	}
	var story failure
	if record.Is(x.FederatedIdentity, lanyard.ConditionCreated, metav1.ConditionTrue) {
		story = failure{record.ReasonRestored, "was missing in Azure and was made again"}
		if s.Update {
			story = failure{record.ReasonCorrected, "was changed in Azure, or the issuer of the cluster changed, and was put right"}
		}
		// From now on it is not known to be usable, whatever happens next.
		if err := c.created(ctx, x, metav1.ConditionFalse, failure{record.ReasonChanging, "the credential is not as it should be, and is being written"}); err != nil {
			return err
		}
	}
	err := c.Store.PutListed(ctx, p, b.have, s.Want)
	var other *federated.Taken
	switch {
	case errors.As(err, &other):
		b.next = time.Time{} // what was listed is old
		b.soon(firstFull)
		return c.created(ctx, x, metav1.ConditionFalse, taken(other.By))
	case errors.Is(err, federated.ErrLimit):
		*full = true
		return c.created(ctx, x, metav1.ConditionFalse, limit(p))
	case err != nil:
		return asked(err)
	}
	b.have = append(slices.DeleteFunc(slices.Clone(b.have), func(h federated.Credential) bool { return h.Name == s.Want.Name }), s.Want)
	c.logger().InfoContext(ctx, "federated credential written", "identity", b.key, "namespace", x.Namespace, "federatedIdentity", x.Name, "credential", s.Want.Name, "issuer", s.Want.Issuer, "subject", s.Want.Subject, "update", s.Update)
	return c.there(ctx, x, p, s.Want, failure{record.ReasonCreated, "the federated credential " + s.Want.Name + " is at " + p.String()}, story)
}

func taken(by federated.Credential) failure {
	return failure{record.ReasonTaken, fmt.Sprintf("the federated credential %s has the same issuer and subject, but audience %q; Azure takes no second one: remove it, or ask for its audience", by.Name, by.Audience)}
}

func limit(p federated.Parent) failure {
	return failure{record.ReasonLimitReached, fmt.Sprintf("%s has %d federated credentials, which is Azure's limit: use it from fewer service accounts, spread them over a second identity, or use a token proxy, which needs one credential for all; this goes on by itself as soon as there is room", p, federated.MaxPerParent)}
}

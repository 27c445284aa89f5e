package serviceaccount

import (
	"context"
	"errors"

	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/msi/armmsi"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/graph"
)

// gone reports whether err says that an object does not exist: then there is
// nothing to delete.
func gone(err error) bool {
	return graph.NotFound(err) || errors.Is(err, federated.ErrNotFound)
}

func (r *Runner) deleteApplication(ctx context.Context) error {
	app, err := r.findApplication(ctx)
	if gone(err) {
		r.step(PhaseApplication, absent, "application "+r.Options.applicationName(), "", "")
		return nil
	}
	if err != nil {
		return err
	}
	if !r.Options.DryRun {
		g, err := r.azure.directory()
		if err != nil {
			return err
		}
		if err := g.DeleteApplication(ctx, app.ID); err != nil && !gone(err) {
			return explain(err, needGraph)
		}
	}
	r.step(PhaseApplication, deleted, "application "+app.DisplayName, app.ID, "client id "+app.AppID)
	return nil
}

func (r *Runner) deleteIdentity(ctx context.Context) error {
	a, err := r.connect(ctx)
	if err != nil {
		return err
	}
	id, err := azure.ParseResourceID(r.Options.IdentityID)
	if err != nil {
		return err
	}
	m, err := armmsi.NewUserAssignedIdentitiesClient(id.SubscriptionID, a.Credential, arm.ManagerOptions(a.options()))
	if err != nil {
		return err
	}
	need := "the caller needs the role Managed Identity Contributor on " + id.String()
	object := "managed identity " + id.Name()
	found, err := m.Get(ctx, id.ResourceGroup, id.Name(), nil)
	if err = arm.AsError(err); gone(err) {
		r.step(PhaseIdentity, absent, object, id.String(), "")
		return nil
	}
	if err != nil {
		return explain(err, need)
	}
	if owner := deref(found.Tags[madeFor]); owner != r.Options.Namespace+"/"+r.Options.Name {
		r.step(PhaseIdentity, kept, object, id.String(), "it was not made for this service account; delete it with: az identity delete --ids "+id.String())
		return nil
	}
	if !r.Options.DryRun {
		if _, err := m.Delete(ctx, id.ResourceGroup, id.Name(), nil); err != nil {
			return explain(err, need)
		}
	}
	r.step(PhaseIdentity, deleted, object, id.String(), "")
	return nil
}

// deleteFederated deletes the credential with the issuer and subject, whatever
// its name: a parent has at most one, and azwi names its own differently.
func (r *Runner) deleteFederated(ctx context.Context) error {
	o := r.Options
	subject := federated.Subject(o.Namespace, o.Name)
	p, err := r.identity(ctx)
	if gone(err) {
		r.step(PhaseFederated, absent, "federated credential for "+subject, "", "its identity does not exist")
		return nil
	}
	if err != nil {
		return err
	}
	c := r.azure.credentials()
	name := ""
	err = r.again(ctx, func() error {
		have, err := c.List(ctx, p)
		if err != nil {
			return err
		}
		for _, x := range have {
			if x.Issuer == o.Issuer && x.Subject == subject {
				name = x.Name
			}
		}
		if name != "" && !o.DryRun {
			_, err = c.Delete(ctx, p, name)
		}
		return err
	}, throttled)
	if err != nil && !gone(err) {
		return err
	}
	if name == "" {
		r.step(PhaseFederated, absent, "federated credential for "+subject, "", "of "+p.String())
		return nil
	}
	r.step(PhaseFederated, deleted, "federated credential "+name, "", "of "+p.String())
	return nil
}

package serviceaccount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/msi/armmsi"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/graph"
)

// Actions of steps.
const (
	created   = "created"
	updated   = "updated"
	unchanged = "unchanged"
	deleted   = "deleted"
	absent    = "absent"
	kept      = "kept"
)

// madeFor is the tag of managed identities that create made. Its value is the
// service account; delete deletes no other identity.
const madeFor = "lanyard-service-account"

func (r *Runner) createApplication(ctx context.Context) error {
	a, err := r.connect(ctx)
	if err != nil {
		return err
	}
	g, err := a.directory()
	if err != nil {
		return err
	}
	action := unchanged
	app, err := r.findApplication(ctx)
	if graph.NotFound(err) && r.Options.ApplicationClientID == "" && r.Options.ApplicationObjectID == "" {
		action = created
		name := r.Options.applicationName()
		if r.Options.DryRun {
			r.pending = true
			r.step(PhaseApplication, created, "application "+name, "", "with its service principal")
			return nil
		}
		app, err = g.CreateApplication(ctx, graph.Application{DisplayName: name, SignInAudience: "AzureADMyOrg"})
		err = explain(err, needGraph)
		r.fresh = err == nil
	}
	if err != nil {
		return err
	}
	r.app = &app
	r.found(federated.Parent{Kind: federated.Application, ObjectID: app.ID, ClientID: app.AppID, DisplayName: app.DisplayName})
	detail := "client id " + app.AppID
	if action == unchanged && r.Options.ApplicationClientID == "" && r.Options.ApplicationObjectID == "" {
		// Anybody who may register applications may have chosen this name before.
		detail += "; it was there before, and whoever owns it can act as it: az ad app owner list --id " + app.AppID
	}
	r.step(PhaseApplication, action, "application "+app.DisplayName, app.ID, detail)
	return r.createPrincipal(ctx, g, app)
}

// createPrincipal makes the application's service principal, which can take a
// moment to be possible after the application was made.
func (r *Runner) createPrincipal(ctx context.Context, g *graph.Client, app graph.Application) error {
	action := unchanged
	sp, err := g.ServicePrincipalByAppID(ctx, app.AppID)
	if graph.NotFound(err) {
		action = created
		if r.Options.DryRun {
			r.step(PhaseApplication, created, "service principal "+app.DisplayName, "", "")
			return nil
		}
		err = r.again(ctx, func() (err error) {
			if sp, err = g.CreateServicePrincipal(ctx, app.AppID); graph.Exists(err) {
				sp, err = g.ServicePrincipalByAppID(ctx, app.AppID)
			}
			return err
		}, func(err error) bool { return r.fresh && replicating(err) })
	}
	if err != nil {
		return explain(err, needGraph)
	}
	p := *r.parent
	p.PrincipalID = sp.ID
	r.found(p)
	r.step(PhaseApplication, action, "service principal "+app.DisplayName, sp.ID, "")
	return nil
}

// replicating reports whether err says that something does not exist. What was
// made a moment ago may be unknown to another replica of the directory.
func replicating(err error) bool {
	var e *arm.Error
	if errors.Is(err, graph.ErrNotFound) || errors.Is(err, federated.ErrNotFound) {
		return true
	}
	if err = arm.AsError(err); !errors.As(err, &e) {
		return false
	}
	text := strings.ToLower(e.Message)
	return e.Status == http.StatusNotFound || e.Status == http.StatusBadRequest &&
		(strings.Contains(text, "does not exist") || strings.Contains(text, "does not reference") || strings.Contains(text, "must in the local tenant") || strings.Contains(text, "must be in the local tenant"))
}

func (r *Runner) createIdentity(ctx context.Context) error {
	a, err := r.connect(ctx)
	if err != nil {
		return err
	}
	id, err := azure.ParseResourceID(r.Options.IdentityID)
	if err != nil {
		return err
	}
	p, err := a.credentials().FindResource(ctx, r.Options.IdentityID)
	if err == nil {
		r.found(p)
		r.step(PhaseIdentity, unchanged, "managed identity "+id.Name(), id.String(), "client id "+p.ClientID)
		return nil
	}
	if !errors.Is(err, federated.ErrNotFound) {
		return err
	}
	location, err := r.location(ctx, a, id)
	if err != nil {
		return err
	}
	if r.Options.DryRun {
		r.pending = true
		r.step(PhaseIdentity, created, "managed identity "+id.Name(), id.String(), "in "+location)
		return nil
	}
	m, err := armmsi.NewUserAssignedIdentitiesClient(id.SubscriptionID, a.Credential, arm.ManagerOptions(a.options()))
	if err != nil {
		return err
	}
	owner := r.Options.Namespace + "/" + r.Options.Name
	made, err := m.CreateOrUpdate(ctx, id.ResourceGroup, id.Name(), armmsi.Identity{Location: &location, Tags: map[string]*string{madeFor: &owner}}, nil)
	if err != nil {
		return explain(err, "the caller needs the role Managed Identity Contributor on "+azure.Group(id.SubscriptionID, id.ResourceGroup).String())
	}
	p = federated.Parent{Kind: federated.ManagedIdentity, ResourceID: id.String(), DisplayName: id.Name()}
	if x := made.Properties; x != nil {
		p.ClientID, p.TenantID, p.PrincipalID = deref(x.ClientID), deref(x.TenantID), deref(x.PrincipalID)
	}
	r.fresh = true
	r.found(p)
	r.step(PhaseIdentity, created, "managed identity "+id.Name(), id.String(), "client id "+p.ClientID)
	return nil
}

// location is where a managed identity is made: beside its resource group's others.
func (r *Runner) location(ctx context.Context, a *Azure, id azure.ResourceID) (string, error) {
	if r.Options.IdentityLocation != "" {
		return r.Options.IdentityLocation, nil
	}
	groups, err := armresources.NewResourceGroupsClient(id.SubscriptionID, a.Credential, arm.ManagerOptions(a.options()))
	if err != nil {
		return "", err
	}
	found, err := groups.Get(ctx, id.ResourceGroup, nil)
	var e *arm.Error
	if err = arm.AsError(err); errors.As(err, &e) && e.Status == http.StatusNotFound {
		return "", fmt.Errorf("the managed identity does not exist, nor does its resource group: create that with: az group create --name %s --location LOCATION: %w", id.ResourceGroup, err)
	}
	if err != nil {
		return "", fmt.Errorf("the managed identity does not exist; where to create it? Give --managed-identity-location: %w", explain(err, "the caller needs the role Reader on "+azure.Group(id.SubscriptionID, id.ResourceGroup).String()))
	}
	return deref(found.Location), nil
}

func (r *Runner) createFederated(ctx context.Context) error {
	o := r.Options
	want := federated.Credential{
		Name:   federated.AccountName(o.Namespace, o.Name, o.Issuer),
		Issuer: o.Issuer, Subject: federated.Subject(o.Namespace, o.Name), Audience: cmp.Or(o.Audience, federated.Audience),
		Description: "Federated Service Account for " + o.Namespace + "/" + o.Name,
	}
	object := "federated credential " + want.Name
	if o.DryRun && r.pending {
		r.result.FederatedCredential = &want
		r.step(PhaseFederated, created, object, "", want.Subject)
		return nil
	}
	p, err := r.identity(ctx)
	if err != nil {
		return err
	}
	c := r.azure.credentials()
	action := created
	err = r.again(ctx, func() error {
		have, err := c.List(ctx, p)
		if err != nil {
			return err
		}
		for _, x := range have {
			if x.Name == want.Name {
				action = updated
			}
			if x.Same(want) && (x.Name != want.Name || x.Description == want.Description || p.Kind == federated.ManagedIdentity) {
				// Under another name it is somebody else's, and as good.
				action, want.Name = unchanged, x.Name
				return nil
			}
		}
		if o.DryRun {
			return nil
		}
		return c.PutListed(ctx, p, have, want)
	}, func(err error) bool { return throttled(err) || r.fresh && replicating(err) })
	var taken *federated.Taken
	switch {
	case errors.Is(err, federated.ErrLimit):
		return fmt.Errorf("%s cannot take one more: %w: delete what is not needed any more, or use another identity for %s/%s", p, err, o.Namespace, o.Name)
	case errors.As(err, &taken):
		return fmt.Errorf("the credential %s of %s has the same issuer and subject, but the audience %s: delete it first: %w", taken.By.Name, p, taken.By.Audience, err)
	case err != nil:
		return err
	}
	r.result.FederatedCredential = &want
	r.step(PhaseFederated, action, "federated credential "+want.Name, "", want.Subject)
	return nil
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

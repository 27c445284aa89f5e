package federated

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/msi/armmsi"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/graph"
)

// A stored credential has an id of its own in the directory.
type stored struct {
	Credential
	id string
}

// A store has the credentials of one parent.
type store interface {
	list(ctx context.Context) ([]stored, error)
	// write makes have, which is empty for a new one, what want says.
	write(ctx context.Context, have stored, want Credential) error
	remove(ctx context.Context, name string) (existed bool, err error)
	describes() bool // whether it keeps descriptions
	explain(err error) error
}

func (c *Client) store(p Parent) (store, error) {
	switch p.Kind {
	case ManagedIdentity:
		id, err := identityID(p.ResourceID)
		if err != nil {
			return nil, err
		}
		m, err := c.manager(id.SubscriptionID)
		if err != nil {
			return nil, err
		}
		return &managed{m.NewFederatedIdentityCredentialsClient(), id}, nil
	case Application:
		if p.ObjectID == "" {
			return nil, errors.New("the application has no object id")
		}
		g, err := c.directory()
		if err != nil {
			return nil, err
		}
		return &application{g, p}, nil
	}
	return nil, fmt.Errorf("an identity of kind %q cannot have federated credentials", p.Kind)
}

// options leave throttling to the caller, who knows what else there is to do.
func (c *Client) options() policy.ClientOptions {
	o := c.Options
	o.Cloud = c.Cloud.Configuration()
	if o.Retry.StatusCodes == nil {
		o.Retry.StatusCodes = []int{http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}
	}
	return o
}

func (c *Client) directory() (*graph.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.graph == nil {
		g, err := graph.New(c.Cloud, c.Credential, c.options())
		if err != nil {
			return nil, err
		}
		c.graph = g
	}
	return c.graph, nil
}

func (c *Client) manager(subscription string) (*armmsi.ClientFactory, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := azure.Fold(subscription)
	if have := c.managers[key]; have != nil {
		return have, nil
	}
	made, err := armmsi.NewClientFactory(subscription, c.Credential, arm.ManagerOptions(c.options()))
	if err != nil {
		return nil, fmt.Errorf("making a client for subscription %s: %w", subscription, err)
	}
	if c.managers == nil {
		c.managers = map[string]*armmsi.ClientFactory{}
	}
	c.managers[key] = made
	return made, nil
}

// managed is Resource Manager.
type managed struct {
	client *armmsi.FederatedIdentityCredentialsClient
	id     azure.ResourceID
}

func (m *managed) list(ctx context.Context) ([]stored, error) {
	var out []stored
	pager := m.client.NewListPager(m.id.ResourceGroup, m.id.Name(), nil)
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return nil, notFound(err, "the managed identity "+m.id.String())
		}
		for _, x := range page.Value {
			if x == nil || x.Properties == nil {
				continue
			}
			s := stored{Credential: Credential{Name: deref(x.Name), Issuer: deref(x.Properties.Issuer), Subject: deref(x.Properties.Subject)}}
			var audiences []string
			for _, a := range x.Properties.Audiences {
				audiences = append(audiences, deref(a))
			}
			s.Audience = audience(audiences)
			out = append(out, s)
		}
	}
	return out, nil
}

func (m *managed) write(ctx context.Context, have stored, want Credential) error {
	name := want.Name
	if have.Name != "" {
		name = have.Name
	}
	_, err := m.client.CreateOrUpdate(ctx, m.id.ResourceGroup, m.id.Name(), name, armmsi.FederatedIdentityCredential{
		Properties: &armmsi.FederatedIdentityCredentialProperties{Issuer: &want.Issuer, Subject: &want.Subject, Audiences: []*string{to.Ptr(want.Audience)}},
	}, nil)
	return notFound(err, "the managed identity "+m.id.String())
}

// remove asks first: Azure answers 200 and 204 and the SDK does not say which,
// and a read costs less of what Azure allows per identity than a write.
func (m *managed) remove(ctx context.Context, name string) (bool, error) {
	_, err := m.client.Get(ctx, m.id.ResourceGroup, m.id.Name(), name, nil)
	if err = notFound(err, "the federated credential "+name); err != nil {
		return false, err
	}
	_, err = m.client.Delete(ctx, m.id.ResourceGroup, m.id.Name(), name, nil)
	err = notFound(err, "the federated credential "+name)
	return err == nil, err
}

func (m *managed) describes() bool { return false }

func (m *managed) explain(err error) error {
	return explain(err, "the role Managed Identity Contributor on "+m.id.String())
}

// audience is the one audience that a credential has. Azure demands one; what
// is there nevertheless must not pass for the default, which "" stands for.
func audience(all []string) string {
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ",")
}

// application is Graph.
type application struct {
	graph  *graph.Client
	parent Parent
}

func (a *application) missing(err error) error {
	if graph.NotFound(err) {
		return fmt.Errorf("%w: %s does not exist (%w)", ErrNotFound, a.parent, err)
	}
	return err
}

func (a *application) list(ctx context.Context) ([]stored, error) {
	found, err := a.graph.FederatedIdentityCredentials(ctx, a.parent.ObjectID)
	if err != nil {
		return nil, a.missing(err)
	}
	out := make([]stored, len(found))
	for i, x := range found {
		out[i] = stored{Credential{Name: x.Name, Issuer: x.Issuer, Subject: x.Subject, Audience: audience(x.Audiences), Description: x.Description}, x.ID}
	}
	return out, nil
}

func (a *application) write(ctx context.Context, have stored, want Credential) error {
	f := graph.FederatedIdentityCredential{ID: have.id, Name: want.Name, Issuer: want.Issuer, Subject: want.Subject, Description: want.Description, Audiences: []string{want.Audience}}
	if have.id != "" {
		return a.missing(a.graph.UpdateFederatedIdentityCredential(ctx, a.parent.ObjectID, f))
	}
	_, err := a.graph.CreateFederatedIdentityCredential(ctx, a.parent.ObjectID, f)
	return a.missing(err)
}

func (a *application) remove(ctx context.Context, name string) (bool, error) {
	all, err := a.list(ctx)
	if err != nil {
		return false, err
	}
	for _, x := range all {
		if strings.EqualFold(x.Name, name) {
			err := a.missing(a.graph.DeleteFederatedIdentityCredential(ctx, a.parent.ObjectID, x.id))
			return err == nil, err
		}
	}
	return false, nil
}

func (a *application) describes() bool { return true }

func (a *application) explain(err error) error {
	return explain(err, "Microsoft Graph's permission Application.ReadWrite.All, or Application.ReadWrite.OwnedBy and to own "+a.parent.String())
}

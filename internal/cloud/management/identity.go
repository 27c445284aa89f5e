package management

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
)

// putIdentity creates a user-assigned identity together with its service principal, or changes its tags.
func (c *call) putIdentity() (answer, error) {
	if !validName.MatchString(c.id.Name()) {
		return answer{}, badRequest("The managed identity name '%s' is invalid: 3 to 128 letters, digits, '-' and '_', the first one a letter or digit.", c.id.Name())
	}
	r, _, created, err := c.begin()
	if err != nil {
		return answer{}, err
	}
	if created {
		sp, err := directory.CreateManagedIdentity(c.tx, r.ID)
		if err != nil {
			return answer{}, err
		}
		r.PrincipalID = sp.ID
	}
	a, err := c.finish(r, created)
	a.header = http.Header{"Location": {r.ID}}
	return a, err
}

type identityProperties struct {
	TenantID    string `json:"tenantId"`
	PrincipalID string `json:"principalId"`
	ClientID    string `json:"clientId"`
}

func (c *call) renderIdentity(r Resource) (any, error) {
	sp, _, err := directory.ServicePrincipalByID(c.tx, r.PrincipalID)
	return r.wire(azure.TypeManagedIdentity, identityProperties{TenantID: sp.TenantID, PrincipalID: sp.ID, ClientID: sp.AppID}), err
}

// removeIdentity deletes the principal with its federated credentials. Machines that have the identity keep a reference
// to nothing, as in Azure.
func (c *call) removeIdentity(r Resource) error {
	_, err := directory.DeleteServicePrincipal(c.tx, r.PrincipalID)
	return err
}

// getSystemIdentity is {machine}/providers/Microsoft.ManagedIdentity/identities/default.
func (c *call) getSystemIdentity() (answer, error) {
	owner := c.id.Parent()
	sp, found, err := directory.ServicePrincipalByResource(c.tx, owner.String())
	if err != nil {
		return answer{}, err
	}
	if !found || sp.UserAssigned() || c.id.Name() != "default" {
		return answer{}, resourceNotFound(c.id)
	}
	return ok(map[string]any{
		"id": c.id.String(), "name": "default", "type": typeSystemIdentity,
		"properties": identityProperties{TenantID: sp.TenantID, PrincipalID: sp.ID, ClientID: sp.AppID},
	}), nil
}

type federatedProperties struct {
	Issuer    string   `json:"issuer"`
	Subject   string   `json:"subject"`
	Audiences []string `json:"audiences"`
}

func (c *call) renderFederated(parent azure.ResourceID, f directory.FederatedCredential) any {
	return struct {
		ID         string              `json:"id"`
		Name       string              `json:"name"`
		Type       string              `json:"type"`
		Properties federatedProperties `json:"properties"`
	}{
		parent.IdentityString() + "/federatedIdentityCredentials/" + f.Name, f.Name, azure.TypeFederatedCredential,
		federatedProperties{f.Issuer, f.Subject, f.Audiences},
	}
}

// parentIdentity finds the identity that owns the federated credentials of the request.
func (c *call) parentIdentity() (Resource, azure.ResourceID, error) {
	id := c.id
	if !c.collection {
		id = id.Parent()
	}
	r, err := c.find(id)
	var e *Error
	if errors.As(err, &e) && e.Code == "ResourceNotFound" {
		err = fault(http.StatusNotFound, "NotFound", "The parent user-assigned identity doesn't exist.")
	}
	if err != nil {
		return r, id, err
	}
	id, err = r.id()
	return r, id, err
}

func (c *call) listFederated() (answer, error) {
	r, parent, err := c.parentIdentity()
	if err != nil {
		return answer{}, err
	}
	all, err := directory.ListFederatedCredentials(c.tx, r.PrincipalID)
	if err != nil {
		return answer{}, err
	}
	var items []any
	for _, f := range all {
		items = append(items, c.renderFederated(parent, f))
	}
	return page(items), nil
}

func (c *call) getFederated() (answer, error) {
	r, parent, err := c.parentIdentity()
	if err != nil {
		return answer{}, err
	}
	f, found, err := directory.GetFederatedCredential(c.tx, r.PrincipalID, c.id.Name())
	if err != nil {
		return answer{}, err
	}
	if !found {
		return answer{}, resourceNotFound(c.id)
	}
	return ok(c.renderFederated(parent, f)), nil
}

func (c *call) putFederated() (answer, error) {
	r, parent, err := c.parentIdentity()
	if err != nil {
		return answer{}, err
	}
	var in struct {
		Properties json.RawMessage `json:"properties"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	var p federatedProperties
	if raw := string(in.Properties); raw == "" || raw == "null" || raw == "{}" {
		return answer{}, badRequest("Federated Identity Credential from HTTP body has empty properties")
	}
	if err := json.Unmarshal(in.Properties, &p); err != nil {
		return answer{}, invalidBody(err)
	}
	f := directory.FederatedCredential{Name: c.id.Name(), Issuer: p.Issuer, Subject: p.Subject, Audiences: p.Audiences}
	created, err := directory.PutFederatedCredential(c.tx, r.PrincipalID, f)
	if err != nil {
		return answer{}, federatedFault(f, err)
	}
	if f, _, err = directory.GetFederatedCredential(c.tx, r.PrincipalID, f.Name); err != nil { // a replacement keeps the name's case
		return answer{}, err
	}
	a := ok(c.renderFederated(parent, f))
	if created {
		a.status = http.StatusCreated
	}
	return a, nil
}

// federatedFault says what is wrong in the words of the managed identity provider where they are known.
// Source: https://learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations
func federatedFault(f directory.FederatedCredential, err error) error {
	var e *Error
	switch {
	case errors.Is(err, directory.ErrFederatedName):
		e = badRequest("Federated Identity Credential name '%s' is invalid.", f.Name)
	case errors.Is(err, directory.ErrFederatedAudience):
		e = badRequest("Federated identity credentials must have exactly one audience.")
	case errors.Is(err, directory.ErrFederatedDuplicate):
		e = badRequest("Issuer and subject combination already exists for this Managed Identity.")
	case errors.Is(err, directory.ErrFederatedLimit):
		e = badRequest("Too many Federated Identity Credentials have been added to this managed identity: the limit is %d. Delete one first.", directory.MaxFederatedCredentials)
	case errors.Is(err, directory.ErrInvalid):
		e = badRequest("Federated Identity Credential is invalid: %v.", err)
	default:
		return err
	}
	e.Err = err
	return e
}

func (c *call) deleteFederated() (answer, error) {
	r, _, err := c.parentIdentity()
	var e *Error
	if errors.As(err, &e) && e.Status == http.StatusNotFound {
		return answer{status: http.StatusNoContent}, nil
	}
	if err != nil {
		return answer{}, err
	}
	existed, err := directory.DeleteFederatedCredential(c.tx, r.PrincipalID, c.id.Name())
	if err != nil {
		return answer{}, err
	}
	if !existed {
		return answer{status: http.StatusNoContent}, nil
	}
	return answer{status: http.StatusOK}, nil
}

// An Identity is what a machine can act as.
type Identity struct {
	System bool                        `json:"system,omitempty"`
	User   map[string]AssignedIdentity `json:"user,omitempty"` // by folded id

	SystemPrincipalID string `json:"systemPrincipalId,omitempty"`
}

// An AssignedIdentity is a user-assigned identity on a machine. The ids are those of the incarnation that was assigned.
type AssignedIdentity struct {
	ID          string `json:"id"` // as the caller spelled it
	PrincipalID string `json:"principalId"`
	ClientID    string `json:"clientId"`
}

func (i *Identity) sorted() []AssignedIdentity {
	if i == nil {
		return nil
	}
	var out []AssignedIdentity
	for _, a := range i.User {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b AssignedIdentity) int { return compareFolded(a.ID, b.ID) })
	return out
}

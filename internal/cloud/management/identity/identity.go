// Package identity is the resource provider Microsoft.ManagedIdentity: user-assigned identities, each with its service
// principal in the directory, their federated credentials, and the system-assigned identities of machines.
package identity

import (
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/management/budget"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

const typeSystem = "Microsoft.ManagedIdentity/identities"

// Config is what the provider asks of the rest of the cloud. The zero value is good.
type Config struct {
	// Changed is told, inside the transaction, that the federated credentials of an identity (its principal id)
	// change, and what they were. nil means nobody wants to know.
	Changed func(principalID string, before []directory.FederatedCredential)
	// WriteTime is how long a write of a federated credential takes, and refuses others to the same identity; nil
	// means no longer than it must.
	WriteTime func() time.Duration
}

// rate is how many requests a second the provider takes.
// Source: https://learn.microsoft.com/azure/azure-resource-manager/management/azure-subscription-service-limits#managed-identity-limits
func rate(c *arm.Call) (budget.Rate, azure.ResourceID) {
	about := c.ID
	if len(about.Types) > 1 {
		about = about.Parent()
	}
	switch {
	case c.Collection:
		return budget.Rate{Tenant: 15, Subscription: 5, Resource: 0.25}, about
	case c.Method == http.MethodGet:
		return budget.Rate{Tenant: 30, Subscription: 10, Resource: 0.5}, about
	}
	return budget.Rate{Tenant: 10, Subscription: 2, Resource: 0.25}, about
}

// Types are the provider's resource types.
func Types(config Config) []*arm.Type {
	versions := []string{"2024-11-30", "2023-01-31", "2022-01-31-preview", "2018-11-30"}
	return []*arm.Type{
		arm.Tracked(arm.Type{Name: azure.TypeManagedIdentity, Versions: versions, Render: render, Remove: remove, Put: put, Patch: (*arm.Call).PatchTags, Rate: rate}),
		{Name: azure.TypeFederatedCredential, Versions: versions, Exclusive: exclusive, WriteTime: config.WriteTime, Rate: rate,
			List: listFederated, Get: getFederated, Put: config.putFederated, Delete: config.deleteFederated},
		{Name: typeSystem, Place: arm.Anywhere, Versions: versions, Get: getSystemIdentity},
	}
}

// exclusive makes writes to the federated credentials of one identity refuse each other.
// Source: https://learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations
func exclusive(c *arm.Call) (string, *arm.Error) {
	identity := c.ID.Parent()
	return identity.Key(), arm.Fault(http.StatusConflict, "ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity",
		"Too many Federated Identity Credentials are written concurrently for the managed identity '%s'. Concurrent Federated Identity Credentials writes under the same managed identity are not supported.", identity.IdentityString())
}

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{2,127}$`)

// put creates a user-assigned identity together with its service principal, or changes its tags.
func put(c *arm.Call) (arm.Answer, error) {
	if !validName.MatchString(c.ID.Name()) {
		return arm.Answer{}, arm.BadRequest("The managed identity name '%s' is invalid: 3 to 128 letters, digits, '-' and '_', the first one a letter or digit.", c.ID.Name())
	}
	r, _, created, err := c.Begin()
	if err != nil {
		return arm.Answer{}, err
	}
	if created {
		sp, err := directory.CreateManagedIdentity(c.Tx, r.ID)
		if err != nil {
			return arm.Answer{}, err
		}
		r.PrincipalID = sp.ID
	}
	a, err := c.Finish(r, created)
	a.Header = http.Header{"Location": {r.ID}}
	return a, err
}

type properties struct {
	TenantID    string `json:"tenantId"`
	PrincipalID string `json:"principalId"`
	ClientID    string `json:"clientId"`
}

func render(c *arm.Call, r arm.Resource) (any, error) {
	sp, _, err := directory.ServicePrincipalByID(c.Tx, r.PrincipalID)
	return r.Wire(azure.TypeManagedIdentity, properties{TenantID: sp.TenantID, PrincipalID: sp.ID, ClientID: sp.AppID}), err
}

// remove deletes the principal with its federated credentials. Machines that have the identity keep a reference
// to nothing, as in Azure.
func remove(tx *state.Tx, r arm.Resource) error {
	_, err := directory.DeleteServicePrincipal(tx, r.PrincipalID)
	return err
}

// getSystemIdentity is {machine}/providers/Microsoft.ManagedIdentity/identities/default.
func getSystemIdentity(c *arm.Call) (arm.Answer, error) {
	owner := c.ID.Parent()
	sp, found, err := directory.ServicePrincipalByResource(c.Tx, owner.String())
	if err != nil {
		return arm.Answer{}, err
	}
	if !found || sp.UserAssigned() || c.ID.Name() != "default" {
		return arm.Answer{}, arm.ResourceNotFound(c.ID)
	}
	return arm.OK(map[string]any{
		"id": c.ID.String(), "name": "default", "type": typeSystem,
		"properties": properties{TenantID: sp.TenantID, PrincipalID: sp.ID, ClientID: sp.AppID},
	}), nil
}

type federatedProperties struct {
	Issuer    string   `json:"issuer"`
	Subject   string   `json:"subject"`
	Audiences []string `json:"audiences"`
}

func renderFederated(c *arm.Call, parent azure.ResourceID, f directory.FederatedCredential) any {
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
func parentIdentity(c *arm.Call) (arm.Resource, azure.ResourceID, error) {
	id := c.ID
	if !c.Collection {
		id = id.Parent()
	}
	r, err := c.Find(id)
	var e *arm.Error
	if errors.As(err, &e) && e.Code == "ResourceNotFound" {
		err = arm.Fault(http.StatusNotFound, "NotFound", "The parent user-assigned identity doesn't exist.")
	}
	if err != nil {
		return r, id, err
	}
	id, err = r.ResourceID()
	return r, id, err
}

func listFederated(c *arm.Call) (arm.Answer, error) {
	r, parent, err := parentIdentity(c)
	if err != nil {
		return arm.Answer{}, err
	}
	all, err := directory.ListFederatedCredentials(c.Tx, r.PrincipalID)
	if err != nil {
		return arm.Answer{}, err
	}
	var items []any
	for _, f := range all {
		items = append(items, renderFederated(c, parent, f))
	}
	return arm.Page(items), nil
}

func getFederated(c *arm.Call) (arm.Answer, error) {
	r, parent, err := parentIdentity(c)
	if err != nil {
		return arm.Answer{}, err
	}
	f, found, err := directory.GetFederatedCredential(c.Tx, r.PrincipalID, c.ID.Name())
	if err != nil {
		return arm.Answer{}, err
	}
	if !found {
		return arm.Answer{}, arm.ResourceNotFound(c.ID)
	}
	return arm.OK(renderFederated(c, parent, f)), nil
}

// noted makes a change and tells what the credentials were before it.
func (config Config) noted(c *arm.Call, principalID string, change func() error) error {
	before, err := directory.ListFederatedCredentials(c.Tx, principalID)
	if err != nil {
		return err
	}
	if err := change(); err != nil || config.Changed == nil {
		return err
	}
	config.Changed(principalID, before)
	return nil
}

func (config Config) putFederated(c *arm.Call) (arm.Answer, error) {
	r, parent, err := parentIdentity(c)
	if err != nil {
		return arm.Answer{}, err
	}
	var in struct {
		Properties json.RawMessage `json:"properties"`
	}
	if err := c.Decode(&in); err != nil {
		return arm.Answer{}, err
	}
	var p federatedProperties
	if raw := string(in.Properties); raw == "" || raw == "null" || raw == "{}" {
		return arm.Answer{}, arm.BadRequest("Federated Identity Credential from HTTP body has empty properties")
	}
	if err := json.Unmarshal(in.Properties, &p); err != nil {
		return arm.Answer{}, arm.InvalidBody(err)
	}
	f := directory.FederatedCredential{Name: c.ID.Name(), Issuer: p.Issuer, Subject: p.Subject, Audiences: p.Audiences}
	var created bool
	if err := config.noted(c, r.PrincipalID, func() (err error) {
		created, err = directory.PutFederatedCredential(c.Tx, r.PrincipalID, f)
		return err
	}); err != nil {
		return arm.Answer{}, federatedFault(f, err)
	}
	if f, _, err = directory.GetFederatedCredential(c.Tx, r.PrincipalID, f.Name); err != nil { // a replacement keeps the name's case
		return arm.Answer{}, err
	}
	a := arm.OK(renderFederated(c, parent, f))
	if created {
		a.Status = http.StatusCreated
	}
	return a, nil
}

// federatedFault says what is wrong in the words of the managed identity provider where they are known.
// Source: https://learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations
func federatedFault(f directory.FederatedCredential, err error) error {
	var e *arm.Error
	switch {
	case errors.Is(err, directory.ErrFederatedName):
		e = arm.BadRequest("Federated Identity Credential name '%s' is invalid.", f.Name)
	case errors.Is(err, directory.ErrFederatedAudience):
		e = arm.BadRequest("Federated identity credentials must have exactly one audience.")
	case errors.Is(err, directory.ErrFederatedDuplicate):
		e = arm.BadRequest("Issuer and subject combination already exists for this Managed Identity.")
	case errors.Is(err, directory.ErrFederatedLimit):
		e = arm.BadRequest("Too many Federated Identity Credentials have been added to this managed identity: the limit is %d. Delete one first.", directory.MaxFederatedCredentials)
	case errors.Is(err, directory.ErrInvalid):
		e = arm.BadRequest("Federated Identity Credential is invalid: %v.", err)
	default:
		return err
	}
	e.Err = err
	return e
}

func (config Config) deleteFederated(c *arm.Call) (arm.Answer, error) {
	r, _, err := parentIdentity(c)
	var e *arm.Error
	if errors.As(err, &e) && e.Status == http.StatusNotFound {
		return arm.Answer{Status: http.StatusNoContent}, nil
	}
	if err != nil {
		return arm.Answer{}, err
	}
	var existed bool
	if err := config.noted(c, r.PrincipalID, func() (err error) {
		existed, err = directory.DeleteFederatedCredential(c.Tx, r.PrincipalID, c.ID.Name())
		return err
	}); err != nil {
		return arm.Answer{}, err
	}
	if !existed {
		return arm.Answer{Status: http.StatusNoContent}, nil
	}
	return arm.Answer{Status: http.StatusOK}, nil
}

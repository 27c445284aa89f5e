package graph

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
)

const principals = "servicePrincipals"

func (c *call) renderPrincipal(sp directory.ServicePrincipal) (object, error) {
	names, other := []string{sp.AppID}, []string{}
	app, ok, err := directory.ApplicationByAppID(c.tx, sp.AppID)
	if err != nil {
		return nil, err
	}
	owner := any(sp.TenantID)
	switch {
	case ok:
		names = append(names, app.IdentifierURIs...)
	case sp.ResourceID != "":
		explicit := "isExplicit=False" // it lives and dies with its machine
		if sp.UserAssigned() {
			explicit = "isExplicit=True"
		}
		names, other, owner = append(names, "https://identity.azure.net/"+sp.ID), []string{explicit, sp.ResourceID}, nil
	}
	return object{
		"id": sp.ID, "deletedDateTime": nil, "accountEnabled": true, "alternativeNames": other, "appDisplayName": sp.DisplayName, "appDescription": nil,
		"appId": sp.AppID, "applicationTemplateId": nil, "appOwnerOrganizationId": owner, "appRoleAssignmentRequired": false, "appRoles": []any{},
		"createdDateTime": stamped(app.Created), "description": nil, "displayName": sp.DisplayName, "homepage": nil, "info": nil, "keyCredentials": []any{},
		"loginUrl": nil, "logoutUrl": nil, "notes": nil, "oauth2PermissionScopes": []any{}, "passwordCredentials": []any{}, "preferredSingleSignOnMode": nil,
		"replyUrls": []any{}, "resourceSpecificApplicationPermissions": []any{}, "servicePrincipalNames": names, "servicePrincipalType": sp.Type,
		"signInAudience": or(app.SignInAudience, "AzureADMyOrg"), "tags": []string{}, "tokenEncryptionKeyId": nil,
	}, nil
}

// findPrincipal resolves an object id, or appId='x'.
func (c *call) findPrincipal() ([]string, error) {
	find, key := directory.ServicePrincipalByID, c.key
	if appID, ok := alternate(c.key, "appId"); ok {
		find, key = directory.ServicePrincipalByAppID, appID
	}
	sp, ok, err := find(c.tx, key)
	if err != nil {
		return nil, err
	}
	if !ok || sp.TenantID != c.caller.TenantID {
		return nil, notFound(key)
	}
	c.id = sp.ID
	return sp.Owners, nil
}

func (c *call) listPrincipals() (answer, error) {
	sps, err := directory.ServicePrincipals(c.tx)
	if err != nil {
		return answer{}, err
	}
	var all []object
	for _, sp := range sps {
		if sp.TenantID != c.caller.TenantID {
			continue
		}
		o, err := c.renderPrincipal(sp)
		if err != nil {
			return answer{}, err
		}
		all = append(all, o)
	}
	return c.list(principals, all)
}

func (c *call) principal() (directory.ServicePrincipal, object, error) {
	sp, _, err := directory.ServicePrincipalByID(c.tx, c.id)
	if err != nil {
		return sp, nil, err
	}
	o, err := c.renderPrincipal(sp)
	return sp, o, err
}

func (c *call) getPrincipal() (answer, error) {
	_, o, err := c.principal()
	if err != nil {
		return answer{}, err
	}
	return c.one(http.StatusOK, principals, o)
}

func (c *call) createPrincipal() (answer, error) {
	var in struct {
		AppID  string   `json:"appId"`
		Owners []string `json:"owners@odata.bind"`
	}
	if err := member("appId", c.body, &in); err != nil {
		return answer{}, err
	}
	owners, err := c.firstOwners(in.Owners)
	if err != nil {
		return answer{}, err
	}
	if uuid.Validate(in.AppID) != nil {
		return answer{}, badRequest("Invalid value specified for property 'appId' of resource 'ServicePrincipal'.")
	}
	app, ok, err := directory.ApplicationByAppID(c.tx, in.AppID)
	switch {
	case err != nil:
		return answer{}, err
	case !ok:
		return answer{}, fault(http.StatusBadRequest, "Request_BadRequest", "The appId '%s' of the service principal does not reference a valid application object.", in.AppID)
	case !c.access.changeAll && !slices.Contains(app.Owners, c.caller.ObjectID):
		return answer{}, denied("the caller may change what it owns, and does not own this application")
	}
	sp, err := directory.CreateServicePrincipal(c.tx, in.AppID)
	if errors.Is(err, directory.ErrExists) {
		return answer{}, conflict("The service principal cannot be created, updated, or restored because the service principal name %s is already in use.", in.AppID)
	}
	if err != nil {
		return answer{}, asFault(err)
	}
	c.id = sp.ID
	if err := directory.UpdateServicePrincipal(c.tx, sp.ID, func(p *directory.ServicePrincipal) { p.Owners = owners }); err != nil {
		return answer{}, err
	}
	_, o, err := c.principal()
	if err != nil {
		return answer{}, err
	}
	return c.one(http.StatusCreated, principals, o)
}

// patchPrincipal takes what clients send after making one (tags, app roles) and keeps none of it.
func (c *call) patchPrincipal() (answer, error) {
	members, err := c.members()
	if err != nil {
		return answer{}, err
	}
	_, o, err := c.principal()
	if err != nil {
		return answer{}, err
	}
	for name, raw := range members {
		if _, ok := o[name]; !ok || name == "id" || name == "appId" || name == "servicePrincipalType" {
			return answer{}, badRequest("Invalid property '%.100s'.", name)
		}
		var enabled bool
		if name == "accountEnabled" && json.Unmarshal(raw, &enabled) == nil && !enabled {
			return answer{}, badRequest("This cloud cannot disable service principals: delete it instead.")
		}
	}
	return answer{status: http.StatusNoContent}, nil
}

func (c *call) deletePrincipal() (answer, error) {
	sp, _, err := c.principal()
	if err != nil {
		return answer{}, err
	}
	if sp.Type == directory.TypeManagedIdentity {
		return answer{}, badRequest("The service principal '%s' belongs to a managed identity and cannot be deleted here: delete the resource %s.", sp.ID, sp.ResourceID)
	}
	_, err = directory.DeleteServicePrincipal(c.tx, sp.ID)
	return answer{status: http.StatusNoContent}, err
}

package graph

import (
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
)

const maxIDs = 1000

// getByIDs answers with the directory objects of a list of object ids; ids that name none are left out.
func (c *call) getByIDs() (answer, error) {
	var in struct {
		IDs   []string `json:"ids"`
		Types []string `json:"types"`
	}
	if err := member("ids", c.body, &in); err != nil {
		return answer{}, err
	}
	if len(in.IDs) == 0 || len(in.IDs) > maxIDs {
		return answer{}, badRequest("Property 'ids' must have 1 to %d values.", maxIDs)
	}
	for _, id := range in.IDs {
		if uuid.Validate(id) != nil {
			return answer{}, badRequest("Invalid GUID:%.100s", id)
		}
	}
	all, err := c.objects(in.IDs, in.Types)
	if err != nil {
		return answer{}, err
	}
	return c.list("directoryObjects", all)
}

// objects are the objects with these ids of these types; nil means any.
func (c *call) objects(ids, types []string) ([]object, error) {
	wanted := func(typ string) bool {
		return len(types) == 0 || slices.ContainsFunc(types, func(t string) bool {
			return strings.EqualFold(t, typ) || strings.EqualFold(t, "directoryObject")
		})
	}
	tenant, err := directory.HomeTenant(c.tx)
	if err != nil {
		return nil, err
	}
	var all []object
	for _, id := range ids {
		sp, ok, err := directory.ServicePrincipalByID(c.tx, id)
		if err != nil {
			return nil, err
		}
		if ok && sp.TenantID == c.caller.TenantID && wanted("servicePrincipal") {
			o, err := c.renderPrincipal(sp)
			if err != nil {
				return nil, err
			}
			o["@odata.type"] = "#microsoft.graph.servicePrincipal"
			all = append(all, o)
		}
		app, ok, err := directory.ApplicationByID(c.tx, id)
		if err != nil {
			return nil, err
		}
		if ok && app.TenantID == c.caller.TenantID && wanted("application") {
			o, err := renderApplication(tenant, app)
			if err != nil {
				return nil, err
			}
			o["@odata.type"] = "#microsoft.graph.application"
			all = append(all, o)
		}
	}
	return all, nil
}

func (c *call) getObject() (answer, error) {
	all, err := c.objects([]string{c.key}, nil)
	if err != nil {
		return answer{}, err
	}
	if len(all) == 0 {
		return answer{}, notFound(c.key)
	}
	return c.one(http.StatusOK, "directoryObjects", all[0])
}

// me is for users: applications have no "me".
func (c *call) me() (answer, error) {
	return answer{}, fault(http.StatusBadRequest, "BadRequest", "/me request is only valid with delegated authentication flow.")
}

// nothing is a collection of what this directory has none of.
func (c *call) nothing() (answer, error) {
	return answer{status: http.StatusOK, body: object{"@odata.context": c.base + "/$metadata#" + c.route.path, "value": []object{}}}, nil
}

func (c *call) nobody() (answer, error) { return answer{}, notFound(c.key) }

// noGroups says of which groups somebody is a member.
func (c *call) noGroups() (answer, error) {
	return answer{status: http.StatusOK, body: object{"@odata.context": c.base + "/$metadata#Collection(Edm.String)", "value": []string{}}}, nil
}

func (c *call) organization() (answer, error) {
	tenant, err := directory.HomeTenant(c.tx)
	if err != nil {
		return answer{}, err
	}
	return c.list("organization", []object{{
		"id": tenant.ID, "deletedDateTime": nil, "displayName": tenant.DisplayName, "tenantType": "AAD",
		"verifiedDomains": []object{{"capabilities": "Email, OfficeCommunicationsOnline", "isDefault": true, "isInitial": true, "name": tenant.Domain, "type": "Managed"}},
	}})
}

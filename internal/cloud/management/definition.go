package management

import (
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azrbac"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// definition finds a role by its GUID.
func (c *call) definition(guid string) (azrbac.Definition, bool, error) {
	for _, d := range azrbac.BuiltIn() {
		if d.ID == azure.Fold(guid) {
			return d, true, nil
		}
	}
	return state.Get[azrbac.Definition](c.tx, bucketDefinitions, azure.Fold(guid))
}

// assignable reports whether a role may be assigned at scope.
func assignable(d azrbac.Definition, scope string) bool {
	for _, s := range d.AssignableScopes {
		if azrbac.Covers(s, scope) {
			return true
		}
	}
	return false
}

type permissionWire struct {
	Actions        []string `json:"actions"`
	NotActions     []string `json:"notActions"`
	DataActions    []string `json:"dataActions"`
	NotDataActions []string `json:"notDataActions"`
	Condition      *string  `json:"condition"`
}

func (c *call) renderDefinition(d azrbac.Definition) any {
	kind := "BuiltInRole"
	if d.Custom {
		kind = "CustomRole"
	}
	permissions := []permissionWire{}
	for _, p := range d.Permissions {
		w := permissionWire{orEmpty(p.Actions), orEmpty(p.NotActions), orEmpty(p.DataActions), orEmpty(p.NotDataActions), nil}
		if p.Condition != "" {
			w.Condition = &p.Condition
		}
		permissions = append(permissions, w)
	}
	return map[string]any{
		"id": definitionID(c.id.SubscriptionID, d.ID), "name": d.ID, "type": azure.TypeRoleDefinition,
		"properties": map[string]any{"roleName": d.Name, "type": kind, "description": d.Description, "assignableScopes": d.AssignableScopes, "permissions": permissions},
	}
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func (c *call) getDefinition() (answer, error) {
	d, found, err := c.definition(c.id.Name())
	if err == nil && !found {
		err = fault(http.StatusNotFound, "RoleDefinitionDoesNotExist", "The specified role definition with ID '%s' does not exist.", noDashes(c.id.Name()))
	}
	return ok(c.renderDefinition(d)), err
}

// listDefinitions lists the roles that can be assigned at the scope (or, with atScopeAndBelow(), below it).
func (c *call) listDefinitions() (answer, error) {
	filter, _ := parameter(c.query, "$filter")
	terms, err := parseFilter(filter, "roleName", "type", "atScopeAndBelow()")
	if err != nil {
		return answer{}, err
	}
	custom, err := state.List[azrbac.Definition](c.tx, bucketDefinitions, "")
	if err != nil {
		return answer{}, err
	}
	scope := c.id.String()
	var items []any
	for _, d := range append(azrbac.BuiltIn(), custom...) {
		match, below := true, false
		for _, t := range terms {
			switch t.name {
			case "rolename":
				match = match && strings.EqualFold(d.Name, t.arg)
			case "type":
				match = match && strings.EqualFold(t.arg, "CustomRole") == d.Custom
			case "atscopeandbelow":
				below = true
			}
		}
		reach := assignable(d, scope)
		for _, s := range d.AssignableScopes {
			reach = reach || below && azrbac.Covers(scope, s)
		}
		if match && reach {
			items = append(items, c.renderDefinition(d))
		}
	}
	return page(items), nil
}

// putDefinition creates or changes a custom role. The caller must be allowed to write roles at each assignable scope,
// else a role could be smuggled into a place that its author does not administer.
func (c *call) putDefinition() (answer, error) {
	guid := azure.Fold(c.id.Name())
	if uuid.Validate(guid) != nil || len(guid) != 36 {
		return answer{}, badRequestCode("InvalidRoleDefinitionId", "The role definition ID '%s' is not valid. The role definition ID must be a GUID.", c.id.Name())
	}
	var in struct {
		Properties struct {
			RoleName         string           `json:"roleName"`
			Description      string           `json:"description"`
			AssignableScopes []string         `json:"assignableScopes"`
			Permissions      []permissionWire `json:"permissions"`
		} `json:"properties"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	p := in.Properties
	d := azrbac.Definition{ID: guid, Name: p.RoleName, Description: p.Description, Custom: true, AssignableScopes: p.AssignableScopes}
	for _, w := range p.Permissions {
		if w.Condition != nil && *w.Condition != "" {
			return answer{}, badRequestCode("InvalidRoleDefinitionCondition", "This cloud does not evaluate conditions. Leave 'condition' out of the permissions.")
		}
		d.Permissions = append(d.Permissions, azrbac.Permission{Actions: w.Actions, NotActions: w.NotActions, DataActions: w.DataActions, NotDataActions: w.NotDataActions})
	}
	if d.Name == "" || len(d.Name) > 128 || len(d.Permissions) == 0 || len(d.AssignableScopes) == 0 {
		return answer{}, badRequestCode("InvalidRoleDefinition", "A custom role needs 'roleName' (at most 128 characters), 'permissions' and 'assignableScopes'.")
	}
	for _, s := range d.AssignableScopes {
		scope, err := azure.ParseResourceID(s)
		if err != nil || scope.SubscriptionID == "" {
			return answer{}, badRequestCode("InvalidAssignableScope", "The assignable scope '%.300s' of a custom role must be a subscription, resource group or resource.", s)
		}
		if err := c.require(azure.TypeRoleDefinition+"/write", scope.String()); err != nil {
			return answer{}, err
		}
	}
	return c.saveDefinition(d)
}

func (c *call) saveDefinition(d azrbac.Definition) (answer, error) {
	old, exists, err := c.definition(d.ID)
	if err != nil {
		return answer{}, err
	}
	if exists && !old.Custom {
		return answer{}, badRequestCode("RoleDefinitionCannotBeModified", "The built-in role '%s' cannot be changed.", old.Name)
	}
	if exists { // whoever changes a role changes it everywhere
		for _, s := range old.AssignableScopes {
			if err := c.require(azure.TypeRoleDefinition+"/write", s); err != nil {
				return answer{}, err
			}
		}
	}
	custom, err := state.List[azrbac.Definition](c.tx, bucketDefinitions, "")
	if err != nil {
		return answer{}, err
	}
	for _, o := range append(azrbac.BuiltIn(), custom...) {
		if o.ID != d.ID && strings.EqualFold(o.Name, d.Name) {
			return answer{}, fault(http.StatusConflict, "RoleDefinitionWithSameNameExists", "A custom role with the same name '%s' already exists in this directory. Use a different name.", d.Name)
		}
	}
	return answer{status: http.StatusCreated, body: c.renderDefinition(d)}, state.Put(c.tx, bucketDefinitions, d.ID, d)
}

func (c *call) deleteDefinition() (answer, error) {
	d, found, err := c.definition(c.id.Name())
	if err != nil {
		return answer{}, err
	}
	if !found {
		return answer{status: http.StatusNoContent}, nil
	}
	if !d.Custom {
		return answer{}, badRequestCode("RoleDefinitionCannotBeModified", "The built-in role '%s' cannot be deleted.", d.Name)
	}
	for _, s := range d.AssignableScopes {
		if err := c.require(azure.TypeRoleDefinition+"/delete", s); err != nil {
			return answer{}, err
		}
	}
	all, err := state.List[Assignment](c.tx, bucketAssignments, "")
	if err != nil {
		return answer{}, err
	}
	for _, a := range all {
		if a.RoleID == d.ID {
			return answer{}, badRequestCode("RoleDefinitionHasAssignments", "There are existing role assignments referencing role '%s'. Delete them first.", d.Name)
		}
	}
	return ok(c.renderDefinition(d)), state.Delete(c.tx, bucketDefinitions, d.ID)
}

package authorization

import (
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azrbac"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
)

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

func renderDefinition(c *arm.Call, d azrbac.Definition) any {
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
		"id": definitionID(c.ID.SubscriptionID, d.ID), "name": d.ID, "type": azure.TypeRoleDefinition,
		"properties": map[string]any{"roleName": d.Name, "type": kind, "description": d.Description, "assignableScopes": d.AssignableScopes, "permissions": permissions},
	}
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// readable refuses to show roles at a scope to whoever may not read them there. The tenant's own are everybody's.
func readable(c *arm.Call, scope azure.ResourceID) error {
	if scope.IsRoot() {
		return nil
	}
	return c.Require(c.Action, scope.String())
}

func getDefinition(c *arm.Call) (arm.Answer, error) {
	if err := readable(c, c.ID.Parent()); err != nil {
		return arm.Answer{}, err
	}
	d, found, err := roles.FindDefinition(c.Tx, c.ID.Name())
	if d.Custom && c.ID.Parent().IsRoot() {
		found = found && slices.ContainsFunc(d.AssignableScopes, func(s string) bool { return c.Require(c.Action, s) == nil })
	}
	if err == nil && !found {
		err = arm.Fault(http.StatusNotFound, "RoleDefinitionDoesNotExist", "The specified role definition with ID '%s' does not exist.", noDashes(c.ID.Name()))
	}
	return arm.OK(renderDefinition(c, d)), err
}

// listDefinitions lists the roles that can be assigned at the scope (or, with atScopeAndBelow(), below it).
func listDefinitions(c *arm.Call) (arm.Answer, error) {
	filter, _ := arm.Parameter(c.Query, "$filter")
	terms, err := arm.ParseFilter(filter, "roleName", "type", "atScopeAndBelow()")
	if err != nil {
		return arm.Answer{}, err
	}
	all, err := roles.Definitions(c.Tx)
	if err != nil {
		return arm.Answer{}, err
	}
	if err := readable(c, c.ID); err != nil {
		return arm.Answer{}, err
	}
	scope := c.ID.String()
	var items []any
	for _, d := range all {
		match, below := true, false
		for _, t := range terms {
			switch t.Name {
			case "rolename":
				match = match && strings.EqualFold(d.Name, t.Arg)
			case "type":
				match = match && strings.EqualFold(t.Arg, "CustomRole") == d.Custom
			case "atscopeandbelow":
				below = true
			}
		}
		reach := assignable(d, scope)
		for _, s := range d.AssignableScopes {
			reach = reach || below && azrbac.Covers(scope, s)
		}
		if match && reach {
			items = append(items, renderDefinition(c, d))
		}
	}
	return arm.Page(items), nil
}

// putDefinition creates or changes a custom role. The caller must be allowed to write roles at each assignable scope,
// else a role could be smuggled into a place that its author does not administer.
func putDefinition(c *arm.Call) (arm.Answer, error) {
	guid := azure.Fold(c.ID.Name())
	if uuid.Validate(guid) != nil || len(guid) != 36 {
		return arm.Answer{}, arm.BadRequestCode("InvalidRoleDefinitionId", "The role definition ID '%s' is not valid. The role definition ID must be a GUID.", c.ID.Name())
	}
	var in struct {
		Properties struct {
			RoleName         string           `json:"roleName"`
			Description      string           `json:"description"`
			AssignableScopes []string         `json:"assignableScopes"`
			Permissions      []permissionWire `json:"permissions"`
		} `json:"properties"`
	}
	if err := c.Decode(&in); err != nil {
		return arm.Answer{}, err
	}
	p := in.Properties
	d := azrbac.Definition{ID: guid, Name: p.RoleName, Description: p.Description, Custom: true, AssignableScopes: p.AssignableScopes}
	for _, w := range p.Permissions {
		if w.Condition != nil && *w.Condition != "" {
			return arm.Answer{}, arm.BadRequestCode("InvalidRoleDefinitionCondition", "This cloud does not evaluate conditions. Leave 'condition' out of the permissions.")
		}
		d.Permissions = append(d.Permissions, azrbac.Permission{Actions: w.Actions, NotActions: w.NotActions, DataActions: w.DataActions, NotDataActions: w.NotDataActions})
	}
	if d.Name == "" || len(d.Name) > 128 || len(d.Permissions) == 0 || len(d.AssignableScopes) == 0 {
		return arm.Answer{}, arm.BadRequestCode("InvalidRoleDefinition", "A custom role needs 'roleName' (at most 128 characters), 'permissions' and 'assignableScopes'.")
	}
	for _, s := range d.AssignableScopes {
		scope, err := azure.ParseResourceID(s)
		if err != nil || scope.SubscriptionID == "" {
			return arm.Answer{}, arm.BadRequestCode("InvalidAssignableScope", "The assignable scope '%.300s' of a custom role must be a subscription, resource group or resource.", s)
		}
		if err := c.Require(azure.TypeRoleDefinition+"/write", scope.String()); err != nil {
			return arm.Answer{}, err
		}
	}
	return saveDefinition(c, d)
}

func saveDefinition(c *arm.Call, d azrbac.Definition) (arm.Answer, error) {
	old, exists, err := roles.FindDefinition(c.Tx, d.ID)
	if err != nil {
		return arm.Answer{}, err
	}
	if exists && !old.Custom {
		return arm.Answer{}, arm.BadRequestCode("RoleDefinitionCannotBeModified", "The built-in role '%s' cannot be changed.", old.Name)
	}
	if exists { // whoever changes a role changes it everywhere
		for _, s := range old.AssignableScopes {
			if err := c.Require(azure.TypeRoleDefinition+"/write", s); err != nil {
				return arm.Answer{}, err
			}
		}
	}
	all, err := roles.Definitions(c.Tx)
	if err != nil {
		return arm.Answer{}, err
	}
	for _, o := range all {
		if o.ID != d.ID && strings.EqualFold(o.Name, d.Name) {
			return arm.Answer{}, arm.Fault(http.StatusConflict, "RoleDefinitionWithSameNameExists", "A custom role with the same name '%s' already exists in this directory. Use a different name.", d.Name)
		}
	}
	return arm.Answer{Status: http.StatusCreated, Body: renderDefinition(c, d)}, roles.PutDefinition(c.Tx, d)
}

func deleteDefinition(c *arm.Call) (arm.Answer, error) {
	d, found, err := roles.FindDefinition(c.Tx, c.ID.Name())
	if err != nil {
		return arm.Answer{}, err
	}
	if !found {
		return arm.Answer{Status: http.StatusNoContent}, nil
	}
	if !d.Custom {
		return arm.Answer{}, arm.BadRequestCode("RoleDefinitionCannotBeModified", "The built-in role '%s' cannot be deleted.", d.Name)
	}
	for _, s := range d.AssignableScopes {
		if err := c.Require(azure.TypeRoleDefinition+"/delete", s); err != nil {
			return arm.Answer{}, err
		}
	}
	all, err := roles.Assignments(c.Tx)
	if err != nil {
		return arm.Answer{}, err
	}
	for _, a := range all {
		if a.RoleID == d.ID {
			return arm.Answer{}, arm.BadRequestCode("RoleDefinitionHasAssignments", "There are existing role assignments referencing role '%s'. Delete them first.", d.Name)
		}
	}
	return arm.OK(renderDefinition(c, d)), roles.DeleteDefinition(c.Tx, d.ID)
}

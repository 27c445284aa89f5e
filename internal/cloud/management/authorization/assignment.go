package authorization

import (
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azrbac"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
)

func wire(a roles.Assignment) any {
	id := a.ID()
	type properties struct {
		RoleDefinitionID string    `json:"roleDefinitionId"`
		PrincipalID      string    `json:"principalId"`
		PrincipalType    string    `json:"principalType"`
		Scope            string    `json:"scope"`
		Condition        *string   `json:"condition"`
		ConditionVersion *string   `json:"conditionVersion"`
		Description      *string   `json:"description,omitempty"`
		CreatedOn        time.Time `json:"createdOn"`
		UpdatedOn        time.Time `json:"updatedOn"`
		CreatedBy        string    `json:"createdBy"`
		UpdatedBy        string    `json:"updatedBy"`
	}
	p := properties{RoleDefinitionID: definitionID(id.SubscriptionID, a.RoleID), PrincipalID: a.PrincipalID, PrincipalType: a.PrincipalType,
		Scope: a.Scope, CreatedOn: a.Created, UpdatedOn: a.Updated, CreatedBy: a.CreatedBy, UpdatedBy: a.UpdatedBy}
	if a.Description != "" {
		p.Description = &a.Description
	}
	return map[string]any{"id": id.String(), "name": a.Name, "type": azure.TypeRoleAssignment, "properties": p}
}

// definitionID is where a subscription shows a role; without one it is the tenant's.
func definitionID(subscription, role string) string {
	return azure.ResourceID{SubscriptionID: subscription}.Resource(azure.TypeRoleDefinition, role).String()
}

// scopeOf is the scope of the assignments that a request is about.
func scopeOf(c *arm.Call) azure.ResourceID {
	if c.Collection {
		return c.ID
	}
	return c.ID.Parent()
}

func assignment(c *arm.Call) (roles.Assignment, bool, error) {
	a, ok, err := roles.FindAssignment(c.Tx, c.ID.Name())
	if ok && azure.Fold(a.Scope) != scopeOf(c).Key() {
		ok = false
	}
	return a, ok, err
}

func getAssignment(c *arm.Call) (arm.Answer, error) {
	a, found, err := assignment(c)
	if err == nil && !found {
		err = arm.Fault(http.StatusNotFound, "RoleAssignmentNotFound", "The role assignment '%s' is not found.", c.ID.Name())
	}
	return arm.OK(wire(a)), err
}

// listAssignments lists those at, above and (without atScope()) below the scope.
func listAssignments(c *arm.Call) (arm.Answer, error) {
	if err := scopeExists(c, c.ID); err != nil {
		return arm.Answer{}, err
	}
	filter, _ := arm.Parameter(c.Query, "$filter")
	terms, err := arm.ParseFilter(filter, "atScope()", "principalId", "assignedTo()")
	if err != nil {
		return arm.Answer{}, err
	}
	all, err := roles.Assignments(c.Tx)
	if err != nil {
		return arm.Answer{}, err
	}
	scope := c.ID.String()
	var items []any
	for _, a := range all {
		above, below := azrbac.Covers(a.Scope, scope), azrbac.Covers(scope, a.Scope)
		match := above || below
		for _, t := range terms {
			switch t.Name {
			case "atscope":
				match = match && above
			case "principalid", "assignedto":
				match = match && a.PrincipalID == azure.Fold(t.Arg)
			}
		}
		if match {
			items = append(items, wire(a))
		}
	}
	return arm.Page(items), nil
}

// maxAssignments is the published limit of a subscription; this cloud counts them together.
const maxAssignments = 4000

func putAssignment(c *arm.Call) (arm.Answer, error) {
	name := azure.Fold(c.ID.Name())
	if uuid.Validate(name) != nil || len(name) != 36 {
		return arm.Answer{}, arm.Fault(http.StatusBadRequest, "InvalidRoleAssignmentId", "The role assignment ID '%s' is not valid. The role assignment ID must be a GUID.", c.ID.Name())
	}
	want, err := readAssignment(c)
	if err != nil {
		return arm.Answer{}, err
	}
	old, exists, err := roles.FindAssignment(c.Tx, name)
	if err != nil {
		return arm.Answer{}, err
	}
	if exists {
		if !old.Same(want.RoleID, want.PrincipalID, want.Scope) {
			return arm.Answer{}, arm.BadRequestCode("RoleAssignmentUpdateNotPermitted", "Tenant ID, application ID, principal ID, and scope are not allowed to be updated.")
		}
		old.Description, old.Updated, old.UpdatedBy = want.Description, c.Now, c.Caller.ObjectID
		return arm.OK(wire(old)), roles.PutAssignment(c.Tx, old)
	}
	all, err := roles.Assignments(c.Tx)
	if err != nil {
		return arm.Answer{}, err
	}
	if len(all) >= maxAssignments {
		return arm.Answer{}, arm.BadRequestCode("RoleAssignmentLimitExceeded", "No more role assignments can be created (code: RoleAssignmentLimitExceeded): the limit is %d.", maxAssignments)
	}
	for _, a := range all {
		if a.Same(want.RoleID, want.PrincipalID, want.Scope) {
			return arm.Answer{}, arm.Fault(http.StatusConflict, "RoleAssignmentExists", "The role assignment already exists. The ID of the existing role assignment is %s.", noDashes(a.Name))
		}
	}
	want.Name, want.Created, want.Updated, want.CreatedBy, want.UpdatedBy = name, c.Now, c.Now, c.Caller.ObjectID, c.Caller.ObjectID
	return arm.Answer{Status: http.StatusCreated, Body: wire(want)}, roles.PutAssignment(c.Tx, want)
}

// readAssignment checks the body of a PUT.
func readAssignment(c *arm.Call) (roles.Assignment, error) {
	var in struct {
		Properties struct {
			RoleDefinitionID string  `json:"roleDefinitionId"`
			PrincipalID      string  `json:"principalId"`
			PrincipalType    string  `json:"principalType"`
			Description      string  `json:"description"`
			Condition        *string `json:"condition"`
		} `json:"properties"`
	}
	if err := c.Decode(&in); err != nil {
		return roles.Assignment{}, err
	}
	p, scope := in.Properties, scopeOf(c)
	if p.Condition != nil && *p.Condition != "" {
		return roles.Assignment{}, arm.BadRequestCode("InvalidCondition", "This cloud does not evaluate conditions on role assignments. Leave 'condition' out, or choose a narrower scope or role.")
	}
	if err := scopeExists(c, scope); err != nil {
		return roles.Assignment{}, err
	}
	id, err := azure.ParseResourceID(p.RoleDefinitionID)
	if err != nil || !id.Is(azure.TypeRoleDefinition) || uuid.Validate(id.Name()) != nil {
		return roles.Assignment{}, arm.BadRequestCode("InvalidRoleDefinitionId", "The role definition ID '%.300s' is not valid. It must have the form /subscriptions/{id}/providers/%s/{GUID}.", p.RoleDefinitionID, azure.TypeRoleDefinition)
	}
	role, found, err := roles.FindDefinition(c.Tx, id.Name())
	if err != nil {
		return roles.Assignment{}, err
	}
	if !found {
		return roles.Assignment{}, arm.Fault(http.StatusNotFound, "RoleDefinitionDoesNotExist", "The specified role definition with ID '%s' does not exist.", noDashes(id.Name()))
	}
	if !assignable(role, scope.String()) {
		return roles.Assignment{}, arm.BadRequestCode("RoleAssignmentScopeNotAssignableToRoleDefinition", "The role assignment scope '%s' is not assignable to role definition '%s': its assignable scopes are '%s'.", scope, role.ID, strings.Join(role.AssignableScopes, "', '"))
	}
	principal := azure.Fold(p.PrincipalID)
	if uuid.Validate(principal) != nil || len(principal) != 36 {
		return roles.Assignment{}, arm.BadRequestCode("InvalidPrincipalId", "A valid principal ID must be provided for role assignment; '%.100s' is not a GUID.", p.PrincipalID)
	}
	kind, err := principalType(c, principal, p.PrincipalType)
	return roles.Assignment{Scope: scope.String(), RoleID: role.ID, PrincipalID: principal, PrincipalType: kind, Description: p.Description}, err
}

// principalType finds out what a principal is. One that does not exist is accepted if the caller says what it will be:
// that is how clients get past replication delay.
func principalType(c *arm.Call, principal, given string) (string, error) {
	switch given {
	case "", "ServicePrincipal", "User", "Group", "ForeignGroup", "Device":
	default:
		return "", arm.BadRequestCode("InvalidPrincipalType", "The principal type '%.100s' is not valid. Use ServicePrincipal, User, Group, ForeignGroup or Device.", given)
	}
	_, found, err := directory.ServicePrincipalByID(c.Tx, principal)
	switch {
	case err != nil:
		return "", err
	case found && given != "" && given != "ServicePrincipal":
		return "", arm.BadRequestCode("UnmatchedPrincipalType", "The PrincipalId '%s' has type 'ServicePrincipal', which is different from specified PrincipalType '%s'.", noDashes(principal), given)
	case found:
		return "ServicePrincipal", nil
	case given == "":
		return "", arm.BadRequestCode("PrincipalNotFound", "Principal %s does not exist in the directory %s. Check that you have the correct principal ID. If you are creating this principal and then immediately assigning a role, this error might be related to a replication delay. In this case, set the role assignment principalType property to a value, such as ServicePrincipal, User, or Group.  See https://aka.ms/docs-principaltype", noDashes(principal), c.Caller.TenantID)
	}
	return given, nil
}

func noDashes(guid string) string { return strings.ReplaceAll(azure.Fold(guid), "-", "") }

// scopeExists refuses scopes whose group or tracked resource does not exist. What lies below a tracked resource (the
// secrets of a vault) is not ours to know.
func scopeExists(c *arm.Call, scope azure.ResourceID) error {
	if scope.ResourceGroup != "" {
		if _, err := c.Group(scope); err != nil {
			return err
		}
	}
	if scope.Extends != nil {
		return arm.BadRequest("Role assignments on '%s' are not supported.", scope)
	}
	if scope.Provider == "" {
		return nil
	}
	for len(scope.Types) > 1 {
		scope = scope.Parent()
	}
	typ, err := c.Types.Lookup(scope, false)
	if err != nil {
		return err
	}
	if typ.Place == arm.Anywhere {
		return arm.BadRequest("Role assignments on '%s' are not supported.", scope)
	}
	if typ.Render == nil {
		return nil
	}
	_, err = c.Find(scope)
	return err
}

// deleteAssignment answers with what it deleted. The last principal that can assign roles in a subscription stays,
// because nobody could undo that.
func deleteAssignment(c *arm.Call) (arm.Answer, error) {
	a, found, err := assignment(c)
	if err != nil {
		return arm.Answer{}, err
	}
	if !found {
		return arm.Answer{Status: http.StatusNoContent}, nil
	}
	if err := roles.DeleteAssignment(c.Tx, a.Name); err != nil {
		return arm.Answer{}, err
	}
	if id := a.ID(); id.SubscriptionID != "" && id.ResourceGroup == "" {
		all, err := roles.Assignments(c.Tx)
		if err != nil {
			return arm.Answer{}, err
		}
		if administers(a) && !anyAdministers(all, a.Scope) {
			return arm.Answer{}, arm.BadRequestCode("LastRbacAdminAssignment", "Cannot delete the last RBAC admin assignment of subscription '%s'.", id.SubscriptionID)
		}
	}
	return arm.OK(wire(a)), nil
}

func administers(a roles.Assignment) bool {
	return a.RoleID == azure.RoleOwner || a.RoleID == azure.RoleUserAccessAdministrator
}

func anyAdministers(all []roles.Assignment, subscription string) bool {
	for _, a := range all {
		if administers(a) && azrbac.Covers(a.Scope, subscription) {
			return true
		}
	}
	return false
}

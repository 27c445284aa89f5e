package management

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azrbac"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// An Assignment gives a role to a principal at a scope. Its name is unique in the whole cloud.
type Assignment struct {
	Name          string    `json:"name"`  // GUID, lower case
	Scope         string    `json:"scope"` // as its creator spelled it
	RoleID        string    `json:"roleId"`
	PrincipalID   string    `json:"principalId"`
	PrincipalType string    `json:"principalType"`
	Description   string    `json:"description,omitempty"`
	Created       time.Time `json:"created"`
	Updated       time.Time `json:"updated"`
	CreatedBy     string    `json:"createdBy"`
	UpdatedBy     string    `json:"updatedBy"`
}

// id is the resource id of the assignment.
func (a Assignment) id() azure.ResourceID {
	scope, err := azure.ParseResourceID(a.Scope)
	if err != nil {
		scope = azure.ResourceID{}
	}
	return scope.Resource(azure.TypeRoleAssignment, a.Name)
}

func (a Assignment) same(role, principal, scope string) bool {
	return a.RoleID == role && a.PrincipalID == principal && azure.Fold(a.Scope) == azure.Fold(scope)
}

func (a Assignment) wire() any {
	id := a.id()
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

// assignmentScope is the scope of the assignments that a request is about.
func (c *call) assignmentScope() azure.ResourceID {
	if c.collection {
		return c.id
	}
	return c.id.Parent()
}

func (c *call) assignment() (Assignment, bool, error) {
	a, ok, err := state.Get[Assignment](c.tx, bucketAssignments, azure.Fold(c.id.Name()))
	if ok && azure.Fold(a.Scope) != c.assignmentScope().Key() {
		ok = false
	}
	return a, ok, err
}

func (c *call) getAssignment() (answer, error) {
	a, found, err := c.assignment()
	if err == nil && !found {
		err = fault(http.StatusNotFound, "RoleAssignmentNotFound", "The role assignment '%s' is not found.", c.id.Name())
	}
	return ok(a.wire()), err
}

// listAssignments lists those at, above and (without atScope()) below the scope.
func (c *call) listAssignments() (answer, error) {
	if err := c.scopeExists(c.id); err != nil {
		return answer{}, err
	}
	filter, _ := parameter(c.query, "$filter")
	terms, err := parseFilter(filter, "atScope()", "principalId", "assignedTo()")
	if err != nil {
		return answer{}, err
	}
	all, err := state.List[Assignment](c.tx, bucketAssignments, "")
	if err != nil {
		return answer{}, err
	}
	scope := c.id.String()
	var items []any
	for _, a := range all {
		above, below := azrbac.Covers(a.Scope, scope), azrbac.Covers(scope, a.Scope)
		match := above || below
		for _, t := range terms {
			switch t.name {
			case "atscope":
				match = match && above
			case "principalid", "assignedto":
				match = match && a.PrincipalID == azure.Fold(t.arg)
			}
		}
		if match {
			items = append(items, a.wire())
		}
	}
	return page(items), nil
}

func (c *call) putAssignment() (answer, error) {
	name := azure.Fold(c.id.Name())
	if uuid.Validate(name) != nil || len(name) != 36 {
		return answer{}, fault(http.StatusBadRequest, "InvalidRoleAssignmentId", "The role assignment ID '%s' is not valid. The role assignment ID must be a GUID.", c.id.Name())
	}
	want, err := c.readAssignment()
	if err != nil {
		return answer{}, err
	}
	old, exists, err := state.Get[Assignment](c.tx, bucketAssignments, name)
	if err != nil {
		return answer{}, err
	}
	if exists {
		if !old.same(want.RoleID, want.PrincipalID, want.Scope) {
			return answer{}, badRequestCode("RoleAssignmentUpdateNotPermitted", "Tenant ID, application ID, principal ID, and scope are not allowed to be updated.")
		}
		old.Description, old.Updated, old.UpdatedBy = want.Description, c.now, c.caller.ObjectID
		return ok(old.wire()), state.Put(c.tx, bucketAssignments, name, old)
	}
	all, err := state.List[Assignment](c.tx, bucketAssignments, "")
	if err != nil {
		return answer{}, err
	}
	for _, a := range all {
		if a.same(want.RoleID, want.PrincipalID, want.Scope) {
			return answer{}, fault(http.StatusConflict, "RoleAssignmentExists", "The role assignment already exists. The ID of the existing role assignment is %s.", noDashes(a.Name))
		}
	}
	want.Name, want.Created, want.Updated, want.CreatedBy, want.UpdatedBy = name, c.now, c.now, c.caller.ObjectID, c.caller.ObjectID
	return answer{status: http.StatusCreated, body: want.wire()}, state.Put(c.tx, bucketAssignments, name, want)
}

// readAssignment checks the body of a PUT.
func (c *call) readAssignment() (Assignment, error) {
	var in struct {
		Properties struct {
			RoleDefinitionID string  `json:"roleDefinitionId"`
			PrincipalID      string  `json:"principalId"`
			PrincipalType    string  `json:"principalType"`
			Description      string  `json:"description"`
			Condition        *string `json:"condition"`
		} `json:"properties"`
	}
	if err := c.decode(&in); err != nil {
		return Assignment{}, err
	}
	p, scope := in.Properties, c.assignmentScope()
	if p.Condition != nil && *p.Condition != "" {
		return Assignment{}, badRequestCode("InvalidCondition", "This cloud does not evaluate conditions on role assignments. Leave 'condition' out, or choose a narrower scope or role.")
	}
	if err := c.scopeExists(scope); err != nil {
		return Assignment{}, err
	}
	id, err := azure.ParseResourceID(p.RoleDefinitionID)
	if err != nil || !id.Is(azure.TypeRoleDefinition) || uuid.Validate(id.Name()) != nil {
		return Assignment{}, badRequestCode("InvalidRoleDefinitionId", "The role definition ID '%.300s' is not valid. It must have the form /subscriptions/{id}/providers/%s/{GUID}.", p.RoleDefinitionID, azure.TypeRoleDefinition)
	}
	role, found, err := c.definition(id.Name())
	if err != nil {
		return Assignment{}, err
	}
	if !found {
		return Assignment{}, fault(http.StatusNotFound, "RoleDefinitionDoesNotExist", "The specified role definition with ID '%s' does not exist.", noDashes(id.Name()))
	}
	if !assignable(role, scope.String()) {
		return Assignment{}, badRequestCode("RoleAssignmentScopeNotAssignableToRoleDefinition", "The role assignment scope '%s' is not assignable to role definition '%s': its assignable scopes are '%s'.", scope, role.ID, strings.Join(role.AssignableScopes, "', '"))
	}
	principal := azure.Fold(p.PrincipalID)
	if uuid.Validate(principal) != nil || len(principal) != 36 {
		return Assignment{}, badRequestCode("InvalidPrincipalId", "A valid principal ID must be provided for role assignment; '%.100s' is not a GUID.", p.PrincipalID)
	}
	kind, err := c.principalType(principal, p.PrincipalType)
	return Assignment{Scope: scope.String(), RoleID: role.ID, PrincipalID: principal, PrincipalType: kind, Description: p.Description}, err
}

// principalType finds out what a principal is. One that does not exist is accepted if the caller says what it will be:
// that is how clients get past replication delay.
func (c *call) principalType(principal, given string) (string, error) {
	switch given {
	case "", "ServicePrincipal", "User", "Group", "ForeignGroup", "Device":
	default:
		return "", badRequestCode("InvalidPrincipalType", "The principal type '%.100s' is not valid. Use ServicePrincipal, User, Group, ForeignGroup or Device.", given)
	}
	_, found, err := directory.ServicePrincipalByID(c.tx, principal)
	switch {
	case err != nil:
		return "", err
	case found && given != "" && given != "ServicePrincipal":
		return "", badRequestCode("UnmatchedPrincipalType", "The PrincipalId '%s' has type 'ServicePrincipal', which is different from specified PrincipalType '%s'.", noDashes(principal), given)
	case found:
		return "ServicePrincipal", nil
	case given == "":
		return "", badRequestCode("PrincipalNotFound", "Principal %s does not exist in the directory %s. Check that you have the correct principal ID. If you are creating this principal and then immediately assigning a role, this error might be related to a replication delay. In this case, set the role assignment principalType property to a value, such as ServicePrincipal, User, or Group.  See https://aka.ms/docs-principaltype", noDashes(principal), c.caller.TenantID)
	}
	return given, nil
}

func badRequestCode(code, format string, args ...any) *Error {
	return fault(http.StatusBadRequest, code, format, args...)
}

func noDashes(guid string) string { return strings.ReplaceAll(azure.Fold(guid), "-", "") }

// scopeExists refuses scopes whose group or tracked resource does not exist. What lies below a tracked resource (the
// secrets of a vault) is not ours to know.
func (c *call) scopeExists(scope azure.ResourceID) error {
	if scope.ResourceGroup != "" {
		if _, err := c.group(scope); err != nil {
			return err
		}
	}
	if scope.Extends != nil {
		return badRequest("Role assignments on '%s' are not supported.", scope)
	}
	if scope.Provider == "" {
		return nil
	}
	for len(scope.Types) > 1 {
		scope = scope.Parent()
	}
	typ, err := c.types().lookup(scope, false)
	if err != nil {
		return err
	}
	if typ.place == anywhere {
		return badRequest("Role assignments on '%s' are not supported.", scope)
	}
	if typ.render == nil {
		return nil
	}
	_, err = c.find(scope)
	return err
}

// deleteAssignment answers with what it deleted. The last principal that can assign roles in a subscription stays,
// because nobody could undo that.
func (c *call) deleteAssignment() (answer, error) {
	a, found, err := c.assignment()
	if err != nil {
		return answer{}, err
	}
	if !found {
		return answer{status: http.StatusNoContent}, nil
	}
	if err := state.Delete(c.tx, bucketAssignments, a.Name); err != nil {
		return answer{}, err
	}
	if id := a.id(); id.SubscriptionID != "" && id.ResourceGroup == "" {
		all, err := state.List[Assignment](c.tx, bucketAssignments, "")
		if err != nil {
			return answer{}, err
		}
		if administers(a) && !anyAdministers(all, a.Scope) {
			return answer{}, badRequestCode("LastRbacAdminAssignment", "Cannot delete the last RBAC admin assignment of subscription '%s'.", id.SubscriptionID)
		}
	}
	return ok(a.wire()), nil
}

func administers(a Assignment) bool {
	return a.RoleID == azure.RoleOwner || a.RoleID == azure.RoleUserAccessAdministrator
}

func anyAdministers(all []Assignment, subscription string) bool {
	for _, a := range all {
		if administers(a) && azrbac.Covers(a.Scope, subscription) {
			return true
		}
	}
	return false
}

// deleteAssignmentsBelow deletes the assignments at a scope (folded) and below.
func (c *call) deleteAssignmentsBelow(scope string) error {
	all, err := state.List[Assignment](c.tx, bucketAssignments, "")
	if err != nil {
		return err
	}
	for _, a := range all {
		if azrbac.Covers(scope, a.Scope) {
			if err := state.Delete(c.tx, bucketAssignments, a.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a Assignment) check(roles map[string]bool) error {
	switch {
	case uuid.Validate(a.Name) != nil || azure.Fold(a.Name) != a.Name:
		return fmt.Errorf("assignment %q: its name is not a lower-case GUID", a.Name)
	case !roles[a.RoleID]:
		return fmt.Errorf("assignment %s: role %s does not exist", a.Name, a.RoleID)
	case uuid.Validate(a.PrincipalID) != nil:
		return fmt.Errorf("assignment %s: principal %q is not a GUID", a.Name, a.PrincipalID)
	}
	_, err := azure.ParseResourceID(a.Scope)
	return err
}

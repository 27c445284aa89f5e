// Package roles keeps the local cloud's role assignments and custom roles and decides by them, with azrbac. It has no
// HTTP: Resource Manager's requests about them are management/authorization.
//
//	assignments + definitions of one transaction -> Load -> Rules.Decide -> azrbac.Decision, with its reason
package roles

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azrbac"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// Buckets of the state that this package owns.
const (
	bucketAssignments = "assignments" // by GUID -> Assignment
	bucketDefinitions = "definitions" // by GUID -> azrbac.Definition (custom roles only)
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

// ID is the resource id of the assignment.
func (a Assignment) ID() azure.ResourceID {
	scope, err := azure.ParseResourceID(a.Scope)
	if err != nil {
		scope = azure.ResourceID{}
	}
	return scope.Resource(azure.TypeRoleAssignment, a.Name)
}

// Same reports whether the assignment gives this role to this principal at this scope.
func (a Assignment) Same(role, principal, scope string) bool {
	return a.RoleID == role && a.PrincipalID == principal && azure.Fold(a.Scope) == azure.Fold(scope)
}

// Check tells what is wrong with the assignment by itself. roles are the ids of all roles.
func (a Assignment) Check(roles map[string]bool) error {
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

// Assignments lists all assignments.
func Assignments(tx *state.Tx) ([]Assignment, error) {
	return state.List[Assignment](tx, bucketAssignments, "")
}

// FindAssignment finds an assignment by its name.
func FindAssignment(tx *state.Tx, name string) (Assignment, bool, error) {
	return state.Get[Assignment](tx, bucketAssignments, azure.Fold(name))
}

// PutAssignment stores an assignment under its name.
func PutAssignment(tx *state.Tx, a Assignment) error {
	return state.Put(tx, bucketAssignments, a.Name, a)
}

// DeleteAssignment deletes an assignment.
func DeleteAssignment(tx *state.Tx, name string) error {
	return state.Delete(tx, bucketAssignments, azure.Fold(name))
}

// DeleteBelow deletes the assignments at a scope (folded) and below.
func DeleteBelow(tx *state.Tx, scope string) error {
	all, err := Assignments(tx)
	if err != nil {
		return err
	}
	for _, a := range all {
		if azrbac.Covers(scope, a.Scope) {
			if err := DeleteAssignment(tx, a.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Definitions lists all roles: those of Azure, then the custom ones.
func Definitions(tx *state.Tx) ([]azrbac.Definition, error) {
	custom, err := state.List[azrbac.Definition](tx, bucketDefinitions, "")
	return append(azrbac.BuiltIn(), custom...), err
}

// FindDefinition finds a role by its GUID.
func FindDefinition(tx *state.Tx, guid string) (azrbac.Definition, bool, error) {
	for _, d := range azrbac.BuiltIn() {
		if d.ID == azure.Fold(guid) {
			return d, true, nil
		}
	}
	return state.Get[azrbac.Definition](tx, bucketDefinitions, azure.Fold(guid))
}

// PutDefinition stores a custom role.
func PutDefinition(tx *state.Tx, d azrbac.Definition) error {
	return state.Put(tx, bucketDefinitions, d.ID, d)
}

// DeleteDefinition deletes a custom role.
func DeleteDefinition(tx *state.Tx, guid string) error {
	return state.Delete(tx, bucketDefinitions, azure.Fold(guid))
}

// Authorize decides whether a principal may perform action (a data action if data) at scope, by the role assignments in
// tx. Resource Manager and the vaults ask here.
func Authorize(tx *state.Tx, principalID, action string, data bool, scope string) (azrbac.Decision, error) {
	rules, err := Load(tx)
	if err != nil {
		return azrbac.Decision{}, err
	}
	return rules.Decide(principalID, action, data, scope), nil
}

// Rules are all role assignments and definitions, read once for several questions in one transaction.
type Rules struct {
	Assignments []azrbac.Assignment
	Definitions []azrbac.Definition
}

// Load reads the rules.
func Load(tx *state.Tx) (Rules, error) {
	assignments, err := Assignments(tx)
	if err != nil {
		return Rules{}, err
	}
	definitions, err := Definitions(tx)
	if err != nil {
		return Rules{}, err
	}
	r := Rules{Definitions: definitions}
	for _, a := range assignments {
		r.Assignments = append(r.Assignments, azrbac.Assignment{ID: a.ID().String(), PrincipalID: a.PrincipalID, RoleID: a.RoleID, Scope: a.Scope})
	}
	return r, nil
}

// Decide answers one question.
func (r Rules) Decide(principalID, action string, data bool, scope string) azrbac.Decision {
	return azrbac.Evaluate(azrbac.Request{PrincipalIDs: []string{principalID}, Action: action, Data: data, Scope: scope}, r.Assignments, r.Definitions)
}

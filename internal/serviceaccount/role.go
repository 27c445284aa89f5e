package serviceaccount

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/authorization/armauthorization/v2"
	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/graph"
)

// A RoleAssignment is a role that the identity has got.
type RoleAssignment struct {
	ID          string `json:"id"` // resource id
	Scope       string `json:"scope"`
	Role        string `json:"role"` // as it was asked for
	RoleID      string `json:"roleDefinitionID"`
	PrincipalID string `json:"principalID,omitempty"`
}

// assignmentNames is the namespace of the names that role assignments get, so
// that doing it again finds them, and delete knows its own.
var assignmentNames = uuid.MustParse("6f0b8c1e-6a0e-5f0b-9d2f-3b1f4a1c7a55")

// assignmentName is the GUID of a role assignment. Ids of Azure are compared
// without case.
func assignmentName(scope, principalID, roleID string) string {
	_, role := cutLast(roleID)
	return uuid.NewSHA1(assignmentNames, []byte(azure.Fold(scope+"|"+principalID+"|"+role))).String()
}

// cutLast cuts a path at its last slash.
func cutLast(path string) (before, last string) {
	i := strings.LastIndex(path, "/")
	return path[:max(i, 0)], path[i+1:]
}

func needRoles(scope string) string {
	return "the caller needs Microsoft.Authorization/roleAssignments/write on " + scope + ", which the roles Role Based Access Control Administrator, User Access Administrator and Owner there give"
}

func (r *Runner) createRoleAssignment(ctx context.Context) error {
	a, err := r.connect(ctx)
	if err != nil {
		return err
	}
	scope, err := azure.ParseResourceID(r.Options.Scope)
	if err != nil {
		return err
	}
	where := scope.String()
	role, err := a.role(ctx, where, scope.SubscriptionID, r.Options.Role)
	if err != nil {
		return err
	}
	object := fmt.Sprintf("role assignment of %s on %s", r.Options.Role, where)
	made := RoleAssignment{Scope: where, Role: r.Options.Role, RoleID: role}
	if r.Options.DryRun && r.pending {
		r.result.RoleAssignment = &made
		r.step(PhaseRoleAssignment, created, object, "", "")
		return nil
	}
	if made.PrincipalID, err = r.principal(ctx); err != nil {
		return err
	}
	c, err := armauthorization.NewRoleAssignmentsClient(a.subscription(scope), a.Credential, arm.ManagerOptions(a.options()))
	if err != nil {
		return err
	}
	name := assignmentName(where, made.PrincipalID, role)
	made.ID = strings.TrimSuffix(where, "/") + "/providers/" + azure.TypeRoleAssignment + "/" + name
	action := created
	if _, err := c.Get(ctx, where, name, nil); err == nil {
		action = unchanged
	} else if !r.Options.DryRun {
		err = r.again(ctx, func() error {
			_, err := c.Create(ctx, where, name, armauthorization.RoleAssignmentCreateParameters{Properties: &armauthorization.RoleAssignmentProperties{
				PrincipalID: &made.PrincipalID, RoleDefinitionID: &role,
				// Tells Azure not to look for a principal that other replicas of the
				// directory may not know yet.
				PrincipalType: to.Ptr(armauthorization.PrincipalTypeServicePrincipal),
			}}, nil)
			return arm.AsError(err)
		}, func(err error) bool {
			var e *arm.Error
			return errors.As(err, &e) && e.Code == "PrincipalNotFound" && (r.fresh || r.Options.PrincipalObjectID == "")
		})
		var e *arm.Error
		if errors.As(err, &e) && e.Status == http.StatusConflict && e.Code == "RoleAssignmentExists" {
			action, err, made.ID = unchanged, nil, "" // under another name
		}
		if err != nil {
			return explain(err, needRoles(where))
		}
	}
	r.result.RoleAssignment = &made
	r.step(PhaseRoleAssignment, action, object, made.ID, "principal "+made.PrincipalID)
	return nil
}

// subscription is that of an id, else the one that commands work in.
func (a *Azure) subscription(id azure.ResourceID) string {
	if id.SubscriptionID != "" {
		return id.SubscriptionID
	}
	return a.SubscriptionID
}

// role returns the resource id of a role definition that can be assigned at
// scope: by GUID or by name, built in or custom.
func (a *Azure) role(ctx context.Context, scope, subscription, role string) (string, error) {
	if _, err := uuid.Parse(role); err == nil {
		return definition(subscription, role), nil
	}
	if id, err := azure.ParseResourceID(role); err == nil && id.Is(azure.TypeRoleDefinition) {
		return role, nil
	}
	c, err := armauthorization.NewRoleDefinitionsClient(a.Credential, arm.ManagerOptions(a.options()))
	if err != nil {
		return "", err
	}
	filter := "roleName eq " + graph.Quote(role)
	pager := c.NewListPager(scope, &armauthorization.RoleDefinitionsClientListOptions{Filter: &filter})
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return "", fmt.Errorf("looking for the role %q: %w", role, explain(err, "the caller needs Microsoft.Authorization/roleDefinitions/read on "+scope+", which the role Reader there gives; or give --azure-role as a GUID"))
		}
		for _, x := range page.Value {
			if x != nil && x.ID != nil && x.Properties != nil && strings.EqualFold(deref(x.Properties.RoleName), role) {
				return *x.ID, nil
			}
		}
	}
	return "", fmt.Errorf("there is no role %q at %s: list them with: az role definition list --scope %s --query [].roleName", role, scope, scope)
}

func definition(subscription, guid string) string {
	at := azure.ResourceID{}
	if subscription != "" {
		at = azure.Subscription(subscription)
	}
	return at.Resource(azure.TypeRoleDefinition, guid).String()
}

// deleteRoleAssignment deletes the assignment that was named, else all of the
// identity that create made.
func (r *Runner) deleteRoleAssignment(ctx context.Context) error {
	if r.Options.RoleAssignment != "" {
		return r.deleteAssignment(ctx, r.Options.RoleAssignment)
	}
	a, err := r.connect(ctx)
	if err != nil {
		return err
	}
	principal, err := r.principal(ctx)
	if gone(err) {
		r.step(PhaseRoleAssignment, absent, "role assignments", "", "the identity does not exist")
		return nil
	}
	if err != nil {
		return err
	}
	mine, err := a.assignments(ctx, principal)
	if err != nil {
		return err
	}
	if len(mine) == 0 {
		r.step(PhaseRoleAssignment, absent, "role assignments", "", "none that was made here; principal "+principal)
	}
	for _, id := range mine {
		if err := r.deleteAssignment(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// assignments returns the ids of a principal's role assignments in the
// subscription that create made: their names say so.
func (a *Azure) assignments(ctx context.Context, principal string) ([]string, error) {
	c, err := armauthorization.NewRoleAssignmentsClient(a.SubscriptionID, a.Credential, arm.ManagerOptions(a.options()))
	if err != nil {
		return nil, err
	}
	filter := "principalId eq " + graph.Quote(principal)
	pager := c.NewListForSubscriptionPager(&armauthorization.RoleAssignmentsClientListForSubscriptionOptions{Filter: &filter})
	var mine []string
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("listing role assignments: %w", explain(err, "the caller needs the role Reader on /subscriptions/"+a.SubscriptionID+"; or give --role-assignment-id, or --skip-phases "+PhaseRoleAssignment))
		}
		for _, x := range page.Value {
			if x == nil || x.Properties == nil || !strings.EqualFold(deref(x.Properties.PrincipalID), principal) {
				continue
			}
			if strings.EqualFold(deref(x.Name), assignmentName(deref(x.Properties.Scope), principal, deref(x.Properties.RoleDefinitionID))) {
				mine = append(mine, deref(x.ID))
			}
		}
	}
	return mine, nil
}

func (r *Runner) deleteAssignment(ctx context.Context, assignment string) error {
	a, err := r.connect(ctx)
	if err != nil {
		return err
	}
	id, err := azure.ParseResourceID(assignment)
	if err != nil {
		return fmt.Errorf("the role assignment: %w", err)
	}
	scope := id.Parent().String()
	c, err := armauthorization.NewRoleAssignmentsClient(a.subscription(id), a.Credential, arm.ManagerOptions(a.options()))
	if err != nil {
		return err
	}
	action := deleted
	if r.Options.DryRun {
		_, err = c.Get(ctx, scope, id.Name(), nil)
	} else {
		var answer *http.Response
		_, err = c.Delete(policy.WithCaptureResponse(ctx, &answer), scope, id.Name(), nil)
		if answer != nil && answer.StatusCode == http.StatusNoContent {
			action = absent
		}
	}
	if err = arm.AsError(err); gone(err) {
		action, err = absent, nil
	}
	if err != nil {
		return explain(err, strings.ReplaceAll(needRoles(scope), "/write", "/delete"))
	}
	r.step(PhaseRoleAssignment, action, "role assignment "+id.Name(), assignment, "")
	return nil
}

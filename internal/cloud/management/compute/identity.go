package compute

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

const actionAssign = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"

// kinds reads a type such as "SystemAssigned, UserAssigned".
func kinds(in arm.IdentityInput) (system, user bool, err error) {
	if strings.EqualFold(in.Type, "None") {
		return false, false, nil
	}
	for part := range strings.SplitSeq(in.Type, ",") {
		switch strings.ToLower(strings.TrimSpace(part)) {
		case "systemassigned":
			system = true
		case "userassigned":
			user = true
		default:
			return false, false, arm.Fault(http.StatusBadRequest, "InvalidParameter", "The value '%.100s' of parameter 'identity.type' is invalid. Use 'SystemAssigned', 'UserAssigned', 'SystemAssigned, UserAssigned' or 'None'.", in.Type)
		}
	}
	return system, user, nil
}

// plan is the identity that a machine should have after a change: in a PATCH, identities that are not listed stay; in a
// PUT, they go. The caller must be allowed to assign each identity that it lists, when it asks and not later.
func (p *provider) plan(c *arm.Call, r arm.Resource, in arm.IdentityInput) (*arm.Identity, error) {
	system, user, err := kinds(in)
	if err != nil {
		return nil, err
	}
	if !user && len(in.User) > 0 {
		return nil, arm.Fault(http.StatusBadRequest, "InvalidParameter", "The identity type '%s' does not allow 'identity.userAssignedIdentities'.", in.Type)
	}
	if limit := p.settings().IdentitiesPerPatch; limit > 0 && len(in.User) > limit {
		return nil, arm.Fault(http.StatusBadRequest, "InvalidParameter", "The request lists %d user-assigned identities; at most %d can be changed in one request. Split it.", len(in.User), limit)
	}
	next := arm.Identity{System: system, User: map[string]arm.AssignedIdentity{}}
	if r.Identity != nil {
		next.SystemPrincipalID = r.Identity.SystemPrincipalID
		if c.Method == http.MethodPatch && user {
			maps.Copy(next.User, r.Identity.User)
		}
	}
	if err := assign(c, r.ID, in, next.User); err != nil {
		return nil, err
	}
	if user && len(next.User) == 0 {
		return nil, arm.Fault(http.StatusBadRequest, "InvalidParameter", "The identity type '%s' needs at least one entry in 'identity.userAssignedIdentities'. To take the last one away, set the type to 'SystemAssigned' or 'None'.", in.Type)
	}
	if limit := p.settings().IdentitiesPerMachine; limit > 0 && len(next.User) > limit {
		return nil, arm.Fault(http.StatusBadRequest, "InvalidParameter", "The machine would have %d user-assigned identities; at most %d are possible.", len(next.User), limit)
	}
	if !system && !user && next.SystemPrincipalID == "" {
		return nil, nil
	}
	return &next, nil
}

// assign adds and removes the listed identities in user, by folded id.
func assign(c *arm.Call, machine string, in arm.IdentityInput, user map[string]arm.AssignedIdentity) error {
	rules, err := roles.Load(c.Tx)
	if err != nil {
		return err
	}
	for _, text := range slices.Sorted(maps.Keys(in.User)) {
		id, err := azure.ParseResourceID(text)
		if err != nil || !id.Is(azure.TypeManagedIdentity) {
			return arm.Fault(http.StatusBadRequest, "LinkedInvalidPropertyId", "Property id '%.300s' at path 'identity.userAssignedIdentities' is invalid. Expect fully qualified resource Id of a user-assigned identity that starts with '/subscriptions/{subscriptionId}'.", text)
		}
		if in.User[text] == nil {
			delete(user, id.Key())
			continue
		}
		if d := rules.Decide(c.Caller.ObjectID, actionAssign, false, id.String()); !d.Allowed {
			return arm.LinkedUnauthorized(c.Caller.AppID, c.Caller.ObjectID, c.Action, c.ID.String(), actionAssign, []string{text}, d)
		}
		r, found, err := arm.FindResource(c.Tx, id)
		if err != nil {
			return err
		}
		if !found {
			code, message := identityGone(machine, text)
			return arm.Fault(http.StatusBadRequest, code, "%s", message)
		}
		sp, _, err := directory.ServicePrincipalByID(c.Tx, r.PrincipalID)
		if err != nil {
			return err
		}
		user[id.Key()] = arm.AssignedIdentity{ID: text, PrincipalID: sp.ID, ClientID: sp.AppID}
	}
	return nil
}

// identityGone says in Compute's words that an identity does not exist.
func identityGone(machine, identity string) (code, message string) {
	return "FailedIdentityOperation", fmt.Sprintf("Identity operation for resource '%s' failed with error 'Failed to perform resource identity operation. Status: 'BadRequest'. Response: '{\"error\":{\"code\":\"BadRequest\",\"message\":\"Resource '%s' was not found.\"}}''.", machine, identity)
}

// commit makes what a planned identity needs: it creates or deletes the principal of the machine itself.
func commit(tx *state.Tx, next *arm.Resource) error {
	i := next.Identity
	if i == nil || i.System == (i.SystemPrincipalID != "") {
		return nil
	}
	if i.System {
		sp, err := directory.CreateManagedIdentity(tx, next.ID)
		i.SystemPrincipalID = sp.ID
		return err
	}
	_, err := directory.DeleteServicePrincipal(tx, i.SystemPrincipalID)
	i.SystemPrincipalID = ""
	if len(i.User) == 0 {
		next.Identity = nil
	}
	return err
}

// remove ends what goes on with a machine and deletes the principal of its system-assigned identity.
func remove(tx *state.Tx, r arm.Resource) error {
	if err := cancel(tx, r); err != nil {
		return err
	}
	if r.Identity == nil || r.Identity.SystemPrincipalID == "" {
		return nil
	}
	_, err := directory.DeleteServicePrincipal(tx, r.Identity.SystemPrincipalID)
	return err
}

func renderIdentity(tx *state.Tx, i *arm.Identity) (any, error) {
	if i == nil || !i.System && len(i.User) == 0 {
		return nil, nil
	}
	out := map[string]any{}
	var kinds []string
	if i.System {
		kinds = append(kinds, "SystemAssigned")
		if i.SystemPrincipalID != "" { // else it is yet to be made
			sp, _, err := directory.ServicePrincipalByID(tx, i.SystemPrincipalID)
			if err != nil {
				return nil, err
			}
			out["principalId"], out["tenantId"] = sp.ID, sp.TenantID
		}
	}
	if len(i.User) > 0 {
		kinds = append(kinds, "UserAssigned")
		user := map[string]any{}
		for _, a := range i.User {
			user[a.ID] = map[string]string{"principalId": a.PrincipalID, "clientId": a.ClientID}
		}
		out["userAssignedIdentities"] = user
	}
	out["type"] = strings.Join(kinds, ", ")
	return out, nil
}

func sorted(i *arm.Identity) []arm.AssignedIdentity {
	return slices.SortedFunc(maps.Values(i.User), func(a, b arm.AssignedIdentity) int {
		return strings.Compare(azure.Fold(a.ID), azure.Fold(b.ID))
	})
}

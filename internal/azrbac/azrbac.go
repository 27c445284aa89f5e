// Package azrbac decides what a set of Azure role assignments allows. It is pure: values in, a decision out, so that
// Resource Manager, the Key Vault, the cluster's authorizer and "why" cannot disagree.
//
//	request (principals, action, scope)
//	   1 assignments of these principals   others are ignored
//	   2 whose scope covers the request's   the same scope or one above it
//	   3 whose role grants the action       actions minus notActions, within that role
//	   => the first that grants decides; nothing grants => denied, with the reason of the nearest miss
//
// Source: https://learn.microsoft.com/azure/role-based-access-control/overview#how-azure-rbac-determines-if-a-user-has-access-to-a-resource
package azrbac

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// A Permission is one block of a role definition. What its NotActions take away, another block or another role may
// still grant.
type Permission struct {
	Actions        []string `json:"actions"`
	NotActions     []string `json:"notActions"`
	DataActions    []string `json:"dataActions"`
	NotDataActions []string `json:"notDataActions"`

	// Condition is an ABAC expression. It is not evaluated: a permission with a condition grants nothing.
	Condition string `json:"condition,omitempty"`
}

// A Definition is a role.
type Definition struct {
	ID               string       `json:"id"` // the role's GUID, lower case
	Name             string       `json:"name"`
	Description      string       `json:"description,omitempty"`
	Custom           bool         `json:"custom,omitempty"`
	AssignableScopes []string     `json:"assignableScopes"`
	Permissions      []Permission `json:"permissions"`
}

// An Assignment gives a role to a principal at a scope.
type Assignment struct {
	ID          string `json:"id"` // the full resource id, or whatever names it to the reader of a decision
	PrincipalID string `json:"principalId"`
	RoleID      string `json:"roleId"` // GUID of the Definition
	Scope       string `json:"scope"`  // "/" or a resource id

	// Condition is an ABAC expression. It is not evaluated: an assignment with a condition grants nothing.
	Condition string `json:"condition,omitempty"`
}

// A Request asks whether any of the principals (a caller and its groups) may perform one action at one scope.
type Request struct {
	PrincipalIDs []string
	Action       string // for example Microsoft.KeyVault/vaults/secrets/getSecret/action; never a pattern
	Data         bool   // Action belongs to the data plane: only dataActions count
	Scope        string // resource id
}

// A Decision is the answer with what led to it. Assignment and Role are set only if Allowed.
type Decision struct {
	Allowed    bool
	Assignment Assignment
	Role       Definition
	Reason     string // a sentence without a full stop, for logs and people
}

// Evaluate decides request. Of several assignments that grant, the one at the narrowest scope decides (then the
// smallest ID), so that the answer does not depend on the order of its arguments. Everything that is malformed or not
// understood grants nothing.
func Evaluate(request Request, assignments []Assignment, definitions []Definition) Decision {
	if reason := malformed(request); reason != "" {
		return Decision{Reason: reason}
	}
	roles := make(map[string]Definition, len(definitions))
	for _, d := range definitions {
		roles[azure.Fold(d.ID)] = d
	}
	principals := make(map[string]bool, len(request.PrincipalIDs))
	for _, p := range request.PrincipalIDs {
		if p != "" {
			principals[azure.Fold(p)] = true
		}
	}
	var own, covering []Assignment
	for _, a := range assignments {
		if !principals[azure.Fold(a.PrincipalID)] {
			continue
		}
		own = append(own, a)
		if Covers(a.Scope, request.Scope) {
			covering = append(covering, a)
		}
	}
	slices.SortFunc(covering, func(a, b Assignment) int {
		return cmp.Or(cmp.Compare(len(b.Scope), len(a.Scope)), strings.Compare(a.ID, b.ID))
	})
	var misses []string
	for _, a := range covering {
		role, ok := roles[azure.Fold(a.RoleID)]
		if !ok {
			misses = append(misses, fmt.Sprintf("assignment %s names role %s, which does not exist", a.ID, a.RoleID))
			continue
		}
		if a.Condition != "" {
			misses = append(misses, fmt.Sprintf("assignment %s of role %q has a condition, which is not evaluated and grants nothing", a.ID, role.Name))
			continue
		}
		granted, miss := role.grants(request.Action, request.Data)
		if granted {
			return Decision{Allowed: true, Assignment: a, Role: role,
				Reason: fmt.Sprintf("role %q assigned at %s by %s", role.Name, a.Scope, a.ID)}
		}
		misses = append(misses, fmt.Sprintf("role %q at %s %s", role.Name, a.Scope, miss))
	}
	switch {
	case len(misses) > 0:
		return Decision{Reason: strings.Join(misses, "; ")}
	case len(own) > 0:
		return Decision{Reason: fmt.Sprintf("the principal has %d role assignments, none at or above %s", len(own), request.Scope)}
	}
	return Decision{Reason: "the principal has no role assignment"}
}

// grants reports whether the role alone allows the action, and says, in words
// that follow the role's name, why not.
func (d Definition) grants(action string, data bool) (granted bool, miss string) {
	miss = "does not have the action"
	for _, p := range d.Permissions {
		has, not, other := p.Actions, p.NotActions, p.DataActions
		if data {
			has, not, other = p.DataActions, p.NotDataActions, p.Actions
		}
		switch {
		case !matchesAny(has, action):
			if data && matchesAny(other, action) {
				miss = "has the action only for the management plane, not for data"
			}
		case matchesAny(not, action):
			miss = "takes the action away by its notActions"
		case p.Condition != "":
			miss = "has the action under a condition, which is not evaluated"
		default:
			return true, ""
		}
	}
	return false, miss
}

func matchesAny(patterns []string, action string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return Match(p, action) })
}

func malformed(r Request) string {
	switch {
	case r.Action == "" || strings.ContainsAny(r.Action, "* \t\r\n"):
		return fmt.Sprintf("%q is not an action", r.Action)
	case !wellFormed(r.Scope):
		return fmt.Sprintf("%q is not a scope", r.Scope)
	}
	return ""
}

// Covers reports whether an assignment at scope reaches the resource: it is the same, or lies below. Case is ignored;
// whole segments are compared, so /subscriptions/1 does not cover /subscriptions/11. A malformed scope covers nothing
// and is covered by nothing.
func Covers(scope, resource string) bool {
	if !wellFormed(scope) || !wellFormed(resource) {
		return false
	}
	if scope == "/" {
		return true
	}
	scope, resource = azure.Fold(scope), azure.Fold(resource)
	return resource == scope || strings.HasPrefix(resource, scope+"/")
}

// wellFormed refuses scopes that two readers could read differently.
func wellFormed(scope string) bool {
	if scope == "/" {
		return true
	}
	if !strings.HasPrefix(scope, "/") || strings.ContainsAny(scope, `%\*?#`) {
		return false
	}
	for segment := range strings.SplitSeq(scope[1:], "/") {
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
	}
	return true
}

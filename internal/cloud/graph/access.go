package graph

import (
	"slices"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
)

// A need is what a row of the table asks of its caller.
type need int

const (
	anybody     need = iota // any valid token: what the tenant shows of itself
	readObjects             // applications and service principals
	createObject
	changeObject // one application or service principal, and what hangs on it
)

// reads reports whether the state stays as it is.
func (n need) reads() bool { return n == anybody || n == readObjects }

// access is what a caller may do, from what it was granted.
type access struct {
	read, create bool
	changeAll    bool
	changeOwned  bool
}

// accessOf reads the grants of an application or managed identity.
// Source: https://learn.microsoft.com/graph/permissions-reference and
// https://learn.microsoft.com/entra/identity/role-based-access-control/permissions-reference
func accessOf(sp directory.ServicePrincipal) access {
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(sp.Permissions, n) })
	}
	is := func(roles ...string) bool {
		return slices.ContainsFunc(roles, func(r string) bool { return slices.Contains(sp.DirectoryRoles, r) })
	}
	all := has(azure.PermissionApplicationReadWriteAll, azure.PermissionDirectoryReadWriteAll) ||
		is(azure.DirectoryRoleGlobalAdministrator, azure.DirectoryRoleApplicationAdministrator, azure.DirectoryRoleCloudApplicationAdministrator)
	owned := has(azure.PermissionApplicationReadWriteOwnedBy)
	return access{
		changeAll: all, changeOwned: owned, create: all || owned,
		read: all || owned || has(azure.PermissionApplicationReadAll, azure.PermissionDirectoryReadAll) ||
			is(azure.DirectoryRoleDirectoryReaders),
	}
}

// authorize finds the object that the path names and refuses the call unless the caller may do it. Whoever may not read
// does not learn what exists.
func (c *call) authorize() error {
	sp, ok, err := directory.ServicePrincipalByID(c.tx, c.caller.ObjectID)
	if err != nil {
		return err
	}
	if !ok {
		return denied("the caller's service principal was deleted")
	}
	c.access = accessOf(sp)
	switch need := c.route.need; {
	case need == anybody:
	case need == readObjects && !c.access.read:
		return denied("the caller has no permission to read applications")
	case need == createObject && !c.access.create:
		return denied("the caller has no permission to create applications")
	case need == changeObject && !c.access.changeAll && !c.access.changeOwned:
		return denied("the caller has no permission to change applications")
	}
	if c.route.resolve == nil {
		return nil
	}
	owners, err := c.route.resolve(c)
	if err != nil {
		return err
	}
	if c.route.need == changeObject && !c.access.changeAll && !slices.Contains(owners, sp.ID) {
		return denied("the caller may change what it owns, and does not own this")
	}
	return nil
}

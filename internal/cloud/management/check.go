package management

import (
	"errors"
	"fmt"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/management/compute"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
	"github.com/lanyard-id/lanyard/internal/cloud/management/storage"
	"github.com/lanyard-id/lanyard/internal/cloud/management/vaults"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// Check verifies what must hold after every transaction:
//
//   - every resource lies in a group that exists, and every group in a subscription
//   - every key is the folded id
//   - every managed identity has its principal, and every principal of a managed identity its resource
//   - every vault name leads to a vault and every vault has its name; the same with storage accounts
//   - every assignment names a role and a scope that exist, and no triple is assigned twice
//   - every machine that is being changed has its operation
//   - every identity of a machine is one that exists, or one whose principal is gone
func Check(tx *state.Tx) error {
	k := checker{tx: tx}
	k.groups()
	k.resources()
	k.principals()
	k.vaultNames()
	k.assignments()
	k.note(compute.Check(tx))
	return errors.Join(k.problems...)
}

type checker struct {
	tx       *state.Tx
	problems []error
}

func (k *checker) add(format string, args ...any) {
	k.problems = append(k.problems, fmt.Errorf(format, args...))
}

func (k *checker) note(err error) bool {
	if err != nil {
		k.problems = append(k.problems, err)
	}
	return err != nil
}

func (k *checker) groups() {
	keys, groups, err := arm.AllGroups(k.tx)
	k.note(err)
	for i, g := range groups {
		key := keys[i]
		id, err := azure.ParseResourceID(g.ID)
		if k.note(err) {
			continue
		}
		if id.Key() != key || id.ResourceGroup == "" || id.Provider != "" {
			k.add("group %s is stored under %s", g.ID, key)
		}
		if !k.subscription(id.SubscriptionID) {
			k.add("group %s: its subscription does not exist", g.ID)
		}
	}
}

func (k *checker) resources() {
	keys, all, err := arm.AllResources(k.tx)
	k.note(err)
	for i, r := range all {
		key := keys[i]
		id, err := r.ResourceID()
		if k.note(err) {
			continue
		}
		if id.Key() != key {
			k.add("resource %s is stored under %s", r.ID, key)
		}
		if !k.group(id) {
			k.add("resource %s: its group does not exist", r.ID)
		}
		switch {
		case id.Is(azure.TypeManagedIdentity):
			sp, found, err := directory.ServicePrincipalByID(k.tx, r.PrincipalID)
			k.note(err)
			if !found || azure.Fold(sp.ResourceID) != key {
				k.add("identity %s: its principal %q is missing or another's", r.ID, r.PrincipalID)
			}
		case id.Is(azure.TypeVault):
			if v, found, err := vaults.Find(k.tx, id.Name()); k.note(err) || !found || v.ID.Key() != key {
				k.add("vault %s cannot be found by its name", r.ID)
			}
		case id.Is(azure.TypeStorageAccount):
			if a, found, err := storage.Find(k.tx, id.Name()); k.note(err) || !found || a.ID.Key() != key {
				k.add("storage account %s cannot be found by its name", r.ID)
			}
		}
		k.machine(r)
	}
}

func (k *checker) machine(r arm.Resource) {
	if r.Identity == nil {
		return
	}
	if r.Identity.System {
		sp, found, err := directory.ServicePrincipalByID(k.tx, r.Identity.SystemPrincipalID)
		k.note(err)
		if !found || azure.Fold(sp.ResourceID) != azure.Fold(r.ID) {
			k.add("machine %s: its own principal %q is missing or another's", r.ID, r.Identity.SystemPrincipalID)
		}
	}
	for key, a := range r.Identity.User {
		if azure.Fold(a.ID) != key {
			id, err := azure.ParseResourceID(a.ID)
			if err != nil || id.Key() != key {
				k.add("machine %s: identity %s is stored under %s", r.ID, a.ID, key)
			}
		}
		sp, found, err := directory.ServicePrincipalByID(k.tx, a.PrincipalID)
		k.note(err)
		if found && (azure.Fold(sp.ResourceID) != key || sp.AppID != a.ClientID) {
			k.add("machine %s: identity %s has the principal of %s", r.ID, a.ID, sp.ResourceID)
		}
	}
}

// principals finds managed identities in the directory that no resource answers for.
func (k *checker) principals() {
	all, err := directory.ServicePrincipals(k.tx)
	k.note(err)
	for _, sp := range all {
		if sp.Type != directory.TypeManagedIdentity {
			continue
		}
		id, err := azure.ParseResourceID(sp.ResourceID)
		if k.note(err) {
			continue
		}
		r, found, err := arm.FindResource(k.tx, id)
		k.note(err)
		if !found || r.PrincipalID != sp.ID && (r.Identity == nil || r.Identity.SystemPrincipalID != sp.ID) {
			k.add("principal %s: its resource %s does not know it", sp.ID, sp.ResourceID)
		}
	}
}

func (k *checker) vaultNames() {
	k.note(vaults.Names(k.tx, func(name, key string) {
		id, err := azure.ParseResourceID(key)
		if k.note(err) {
			return
		}
		if !strings.HasSuffix(key, "/vaults/"+name) || !k.resource(id) {
			k.add("vault name %s leads to %s, which does not exist", name, key)
		}
	}))
}

func (k *checker) subscription(id string) bool {
	_, found, err := arm.FindSubscription(k.tx, id)
	k.note(err)
	return found
}

func (k *checker) group(id azure.ResourceID) bool {
	_, found, err := arm.FindGroup(k.tx, id)
	k.note(err)
	return found
}

func (k *checker) resource(id azure.ResourceID) bool {
	_, found, err := arm.FindResource(k.tx, id)
	k.note(err)
	return found
}

func (k *checker) assignments() {
	definitions, err := roles.Definitions(k.tx)
	k.note(err)
	known := map[string]bool{}
	for _, d := range definitions {
		known[d.ID] = true
	}
	all, err := roles.Assignments(k.tx)
	k.note(err)
	seen := map[[3]string]string{}
	for _, a := range all {
		if k.note(a.Check(known)) {
			continue
		}
		triple := [3]string{a.RoleID, a.PrincipalID, azure.Fold(a.Scope)}
		if other := seen[triple]; other != "" {
			k.add("assignments %s and %s are the same", a.Name, other)
		}
		seen[triple] = a.Name
		scope, err := azure.ParseResourceID(a.Scope)
		if k.note(err) {
			continue
		}
		for len(scope.Types) > 1 {
			scope = scope.Parent()
		}
		if scope.Provider != "" && scope.ResourceGroup != "" && !k.resource(scope) {
			k.add("assignment %s: its scope %s does not exist", a.Name, a.Scope)
		}
		if scope.ResourceGroup != "" && !k.group(scope) {
			k.add("assignment %s: the group of %s does not exist", a.Name, a.Scope)
		}
	}
}

package management_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/management"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

func TestCreateSubscription(t *testing.T) {
	c := cloudtest.New(t)
	sp, _ := c.Application("intruder")
	again := arm.Subscription{ID: strings.ToUpper(c.Subscription), TenantID: c.Tenant.ID, DisplayName: "x"}
	if err := c.Management.CreateSubscription(t.Context(), again, sp.ID); err != nil {
		t.Fatal(err)
	}
	if err := c.Management.Do(t.Context(), c.As(sp), "GET", subscription, nil, nil); err == nil {
		t.Error("creating a subscription again makes another owner")
	}
	for name, s := range map[string]arm.Subscription{
		"an id that is no GUID":     {ID: "demo", TenantID: c.Tenant.ID, DisplayName: "x"},
		"a tenant that is not":      {ID: uuid.NewString(), TenantID: uuid.NewString(), DisplayName: "x"},
		"no display name":           {ID: uuid.NewString(), TenantID: c.Tenant.ID},
		"an owner that is not (id)": {ID: uuid.NewString(), TenantID: c.Tenant.ID, DisplayName: "ghost"},
	} {
		owner := c.OwnerSP.ID
		if s.DisplayName == "ghost" {
			owner = uuid.NewString()
		}
		if err := c.Management.CreateSubscription(t.Context(), s, owner); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Each way in which the parts of the state can contradict each other is noticed.
func TestCheckFindsWhatIsBroken(t *testing.T) {
	for name, breakIt := range map[string]func(tx *state.Tx, one identity) error{
		"an identity without a principal": func(tx *state.Tx, one identity) error {
			_, err := directory.DeleteServicePrincipal(tx, one.Properties.PrincipalID)
			return err
		},
		"a principal without an identity": func(tx *state.Tx, _ identity) error {
			_, err := directory.CreateManagedIdentity(tx, identities+"orphan")
			return err
		},
		"a resource without its group": func(tx *state.Tx, _ identity) error {
			return state.Delete(tx, "groups", azure.Fold(rg))
		},
		"a vault name that leads nowhere": func(tx *state.Tx, _ identity) error {
			return state.Put(tx, "vaultNames", "x", azure.Fold(vaults+"x"))
		},
		"an assignment of a role that is not": func(tx *state.Tx, _ identity) error {
			name := uuid.NewString()
			return state.Put(tx, "assignments", name, roles.Assignment{Name: name, Scope: rg, RoleID: uuid.NewString(), PrincipalID: uuid.NewString()})
		},
		"an assignment on nothing": func(tx *state.Tx, _ identity) error {
			name := uuid.NewString()
			return state.Put(tx, "assignments", name, roles.Assignment{Name: name, Scope: vaults + "none", RoleID: azure.RoleReader, PrincipalID: uuid.NewString()})
		},
		"a resource under another's key": func(tx *state.Tx, one identity) error {
			r, _, err := state.Get[arm.Resource](tx, "resources", azure.Fold(one.ID))
			if err != nil {
				return err
			}
			return state.Put(tx, "resources", azure.Fold(one.ID)+"2", r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := cloudtest.New(t)
			group(c)
			one := newIdentity(c, "one")
			c.Update(func(tx *state.Tx) error { return breakIt(tx, one) })
			if err := c.DB.View(management.Check); err == nil {
				t.Error("Check found nothing")
			}
		})
	}
}

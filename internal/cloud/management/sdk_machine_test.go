package management_test

import (
	"fmt"

	"slices"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/authorization/armauthorization/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v6"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/keyvault/armkeyvault"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
)

// patch changes the identity of the scale set ss; a nil value takes an identity away.
func patch(t *testing.T, cl clients, kind armcompute.ResourceIdentityType, user map[string]*armcompute.UserAssignedIdentitiesValue) (*armcompute.VirtualMachineScaleSetIdentity, error) {
	t.Helper()
	poller, err := cl.sets.BeginUpdate(t.Context(), "rg", "ss", armcompute.VirtualMachineScaleSetUpdate{Identity: &armcompute.VirtualMachineScaleSetIdentity{Type: &kind, UserAssignedIdentities: user}}, nil)
	if err != nil {
		return nil, err
	}
	got, err := poller.PollUntilDone(t.Context(), nil)
	return got.Identity, err
}

type assigned = map[string]*armcompute.UserAssignedIdentitiesValue

// names of the identities on a machine.
func on(i *armcompute.VirtualMachineScaleSetIdentity) string {
	if i == nil {
		return "none"
	}
	var names []string
	for id := range i.UserAssignedIdentities {
		names = append(names, id[strings.LastIndexByte(id, '/')+1:])
	}
	slices.Sort(names)
	return string(*i.Type) + ": " + strings.Join(names, " ")
}

func TestIdentitiesOfAScaleSetWithTheSDK(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	one, two := newIdentity(c, "one"), newIdentity(c, "two")
	cl, ctx := connect(c, c.Owner()), t.Context()
	poller, err := cl.sets.BeginCreateOrUpdate(ctx, "rg", "ss", armcompute.VirtualMachineScaleSet{
		Location: to.Ptr("eastus"), SKU: &armcompute.SKU{Name: to.Ptr("Standard_D2s_v5"), Capacity: to.Ptr[int64](3)},
		Properties: &armcompute.VirtualMachineScaleSetProperties{Overprovision: to.Ptr(false)},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	created, err := poller.PollUntilDone(ctx, nil)
	if err != nil || *created.Properties.ProvisioningState != "Succeeded" || *created.Properties.Overprovision || len(*created.Properties.UniqueID) != 36 || created.Identity != nil {
		t.Fatalf("created %+v, %v", created.Properties, err)
	}
	const (
		user   = armcompute.ResourceIdentityTypeUserAssigned
		system = armcompute.ResourceIdentityTypeSystemAssigned
		both   = armcompute.ResourceIdentityTypeSystemAssignedUserAssigned
		none   = armcompute.ResourceIdentityTypeNone
	)
	add := &armcompute.UserAssignedIdentitiesValue{}
	for _, step := range []struct {
		name string
		kind armcompute.ResourceIdentityType
		user assigned
		want string // the error, or what is on the scale set then
	}{
		{"add one", user, assigned{one.ID: add}, "UserAssigned: one"},
		{"add another, the first stays", user, assigned{strings.ToLower(two.ID): add}, "UserAssigned: one two"},
		{"the same again, in another case", user, assigned{strings.ToUpper(one.ID): add}, "UserAssigned: ONE two"},
		{"take one away", user, assigned{one.ID: nil}, "UserAssigned: two"},
		{"take away what is not there", user, assigned{one.ID: nil, identities + "never": nil}, "UserAssigned: two"},
		{"add and take away", user, assigned{one.ID: add, two.ID: nil}, "UserAssigned: one"},
		{"the last one does not go with its type", user, assigned{one.ID: nil}, "400 InvalidParameter"},
		{"an identity that does not exist", user, assigned{identities + "ghost": add}, "400 FailedIdentityOperation"},
		{"one that exists and one that does not: neither", user, assigned{two.ID: add, identities + "ghost": add}, "400 FailedIdentityOperation"},
		{"not the id of an identity", user, assigned{sets + "ss": add}, "400 LinkedInvalidPropertyId"},
		{"system-assigned too", both, assigned{two.ID: add}, "SystemAssigned, UserAssigned: one two"},
		{"system-assigned only", system, nil, "SystemAssigned: "},
		{"none may list none", none, assigned{one.ID: add}, "400 InvalidParameter"},
		{"a type that is none", "Sometimes", nil, "400 InvalidParameter"},
		{"user-assigned needs one", user, nil, "400 InvalidParameter"},
		{"none", none, nil, "none"},
	} {
		got, err := patch(t, cl, step.kind, step.user)
		if err != nil {
			if code(t, err) != step.want {
				t.Errorf("%s: %v, want %s", step.name, err, step.want)
			}
			continue
		}
		if on(got) != step.want {
			t.Errorf("%s: %s, want %s", step.name, on(got), step.want)
		}
	}
	if _, err := cl.system.GetByScope(ctx, sets+"ss", nil); code(t, err) != "404 ResourceNotFound" {
		t.Error(err)
	}
	vms := all(t, cl.instances.NewListPager("rg", "ss", nil), func(p armcompute.VirtualMachineScaleSetVMsClientListResponse) []*armcompute.VirtualMachineScaleSetVM {
		return p.Value
	})
	if len(vms) != 3 || *vms[2].InstanceID != "2" || *vms[2].Name != "ss_2" || *vms[2].ID != sets+"ss/virtualMachines/2" {
		t.Errorf("%d instances", len(vms))
	}
	if vm, err := cl.instances.Get(ctx, "rg", "ss", "1", nil); err != nil || *vm.Properties.VMID == *vms[2].Properties.VMID {
		t.Error(err)
	}
	for _, bad := range []string{"3", "-1", "01", "x"} {
		if _, err := cl.instances.Get(ctx, "rg", "ss", bad, nil); code(t, err) != "404 NotFound" {
			t.Errorf("instance %s: %v", bad, err)
		}
	}
	gone, err := cl.sets.BeginDelete(ctx, "rg", "ss", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gone.PollUntilDone(ctx, nil); err != nil {
		t.Error(err)
	}
	if _, err := cl.sets.Get(ctx, "rg", "ss", nil); code(t, err) != "404 ResourceNotFound" {
		t.Error(err)
	}
}

// An identity that was deleted stays on the machine as a reference to nothing; it can be taken away, and a namesake is
// another identity.
func TestDeletedIdentityOnAScaleSet(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	one := newIdentity(c, "one")
	put := map[string]any{"location": "eastus", "identity": map[string]any{"type": "UserAssigned", "userAssignedIdentities": map[string]any{one.ID: map[string]any{}}}}
	c.Do("PUT", sets+"ss", put, nil)
	c.Do("DELETE", one.ID, nil, nil)
	again := newIdentity(c, "one")
	var got struct {
		Identity struct {
			UserAssignedIdentities map[string]struct{ PrincipalID string }
		}
	}
	c.Do("GET", sets+"ss", nil, &got)
	if p := got.Identity.UserAssignedIdentities[one.ID].PrincipalID; p != one.Properties.PrincipalID || p == again.Properties.PrincipalID {
		t.Errorf("the scale set has principal %s", p)
	}
	cl := connect(c, c.Owner())
	if i, err := patch(t, cl, "UserAssigned", assigned{one.ID: {}}); err != nil || *i.UserAssignedIdentities[one.ID].PrincipalID != again.Properties.PrincipalID {
		t.Errorf("assigned again: %v", err)
	}
	c.Do("DELETE", again.ID, nil, nil)
	if i, err := patch(t, cl, "None", nil); err != nil || i != nil {
		t.Errorf("taken away: %v, %v", i, err)
	}
}

func TestVirtualMachinesWithTheSDK(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	one := newIdentity(c, "one")
	cl, ctx := connect(c, c.Owner()), t.Context()
	poller, err := cl.machines.BeginCreateOrUpdate(ctx, "rg", "vm1", armcompute.VirtualMachine{
		Location:   to.Ptr("eastus"),
		Properties: &armcompute.VirtualMachineProperties{HardwareProfile: &armcompute.HardwareProfile{VMSize: to.Ptr(armcompute.VirtualMachineSizeTypesStandardB1S)}},
		Identity:   &armcompute.VirtualMachineIdentity{Type: to.Ptr(armcompute.ResourceIdentityTypeSystemAssigned)},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := poller.PollUntilDone(ctx, nil)
	if err != nil || len(*vm.Properties.VMID) != 36 || *vm.Properties.HardwareProfile.VMSize != "Standard_B1s" || *vm.Identity.TenantID != c.Tenant.ID {
		t.Fatalf("%+v, %v", vm.Properties, err)
	}
	system, err := cl.system.GetByScope(ctx, *vm.ID, nil)
	if err != nil || *system.Properties.PrincipalID != *vm.Identity.PrincipalID {
		t.Errorf("system identity: %v", err)
	}
	update, err := cl.machines.BeginUpdate(ctx, "rg", "vm1", armcompute.VirtualMachineUpdate{Identity: &armcompute.VirtualMachineIdentity{Type: to.Ptr(armcompute.ResourceIdentityTypeUserAssigned), UserAssignedIdentities: assigned{one.ID: {}}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if vm, err := update.PollUntilDone(ctx, nil); err != nil || vm.Identity.PrincipalID != nil || len(vm.Identity.UserAssignedIdentities) != 1 || vm.Properties.HardwareProfile == nil {
		t.Errorf("%+v, %v", vm.Identity, err)
	}
	if n := len(all(t, cl.machines.NewListPager("rg", nil), func(p armcompute.VirtualMachinesClientListResponse) []*armcompute.VirtualMachine { return p.Value })); n != 1 {
		t.Errorf("%d machines", n)
	}
	c.Do("DELETE", rg, nil, nil)
}

// The chain of trust that Pod Identity needs: writing the machine and assigning the identity are two permissions.
func TestAssigningAnIdentityNeedsTheRightToIt(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	one, two := newIdentity(c, "one"), newIdentity(c, "two")
	c.Do("PUT", sets+"ss", map[string]any{"location": "eastus"}, nil)
	sp, cred := c.Application("mic")
	cl := connect(c, cred)
	try := func(id string) string {
		_, err := patch(t, cl, "UserAssigned", assigned{id: {}})
		if err == nil {
			return "allowed"
		}
		return code(t, err)
	}
	if got := try(one.ID); got != "403 AuthorizationFailed" {
		t.Errorf("without a role: %s", got)
	}
	grant(c, sp.ID, azure.RoleManagedIdentityOperator, one.ID)
	if got := try(one.ID); got != "403 AuthorizationFailed" {
		t.Errorf("with Managed Identity Operator only: %s", got)
	}
	grant(c, sp.ID, azure.RoleVirtualMachineContributor, sets+"ss")
	if got := try(one.ID); got != "allowed" {
		t.Errorf("with both roles: %s", got)
	}
	_, err := patch(t, cl, "UserAssigned", assigned{two.ID: {}})
	if got := code(t, err); got != "403 LinkedAuthorizationFailed" {
		t.Errorf("another identity: %s", got)
	}
	want := fmt.Sprintf("The client '%s' with object id '%s' has permission to perform action 'Microsoft.Compute/virtualMachineScaleSets/write' on scope '%sss'; however, it does not have permission to perform action(s) 'Microsoft.ManagedIdentity/userAssignedIdentities/assign/action' on the linked scope(s) '%s' (respectively) or the linked scope(s) are invalid.", sp.AppID, sp.ID, sets, two.ID)
	if !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err := patch(t, cl, "UserAssigned", assigned{one.ID: {}, two.ID: nil}); err != nil {
		t.Errorf("taking away needs no right to the identity: %v", err)
	}
}

func TestCustomRolesWithTheSDK(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	cl, ctx := connect(c, c.Owner()), t.Context()
	guid := uuid.NewString()
	role := func(name string, scopes ...string) armauthorization.RoleDefinition {
		return armauthorization.RoleDefinition{Properties: &armauthorization.RoleDefinitionProperties{
			RoleName: &name, RoleType: to.Ptr("CustomRole"), AssignableScopes: to.SliceOfPtrs(scopes...),
			Permissions: []*armauthorization.Permission{{Actions: to.SliceOfPtrs("Microsoft.ManagedIdentity/userAssignedIdentities/*"), NotActions: to.SliceOfPtrs("*/delete")}},
		}}
	}
	created, err := cl.definitions.CreateOrUpdate(ctx, subscription, guid, role("Identity Keeper", rg), nil)
	if err != nil || *created.ID != subscription+"/providers/Microsoft.Authorization/roleDefinitions/"+guid || *created.Properties.RoleType != "CustomRole" {
		t.Fatalf("%v, %v", created.ID, err)
	}
	list := func(scope, filter string) (names []string) {
		for _, d := range all(t, cl.definitions.NewListPager(scope, &armauthorization.RoleDefinitionsClientListOptions{Filter: &filter}), func(p armauthorization.RoleDefinitionsClientListResponse) []*armauthorization.RoleDefinition {
			return p.Value
		}) {
			names = append(names, *d.Properties.RoleName)
		}
		return names
	}
	for name, tt := range map[string]struct {
		scope, filter string
		want          []string
	}{
		"by name":                           {subscription, "roleName eq 'Key Vault Secrets User'", []string{"Key Vault Secrets User"}},
		"custom ones at their scope":        {rg, "type eq 'CustomRole'", []string{"Identity Keeper"}},
		"custom ones above their scope":     {subscription, "type eq 'CustomRole'", nil},
		"custom ones below, when asked for": {subscription, "atScopeAndBelow() and type eq 'CustomRole'", []string{"Identity Keeper"}},
	} {
		if diff := cmp.Diff(tt.want, list(tt.scope, tt.filter)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
	}
	if got, err := cl.definitions.GetByID(ctx, subscription+"/providers/Microsoft.Authorization/roleDefinitions/"+azure.RoleReader, nil); err != nil || *got.Properties.RoleName != "Reader" || *got.Properties.Permissions[0].Actions[0] != "*/read" {
		t.Error(err)
	}
	sp, cred := c.Application("keeper")
	assignment := grant(c, sp.ID, guid, rg)
	keeper := connect(c, cred)
	newIdentity(c, "one")
	if _, err := keeper.identities.Get(ctx, "rg", "one", nil); err != nil {
		t.Errorf("the role grants: %v", err)
	}
	if _, err := keeper.identities.Delete(ctx, "rg", "one", nil); code(t, err) != "403 AuthorizationFailed" {
		t.Errorf("the role takes away: %v", err)
	}
	for name, tt := range map[string]struct {
		err  func() error
		want string
	}{
		"a role with assignments stays": {func() error { _, err := cl.definitions.Delete(ctx, subscription, guid, nil); return err }, "400 RoleDefinitionHasAssignments"},
		"names are unique": {func() error {
			_, err := cl.definitions.CreateOrUpdate(ctx, subscription, uuid.NewString(), role("identity keeper", rg), nil)
			return err
		}, "409 RoleDefinitionWithSameNameExists"},
		"names of built-in roles are taken": {func() error {
			_, err := cl.definitions.CreateOrUpdate(ctx, subscription, uuid.NewString(), role("Owner", rg), nil)
			return err
		}, "409 RoleDefinitionWithSameNameExists"},
		"built-in roles cannot be changed": {func() error {
			_, err := cl.definitions.CreateOrUpdate(ctx, subscription, azure.RoleReader, role("Reader2", rg), nil)
			return err
		}, "400 RoleDefinitionCannotBeModified"},
		"built-in roles cannot be deleted": {func() error { _, err := cl.definitions.Delete(ctx, subscription, azure.RoleReader, nil); return err }, "400 RoleDefinitionCannotBeModified"},
		"a role is not assignable everywhere": {func() error {
			_, err := cl.definitions.CreateOrUpdate(ctx, subscription, uuid.NewString(), role("x", "/"), nil)
			return err
		}, "400 InvalidAssignableScope"},
		"a role needs an assignable scope": {func() error {
			_, err := cl.definitions.CreateOrUpdate(ctx, subscription, uuid.NewString(), role("x"), nil)
			return err
		}, "400 InvalidRoleDefinition"},
		"its scopes must be the author's": {func() error {
			_, err := cl.definitions.CreateOrUpdate(ctx, subscription, uuid.NewString(), role("x", "/subscriptions/"+uuid.NewString()), nil)
			return err
		}, "403 AuthorizationFailed"},
		"a keeper cannot widen his own role": {func() error {
			_, err := keeper.definitions.CreateOrUpdate(ctx, rg, guid, role("Identity Keeper", rg), nil)
			return err
		}, "403 AuthorizationFailed"},
		"it is assignable only where it says": {func() error {
			_, err := cl.assignments.Create(ctx, subscription, uuid.NewString(), assignmentOf(guid, sp.ID), nil)
			return err
		}, "400 RoleAssignmentScopeNotAssignableToRoleDefinition"},
		"a filter that is unknown is no filter": {func() error {
			_, err := cl.definitions.NewListPager(subscription, &armauthorization.RoleDefinitionsClientListOptions{Filter: to.Ptr("colour eq 'red'")}).NextPage(ctx)
			return err
		}, "400 InvalidFilterInQueryString"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := code(t, tt.err()); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	c.Do("DELETE", assignment, nil, nil)
	if _, err := cl.definitions.Delete(ctx, subscription, guid, nil); err != nil {
		t.Error(err)
	}
}

func assignmentOf(role, principal string) armauthorization.RoleAssignmentCreateParameters {
	return armauthorization.RoleAssignmentCreateParameters{Properties: &armauthorization.RoleAssignmentProperties{
		RoleDefinitionID: to.Ptr(subscription + "/providers/Microsoft.Authorization/roleDefinitions/" + role), PrincipalID: &principal}}
}

func TestVaultsWithTheSDK(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	c.Do("PUT", rg+"2", map[string]any{"location": "eastus"}, nil)
	cl, ctx := connect(c, c.Owner()), t.Context()
	put := func(group, name string, change func(*armkeyvault.VaultProperties)) (armkeyvault.Vault, error) {
		p := armkeyvault.VaultProperties{TenantID: &c.Tenant.ID, SKU: &armkeyvault.SKU{Family: to.Ptr(armkeyvault.SKUFamilyA), Name: to.Ptr(armkeyvault.SKUNameStandard)}, EnableRbacAuthorization: to.Ptr(true)}
		if change != nil {
			change(&p)
		}
		poller, err := cl.vaults.BeginCreateOrUpdate(ctx, group, name, armkeyvault.VaultCreateOrUpdateParameters{Location: to.Ptr("eastus"), Properties: &p}, nil)
		if err != nil {
			return armkeyvault.Vault{}, err
		}
		v, err := poller.PollUntilDone(ctx, nil)
		return v.Vault, err
	}
	v, err := put("rg", "Demo-1", nil)
	if err != nil || *v.Properties.VaultURI != "https://demo-1.vault.azure.net/" || *v.Properties.SoftDeleteRetentionInDays != 90 || !*v.Properties.EnableRbacAuthorization {
		t.Fatalf("%+v, %v", v.Properties, err)
	}
	for name, tt := range map[string]struct {
		group, vault string
		change       func(*armkeyvault.VaultProperties)
		want         string
	}{
		"names are unique in the cloud":   {"rg2", "demo-1", nil, "409 VaultAlreadyExists"},
		"a name of two letters":           {"rg", "ab", nil, "400 VaultNameNotValid"},
		"a name of 25 letters":            {"rg", strings.Repeat("a", 25), nil, "400 VaultNameNotValid"},
		"a name that starts with a digit": {"rg", "1abc", nil, "400 VaultNameNotValid"},
		"a name with two dashes":          {"rg", "a--b", nil, "400 VaultNameNotValid"},
		"a name that ends with a dash":    {"rg", "abc-", nil, "400 VaultNameNotValid"},
		"a name with a dot":               {"rg", "a.b", nil, "400 VaultNameNotValid"},
		"another tenant":                  {"rg", "demo-2", func(p *armkeyvault.VaultProperties) { p.TenantID = to.Ptr(uuid.NewString()) }, "400 BadRequest"},
		"no tenant":                       {"rg", "demo-2", func(p *armkeyvault.VaultProperties) { p.TenantID = nil }, "400 BadRequest"},
		"no sku":                          {"rg", "demo-2", func(p *armkeyvault.VaultProperties) { p.SKU = nil }, "400 BadRequest"},
		"retention of six days":           {"rg", "demo-2", func(p *armkeyvault.VaultProperties) { p.SoftDeleteRetentionInDays = to.Ptr[int32](6) }, "400 BadRequest"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := put(tt.group, tt.vault, tt.change)
			if got := code(t, err); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	available := func(name string) string {
		r, err := cl.vaults.CheckNameAvailability(ctx, armkeyvault.VaultCheckNameAvailabilityParameters{Name: &name, Type: to.Ptr("Microsoft.KeyVault/vaults")}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if *r.NameAvailable {
			return "available"
		}
		return string(*r.Reason)
	}
	for name, want := range map[string]string{"demo-1": "AlreadyExists", "demo-2": "available", "x": "AccountNameInvalid"} {
		if got := available(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if n := len(all(t, cl.vaults.NewListByResourceGroupPager("rg", nil), func(p armkeyvault.VaultsClientListByResourceGroupResponse) []*armkeyvault.Vault { return p.Value })); n != 1 {
		t.Errorf("%d vaults", n)
	}
	if _, err := cl.vaults.Update(ctx, "rg", "demo-1", armkeyvault.VaultPatchParameters{Properties: &armkeyvault.VaultPatchProperties{EnableRbacAuthorization: to.Ptr(false)}}, nil); err != nil {
		t.Error(err)
	}
	if v, err := cl.vaults.Get(ctx, "rg", "demo-1", nil); err != nil || *v.Properties.EnableRbacAuthorization || *v.Properties.SKU.Name != "standard" {
		t.Errorf("patched: %v", err)
	}
	newIdentity(c, "one")
	filter := "resourceType eq 'Microsoft.KeyVault/vaults'"
	listed := all(t, cl.resources.NewListPager(&armresources.ClientListOptions{Filter: &filter}), func(p armresources.ClientListResponse) []*armresources.GenericResourceExpanded { return p.Value })
	if len(listed) != 1 || *listed[0].Name != "Demo-1" {
		t.Errorf("resources: %d", len(listed))
	}
	if p, err := cl.providers.Get(ctx, "microsoft.keyvault", nil); err != nil || *p.Namespace != "Microsoft.KeyVault" || *p.RegistrationState != "Registered" {
		t.Error(err)
	}
	if _, err := cl.providers.Register(ctx, "Microsoft.KeyVault", nil); err != nil {
		t.Error(err)
	}
	if _, err := cl.vaults.Delete(ctx, "rg", "demo-1", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := put("rg2", "demo-1", nil); err != nil {
		t.Errorf("the name is free again: %v", err)
	}
}

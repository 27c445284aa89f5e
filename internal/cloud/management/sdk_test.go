package management_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/authorization/armauthorization/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v6"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/keyvault/armkeyvault"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/msi/armmsi"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
)

// clients are the real SDK clients of one principal.
type clients struct {
	groups      *armresources.ResourceGroupsClient
	resources   *armresources.Client
	providers   *armresources.ProvidersClient
	identities  *armmsi.UserAssignedIdentitiesClient
	federated   *armmsi.FederatedIdentityCredentialsClient
	system      *armmsi.SystemAssignedIdentitiesClient
	assignments *armauthorization.RoleAssignmentsClient
	definitions *armauthorization.RoleDefinitionsClient
	sets        *armcompute.VirtualMachineScaleSetsClient
	instances   *armcompute.VirtualMachineScaleSetVMsClient
	machines    *armcompute.VirtualMachinesClient
	vaults      *armkeyvault.VaultsClient
}

func connect(c *cloudtest.Cloud, cred azcore.TokenCredential) clients {
	c.T.Helper()
	must := func(err error) {
		if err != nil {
			c.T.Fatal(err)
		}
	}
	resources, err := armresources.NewClientFactory(c.Subscription, cred, c.ARM())
	must(err)
	msi, err := armmsi.NewClientFactory(c.Subscription, cred, c.ARM())
	must(err)
	authorization, err := armauthorization.NewClientFactory(c.Subscription, cred, c.ARM())
	must(err)
	compute, err := armcompute.NewClientFactory(c.Subscription, cred, c.ARM())
	must(err)
	vaults, err := armkeyvault.NewClientFactory(c.Subscription, cred, c.ARM())
	must(err)
	return clients{
		resources.NewResourceGroupsClient(), resources.NewClient(), resources.NewProvidersClient(),
		msi.NewUserAssignedIdentitiesClient(), msi.NewFederatedIdentityCredentialsClient(), msi.NewSystemAssignedIdentitiesClient(),
		authorization.NewRoleAssignmentsClient(), authorization.NewRoleDefinitionsClient(),
		compute.NewVirtualMachineScaleSetsClient(), compute.NewVirtualMachineScaleSetVMsClient(), compute.NewVirtualMachinesClient(),
		vaults.NewVaultsClient(),
	}
}

// group makes the resource group rg.
func group(c *cloudtest.Cloud) {
	c.T.Helper()
	c.Do("PUT", rg, map[string]any{"location": "eastus"}, nil)
}

const (
	subscription = "/subscriptions/" + cloudtest.SubscriptionID
	rg           = subscription + "/resourceGroups/rg"
	identities   = rg + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"
	sets         = rg + "/providers/Microsoft.Compute/virtualMachineScaleSets/"
	vaults       = rg + "/providers/Microsoft.KeyVault/vaults/"
)

// identity is what the cloud tells of a user-assigned identity.
type identity struct {
	ID         string
	Properties struct{ PrincipalID, ClientID, TenantID string }
}

func newIdentity(c *cloudtest.Cloud, name string) identity {
	c.T.Helper()
	var i identity
	c.Do("PUT", identities+name, map[string]any{"location": "eastus"}, &i)
	return i
}

// grant assigns a role.
func grant(c *cloudtest.Cloud, principal, role, scope string) string {
	c.T.Helper()
	id := scope + "/providers/Microsoft.Authorization/roleAssignments/" + uuid.NewString()
	c.Do("PUT", id, map[string]any{"properties": map[string]any{"roleDefinitionId": subscription + "/providers/Microsoft.Authorization/roleDefinitions/" + role, "principalId": principal}}, nil)
	return id
}

// code is the error code of an SDK's answer, with its status.
func code(t *testing.T, err error) string {
	t.Helper()
	var e *azcore.ResponseError
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an error of the service", err)
	}
	return fmt.Sprintf("%d %s", e.StatusCode, e.ErrorCode)
}

func all[T, I any](t *testing.T, pager *runtime.Pager[T], items func(T) []I) []I {
	t.Helper()
	var out []I
	for pager.More() {
		p, err := pager.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, items(p)...)
	}
	return out
}

func TestResourceGroupsWithTheSDK(t *testing.T) {
	c := cloudtest.New(t)
	cl, ctx := connect(c, c.Owner()), t.Context()
	if r, err := cl.groups.CheckExistence(ctx, "RG1", nil); err != nil || r.Success {
		t.Fatalf("exists: %v, %v", r.Success, err)
	}
	created, err := cl.groups.CreateOrUpdate(ctx, "RG1", armresources.ResourceGroup{Location: to.Ptr("East US"), Tags: map[string]*string{"a": to.Ptr("b")}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if *created.ID != subscription+"/resourceGroups/RG1" || *created.Location != "eastus" || *created.Properties.ProvisioningState != "Succeeded" {
		t.Errorf("created %v %v", *created.ID, *created.Location)
	}
	if r, err := cl.groups.CheckExistence(ctx, "rg1", nil); err != nil || !r.Success {
		t.Errorf("exists in another case: %v, %v", r.Success, err)
	}
	got, err := cl.groups.Get(ctx, "rg1", nil)
	if err != nil || *got.Name != "RG1" || *got.Tags["a"] != "b" {
		t.Errorf("got %v, %v; the name must keep its case", got.Name, err)
	}
	if _, err := cl.groups.CreateOrUpdate(ctx, "rg1", armresources.ResourceGroup{Location: to.Ptr("westus")}, nil); code(t, err) != "409 InvalidResourceGroupLocation" {
		t.Error(err)
	}
	names := all(t, cl.groups.NewListPager(nil), func(p armresources.ResourceGroupsClientListResponse) []*armresources.ResourceGroup { return p.Value })
	if len(names) != 1 || *names[0].Name != "RG1" {
		t.Errorf("list: %v", names)
	}
	poller, err := cl.groups.BeginDelete(ctx, "rg1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := poller.PollUntilDone(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.groups.Get(ctx, "RG1", nil); code(t, err) != "404 ResourceGroupNotFound" {
		t.Error(err)
	}
}

func TestIdentitiesWithTheSDK(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	cl, ctx := connect(c, c.Owner()), t.Context()
	created, err := cl.identities.CreateOrUpdate(ctx, "RG", "Demo-1", armmsi.Identity{Location: to.Ptr("eastus"), Tags: map[string]*string{"a": to.Ptr("b")}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := subscription + "/resourcegroups/RG/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Demo-1"; *created.ID != want {
		t.Errorf("id %s, want %s", *created.ID, want)
	}
	if *created.Properties.TenantID != c.Tenant.ID || *created.Properties.ClientID == *created.Properties.PrincipalID {
		t.Errorf("properties %v", created.Properties)
	}
	again, err := cl.identities.CreateOrUpdate(ctx, "rg", "demo-1", armmsi.Identity{Location: to.Ptr("eastus")}, nil)
	if err != nil || *again.Properties.PrincipalID != *created.Properties.PrincipalID || *again.Name != "Demo-1" || len(again.Tags) != 0 {
		t.Errorf("second put: %v, %v", again.Name, err)
	}
	if _, err := cl.identities.Update(ctx, "rg", "demo-1", armmsi.IdentityUpdate{Tags: map[string]*string{"c": to.Ptr("d")}}, nil); err != nil {
		t.Error(err)
	}
	byGroup := all(t, cl.identities.NewListByResourceGroupPager("rg", nil), func(p armmsi.UserAssignedIdentitiesClientListByResourceGroupResponse) []*armmsi.Identity {
		return p.Value
	})
	bySubscription := all(t, cl.identities.NewListBySubscriptionPager(nil), func(p armmsi.UserAssignedIdentitiesClientListBySubscriptionResponse) []*armmsi.Identity {
		return p.Value
	})
	if len(byGroup) != 1 || len(bySubscription) != 1 || *byGroup[0].Tags["c"] != "d" {
		t.Errorf("lists: %d, %d", len(byGroup), len(bySubscription))
	}
	if _, err := cl.identities.Delete(ctx, "rg", "demo-1", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.identities.Delete(ctx, "rg", "demo-1", nil); err != nil {
		t.Errorf("second delete: %v", err)
	}
	if _, err := cl.identities.Get(ctx, "rg", "demo-1", nil); code(t, err) != "404 ResourceNotFound" {
		t.Error(err)
	}
	if fresh := newIdentity(c, "demo-1"); fresh.Properties.PrincipalID == *created.Properties.PrincipalID {
		t.Error("a namesake has the principal of the identity that was deleted")
	}
}

func TestFederatedCredentialsWithTheSDK(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	newIdentity(c, "demo")
	cl, ctx := connect(c, c.Owner()), t.Context()
	put := func(name, issuer, subject string, audiences ...string) (armmsi.FederatedIdentityCredential, error) {
		p := armmsi.FederatedIdentityCredentialProperties{Issuer: &issuer, Subject: &subject, Audiences: to.SliceOfPtrs(audiences...)}
		r, err := cl.federated.CreateOrUpdate(ctx, "rg", "demo", name, armmsi.FederatedIdentityCredential{Properties: &p}, nil)
		return r.FederatedIdentityCredential, err
	}
	created, err := put("Fic-1", "https://issuer.example/", "system:serviceaccount:a:b", azure.AudienceExchange)
	if err != nil {
		t.Fatal(err)
	}
	if want := subscription + "/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo/federatedIdentityCredentials/Fic-1"; *created.ID != want {
		t.Errorf("id %s, want %s", *created.ID, want)
	}
	if got, err := cl.federated.Get(ctx, "rg", "demo", "fic-1", nil); err != nil || *got.Name != "Fic-1" || *got.Properties.Subject != "system:serviceaccount:a:b" {
		t.Errorf("got %v, %v", got.Name, err)
	}
	for i := range 19 {
		if _, err := put(fmt.Sprintf("fic-x%d", i), "https://issuer.example/", fmt.Sprint("s", i), azure.AudienceExchange); err != nil {
			t.Fatal(err)
		}
	}
	for name, try := range map[string]func() error{
		"the 21st is one too many":          func() error { _, err := put("fic-last", "https://issuer.example/", "last", "a"); return err },
		"issuer and subject are unique":     func() error { _, err := put("fic-x0", "https://issuer.example/", "s1", "a"); return err },
		"exactly one audience":              func() error { _, err := put("fic-x0", "https://issuer.example/", "s0", "a", "b"); return err },
		"a name has at least three letters": func() error { _, err := put("ab", "https://issuer.example/", "ab", "a"); return err },
		"an issuer has no spaces around":    func() error { _, err := put("fic-x0", "https://issuer.example/ ", "s0", "a"); return err },
		"a subject is needed":               func() error { _, err := put("fic-x0", "https://issuer.example/", "", "a"); return err },
		"an issuer is an https URL":         func() error { _, err := put("fic-x0", "http://issuer.example/", "s0", "a"); return err },
		"properties are needed": func() error {
			_, err := cl.federated.CreateOrUpdate(ctx, "rg", "demo", "fic-x0", armmsi.FederatedIdentityCredential{}, nil)
			return err
		},
		"a name with a star is wrong": func() error { _, err := put("fic*x", "https://issuer.example/", "ab", "a"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			if got := code(t, try()); !strings.HasPrefix(got, "400 ") {
				t.Errorf("got %s", got)
			}
		})
	}
	list := func() []*armmsi.FederatedIdentityCredential {
		return all(t, cl.federated.NewListPager("rg", "demo", nil), func(p armmsi.FederatedIdentityCredentialsClientListResponse) []*armmsi.FederatedIdentityCredential {
			return p.Value
		})
	}
	if n := len(list()); n != 20 {
		t.Errorf("%d credentials, want 20", n)
	}
	if _, err := cl.federated.Delete(ctx, "rg", "demo", "FIC-1", nil); err != nil {
		t.Error(err)
	}
	if _, err := cl.federated.Delete(ctx, "rg", "demo", "FIC-1", nil); err != nil {
		t.Errorf("second delete: %v", err)
	}
	if n := len(list()); n != 19 {
		t.Errorf("%d credentials, want 19", n)
	}
	if _, err := cl.federated.Get(ctx, "rg", "gone", "fic", nil); code(t, err) != "404 NotFound" || !strings.Contains(err.Error(), "The parent user-assigned identity doesn't exist.") {
		t.Error(err)
	}
	c.Do("DELETE", identities+"demo", nil, nil)
	newIdentity(c, "demo")
	if n := len(list()); n != 0 {
		t.Errorf("a namesake has %d credentials of the identity that was deleted", n)
	}
}

func TestRoleAssignmentsWithTheSDK(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	demo := newIdentity(c, "demo")
	cl, ctx := connect(c, c.Owner()), t.Context()
	put := func(scope, name, role, principal string, kind *armauthorization.PrincipalType) (armauthorization.RoleAssignment, error) {
		p := armauthorization.RoleAssignmentProperties{RoleDefinitionID: to.Ptr(subscription + "/providers/Microsoft.Authorization/roleDefinitions/" + role), PrincipalID: &principal, PrincipalType: kind}
		r, err := cl.assignments.Create(ctx, scope, name, armauthorization.RoleAssignmentCreateParameters{Properties: &p}, nil)
		return r.RoleAssignment, err
	}
	principal, first, ghost := demo.Properties.PrincipalID, uuid.NewString(), uuid.NewString()
	created, err := put(rg, first, azure.RoleReader, principal, nil)
	if err != nil {
		t.Fatal(err)
	}
	if *created.ID != rg+"/providers/Microsoft.Authorization/roleAssignments/"+first || *created.Properties.PrincipalType != "ServicePrincipal" || *created.Properties.CreatedBy != c.OwnerSP.ID {
		t.Errorf("created %s %s", *created.ID, *created.Properties.PrincipalType)
	}
	if _, err := put(rg, first, azure.RoleReader, principal, nil); err != nil {
		t.Errorf("the same again: %v", err)
	}
	for name, tt := range map[string]struct {
		err  func() error
		want string
	}{
		"same name, another role":     {func() error { _, err := put(rg, first, azure.RoleOwner, principal, nil); return err }, "400 RoleAssignmentUpdateNotPermitted"},
		"same name, another scope":    {func() error { _, err := put(subscription, first, azure.RoleReader, principal, nil); return err }, "400 RoleAssignmentUpdateNotPermitted"},
		"another name, same triple":   {func() error { _, err := put(rg, uuid.NewString(), azure.RoleReader, principal, nil); return err }, "409 RoleAssignmentExists"},
		"a principal that is not":     {func() error { _, err := put(rg, uuid.NewString(), azure.RoleReader, ghost, nil); return err }, "400 PrincipalNotFound"},
		"a role that is not":          {func() error { _, err := put(rg, uuid.NewString(), ghost, principal, nil); return err }, "404 RoleDefinitionDoesNotExist"},
		"a role id that is none":      {func() error { _, err := put(rg, uuid.NewString(), "Reader", principal, nil); return err }, "400 InvalidRoleDefinitionId"},
		"a name that is no GUID":      {func() error { _, err := put(rg, "reader", azure.RoleReader, principal, nil); return err }, "400 InvalidRoleAssignmentId"},
		"a principal that is no GUID": {func() error { _, err := put(rg, uuid.NewString(), azure.RoleReader, "demo", nil); return err }, "400 InvalidPrincipalId"},
		"the wrong kind of principal": {func() error {
			_, err := put(rg, uuid.NewString(), azure.RoleOwner, principal, to.Ptr(armauthorization.PrincipalTypeUser))
			return err
		}, "400 UnmatchedPrincipalType"},
		"a group that does not exist": {func() error { _, err := put(rg+"2", uuid.NewString(), azure.RoleReader, principal, nil); return err }, "404 ResourceGroupNotFound"},
		"a vault that does not exist": {func() error {
			_, err := put(vaults+"none", uuid.NewString(), azure.RoleReader, principal, nil)
			return err
		}, "404 ResourceNotFound"},
		"another subscription's scope": {func() error {
			_, err := put("/subscriptions/"+ghost, uuid.NewString(), azure.RoleReader, principal, nil)
			return err
		}, "404 SubscriptionNotFound"},
		"the root scope": {func() error { _, err := put("", uuid.NewString(), azure.RoleReader, principal, nil); return err }, "403 AuthorizationFailed"},
		"the last administrator stays": {func() error {
			_, err := cl.assignments.Delete(ctx, subscription, ownersAssignment(t, cl), nil)
			return err
		}, "400 LastRbacAdminAssignment"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := code(t, tt.err()); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	if _, err := put(rg, uuid.NewString(), azure.RoleReader, ghost, to.Ptr(armauthorization.PrincipalTypeServicePrincipal)); err != nil {
		t.Errorf("a principal that will be, with its type: %v", err)
	}
	list := func(scope, filter string) (out []string) {
		for _, a := range all(t, cl.assignments.NewListForScopePager(scope, &armauthorization.RoleAssignmentsClientListForScopeOptions{Filter: &filter}), func(p armauthorization.RoleAssignmentsClientListForScopeResponse) []*armauthorization.RoleAssignment {
			return p.Value
		}) {
			out = append(out, *a.Properties.PrincipalID+" "+*a.Properties.Scope)
		}
		slices.Sort(out)
		return out
	}
	owner, reader, future := c.OwnerSP.ID+" "+subscription, principal+" "+rg, ghost+" "+rg
	for name, tt := range map[string]struct {
		scope, filter string
		want          []string
	}{
		"at, above and below":             {subscription, "", []string{owner, reader, future}},
		"atScope leaves out below":        {subscription, "atScope()", []string{owner}},
		"at and above":                    {rg, "atScope()", []string{owner, reader, future}},
		"of one principal":                {rg, "principalId eq '" + principal + "'", []string{reader}},
		"assigned to one principal":       {subscription, "assignedTo('" + principal + "')", []string{reader}},
		"both, and nothing is left":       {subscription, "atScope() and assignedTo('" + principal + "')", nil},
		"the case of the GUID is ignored": {rg, "principalId eq '" + strings.ToUpper(principal) + "'", []string{reader}},
	} {
		t.Run(name, func(t *testing.T) {
			want := slices.Sorted(slices.Values(tt.want))
			if diff := cmp.Diff(want, list(tt.scope, tt.filter)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	if got, err := cl.assignments.GetByID(ctx, *created.ID, nil); err != nil || *got.Name != first {
		t.Errorf("by id: %v", err)
	}
	if _, err := cl.assignments.Get(ctx, subscription, first, nil); code(t, err) != "404 RoleAssignmentNotFound" {
		t.Error(err)
	}
	if got, err := cl.assignments.Delete(ctx, rg, first, nil); err != nil || *got.Name != first {
		t.Errorf("delete answers with the object: %v", err)
	}
	if _, err := cl.assignments.Delete(ctx, rg, first, nil); err != nil {
		t.Errorf("second delete: %v", err)
	}
}

func ownersAssignment(t *testing.T, cl clients) string {
	t.Helper()
	for _, a := range all(t, cl.assignments.NewListForSubscriptionPager(nil), func(p armauthorization.RoleAssignmentsClientListForSubscriptionResponse) []*armauthorization.RoleAssignment {
		return p.Value
	}) {
		if strings.HasSuffix(*a.Properties.RoleDefinitionID, azure.RoleOwner) {
			return *a.Name
		}
	}
	t.Fatal("no owner")
	return ""
}

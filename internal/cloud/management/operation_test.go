package management_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v6"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/cloud/management/compute"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

const machines = rg + "/providers/Microsoft.Compute/virtualMachines/"

// slow is a cloud whose changes to machines take ten seconds, with the scale set ss and the machine vm in it.
func slow(t *testing.T) *cloudtest.Cloud {
	c := cloudtest.New(t)
	group(c)
	c.Do("PUT", sets+"ss", map[string]any{"location": "eastus", "sku": map[string]any{"capacity": 2}}, nil)
	c.Do("PUT", machines+"vm", map[string]any{"location": "eastus"}, nil)
	c.Compute = compute.Settings{Duration: 10 * time.Second, RetryAfter: 3 * time.Second}
	return c
}

// identityOf is the PATCH that puts identities on a machine.
func identityOf(ids ...string) map[string]any {
	user := map[string]any{}
	for _, id := range ids {
		user[id] = map[string]any{}
	}
	return map[string]any{"identity": map[string]any{"type": "UserAssigned", "userAssignedIdentities": user}}
}

// model is a machine as a GET shows it.
type model struct {
	ETag     string
	Identity *struct {
		UserAssignedIdentities map[string]struct{ ClientID string }
	}
	Properties struct{ ProvisioningState string }
}

func get(c *cloudtest.Cloud, id string) (m model) {
	c.T.Helper()
	c.Do("GET", id, nil, &m)
	return m
}

// on the machine itself: what its metadata service would answer with.
func arrived(c *cloudtest.Cloud, id string) int {
	c.T.Helper()
	if err := c.Management.Settle(); err != nil {
		c.T.Fatal(err)
	}
	var m compute.Machine
	if err := c.DB.View(func(tx *state.Tx) error {
		rid, err := azure.ParseResourceID(id)
		if err != nil {
			return err
		}
		m, _, err = compute.FindMachine(tx, rid)
		return err
	}); err != nil {
		c.T.Fatal(err)
	}
	return len(m.Identities)
}

func TestAChangeThatTakesItsTime(t *testing.T) {
	for name, id := range map[string]string{"a scale set": sets + "ss", "a virtual machine": machines + "vm"} {
		t.Run(name, func(t *testing.T) {
			c := slow(t)
			one := newIdentity(c, "one")
			bearer := c.Token(c.Owner(), azure.ResourceManagement)
			body, err := json.Marshal(identityOf(one.ID))
			if err != nil {
				t.Fatal(err)
			}
			patch := request{method: "PATCH", target: id + version, bearer: bearer, body: string(body)}
			resp, text := send(c, patch)
			operation := strings.TrimPrefix(resp.Header.Get("Azure-AsyncOperation"), "https://management.azure.com")
			monitor := strings.TrimPrefix(resp.Header.Get("Location"), "https://management.azure.com")
			if resp.StatusCode != 200 || !strings.Contains(text, `"provisioningState":"Updating"`) || !strings.Contains(text, one.Properties.ClientID) ||
				resp.Header.Get("Retry-After") != "3" || !strings.HasPrefix(operation, subscription+"/providers/Microsoft.Compute/locations/eastus/operations/") {
				t.Fatalf("%d %s %v", resp.StatusCode, text, resp.Header)
			}
			if resp, text := send(c, patch); resp.StatusCode != 409 || !strings.Contains(text, `"code":"Conflict"`) {
				t.Errorf("another change meanwhile: %d %s", resp.StatusCode, text)
			}
			if resp, text := send(c, request{target: operation, bearer: bearer}); resp.StatusCode != 200 || !strings.Contains(text, `"status":"InProgress"`) || strings.Contains(text, "endTime") || resp.Header.Get("Retry-After") != "3" {
				t.Errorf("in progress: %d %s %v", resp.StatusCode, text, resp.Header)
			}
			if resp, text := send(c, request{target: monitor, bearer: bearer}); resp.StatusCode != 202 || text != "" || resp.Header.Get("Location") == "" {
				t.Errorf("the address of Location, in progress: %d %s", resp.StatusCode, text)
			}
			if m := get(c, id); m.Properties.ProvisioningState != "Updating" || len(m.Identity.UserAssignedIdentities) != 1 {
				t.Errorf("meanwhile: %+v", m)
			}
			machine := id
			if name == "a scale set" {
				machine += "/virtualMachines/1"
			}
			if n := arrived(c, machine); n != 0 {
				t.Errorf("%d identities on the machine before the change is made", n)
			}
			c.Advance(10 * time.Second)
			if resp, text := send(c, request{target: operation, bearer: bearer}); !strings.Contains(text, `"status":"Succeeded"`) || !strings.Contains(text, "endTime") || resp.Header.Get("Retry-After") != "" {
				t.Errorf("at the end: %d %s", resp.StatusCode, text)
			}
			if resp, text := send(c, request{target: monitor, bearer: bearer}); resp.StatusCode != 200 || !strings.Contains(text, one.Properties.ClientID) {
				t.Errorf("the address of Location, at the end: %d %s", resp.StatusCode, text)
			}
			if m := get(c, id); m.Properties.ProvisioningState != "Succeeded" {
				t.Errorf("at the end: %+v", m)
			}
			if n := arrived(c, machine); n != 1 {
				t.Errorf("%d identities on the machine after the change", n)
			}
			c.Check("the operation")
		})
	}
}

// finish lets an SDK's poller see the end of an operation.
func finish[T any](t *testing.T, c *cloudtest.Cloud, p *runtime.Poller[T], err error) (T, error) {
	t.Helper()
	var none T
	if err != nil {
		return none, err
	}
	for range 3 {
		if p.Done() {
			break
		}
		if _, err := p.Poll(t.Context()); err != nil {
			return none, err
		}
		c.Advance(c.Compute.Duration)
	}
	return p.Result(t.Context())
}

func TestPollersOfTheSDK(t *testing.T) {
	c := slow(t)
	one := newIdentity(c, "one")
	cl, ctx := connect(c, c.Owner()), t.Context()
	user := to.Ptr(armcompute.ResourceIdentityTypeUserAssigned)
	made, err := cl.machines.BeginCreateOrUpdate(ctx, "rg", "new", armcompute.VirtualMachine{Location: to.Ptr("eastus"),
		Identity: &armcompute.VirtualMachineIdentity{Type: to.Ptr(armcompute.ResourceIdentityTypeSystemAssigned)}}, nil)
	if vm, err := finish(t, c, made, err); err != nil || *vm.Properties.ProvisioningState != "Succeeded" || vm.Identity.PrincipalID == nil {
		t.Fatalf("created: %+v, %v", vm.Properties, err)
	}
	updated, err := cl.machines.BeginUpdate(ctx, "rg", "new", armcompute.VirtualMachineUpdate{Identity: &armcompute.VirtualMachineIdentity{Type: user, UserAssignedIdentities: assigned{one.ID: {}}}}, nil)
	if vm, err := finish(t, c, updated, err); err != nil || len(vm.Identity.UserAssignedIdentities) != 1 || vm.Identity.PrincipalID != nil {
		t.Fatalf("updated: %+v, %v", vm.Identity, err)
	}
	set, err := cl.sets.BeginUpdate(ctx, "rg", "ss", armcompute.VirtualMachineScaleSetUpdate{Identity: &armcompute.VirtualMachineScaleSetIdentity{Type: user, UserAssignedIdentities: assigned{one.ID: {}}}}, nil)
	if ss, err := finish(t, c, set, err); err != nil || on(ss.Identity) != "UserAssigned: one" {
		t.Fatalf("updated: %v, %v", ss.Identity, err)
	}
	gone, err := cl.sets.BeginDelete(ctx, "rg", "ss", nil)
	if _, err := finish(t, c, gone, err); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.sets.Get(ctx, "rg", "ss", nil); code(t, err) != "404 ResourceNotFound" {
		t.Error(err)
	}
	// By the real clock, as a program would.
	c.Compute = compute.Settings{Duration: 300 * time.Millisecond}
	start := time.Now()
	last, err := cl.machines.BeginUpdate(ctx, "rg", "vm", armcompute.VirtualMachineUpdate{Identity: &armcompute.VirtualMachineIdentity{Type: user, UserAssignedIdentities: assigned{one.ID: {}}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if vm, err := last.PollUntilDone(ctx, nil); err != nil || len(vm.Identity.UserAssignedIdentities) != 1 || time.Since(start) < 300*time.Millisecond {
		t.Errorf("%+v, %v after %v", vm.Identity, err, time.Since(start))
	}
	c.Check("the pollers")
}

// Whether the caller may assign an identity is asked when it asks, not when the change is made.
func TestTheRightToAssignIsCheckedBeforeAnOperationStarts(t *testing.T) {
	c := slow(t)
	one, two := newIdentity(c, "one"), newIdentity(c, "two")
	sp, cred := c.Application("mic")
	grant(c, sp.ID, azure.RoleVirtualMachineContributor, sets+"ss")
	operator := grant(c, sp.ID, azure.RoleManagedIdentityOperator, one.ID)
	cl := connect(c, cred)
	begin := func(ids ...string) (*runtime.Poller[armcompute.VirtualMachineScaleSetsClientUpdateResponse], error) {
		user := assigned{}
		for _, id := range ids {
			user[id] = &armcompute.UserAssignedIdentitiesValue{}
		}
		return cl.sets.BeginUpdate(t.Context(), "rg", "ss", armcompute.VirtualMachineScaleSetUpdate{Identity: &armcompute.VirtualMachineScaleSetIdentity{Type: to.Ptr(armcompute.ResourceIdentityTypeUserAssigned), UserAssignedIdentities: user}}, nil)
	}
	if _, err := begin(one.ID, two.ID); code(t, err) != "403 LinkedAuthorizationFailed" || !strings.Contains(err.Error(), two.ID) {
		t.Errorf("one of two: %v", err)
	}
	if m := get(c, sets+"ss"); m.Properties.ProvisioningState != "Succeeded" {
		t.Errorf("a refused change began: %+v", m)
	}
	p, err := begin(one.ID)
	if err != nil {
		t.Fatal(err)
	}
	c.Do("DELETE", operator, nil, nil)
	if ss, err := finish(t, c, p, nil); err != nil || on(ss.Identity) != "UserAssigned: one" {
		t.Errorf("the right was taken away meanwhile: %v, %v", ss.Identity, err)
	}
	if _, err := begin(one.ID); code(t, err) != "403 LinkedAuthorizationFailed" {
		t.Errorf("afterwards: %v", err)
	}
}

func TestWhoMaySeeAnOperation(t *testing.T) {
	c := slow(t)
	one := newIdentity(c, "one")
	mic, micCred := c.Application("mic")
	_, stranger := c.Application("stranger")
	reader, readerCred := c.Application("reader")
	grant(c, mic.ID, azure.RoleVirtualMachineContributor, sets+"ss")
	grant(c, mic.ID, azure.RoleManagedIdentityOperator, one.ID)
	grant(c, reader.ID, azure.RoleReader, sets+"ss")
	body, err := json.Marshal(identityOf(one.ID))
	if err != nil {
		t.Fatal(err)
	}
	resp, text := send(c, request{method: "PATCH", target: sets + "ss" + version, bearer: c.Token(micCred, azure.ResourceManagement), body: string(body)})
	if resp.StatusCode != 200 {
		t.Fatal(text)
	}
	operation := strings.TrimPrefix(resp.Header.Get("Azure-AsyncOperation"), "https://management.azure.com")
	for name, tt := range map[string]struct {
		bearer, target string
		want           int
	}{
		"who began it":             {c.Token(micCred, azure.ResourceManagement), operation, 200},
		"who may read the machine": {c.Token(readerCred, azure.ResourceManagement), operation, 200},
		"somebody else":            {c.Token(stranger, azure.ResourceManagement), operation, 404},
		"nobody":                   {"", operation, 401},
		"another name":             {c.Token(micCred, azure.ResourceManagement), strings.Replace(operation, "/operations/", "/operations/x", 1), 404},
		"another subscription":     {c.Token(micCred, azure.ResourceManagement), strings.Replace(operation, c.Subscription, "99999999-2222-3333-4444-555555555555", 1), 404},
	} {
		if resp, text := send(c, request{target: tt.target, bearer: tt.bearer}); resp.StatusCode != tt.want {
			t.Errorf("%s: %d %s, want %d", name, resp.StatusCode, text, tt.want)
		}
	}
}

func TestOperationsThatDoNotSucceed(t *testing.T) {
	c := slow(t)
	one, two := newIdentity(c, "one"), newIdentity(c, "two")
	cl, ctx := connect(c, c.Owner()), t.Context()
	c.Do("PATCH", sets+"ss", identityOf(two.ID), nil)
	c.Advance(time.Minute)
	// An identity that is deleted while it is being put on a machine.
	p, err := cl.sets.BeginUpdate(ctx, "rg", "ss", armcompute.VirtualMachineScaleSetUpdate{Identity: &armcompute.VirtualMachineScaleSetIdentity{Type: to.Ptr(armcompute.ResourceIdentityTypeUserAssigned), UserAssignedIdentities: assigned{one.ID: {}}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Do("DELETE", one.ID, nil, nil)
	if _, err := finish(t, c, p, nil); err == nil || !strings.Contains(err.Error(), "FailedIdentityOperation") || !strings.Contains(err.Error(), one.ID) {
		t.Errorf("a deleted identity: %v", err)
	}
	if m := get(c, sets+"ss"); m.Properties.ProvisioningState != "Failed" || len(m.Identity.UserAssignedIdentities) != 1 {
		t.Errorf("after it failed: %+v", m)
	}
	// The next change succeeds and heals the state.
	c.Do("PATCH", sets+"ss", identityOf(two.ID), nil)
	c.Advance(time.Minute)
	if m := get(c, sets+"ss"); m.Properties.ProvisioningState != "Succeeded" {
		t.Errorf("after the next change: %+v", m)
	}
	// A fault that was asked for.
	injected := fault.WithOperation(context.Background(), fault.Operation{Duration: fault.Duration(time.Hour), Code: "InternalExecutionError", Message: "m"})
	if err := c.Management.Do(injected, c.As(c.OwnerSP), "PATCH", sets+"ss", identityOf(two.ID), nil); err != nil {
		t.Fatal(err)
	}
	c.Advance(59 * time.Minute)
	if m := get(c, sets+"ss"); m.Properties.ProvisioningState != "Updating" {
		t.Errorf("before the hour: %+v", m)
	}
	c.Advance(time.Minute)
	if m := get(c, sets+"ss"); m.Properties.ProvisioningState != "Failed" {
		t.Errorf("after the hour: %+v", m)
	}
	// A machine, and a group, that is deleted while it is being changed.
	q, err := cl.machines.BeginUpdate(ctx, "rg", "vm", armcompute.VirtualMachineUpdate{Tags: map[string]*string{"a": to.Ptr("b")}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Do("DELETE", machines+"vm", nil, nil)
	if m := get(c, machines+"vm"); m.Properties.ProvisioningState != "Deleting" {
		t.Errorf("while it is deleted: %+v", m)
	}
	if _, err := finish(t, c, q, nil); err == nil || !strings.Contains(err.Error(), "OperationPreempted") {
		t.Errorf("an overtaken change: %v", err)
	}
	c.Do("PATCH", sets+"ss", identityOf(two.ID), nil)
	c.Do("DELETE", rg, nil, nil)
	c.Advance(time.Minute)
	if err := c.Management.Settle(); err != nil {
		t.Error(err)
	}
	c.Check("the deletion of a group with a running operation")
}

func TestETags(t *testing.T) {
	c := slow(t)
	c.Compute = compute.Settings{}
	bearer := c.Token(c.Owner(), azure.ResourceManagement)
	old := get(c, sets+"ss").ETag
	patch := func(header map[string]string) (int, string) {
		resp, text := send(c, request{method: "PATCH", target: sets + "ss" + version, bearer: bearer, body: `{"tags":{"a":"b"}}`, header: header})
		return resp.StatusCode, text
	}
	for _, step := range []struct {
		name   string
		header map[string]string
		want   int
	}{
		{"the tag that it has", map[string]string{"If-Match": old}, 200},
		{"the tag that it had", map[string]string{"If-Match": old}, 412},
		{"any tag", map[string]string{"If-Match": "*"}, 200},
		{"it must not exist", map[string]string{"If-None-Match": "*"}, 412},
		{"not the tag that it had", map[string]string{"If-None-Match": old}, 200},
		{"no condition", nil, 200},
	} {
		status, text := patch(step.header)
		if status != step.want || status == 412 && !strings.Contains(text, "PreconditionFailed") {
			t.Errorf("%s: %d %s", step.name, status, text)
		}
	}
	put := request{method: "PUT", target: sets + "other" + version, bearer: bearer, body: `{"location":"eastus"}`}
	put.header = map[string]string{"If-Match": old}
	if resp, text := send(c, put); resp.StatusCode != 412 {
		t.Errorf("a tag of what does not exist: %d %s", resp.StatusCode, text)
	}
	put.header = map[string]string{"If-None-Match": "*"}
	if resp, text := send(c, put); resp.StatusCode != 201 || !strings.Contains(text, `"etag":`) {
		t.Errorf("only if it does not exist: %d %s", resp.StatusCode, text)
	}
	if resp, _ := send(c, put); resp.StatusCode != 412 {
		t.Errorf("again: %d", resp.StatusCode)
	}
}

func TestLimitsOfIdentities(t *testing.T) {
	c := slow(t)
	c.Compute = compute.Settings{IdentitiesPerPatch: 2, IdentitiesPerMachine: 3}
	var ids []string
	for i := range 4 {
		ids = append(ids, newIdentity(c, fmt.Sprintf("id-%d", i)).ID)
	}
	cl := connect(c, c.Owner())
	add := func(ids ...string) error {
		user := assigned{}
		for _, id := range ids {
			user[id] = &armcompute.UserAssignedIdentitiesValue{}
		}
		_, err := patch(t, cl, "UserAssigned", user)
		return err
	}
	if err := add(ids[:3]...); code(t, err) != "400 InvalidParameter" || !strings.Contains(err.Error(), "at most 2") {
		t.Errorf("three at a time: %v", err)
	}
	if err := add(ids[:2]...); err != nil {
		t.Error(err)
	}
	if err := add(ids[2:]...); code(t, err) != "400 InvalidParameter" || !strings.Contains(err.Error(), "at most 3") {
		t.Errorf("four on a machine: %v", err)
	}
	if err := add(ids[2]); err != nil {
		t.Error(err)
	}
}

func TestBudgetsOfACaller(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	bearer := c.Token(c.Owner(), azure.ResourceManagement)
	_, other := c.Application("other")
	write := request{method: "PUT", target: rg + version, bearer: bearer, body: `{"location":"eastus"}`}
	left := func(resp *http.Response) string {
		return resp.Header.Get("x-ms-ratelimit-remaining-subscription-writes")
	}
	if resp, _ := send(c, write); left(resp) != "1199" {
		t.Errorf("after the first: %q left", left(resp))
	}
	cheap := write // refused after it was counted
	cheap.header = map[string]string{"Content-Type": "text/plain"}
	for range 1200 {
		send(c, cheap)
	}
	if resp, text := send(c, write); resp.StatusCode != 200 || left(resp) != "1" {
		t.Errorf("without limits: %d %s, %s left", resp.StatusCode, text, left(resp))
	}
	c.Limits = true
	resp, text := send(c, write)
	if wait := resp.Header.Get("Retry-After"); resp.StatusCode != 429 || !strings.Contains(text, "SubscriptionRequestsThrottled") || left(resp) != "0" || wait == "" || wait == "0" {
		t.Errorf("with limits: %d %s, %s left, Retry-After %s", resp.StatusCode, text, left(resp), wait)
	}
	if resp, text := send(c, request{target: rg + version, bearer: bearer}); resp.StatusCode != 200 {
		t.Errorf("reads have a budget of their own: %d %s", resp.StatusCode, text)
	}
	write.bearer = c.Token(other, azure.ResourceManagement)
	if resp, _ := send(c, write); resp.StatusCode != 403 {
		t.Errorf("others have a budget of their own: %d", resp.StatusCode)
	}
	write.bearer = bearer
	c.Advance(59 * time.Minute)
	if resp, _ := send(c, write); resp.StatusCode != 429 {
		t.Errorf("before the hour is over: %d", resp.StatusCode)
	}
	c.Advance(time.Minute)
	write.bearer = c.Token(c.Owner(), azure.ResourceManagement)
	if resp, _ := send(c, write); resp.StatusCode == 429 {
		t.Errorf("after the hour: %d", resp.StatusCode)
	}
}

package mic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v6"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// pollInterval is how often a change under way is asked about when Azure does
// not say. The SDK's default of 30 s would be the time to a pod's first token.
const pollInterval = time.Second

// AzureCloud is the Cloud that is Azure Resource Manager. Credential must be set.
type AzureCloud struct {
	Credential azcore.TokenCredential
	Options    arm.ClientOptions // endpoints, transport and retries

	mu            sync.Mutex
	subscriptions map[string]*compute
}

type compute struct {
	vms       *armcompute.VirtualMachinesClient
	scaleSets *armcompute.VirtualMachineScaleSetsClient
}

// state is what both kinds of machine have in common.
type machineState struct {
	kind         armcompute.ResourceIdentityType
	identities   []azure.ResourceID
	provisioning string
	etag         *string
}

// Identities implements Cloud.
func (c *AzureCloud) Identities(ctx context.Context, machine azure.ResourceID) ([]azure.ResourceID, error) {
	s, err := c.get(ctx, machine)
	return s.identities, err
}

// Update implements Cloud. The request names only what changes.
func (c *AzureCloud) Update(ctx context.Context, machine azure.ResourceID, add, remove []azure.ResourceID) error {
	s, err := c.get(ctx, machine)
	if err != nil {
		return err
	}
	if strings.EqualFold(s.provisioning, "Deleting") {
		return &CloudError{Status: http.StatusConflict, Code: "Deleting", Message: "the machine is being deleted"}
	}
	kind, users := delta(s, add, remove)
	var match *string
	if users == nil {
		match = s.etag // "None" clears everything: only if nobody was faster
	}
	return c.patch(ctx, machine, kind, users, match)
}

// delta returns the identity of a PATCH: added identities are empty objects,
// removed ones null. When no user-assigned identity is left the list is absent
// and the type says so: Azure refuses an empty list.
func delta(s machineState, add, remove []azure.ResourceID) (armcompute.ResourceIdentityType, map[string]*armcompute.UserAssignedIdentitiesValue) {
	left := make(map[string]bool, len(s.identities)+len(add))
	for _, id := range s.identities {
		left[id.Key()] = true
	}
	users := make(map[string]*armcompute.UserAssignedIdentitiesValue, len(add)+len(remove))
	for _, id := range remove {
		users[id.String()] = nil
		delete(left, id.Key())
	}
	for _, id := range add {
		users[id.String()] = &armcompute.UserAssignedIdentitiesValue{}
		left[id.Key()] = true
	}
	system := strings.Contains(strings.ToLower(string(s.kind)), "systemassigned")
	switch {
	case len(left) > 0 && system:
		return armcompute.ResourceIdentityTypeSystemAssignedUserAssigned, users
	case len(left) > 0:
		return armcompute.ResourceIdentityTypeUserAssigned, users
	case system:
		return armcompute.ResourceIdentityTypeSystemAssigned, nil
	default:
		return armcompute.ResourceIdentityTypeNone, nil
	}
}

func (c *AzureCloud) get(ctx context.Context, machine azure.ResourceID) (machineState, error) {
	clients, err := c.clients(machine.SubscriptionID)
	if err != nil {
		return machineState{}, err
	}
	if machine.Is(typeScaleSet) {
		r, err := clients.scaleSets.Get(ctx, machine.ResourceGroup, machine.Name(), nil)
		if err != nil {
			return machineState{}, cloudError(err)
		}
		s := machineState{etag: r.Etag}
		if r.Properties != nil {
			s.provisioning = deref(r.Properties.ProvisioningState)
		}
		if r.Identity != nil {
			s.kind, s.identities = deref(r.Identity.Type), keys(r.Identity.UserAssignedIdentities)
		}
		return s, nil
	}
	r, err := clients.vms.Get(ctx, machine.ResourceGroup, machine.Name(), nil)
	if err != nil {
		return machineState{}, cloudError(err)
	}
	s := machineState{etag: r.Etag}
	if r.Properties != nil {
		s.provisioning = deref(r.Properties.ProvisioningState)
	}
	if r.Identity != nil {
		s.kind, s.identities = deref(r.Identity.Type), keys(r.Identity.UserAssignedIdentities)
	}
	return s, nil
}

func (c *AzureCloud) patch(ctx context.Context, machine azure.ResourceID, kind armcompute.ResourceIdentityType, users map[string]*armcompute.UserAssignedIdentitiesValue, match *string) error {
	clients, err := c.clients(machine.SubscriptionID)
	if err != nil {
		return err
	}
	poll := &runtime.PollUntilDoneOptions{Frequency: pollInterval}
	if machine.Is(typeScaleSet) {
		p, err := clients.scaleSets.BeginUpdate(ctx, machine.ResourceGroup, machine.Name(), armcompute.VirtualMachineScaleSetUpdate{
			Identity: &armcompute.VirtualMachineScaleSetIdentity{Type: &kind, UserAssignedIdentities: users},
		}, &armcompute.VirtualMachineScaleSetsClientBeginUpdateOptions{IfMatch: match})
		if err == nil {
			_, err = p.PollUntilDone(ctx, poll)
		}
		return cloudError(err)
	}
	p, err := clients.vms.BeginUpdate(ctx, machine.ResourceGroup, machine.Name(), armcompute.VirtualMachineUpdate{
		Identity: &armcompute.VirtualMachineIdentity{Type: &kind, UserAssignedIdentities: users},
	}, &armcompute.VirtualMachinesClientBeginUpdateOptions{IfMatch: match})
	if err == nil {
		_, err = p.PollUntilDone(ctx, poll)
	}
	return cloudError(err)
}

func (c *AzureCloud) clients(subscription string) (*compute, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have := c.subscriptions[subscription]; have != nil {
		return have, nil
	}
	factory, err := armcompute.NewClientFactory(subscription, c.Credential, &c.Options)
	if err != nil {
		return nil, fmt.Errorf("making a client for subscription %s: %w", subscription, err)
	}
	if c.subscriptions == nil {
		c.subscriptions = map[string]*compute{}
	}
	made := &compute{vms: factory.NewVirtualMachinesClient(), scaleSets: factory.NewVirtualMachineScaleSetsClient()}
	c.subscriptions[subscription] = made
	return made, nil
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func keys[V any](m map[string]V) []azure.ResourceID {
	out := make([]azure.ResourceID, 0, len(m))
	for k := range m {
		if id, err := azure.ParseResourceID(k); err == nil {
			out = append(out, id)
		}
	}
	return out
}

// cloudError turns the SDK's errors into a CloudError.
func cloudError(err error) error {
	if err == nil {
		return nil
	}
	var auth *azidentity.AuthenticationFailedError
	if errors.As(err, &auth) {
		text, _, _ := strings.Cut(err.Error(), "\n")
		return &CloudError{Status: http.StatusUnauthorized, Code: "AuthenticationFailed", Message: text + describe(auth.RawResponse), Err: err}
	}
	var r *azcore.ResponseError
	if !errors.As(err, &r) {
		return err
	}
	e := &CloudError{Status: r.StatusCode, Code: r.ErrorCode, Err: err}
	if r.RawResponse != nil {
		e.RetryAfter = wait(r.RawResponse.Header)
		if body, err := runtime.Payload(r.RawResponse); err == nil {
			var b struct {
				Error struct {
					Code    string `json:"code"`
					Message string `json:"message"`
				} `json:"error"`
			}
			if json.Unmarshal(body, &b) == nil {
				e.Message = b.Error.Message
				if b.Error.Code != "" {
					e.Code = b.Error.Code
				}
			}
		}
	}
	if e.Message == "" {
		e.Message = http.StatusText(e.Status)
	}
	return e
}

// describe returns Entra's description of why it refused a credential.
func describe(r *http.Response) string {
	if r == nil {
		return ""
	}
	body, err := runtime.Payload(r)
	var b struct {
		Description string `json:"error_description"`
	}
	if err != nil || json.Unmarshal(body, &b) != nil {
		return ""
	}
	first, _, _ := strings.Cut(b.Description, "\n")
	return ": " + strings.TrimSpace(first)
}

func wait(h http.Header) time.Duration {
	s, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || s < 0 {
		return 0
	}
	return time.Duration(min(s, 3600)) * time.Second
}

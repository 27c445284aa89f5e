// Package arm is Azure Resource Manager as mic needs it: which user-assigned
// identities a virtual machine or a scale set has, and changes of that list.
//
//	Source.Connection     as whom, and where: a file is read again when it changes
//	GET machine           what it has, and its ETag
//	PATCH machine         what differs, If-Match the ETag; 412 means: read again
//	GET operation         until an asynchronous change is done
//	Error                 what Azure answered, and what that means to a person
//
// A PATCH names only what comes and what goes, so identities of others stay.
package arm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azarm "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v6"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/azure"
)

const (
	// pollInterval is how often a change under way is asked about when Azure does
	// not say. The SDK's default of 30 s would be the time to a pod's first token.
	pollInterval = time.Second
	// maxPerPatch is how many identities Azure takes in one request.
	maxPerPatch = 150
	// maxReads is how often a machine is read again because somebody else was faster.
	maxReads = 5
	// renewLeast is the least time between two tokens that are asked for because
	// the one before was refused: an account that is never accepted must not
	// flood Entra with the work of all machines.
	renewLeast = time.Second
)

// Names of the operations that Observe is told of, as Pod Identity v1's metrics
// have them.
const (
	opGetVM          = "vm_get"
	opUpdateVM       = "vm_update"
	opGetScaleSet    = "vmss_get"
	opUpdateScaleSet = "vmss_update"
)

// A Connection says as whom and where requests are made.
type Connection struct {
	Credential azcore.TokenCredential
	Options    azarm.ClientOptions // endpoints, transport and retries
	Assignee   string              // client id that Credential acts as; empty if unknown

	// Anew makes Credential again, without the tokens that it remembers. nil
	// means that it remembers none.
	Anew func() (azcore.TokenCredential, error)
}

// Connection returns c itself: a Connection is a Source that never changes.
func (c *Connection) Connection() *Connection { return c }

// A Source returns the Connection to use now. It returns the same pointer until
// something has changed.
type Source interface {
	Connection() *Connection
}

// A Client reads and changes the identities of machines. Source must be set.
type Client struct {
	Source Source
	// Observe is told of each operation: vm_get, vm_update, vmss_get or
	// vmss_update. nil means nobody is.
	Observe func(operation string, took time.Duration, err error)

	mu            sync.Mutex
	connection    *Connection // that subscriptions were made with
	credential    azcore.TokenCredential
	renewals      int       // how often credential was made because its token was refused
	renewed       time.Time // when it last was
	subscriptions map[string]*compute
}

type compute struct {
	renewals int // Client.renewals when it was made

	vms       *armcompute.VirtualMachinesClient
	scaleSets *armcompute.VirtualMachineScaleSetsClient
}

// state is what both kinds of machine have in common.
type state struct {
	kind         armcompute.ResourceIdentityType
	identities   []azure.ResourceID
	provisioning string
	etag         *string
}

// Assignee is the client id that the client acts as now; empty if unknown.
func (c *Client) Assignee() string { return c.Source.Connection().Assignee }

// Identities returns the user-assigned identities of the machine.
func (c *Client) Identities(ctx context.Context, machine azure.ResourceID) ([]azure.ResourceID, error) {
	s, err := c.get(ctx, machine)
	return s.identities, err
}

// Update adds and removes identities and leaves all others alone. It returns
// when the change is done. A change of more than 150 identities takes several
// requests; after an error some of them may have succeeded.
func (c *Client) Update(ctx context.Context, machine azure.ResourceID, add, remove []azure.ResourceID) error {
	// First what goes: a machine has a limit too.
	for chunk := range slices.Chunk(remove, maxPerPatch) {
		fill := min(len(add), maxPerPatch-len(chunk))
		if err := c.update(ctx, machine, add[:fill], chunk); err != nil {
			return err
		}
		add = add[fill:]
	}
	for chunk := range slices.Chunk(add, maxPerPatch) {
		if err := c.update(ctx, machine, chunk, nil); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) update(ctx context.Context, machine azure.ResourceID, add, remove []azure.ResourceID) (err error) {
	for range maxReads {
		var s state
		if s, err = c.get(ctx, machine); err != nil {
			return err
		}
		if strings.EqualFold(s.provisioning, "Deleting") {
			return &Error{Status: http.StatusConflict, Code: codeDeleting, Message: "the machine is being deleted"}
		}
		kind, users, differs := delta(s, add, remove)
		if !differs {
			return nil
		}
		err = c.patch(ctx, machine, kind, users, s.etag)
		var e *Error
		if !errors.As(err, &e) || e.Status != http.StatusPreconditionFailed {
			return err
		}
	}
	return err
}

// delta returns the identity of a PATCH: added identities are empty objects,
// removed ones null. When no user-assigned identity is left the list is absent
// and the type says so: Azure refuses an empty list. differs is false if the
// machine is as wanted already.
func delta(s state, add, remove []azure.ResourceID) (kind armcompute.ResourceIdentityType, users map[string]*armcompute.UserAssignedIdentitiesValue, differs bool) {
	left := make(map[string]bool, len(s.identities)+len(add))
	for _, id := range s.identities {
		left[id.Key()] = true
	}
	users = make(map[string]*armcompute.UserAssignedIdentitiesValue, len(add)+len(remove))
	for _, id := range remove {
		if left[id.Key()] {
			users[id.String()] = nil
			delete(left, id.Key())
		}
	}
	for _, id := range add {
		if !left[id.Key()] {
			users[id.String()] = &armcompute.UserAssignedIdentitiesValue{}
			left[id.Key()] = true
		}
	}
	if len(users) == 0 {
		return "", nil, false
	}
	system := strings.Contains(strings.ToLower(string(s.kind)), "systemassigned")
	switch {
	case len(left) > 0 && system:
		return armcompute.ResourceIdentityTypeSystemAssignedUserAssigned, users, true
	case len(left) > 0:
		return armcompute.ResourceIdentityTypeUserAssigned, users, true
	case system:
		return armcompute.ResourceIdentityTypeSystemAssigned, nil, true
	default:
		return armcompute.ResourceIdentityTypeNone, nil, true
	}
}

func (c *Client) get(ctx context.Context, machine azure.ResourceID) (s state, err error) {
	clients, err := c.clients(machine.SubscriptionID)
	if err != nil {
		return state{}, err
	}
	operation := opGetVM
	if machine.Is(azure.TypeVirtualMachineScaleSet) {
		operation = opGetScaleSet
	}
	defer c.observe(operation, time.Now(), &err)
	if machine.Is(azure.TypeVirtualMachineScaleSet) {
		r, err := clients.scaleSets.Get(ctx, machine.ResourceGroup, machine.Name(), nil)
		if err != nil {
			return state{}, c.failed(clients, err)
		}
		s := state{etag: r.Etag}
		if r.Properties != nil {
			s.provisioning = deref(r.Properties.ProvisioningState)
		}
		if r.Identity != nil {
			s.kind, s.identities = deref(r.Identity.Type), parsed(r.Identity.UserAssignedIdentities)
		}
		return s, nil
	}
	r, err := clients.vms.Get(ctx, machine.ResourceGroup, machine.Name(), nil)
	if err != nil {
		return state{}, c.failed(clients, err)
	}
	s = state{etag: r.Etag}
	if r.Properties != nil {
		s.provisioning = deref(r.Properties.ProvisioningState)
	}
	if r.Identity != nil {
		s.kind, s.identities = deref(r.Identity.Type), parsed(r.Identity.UserAssignedIdentities)
	}
	return s, nil
}

func (c *Client) patch(ctx context.Context, machine azure.ResourceID, kind armcompute.ResourceIdentityType, users map[string]*armcompute.UserAssignedIdentitiesValue, match *string) (err error) {
	clients, err := c.clients(machine.SubscriptionID)
	if err != nil {
		return err
	}
	poll := &runtime.PollUntilDoneOptions{Frequency: pollInterval}
	if machine.Is(azure.TypeVirtualMachineScaleSet) {
		defer c.observe(opUpdateScaleSet, time.Now(), &err)
		p, err := clients.scaleSets.BeginUpdate(ctx, machine.ResourceGroup, machine.Name(), armcompute.VirtualMachineScaleSetUpdate{
			Identity: &armcompute.VirtualMachineScaleSetIdentity{Type: &kind, UserAssignedIdentities: users},
		}, &armcompute.VirtualMachineScaleSetsClientBeginUpdateOptions{IfMatch: match})
		if err == nil {
			_, err = p.PollUntilDone(ctx, poll)
		}
		return c.failed(clients, err)
	}
	defer c.observe(opUpdateVM, time.Now(), &err)
	p, err := clients.vms.BeginUpdate(ctx, machine.ResourceGroup, machine.Name(), armcompute.VirtualMachineUpdate{
		Identity: &armcompute.VirtualMachineIdentity{Type: &kind, UserAssignedIdentities: users},
	}, &armcompute.VirtualMachinesClientBeginUpdateOptions{IfMatch: match})
	if err == nil {
		_, err = p.PollUntilDone(ctx, poll)
	}
	return c.failed(clients, err)
}

// failed says what an error is. A token that Resource Manager refuses is not
// used again, however long this machine's clock says that it is good for: the
// clock may be wrong, or the token revoked. The caller tries again later.
func (c *Client) failed(used *compute, err error) error {
	err = arm.AsError(err)
	var e *Error
	if !errors.As(err, &e) || e.Status != http.StatusUnauthorized {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if used.renewals != c.renewals || time.Since(c.renewed) < renewLeast {
		return err // another request has noticed already
	}
	if anew := c.connection.Anew; anew != nil {
		credential, failure := anew()
		if failure != nil {
			return errors.Join(err, failure)
		}
		c.credential = credential
	}
	c.renewals, c.renewed, c.subscriptions = c.renewals+1, time.Now(), map[string]*compute{}
	return err
}

func (c *Client) observe(operation string, since time.Time, err *error) {
	if c.Observe != nil {
		c.Observe(operation, time.Since(since), *err)
	}
}

// clients returns those of a subscription. With a new connection they are made
// anew: they hold tokens of the old one.
func (c *Client) clients(subscription string) (*compute, error) {
	now := c.Source.Connection()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.connection != now {
		c.connection, c.credential, c.subscriptions = now, now.Credential, map[string]*compute{}
	}
	if have := c.subscriptions[subscription]; have != nil {
		return have, nil
	}
	options := now.Options
	options.PerCallPolicies = append(slices.Clip(options.PerCallPolicies), accepted{})
	factory, err := armcompute.NewClientFactory(subscription, c.credential, &options)
	if err != nil {
		return nil, fmt.Errorf("making a client for subscription %s: %w", subscription, err)
	}
	made := &compute{renewals: c.renewals, vms: factory.NewVirtualMachinesClient(), scaleSets: factory.NewVirtualMachineScaleSetsClient()}
	c.subscriptions[subscription] = made
	return made, nil
}

// accepted passes 202 for a PATCH off as 200. Azure documents 200 for an
// asynchronous one and the SDK takes nothing else, but older versions of the API
// documented 202 as well; the headers that lead to the operation are the same.
type accepted struct{}

func (accepted) Do(req *policy.Request) (*http.Response, error) {
	resp, err := req.Next()
	if err == nil && req.Raw().Method == http.MethodPatch && resp.StatusCode == http.StatusAccepted {
		resp.StatusCode = http.StatusOK
	}
	return resp, err
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func parsed[V any](m map[string]V) []azure.ResourceID {
	out := make([]azure.ResourceID, 0, len(m))
	for k := range m {
		if id, err := azure.ParseResourceID(k); err == nil {
			out = append(out, id)
		}
	}
	return out
}

// Package compute is the resource provider Microsoft.Compute: virtual machines and scale sets as far as identities need
// them. A change is answered when it is done, or, if Settings give it a duration, as Azure does it:
//
//	PUT, PATCH   checked, authorised ──> 201 or 200, provisioningState Creating or Updating,
//	             Azure-AsyncOperation, Location and Retry-After; another change meanwhile: 409
//	GET op       InProgress … ──> Succeeded, or Failed with the reason
//	             the change is made at that instant: until then the metadata service knows nothing of it
//	DELETE       202 and the same headers
//
// Nothing runs in the background: Provider.Settle, before each request, ends the operations whose time has come by the
// cloud's clock.
package compute

import (
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// Settings are how a real Compute differs from one that does everything at once. Zero means no limit, no duration.
type Settings struct {
	// Duration of a change to a machine. 0 means that requests are answered when the change is made.
	Duration time.Duration
	// RetryAfter is what clients are told to wait between two looks at an operation, rounded up to seconds; 0 means 1 s.
	RetryAfter time.Duration
	// IdentitiesPerPatch bounds how many identities one request may list. Azure publishes no such limit; Pod Identity
	// v1 asks for at most 150 at a time.
	IdentitiesPerPatch int
	// IdentitiesPerMachine bounds how many user-assigned identities a machine can have. Azure publishes no limit.
	IdentitiesPerMachine int
}

// A Provider is the resource provider.
type Provider struct{ p *provider }

type provider struct{ settings func() Settings }

// New makes a provider; settings are read at each request, nil means the zero value.
func New(settings func() Settings) Provider {
	if settings == nil {
		settings = func() Settings { return Settings{} }
	}
	return Provider{&provider{settings}}
}

// Types are the provider's resource types.
func (p Provider) Types() []*arm.Type {
	versions := []string{"2024-11-01", "2022-11-01", "2019-12-01"}
	machine := arm.Type{Versions: versions, Render: render, Remove: remove, Put: p.p.put, Patch: p.p.patch, Delete: p.p.delete}
	vm, set := machine, machine
	vm.Name, set.Name = azure.TypeVirtualMachine, azure.TypeVirtualMachineScaleSet
	return []*arm.Type{
		arm.Tracked(vm), arm.Tracked(set),
		{Name: azure.TypeScaleSetInstance, Versions: versions, List: listInstances, Get: getInstance},
		{Name: typeOperation, Place: arm.InSubscription, Open: true, Versions: versions, Get: p.p.getOperation},
	}
}

// Settle makes the changes of all operations that are due.
func (p Provider) Settle(db *state.DB, now time.Time) error {
	var due bool
	if err := db.View(func(tx *state.Tx) (err error) { due, err = anyDue(tx, now); return err }); err != nil || !due {
		return err
	}
	return db.Update(func(tx *state.Tx) error { return settle(tx, now) })
}

// duration is how long a change takes and how it ends: as a fault says, else as the settings do.
func (p *provider) duration(c *arm.Call) fault.Operation {
	o, injected := fault.OperationOf(c.Context)
	if !injected || o.Duration == 0 {
		o.Duration = fault.Duration(p.settings().Duration)
	}
	return o
}

package management

import (
	"fmt"
	"strconv"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// A Machine is what the metadata service must know of a virtual machine or of one instance of a scale set.
type Machine struct {
	ID         azure.ResourceID // /…/virtualMachines/N or /…/virtualMachineScaleSets/S/virtualMachines/I
	Name       string           // N or S_I
	ScaleSet   string           // S, or empty
	Location   string
	VMID       string
	Size       string
	Zone       string
	Tags       map[string]string
	Identities []MachineIdentity // the system-assigned one first, then by id
}

// A MachineIdentity is an identity that Resource Manager has put on a machine.
type MachineIdentity struct {
	System      bool
	ResourceID  azure.ResourceID // of the user-assigned identity; of the machine or scale set if System
	PrincipalID string
	ClientID    string
}

// FindMachine finds a virtual machine, or an instance of a scale set, by its id. It reports false if there is none.
func FindMachine(tx *state.Tx, id azure.ResourceID) (Machine, bool, error) {
	owner := id
	switch {
	case id.Is(azure.TypeScaleSetInstance):
		owner = id.Parent()
	case !id.Is(azure.TypeVirtualMachine):
		return Machine{}, false, fmt.Errorf("%s is neither a virtual machine nor an instance of a scale set", id)
	}
	r, found, err := state.Get[Resource](tx, bucketResources, owner.Key())
	if err != nil || !found {
		return Machine{}, false, err
	}
	m := Machine{ID: id, Name: id.Name(), Location: r.Location, VMID: r.UniqueID, Tags: r.Tags, Size: r.size()}
	if ownerID, err := r.id(); err == nil {
		owner = ownerID
	}
	if len(r.Zones) > 0 {
		m.Zone = r.Zones[0]
	}
	if id.Is(azure.TypeScaleSetInstance) {
		n, err := r.capacity()
		if err != nil {
			return Machine{}, false, err
		}
		i, err := strconv.Atoi(id.Name())
		if err != nil || i < 0 || i >= n {
			return Machine{}, false, nil
		}
		m.ScaleSet, m.Name, m.VMID = owner.Name(), owner.Name()+"_"+strconv.Itoa(i), r.instanceID(strconv.Itoa(i))
	}
	m.Identities, err = r.machineIdentities(tx, owner)
	return m, true, err
}

func (r Resource) machineIdentities(tx *state.Tx, owner azure.ResourceID) ([]MachineIdentity, error) {
	if r.Identity == nil {
		return nil, nil
	}
	var out []MachineIdentity
	if r.Identity.System {
		sp, found, err := directory.ServicePrincipalByID(tx, r.Identity.SystemPrincipalID)
		if err != nil {
			return nil, err
		}
		if found {
			out = append(out, MachineIdentity{System: true, ResourceID: owner, PrincipalID: sp.ID, ClientID: sp.AppID})
		}
	}
	for _, a := range r.Identity.sorted() {
		id, err := azure.ParseResourceID(a.ID)
		if err != nil {
			return nil, err
		}
		out = append(out, MachineIdentity{ResourceID: id, PrincipalID: a.PrincipalID, ClientID: a.ClientID})
	}
	return out, nil
}

// size is the VM size: a scale set's SKU, or the hardware profile of a machine.
func (r Resource) size() string {
	p, err := r.machineProperties()
	if err != nil {
		return ""
	}
	if hardware, ok := p["hardwareProfile"].(map[string]any); ok {
		size, _ := hardware["vmSize"].(string)
		return size
	}
	sku, err := r.sku()
	if err != nil {
		return ""
	}
	return sku.Name
}

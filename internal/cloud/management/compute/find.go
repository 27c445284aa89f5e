package compute

import (
	"fmt"
	"strconv"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
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
	// UpdatingSince is when the change began that Resource Manager is making to the machine now; zero if there is none.
	UpdatingSince time.Time
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
	r, found, err := arm.FindResource(tx, owner)
	if err != nil || !found {
		return Machine{}, false, err
	}
	m := Machine{ID: id, Name: id.Name(), Location: r.Location, VMID: r.UniqueID, Tags: r.Tags, Size: sizeOf(r)}
	if ownerID, err := r.ResourceID(); err == nil {
		owner = ownerID
	}
	if len(r.Zones) > 0 {
		m.Zone = r.Zones[0]
	}
	if id.Is(azure.TypeScaleSetInstance) {
		n, err := capacityOf(r)
		if err != nil {
			return Machine{}, false, err
		}
		i, err := strconv.Atoi(id.Name())
		if err != nil || i < 0 || i >= n {
			return Machine{}, false, nil
		}
		m.ScaleSet, m.Name, m.VMID = owner.Name(), owner.Name()+"_"+strconv.Itoa(i), instanceID(r, strconv.Itoa(i))
	}
	if op, busy, err := running(tx, r); err != nil {
		return Machine{}, false, err
	} else if busy {
		m.UpdatingSince = op.Start
	}
	m.Identities, err = identities(tx, r, owner)
	return m, true, err
}

func identities(tx *state.Tx, r arm.Resource, owner azure.ResourceID) ([]MachineIdentity, error) {
	if r.Identity == nil {
		return nil, nil
	}
	var out []MachineIdentity
	if r.Identity.System && r.Identity.SystemPrincipalID != "" {
		sp, found, err := directory.ServicePrincipalByID(tx, r.Identity.SystemPrincipalID)
		if err != nil {
			return nil, err
		}
		if found {
			out = append(out, MachineIdentity{System: true, ResourceID: owner, PrincipalID: sp.ID, ClientID: sp.AppID})
		}
	}
	for _, a := range sorted(r.Identity) {
		id, err := azure.ParseResourceID(a.ID)
		if err != nil {
			return nil, err
		}
		out = append(out, MachineIdentity{ResourceID: id, PrincipalID: a.PrincipalID, ClientID: a.ClientID})
	}
	return out, nil
}

// sizeOf is the VM size: a scale set's SKU, or the hardware profile of a machine.
func sizeOf(r arm.Resource) string {
	p, err := properties(r)
	if err != nil {
		return ""
	}
	if hardware, ok := p["hardwareProfile"].(map[string]any); ok {
		size, _ := hardware["vmSize"].(string)
		return size
	}
	sku, err := skuOf(r)
	if err != nil {
		return ""
	}
	return sku.Name
}

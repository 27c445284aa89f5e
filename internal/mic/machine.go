package mic

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// Resource types of machines.
const (
	typeVM       = "Microsoft.Compute/virtualMachines"
	typeScaleSet = "Microsoft.Compute/virtualMachineScaleSets"
	typeInstance = "Microsoft.Compute/virtualMachineScaleSets/virtualMachines"
)

// providerPrefix precedes the resource id in spec.providerID of Azure nodes.
const providerPrefix = "azure://"

// machineOfNode returns the VM or the scale set that carries a node's
// identities. The error says what is wrong with the node.
func machineOfNode(n *corev1.Node) (azure.ResourceID, error) {
	text, ok := strings.CutPrefix(n.Spec.ProviderID, providerPrefix)
	if !ok {
		return azure.ResourceID{}, fmt.Errorf("node %s has the providerID %q, which is not a machine of Azure (%s/subscriptions/…): identities cannot be assigned to it", n.Name, n.Spec.ProviderID, providerPrefix)
	}
	id, err := azure.ParseResourceID(text)
	if err != nil {
		return azure.ResourceID{}, fmt.Errorf("node %s: spec.providerID: %w", n.Name, err)
	}
	switch {
	case id.Extends != nil:
	case id.Is(typeInstance):
		return id.Parent(), nil
	case id.Is(typeVM):
		return id, nil
	}
	return azure.ResourceID{}, fmt.Errorf("node %s has the providerID %q, which is neither a virtual machine nor an instance of a scale set: identities cannot be assigned to it", n.Name, n.Spec.ProviderID)
}

package mic

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
)

// Names of the cache's indexes.
const (
	podsByLabel        = "label"    // value of aadpodidbinding
	podsByNode         = "node"     // spec.nodeName
	bindingsBySelector = "selector" // spec.selector
	bindingsByIdentity = "identity" // namespace/name of the identity
	assignedByPod      = "pod"      // namespace/name of the pod
	assignedByNode     = "node"     // spec.nodename
	assignedByMachine  = "machine"  // key of the machine
)

// annotationMachine on an assignment is the resource id of the VM or scale set
// on which its pod runs. It outlives the node: a scale set whose instance is
// gone still has the identity.
const annotationMachine = "aadpodidentity.k8s.io/machine"

// annotationAdded on an assignment is "true" if mic put the identity on the
// machine, "false" if it was there before. It is written before the machine is
// changed, so that a crash in between never makes mic's own identity look like
// somebody else's. Assignments of Pod Identity v1 do not have it.
const annotationAdded = "aadpodidentity.k8s.io/added"

func addIndexes(ctx context.Context, x client.FieldIndexer) error {
	indexes := []struct {
		obj  client.Object
		name string
		key  func(client.Object) string
	}{
		{&corev1.Pod{}, podsByLabel, func(o client.Object) string { return o.GetLabels()[v1.BindingLabel] }},
		{&corev1.Pod{}, podsByNode, func(o client.Object) string { return o.(*corev1.Pod).Spec.NodeName }},
		{&v1.AzureIdentityBinding{}, bindingsBySelector, func(o client.Object) string { return o.(*v1.AzureIdentityBinding).Spec.Selector }},
		{&v1.AzureIdentityBinding{}, bindingsByIdentity, func(o client.Object) string {
			return o.GetNamespace() + "/" + o.(*v1.AzureIdentityBinding).Spec.AzureIdentity
		}},
		{&v1.AzureAssignedIdentity{}, assignedByPod, func(o client.Object) string { return podOf(o.(*v1.AzureAssignedIdentity)).String() }},
		{&v1.AzureAssignedIdentity{}, assignedByNode, func(o client.Object) string { return o.(*v1.AzureAssignedIdentity).Spec.NodeName }},
		{&v1.AzureAssignedIdentity{}, assignedByMachine, func(o client.Object) string { return machineOfAssigned(o.(*v1.AzureAssignedIdentity)) }},
	}
	for _, i := range indexes {
		err := x.IndexField(ctx, i.obj, i.name, func(o client.Object) []string {
			if k := i.key(o); k != "" {
				return []string{k}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func podOf(a *v1.AzureAssignedIdentity) types.NamespacedName {
	return types.NamespacedName{Namespace: a.Spec.PodNamespace, Name: a.Spec.Pod}
}

// machineOfAssigned is the key of an assignment's machine; empty if unknown.
func machineOfAssigned(a *v1.AzureAssignedIdentity) string {
	id, err := azure.ParseResourceID(a.Annotations[annotationMachine])
	if err != nil {
		return ""
	}
	return id.Key()
}

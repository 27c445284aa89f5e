// Package assigned is what the controllers of mic agree on about assignments:
// which machine a node stands for, which notes an AzureAssignedIdentity bears,
// and by what the caches find objects.
package assigned

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/binding"
)

// Notes on an AzureAssignedIdentity.
const (
	// MachineAnnotation is the resource id of the VM or scale set on which the
	// pod runs. It outlives the node: a scale set whose instance is gone still
	// has the identity.
	MachineAnnotation = "aadpodidentity.k8s.io/machine"
	// AddedAnnotation is "true" if mic put the identity on the machine, "false" if
	// it was there before. Assignments of Pod Identity v1 do not have it.
	AddedAnnotation = "aadpodidentity.k8s.io/added"
	// AddingAnnotation lists the identities that mic is about to put on the
	// machine, for all assignments there, separated by commas. It is written
	// before the machine is changed, so that a crash in between never makes mic's
	// own identity look like somebody else's, and it goes when each of them bears
	// AddedAnnotation.
	AddingAnnotation = "aadpodidentity.k8s.io/adding"
)

// Names of the cache's indexes.
const (
	PodsByLabel         = "label"     // value of aadpodidbinding
	PodsByNode          = "node"      // spec.nodeName
	NodesByMachine      = "machine"   // key of the machine
	BindingsByKey       = "key"       // see binding.Keys
	BindingsByIdentity  = "identity"  // namespace/name of the identity
	IdentitiesByID      = "id"        // key of the user-assigned identity
	RequestsByBinding   = "binding"   // spec.binding
	AssignedByPod       = "pod"       // namespace/name of the pod
	AssignedByNode      = "node"      // spec.nodename
	AssignedByMachine   = "machine"   // key of the machine
	AssignedByPlacement = "placement" // see Placement
	AssignedByBinding   = "binding"   // namespace/name of the binding
	AssignedByIdentity  = "identity"  // namespace/name of the identity
)

// providerPrefix precedes the resource id in spec.providerID of Azure nodes.
const providerPrefix = "azure://"

// AddIndexes makes all of them; those of AccessRequests only if there are any.
func AddIndexes(ctx context.Context, x client.FieldIndexer, requests bool) error {
	indexes := []struct {
		obj  client.Object
		name string
		key  func(client.Object) string
	}{
		{&corev1.Pod{}, PodsByLabel, func(o client.Object) string { return o.GetLabels()[v1.BindingLabel] }},
		{&corev1.Pod{}, PodsByNode, func(o client.Object) string { return o.(*corev1.Pod).Spec.NodeName }},
		{&corev1.Node{}, NodesByMachine, func(o client.Object) string {
			id, err := MachineOfNode(o.(*corev1.Node))
			if err != nil {
				return ""
			}
			return id.Key()
		}},
		{&v1.AzureIdentityBinding{}, BindingsByIdentity, func(o client.Object) string {
			return o.GetNamespace() + "/" + o.(*v1.AzureIdentityBinding).Spec.AzureIdentity
		}},
		{&v1.AzureIdentity{}, IdentitiesByID, func(o client.Object) string {
			id, err := binding.ManagedIdentity(o.(*v1.AzureIdentity))
			if err != nil {
				return ""
			}
			return id.Key()
		}},
		{&v1.AzureAssignedIdentity{}, AssignedByPod, func(o client.Object) string { return Pod(o.(*v1.AzureAssignedIdentity)).String() }},
		{&v1.AzureAssignedIdentity{}, AssignedByNode, func(o client.Object) string { return o.(*v1.AzureAssignedIdentity).Spec.NodeName }},
		{&v1.AzureAssignedIdentity{}, AssignedByMachine, func(o client.Object) string { return MachineKey(o.(*v1.AzureAssignedIdentity)) }},
		{&v1.AzureAssignedIdentity{}, AssignedByPlacement, func(o client.Object) string { return PlacementOf(o.(*v1.AzureAssignedIdentity)) }},
		{&v1.AzureAssignedIdentity{}, AssignedByBinding, func(o client.Object) string {
			if ref := o.(*v1.AzureAssignedIdentity).Spec.AzureBindingRef; ref != nil {
				return ref.Namespace + "/" + ref.Name
			}
			return ""
		}},
		{&v1.AzureAssignedIdentity{}, AssignedByIdentity, func(o client.Object) string {
			if ref := o.(*v1.AzureAssignedIdentity).Spec.AzureIdentityRef; ref != nil {
				return ref.Namespace + "/" + ref.Name
			}
			return ""
		}},
	}
	err := x.IndexField(ctx, &v1.AzureIdentityBinding{}, BindingsByKey, func(o client.Object) []string {
		return binding.Keys(o.(*v1.AzureIdentityBinding))
	})
	if err != nil {
		return err
	}
	if requests {
		err := x.IndexField(ctx, &lanyard.AccessRequest{}, RequestsByBinding, func(o client.Object) []string {
			return []string{o.(*lanyard.AccessRequest).Spec.Binding}
		})
		if err != nil {
			return err
		}
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

// Placement is the index key of one identity on one machine.
func Placement(machine string, identity azure.ResourceID) string {
	return machine + "|" + identity.Key()
}

// PlacementOf is that of an assignment; empty if it names no machine or identity.
func PlacementOf(a *v1.AzureAssignedIdentity) string {
	machine := MachineKey(a)
	if machine == "" || a.Spec.AzureIdentityRef == nil {
		return ""
	}
	id, err := binding.ManagedIdentity(a.Spec.AzureIdentityRef)
	if err != nil {
		return ""
	}
	return Placement(machine, id)
}

// EventRemoved is the reason of the event that an assignment has ended, as Pod
// Identity v1 wrote it.
const EventRemoved = "binding removed"

// Removed is the note of that event.
func Removed(a *v1.AzureAssignedIdentity) string {
	return fmt.Sprintf("Binding %s removed from node %s for pod %s", BindingName(a), a.Spec.NodeName, a.Name)
}

// BindingName is empty for an assignment that somebody wrote without one.
func BindingName(a *v1.AzureAssignedIdentity) string {
	if a.Spec.AzureBindingRef == nil {
		return ""
	}
	return a.Spec.AzureBindingRef.Name
}

// Pod is the key of the pod that an assignment is for.
func Pod(a *v1.AzureAssignedIdentity) types.NamespacedName {
	return types.NamespacedName{Namespace: a.Spec.PodNamespace, Name: a.Spec.Pod}
}

// Machine is the machine of an assignment; ok is false if none was noted, or
// what was noted is no machine. The note proves nothing: whoever may write
// assignments may write it.
func Machine(a *v1.AzureAssignedIdentity) (id azure.ResourceID, ok bool) {
	text := a.Annotations[MachineAnnotation]
	if text == "" {
		return id, false
	}
	id, err := azure.ParseResourceID(text)
	if err != nil || !isMachine(id) {
		return azure.ResourceID{}, false
	}
	return id, true
}

// MachineKey is the key of an assignment's machine; empty if unknown.
func MachineKey(a *v1.AzureAssignedIdentity) string {
	id, ok := Machine(a)
	if !ok {
		return ""
	}
	return id.Key()
}

func isMachine(id azure.ResourceID) bool {
	return id.Extends == nil && id.SubscriptionID != "" && id.ResourceGroup != "" && (id.Is(azure.TypeVirtualMachine) || id.Is(azure.TypeVirtualMachineScaleSet))
}

// MachineOfNode returns the VM or the scale set that carries a node's
// identities. The error says what is wrong with the node.
func MachineOfNode(n *corev1.Node) (azure.ResourceID, error) {
	text, ok := strings.CutPrefix(n.Spec.ProviderID, providerPrefix)
	if !ok {
		return azure.ResourceID{}, fmt.Errorf("node %s has the providerID %q, which is not a machine of Azure (%s/subscriptions/…): identities cannot be assigned to it", n.Name, n.Spec.ProviderID, providerPrefix)
	}
	id, err := azure.ParseResourceID(text)
	if err != nil {
		return azure.ResourceID{}, fmt.Errorf("node %s: spec.providerID: %w", n.Name, err)
	}
	if id.Extends == nil && id.Is(azure.TypeScaleSetInstance) {
		id = id.Parent()
	} else if id.Is(azure.TypeVirtualMachineScaleSet) {
		id = azure.ResourceID{} // a node is an instance, never the whole
	}
	if !isMachine(id) {
		return azure.ResourceID{}, fmt.Errorf("node %s has the providerID %q, which is neither a virtual machine nor an instance of a scale set: identities cannot be assigned to it", n.Name, n.Spec.ProviderID)
	}
	return id, nil
}

// SetAnnotation sets or, with an empty value, removes an annotation.
func SetAnnotation(o client.Object, name, value string) {
	a := o.GetAnnotations()
	switch {
	case value == "":
		delete(a, name)
		return
	case a == nil:
		a = map[string]string{}
	}
	a[name] = value
	o.SetAnnotations(a)
}

// IgnoreGone drops the errors of an object that was deleted or replaced in the
// meantime: the watch brings the news.
func IgnoreGone(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// Clip keeps a note within the limit of an event (1024 bytes).
func Clip(s string) string {
	if len(s) > 1000 {
		return strings.ToValidUTF8(s[:1000], "") + "…" // half a letter would not be accepted
	}
	return s
}

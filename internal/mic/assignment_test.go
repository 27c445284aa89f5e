package mic_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/mic"
	"github.com/lanyard-id/lanyard/internal/mic/arm"
)

// Pod Identity v1 took pods of the same name in two namespaces for one.
func TestAnIdentityStaysWhileAnotherPodUsesIt(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	other := cluster.Namespace(t)
	w.run(c)
	w.bind("shared")
	first, second := w.pod(w.ns, "web-0", w.node, w.label("shared")), w.pod(other, "web-0", w.node, w.label("shared"))
	w.await(w.ns, "web-0", "shared=Assigned")
	w.await(other, "web-0", "shared=Assigned")
	w.remove(first)
	w.await(w.ns, "web-0", "")
	w.awaitCloud(c, w.set, "shared")
	w.await(other, "web-0", "shared=Assigned")
	w.remove(second)
	w.await(other, "web-0", "")
	w.awaitCloud(c, w.set, "")
}

// Pod Identity v1 left the second pod without an identity.
func TestPodsWhoseAssignmentsWouldShareANameGetTwo(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	w.run(c)
	_, b := w.bind("i")
	clash := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "y-" + w.ns}}
	w.make(clash)
	w.eventually(func() error {
		return w.Get(w.Context(), types.NamespacedName{Namespace: clash.Name, Name: "default"}, &corev1.ServiceAccount{})
	})
	one, two := w.pod(w.ns, "x-y", w.node, b.Spec.Selector), w.pod(clash.Name, "x", w.node, b.Spec.Selector)
	w.await(w.ns, "x-y", "i=Assigned")
	w.await(clash.Name, "x", "i=Assigned")
	w.remove(one)
	w.remove(two)
	w.await(w.ns, "x-y", "")
	w.await(clash.Name, "x", "")
	w.awaitCloud(c, w.set, "")
}

func TestWhatWasOnTheMachineBeforeStays(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	c.put(w.set, "before", "unrelated")
	w.run(c)
	w.bind("before")
	p := w.pod(w.ns, "p", w.node, w.label("before"))
	w.await(w.ns, "p", "before=Assigned")
	w.remove(p)
	w.await(w.ns, "p", "")
	w.awaitCloud(c, w.set, "before unrelated")
}

func TestAnImmutableIdentityStaysInWhateverCaseItIsWritten(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	w.run(c, func(c *mic.Config) { c.ImmutableClientIDs = []string{"CLIENT-kept"} })
	w.bind("kept")
	p := w.pod(w.ns, "p", w.node, w.label("kept"))
	w.await(w.ns, "p", "kept=Assigned")
	w.remove(p)
	w.await(w.ns, "p", "")
	w.awaitCloud(c, w.set, "kept")
}

// refuseAdding refuses every update that adds an identity of this name.
func refuseAdding(name string, e arm.Error) func(context.Context, azure.ResourceID, []azure.ResourceID, []azure.ResourceID) error {
	return func(_ context.Context, _ azure.ResourceID, add, _ []azure.ResourceID) error {
		for _, id := range add {
			if id.Name() == name {
				return &e
			}
		}
		return nil
	}
}

func TestABadIdentityHoldsUpNoOther(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	c.setRefuse(refuseAdding("bad", arm.Error{Status: http.StatusBadRequest, Code: "FailedIdentityOperation", Message: "it was not found"}))
	for _, name := range []string{"a", "bad", "c", "d"} {
		w.bind(name)
		w.pod(w.ns, "pod-"+name, w.node, w.label(name))
	}
	w.run(c)
	for _, name := range []string{"a", "c", "d"} {
		w.await(w.ns, "pod-"+name, name+"=Assigned")
	}
	w.await(w.ns, "pod-bad", "bad=Created")
	w.awaitCondition(w.ns, "pod-bad", "check that it exists with: az identity show --ids ")
	w.awaitCloud(c, w.set, "a c d")
	c.setRefuse(nil)
	w.await(w.ns, "pod-bad", "bad=Assigned")
}

func TestAMissingRoleIsNamedAndItsRepairNoticed(t *testing.T) {
	for _, x := range []struct{ name, code, want string }{
		{"on the identity", "LinkedAuthorizationFailed", `az role assignment create --role "Managed Identity Operator" --assignee ` + assignee + " --scope " + strings.Replace(idPrefix, "resourcegroups", "resourceGroups", 1)},
		{"on the machine", "AuthorizationFailed", `az role assignment create --role "Virtual Machine Contributor" --assignee ` + assignee + " --scope " + group},
	} {
		t.Run(x.name, func(t *testing.T) {
			w, c := newWorld(t), &cloud{}
			c.setRefuse(refuseAdding("i", arm.Error{Status: http.StatusForbidden, Code: x.code, Message: "no"}))
			_, b := w.bind("i")
			w.pod(w.ns, "p", w.node, w.label("i"))
			w.run(c)
			w.awaitCondition(w.ns, "p", x.want)
			w.awaitEvent(b, v1.KindAzureIdentityBinding, "binding apply error", x.want)
			c.setRefuse(nil)
			w.await(w.ns, "p", "i=Assigned")
			items, err := w.assigned(w.ns, "p")
			if err != nil || len(items[0].Status.Conditions) != 0 {
				t.Errorf("conditions %v, %v", items[0].Status.Conditions, err)
			}
		})
	}
}

func TestASlowMachineDelaysNoOther(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	release := make(chan struct{})
	c.setRefuse(func(ctx context.Context, machine azure.ResourceID, _, _ []azure.ResourceID) error {
		if machine.Name() != "set-"+w.ns {
			return nil
		}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	vm := group + "/providers/Microsoft.Compute/virtualMachines/vm-" + w.ns
	w.addNode("vm-"+w.ns, "azure://"+vm)
	w.run(c)
	w.bind("i")
	w.pod(w.ns, "slow", w.node, w.label("i"))
	w.await(w.ns, "slow", "i=Created")
	w.pod(w.ns, "quick", "vm-"+w.ns, w.label("i"))
	w.await(w.ns, "quick", "i=Assigned")
	w.awaitCloud(c, vm, "i")
	w.await(w.ns, "slow", "i=Created")
	close(release)
	w.await(w.ns, "slow", "i=Assigned")
}

func TestAControllerThatDiedHalfwayForgetsNothing(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	reached := make(chan struct{}, 10)
	c.setRefuse(func(ctx context.Context, machine azure.ResourceID, add, _ []azure.ResourceID) error {
		c.setRefuse(nil)
		_ = c.Update(ctx, machine, add, nil) // the cloud did it, and nobody heard
		reached <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	stop := w.run(c)
	w.bind("i")
	p := w.pod(w.ns, "p", w.node, w.label("i"))
	<-reached
	stop()
	w.awaitCloud(c, w.set, "i")
	w.run(c)
	w.await(w.ns, "p", "i=Assigned")
	w.remove(p)
	w.await(w.ns, "p", "")
	w.awaitCloud(c, w.set, "")
}

func TestAChangedIdentityReplacesTheOldOneOnTheMachine(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	w.run(c)
	id, _ := w.bind("i")
	w.pod(w.ns, "p", w.node, w.label("i"))
	w.awaitCloud(c, w.set, "i")
	w.await(w.ns, "p", "i=Assigned")
	patch := client.MergeFrom(id.DeepCopy())
	id.Spec.ResourceID = idPrefix + "successor"
	if err := w.Patch(w.Context(), id, patch); err != nil {
		t.Fatal(err)
	}
	w.awaitCloud(c, w.set, "successor")
	w.await(w.ns, "p", "i=Assigned")

	patch = client.MergeFrom(id.DeepCopy())
	id.Spec.ClientID = "another"
	if err := w.Patch(w.Context(), id, patch); err != nil {
		t.Fatal(err)
	}
	w.eventually(func() error {
		items, err := w.assigned(w.ns, "p")
		if err != nil || len(items) != 1 {
			return fmt.Errorf("%d assignments, %w", len(items), err)
		}
		return differ("client id", items[0].Spec.AzureIdentityRef.Spec.ClientID, "another")
	})
}

func TestAssignmentsOfPodIdentityV1AreTakenOver(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	c.put(w.set, "i")
	id, b := w.bind("i")
	p := w.pod(w.ns, "p", w.node, w.label("i"))
	old := &v1.AzureAssignedIdentity{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p-" + w.ns + "-i", Labels: map[string]string{"nodename": w.node}, Finalizers: []string{v1.AssignedFinalizer}},
		Spec: v1.AzureAssignedIdentitySpec{Pod: "p", PodNamespace: w.ns, NodeName: w.node,
			AzureIdentityRef: &v1.AzureIdentity{TypeMeta: metav1.TypeMeta{APIVersion: "aadpodidentity.k8s.io/v1", Kind: "AzureIdentity"}, ObjectMeta: metav1.ObjectMeta{Namespace: id.Namespace, Name: id.Name}, Spec: id.Spec},
			AzureBindingRef:  &v1.AzureIdentityBinding{TypeMeta: metav1.TypeMeta{APIVersion: "aadpodidentity.k8s.io/v1", Kind: "AzureIdentityBinding"}, ObjectMeta: metav1.ObjectMeta{Namespace: b.Namespace, Name: b.Name}, Spec: b.Spec}},
		Status: v1.AzureAssignedIdentityStatus{Status: v1.AssignedIDAssigned, AvailableReplicas: 1},
	}
	w.make(old)
	w.run(c)
	w.eventually(func() error {
		items, err := w.assigned(w.ns, "p")
		if err != nil || len(items) != 1 || items[0].UID != old.UID {
			return fmt.Errorf("%d assignments, %w", len(items), err)
		}
		return differ("added", items[0].Annotations["aadpodidentity.k8s.io/added"], "true")
	})
	w.remove(p)
	w.await(w.ns, "p", "")
	w.awaitCloud(c, w.set, "")
}

// Anybody with the right may write one by hand, and the schema requires little.
func TestAssignmentsThatLackWhatOursHaveAreLetGo(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	id, _ := w.bind("i")
	kind := metav1.TypeMeta{APIVersion: "aadpodidentity.k8s.io/v1", Kind: "AzureIdentity"}
	for name, ref := range map[string]*v1.AzureIdentity{
		"without an identity":                 nil,
		"with an identity that is none":       {TypeMeta: kind, ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "x"}, Spec: v1.AzureIdentitySpec{ResourceID: "x"}},
		"with an identity, without a binding": {TypeMeta: kind, ObjectMeta: metav1.ObjectMeta{Namespace: id.Namespace, Name: id.Name}, Spec: id.Spec},
	} {
		w.make(&v1.AzureAssignedIdentity{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: w.ns, Name: strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), ",", ""), Finalizers: []string{v1.AssignedFinalizer},
				Annotations: map[string]string{"aadpodidentity.k8s.io/machine": w.set},
			},
			Spec: v1.AzureAssignedIdentitySpec{Pod: "nobody", PodNamespace: w.ns, NodeName: w.node, AzureIdentityRef: ref},
		})
	}
	w.run(c)
	w.eventually(func() error {
		left, err := w.assigned(w.ns, "nobody")
		var names []string
		for _, a := range left {
			names = append(names, a.Name)
		}
		return errors.Join(err, differ("left", strings.Join(names, " "), ""))
	})
}

func TestAMachineThatIsGoneHoldsNothingBack(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	w.run(c)
	w.bind("i")
	p := w.pod(w.ns, "p", w.node, w.label("i"))
	w.await(w.ns, "p", "i=Assigned")
	c.mu.Lock()
	c.gone = map[string]bool{azure.Fold(w.set): true}
	c.mu.Unlock()
	w.remove(p)
	w.await(w.ns, "p", "")
}

func TestAnIdentityThatIsGoneFromAzureHoldsNothingBack(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	w.run(c)
	_, b := w.bind("i")
	p := w.pod(w.ns, "p", w.node, w.label("i"))
	w.await(w.ns, "p", "i=Assigned")
	c.setRefuse(func(_ context.Context, _ azure.ResourceID, _, remove []azure.ResourceID) error {
		return &arm.Error{Status: http.StatusBadRequest, Code: "FailedIdentityOperation", Message: fmt.Sprintf("Resource '%s' was not found.", remove)}
	})
	w.remove(p)
	w.await(w.ns, "p", "")
	w.awaitEvent(b, v1.KindAzureIdentityBinding, "binding remove error", "az identity show --ids")
}

func TestNodesThatVanishHoldNothingBackAndTheOthersKeepTheirs(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	w.bind("i")
	machine := func(i int) string {
		return fmt.Sprintf("%s/providers/Microsoft.Compute/virtualMachines/vm%d-%s", group, i, w.ns)
	}
	var nodes []*corev1.Node
	var pods []*corev1.Pod
	for i := range 10 {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("vm%d-%s", i, w.ns)}, Spec: corev1.NodeSpec{ProviderID: "azure://" + machine(i)}}
		w.make(n)
		nodes, pods = append(nodes, n), append(pods, w.pod(w.ns, fmt.Sprint("p", i), n.Name, w.label("i")))
	}
	stop := w.run(c)
	for i := range 10 {
		w.await(w.ns, fmt.Sprint("p", i), "i=Assigned")
	}
	for i := range 3 { // while it runs
		w.remove(nodes[i])
		w.remove(pods[i])
	}
	for i := range 3 {
		w.await(w.ns, fmt.Sprint("p", i), "")
		w.awaitCloud(c, machine(i), "")
	}
	stop()
	for i := 3; i < 5; i++ { // while it does not
		w.remove(nodes[i])
		w.remove(pods[i])
	}
	w.run(c)
	for i := range 5 {
		w.await(w.ns, fmt.Sprint("p", i), "")
	}
	for i := 5; i < 10; i++ {
		w.await(w.ns, fmt.Sprint("p", i), "i=Assigned")
		w.awaitCloud(c, machine(i), "i")
	}
}

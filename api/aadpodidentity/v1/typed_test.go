package v1_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
)

func TestOldSpellingsAreReadInMemory(t *testing.T) {
	two := v1.ServicePrincipalCertificate
	id := &v1.AzureIdentity{}
	id.Name = "i"
	id.Spec.OldType, id.Spec.OldResourceIDLower, id.Spec.OldClientID, id.Spec.TenantID = &two, "r", "c", "t"
	id.Spec.ClientPassword.OldName = "s"
	want := id.DeepCopy()
	want.Spec.Type, want.Spec.ResourceID, want.Spec.ClientID = two, "r", "c"
	want.Spec.ClientPassword = v1.SecretReference{Name: "s"}
	id.Normalize()
	id.Annotations = nil // the record of what moved
	if diff := cmp.Diff(want, id); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if !id.HasOldSpelling() {
		t.Error("it is not told any more that the stored object waits to be rewritten")
	}

	b := &v1.AzureIdentityBinding{}
	b.Spec.OldAzureIdentity, b.Spec.OldSelector = "i", "s"
	b.Normalize()
	if b.Spec.AzureIdentity != "i" || b.Spec.Selector != "s" || !b.HasOldSpelling() {
		t.Errorf("got %+v", b.Spec)
	}
	e := &v1.AzurePodIdentityException{}
	e.Spec.OldPodLabels = map[string]string{"app": "mic"}
	e.Normalize()
	if e.Spec.PodLabels["app"] != "mic" || !e.HasOldSpelling() {
		t.Errorf("got %+v", e.Spec)
	}
}

func TestObjectsOfTodayAreLeftAlone(t *testing.T) {
	id := &v1.AzureIdentity{}
	id.Spec.ResourceID, id.Spec.ClientID = "r", "c"
	want := id.DeepCopy()
	id.Normalize()
	if diff := cmp.Diff(want, id); diff != "" || id.HasOldSpelling() {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

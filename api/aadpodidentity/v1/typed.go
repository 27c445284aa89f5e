package v1

import (
	"reflect"

	"k8s.io/apimachinery/pkg/runtime"
)

// HasOldSpelling reports whether a field is given in the spelling of an old release.
func (i *AzureIdentity) HasOldSpelling() bool {
	return !reflect.ValueOf(i.Spec.OldAzureIdentitySpec).IsZero() || i.Spec.ClientPassword.OldName != "" || i.Spec.ClientPassword.OldNamespace != ""
}

// HasOldSpelling is as AzureIdentity.HasOldSpelling.
func (b *AzureIdentityBinding) HasOldSpelling() bool {
	return !reflect.ValueOf(b.Spec.OldAzureIdentityBindingSpec).IsZero()
}

// HasOldSpelling is as AzureIdentity.HasOldSpelling.
func (e *AzurePodIdentityException) HasOldSpelling() bool {
	return !reflect.ValueOf(e.Spec.OldAzurePodIdentityExceptionSpec).IsZero()
}

// Normalize moves the values of old spellings in memory, so that a reader sees
// the same object before and after mic has rewritten it. The old fields of spec
// keep their values: they tell that the stored object waits to be rewritten.
func (i *AzureIdentity) Normalize() {
	if !i.HasOldSpelling() {
		return
	}
	old := i.Spec.OldAzureIdentitySpec
	normalizeTyped(KindAzureIdentity, i)
	i.Spec.OldAzureIdentitySpec = old
}

// Normalize is as AzureIdentity.Normalize.
func (b *AzureIdentityBinding) Normalize() {
	if !b.HasOldSpelling() {
		return
	}
	old := b.Spec.OldAzureIdentityBindingSpec
	normalizeTyped(KindAzureIdentityBinding, b)
	b.Spec.OldAzureIdentityBindingSpec = old
}

// Normalize is as AzureIdentity.Normalize.
func (e *AzurePodIdentityException) Normalize() {
	if !e.HasOldSpelling() {
		return
	}
	old := e.Spec.OldAzurePodIdentityExceptionSpec
	normalizeTyped(KindAzurePodIdentityException, e)
	e.Spec.OldAzurePodIdentityExceptionSpec = old
}

// normalizeTyped replaces obj by its normal form; an object that cannot be
// converted stays as it is.
func normalizeTyped[T any](kind string, obj *T) {
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return
	}
	raw = dropZeroType(raw)
	out, changed, _ := Normalize(kind, raw)
	if !changed {
		return
	}
	var next T
	if runtime.DefaultUnstructuredConverter.FromUnstructured(out, &next) == nil {
		*obj = next
	}
}

// dropZeroType takes back what the Go type adds: a type that nobody wrote would
// otherwise win against one in the old spelling.
func dropZeroType(raw map[string]any) map[string]any {
	spec, _ := raw["spec"].(map[string]any)
	if v, ok := spec["type"].(int64); ok && v == 0 && spec["Type"] != nil {
		delete(spec, "type")
	}
	return raw
}

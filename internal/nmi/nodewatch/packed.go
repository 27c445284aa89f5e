package nodewatch

import (
	"encoding/json"
	"fmt"
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
)

// A node agent holds the identities and bindings of the whole cluster, and needs
// those of a few pods. As Go values they are a kilobyte each, most of it empty
// fields; packed they are what their JSON is. They are unpacked for a view.
type packed struct {
	name
	json []byte
}

// GetObjectMeta implements metav1.ObjectMetaAccessor, which a reflector needs.
func (p *packed) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: p.namespace, Name: p.name.name}
}

type packedIdentity struct{ packed }

// A packedBinding has beside its JSON what the indexes read.
type packedBinding struct {
	packed
	identity string
	selector string
}

func pack(o metav1.Object) (packed, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return packed{}, fmt.Errorf("packing %s/%s: %w", o.GetNamespace(), o.GetName(), err)
	}
	tight := make([]byte, len(data)) // without the room that encoding left
	copy(tight, data)
	return packed{name{unique.Make(o.GetNamespace()).Value(), o.GetName()}, tight}, nil
}

// unpack returns nil for an identity that is not there.
func (p *packedIdentity) unpack() *v1.AzureIdentity {
	if p == nil {
		return nil
	}
	id := &v1.AzureIdentity{}
	if err := json.Unmarshal(p.json, id); err != nil {
		return nil // we packed it
	}
	return id
}

func (p *packedBinding) unpack() *v1.AzureIdentityBinding {
	b := &v1.AzureIdentityBinding{}
	if err := json.Unmarshal(p.json, b); err != nil {
		b.Namespace, b.Name = p.namespace, p.name.name // matches nothing
	}
	return b
}

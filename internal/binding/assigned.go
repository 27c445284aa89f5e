package binding

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
)

// maxName is the longest name of an object (RFC 1123 subdomain).
const maxName = 253

// AssignedName is the name of the assignment of an identity to a pod:
// {pod}-{namespace}-{identity}, as Pod Identity v1 wrote it. Two pods can share
// it (x-y in z and x in y-z); the second one takes AssignedNameUnique.
func AssignedName(pod Pod, id *v1.AzureIdentity) string {
	name := pod.Name + "-" + pod.Namespace + "-" + id.Name
	if len(name) > maxName {
		return AssignedNameUnique(pod, id)
	}
	return name
}

// AssignedNameUnique is AssignedName with a suffix that no other assignment has.
func AssignedNameUnique(pod Pod, id *v1.AzureIdentity) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{pod.Namespace, pod.Name, id.Namespace, id.Name}, "/")))
	suffix := "-" + hex.EncodeToString(sum[:5])
	name := pod.Name + "-" + pod.Namespace + "-" + id.Name
	if len(name) > maxName-len(suffix) {
		name = strings.TrimRight(name[:maxName-len(suffix)], "-.")
	}
	return name + suffix
}

// NodeLabelValue is the value of the label nodename for a node: its name, or a
// digest of it if it is too long for a label.
func NodeLabelValue(node string) string {
	const limit = 63
	if len(node) <= limit {
		return node
	}
	sum := sha256.Sum256([]byte(node))
	return hex.EncodeToString(sum[:16])
}

// AssignedNamespace is the namespace of the assignments of an identity: its own
// if it is namespaced, else always the namespace default.
func AssignedNamespace(id *v1.AzureIdentity, force bool) string {
	if Namespaced(id, force) {
		return id.Namespace
	}
	return v1.DefaultNamespace
}

// Concerns reports whether an assignment is of this pod and identity. A name
// proves nothing, see AssignedName.
func Concerns(a *v1.AzureAssignedIdentity, pod Pod, id *v1.AzureIdentity) bool {
	ref := a.Spec.AzureIdentityRef
	return ref != nil && a.Spec.Pod == pod.Name && a.Spec.PodNamespace == pod.Namespace && ref.Name == id.Name && ref.Namespace == id.Namespace
}

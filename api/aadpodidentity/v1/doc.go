// Package v1 is the API of Pod Identity: group aadpodidentity.k8s.io, version v1.
//
//	AzureIdentity              an identity that Azure knows
//	AzureIdentityBinding       which pods may use it (label aadpodidbinding)
//	AzureAssignedIdentity      one pod uses one identity; written by mic only
//	AzurePodIdentityException  pods that reach the metadata service directly
//
// Field names are those of Pod Identity 1.6 to 1.8. The spellings of earlier
// releases (ResourceID, resourceid, …) are declared too, so that the API server
// keeps them until Normalize has moved their values; see normalize.go.
//
// +kubebuilder:object:generate=true
// +groupName=aadpodidentity.k8s.io
package v1

//go:generate go tool -modfile=../../../go.tools.mod controller-gen object paths=. crd paths=. output:crd:dir=../../../deploy/crds

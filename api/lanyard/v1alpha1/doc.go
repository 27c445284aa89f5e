// Package v1alpha1 is Lanyard's own API: group lanyard.id, version v1alpha1.
//
//	AccessRequest      somebody asks for a binding that is open only on request
//	FederatedIdentity  a service account is an identity of Azure
//	FederationPolicy   which service accounts may claim which identities
//
//	requester ── creates ──▶ spec: which binding, why, how long, who asks
//	approver ── verb approve ──▶ status.decision: Approved, Denied, Revoked
//	mic, nmi ── the binding is open from decision.at for spec.duration
//
//	annotated ServiceAccount ──▶ FederatedIdentity ── allowed by a FederationPolicy ──▶ federated credential in Azure
//
// Who may decide, and that nobody asks or decides in another's name, is checked
// at admission by the ValidatingAdmissionPolicy in deploy/manifests/access.yaml.
//
// +kubebuilder:object:generate=true
// +groupName=lanyard.id
package v1alpha1

//go:generate go tool -modfile=../../../go.tools.mod controller-gen object paths=. crd paths=. output:crd:dir=../../../deploy/crds

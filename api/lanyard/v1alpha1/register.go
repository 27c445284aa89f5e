package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupName is the API group.
const GroupName = "lanyard.id"

// Names of the kind, for RBAC and events.
const (
	KindAccessRequest           = "AccessRequest"
	ResourceAccessRequests      = "accessrequests"
	KindFederatedIdentity       = "FederatedIdentity"
	ResourceFederatedIdentities = "federatedidentities"
	KindFederationPolicy        = "FederationPolicy"
	// AnnotationClientIDs on a service account lists, separated by commas, client
	// ids of more identities than the one that the pods get by default.
	AnnotationClientIDs = "lanyard.id/client-ids"
	// FinalizerCredential is on a FederatedIdentity whose credential may be in Azure.
	FinalizerCredential = "lanyard.id/federated-credential"
	// VerbApprove is the RBAC verb on accessrequests that a decision needs.
	VerbApprove = "approve"
)

// GroupVersion returns the group and version of this package.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: GroupName, Version: "v1alpha1"}
}

// AddToScheme registers the types of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(), &AccessRequest{}, &AccessRequestList{}, &FederatedIdentity{}, &FederatedIdentityList{}, &FederationPolicy{}, &FederationPolicyList{})
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}

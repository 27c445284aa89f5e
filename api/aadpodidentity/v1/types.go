package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Names that pods, nodes and objects carry; part of the API.
const (
	// BindingLabel on a pod chooses the bindings whose selector equals its value.
	BindingLabel = "aadpodidbinding"
	// BehaviorAnnotation with the value BehaviorNamespaced on an AzureIdentity
	// limits it to pods of its own namespace.
	BehaviorAnnotation = "aadpodidentity.k8s.io/Behavior"
	// BehaviorNamespaced is the one value of BehaviorAnnotation.
	BehaviorNamespaced = "namespaced"
	// NodeLabel on an AzureAssignedIdentity names the pod's node.
	NodeLabel = "nodename"
	// AssignedFinalizer keeps an AzureAssignedIdentity until the identity has
	// left the machine.
	AssignedFinalizer = "azureassignedidentity.finalizers.aadpodidentity.k8s.io"
	// DefaultNamespace holds the assignments of identities that are not
	// namespaced.
	DefaultNamespace = "default"
)

// IdentityType says what kind of identity an AzureIdentity is.
type IdentityType int

const (
	// UserAssignedMSI is a user-assigned managed identity.
	UserAssignedMSI IdentityType = 0
	// ServicePrincipal is an application with a password.
	ServicePrincipal IdentityType = 1
	// ServicePrincipalCertificate is an application with a certificate.
	ServicePrincipalCertificate IdentityType = 2
)

// States of an AzureAssignedIdentity. The empty string counts as assigned.
const (
	AssignedIDCreated    = "Created"    // wanted, the machine does not have the identity yet
	AssignedIDAssigned   = "Assigned"   // the machine has the identity
	AssignedIDUnassigned = "Unassigned" // on its way out
)

// Conditions of an AzureIdentity and an AzureIdentityBinding; set by mic.
const (
	// ConditionReady is False if the object can never be used as it is written.
	ConditionReady = "Ready"
	// ConditionOpen is True while time and approvals let the binding be used.
	ConditionOpen = "Open"
)

// ConditionAssigned is the condition of an AzureAssignedIdentity that says why
// its identity is not on the machine yet.
const ConditionAssigned = "Assigned"

// AzureIdentity is an identity that Azure knows.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=azureidentities,singular=azureidentity,scope=Namespaced
// +kubebuilder:metadata:annotations="api-approved.kubernetes.io=unapproved"
// +kubebuilder:printcolumn:name="Type",type=integer,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="ClientID",type=string,JSONPath=`.spec.clientID`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AzureIdentity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AzureIdentitySpec   `json:"spec,omitempty"`
	Status AzureIdentityStatus `json:"status,omitempty,omitzero"`
}

// AzureIdentitySpec describes the identity.
type AzureIdentitySpec struct {
	// metadata is not used.
	Metadata metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	// type is 0 for a user-assigned managed identity, 1 for a service principal
	// with a password, 2 for a service principal with a certificate.
	//
	// +optional
	Type IdentityType `json:"type"`
	// resourceID is the ARM id of a user-assigned managed identity:
	// /subscriptions/{id}/resourceGroups/{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}
	ResourceID string `json:"resourceID,omitempty"`
	// clientID is the application (client) id.
	ClientID string `json:"clientID,omitempty"`
	// clientPassword names the Secret of a service principal.
	ClientPassword SecretReference `json:"clientPassword,omitempty,omitzero"`
	// tenantID is the tenant of a service principal.
	TenantID string `json:"tenantID,omitempty"`
	// auxiliaryTenantIDs are further tenants of a service principal, at most three.
	//
	// +nullable
	// +optional
	AuxiliaryTenantIDs []string `json:"auxiliaryTenantIDs,omitempty"`
	// adResourceID is not used.
	ADResourceID string `json:"adResourceID,omitempty"`
	// adEndpoint is the authority host of a service principal.
	ADEndpoint string `json:"adEndpoint,omitempty"`
	// replicas is not used.
	//
	// +nullable
	// +optional
	Replicas *int32 `json:"replicas,omitempty"`

	OldAzureIdentitySpec `json:",inline"`
}

// OldAzureIdentitySpec declares the spellings of releases before 1.6. Nothing
// reads them here: Normalize moves their values.
type OldAzureIdentitySpec struct {
	// Deprecated: write type.
	OldType *IdentityType `json:"Type,omitempty"`
	// Deprecated: write resourceID.
	OldResourceID string `json:"ResourceID,omitempty"`
	// Deprecated: write resourceID.
	OldResourceIDCamel string `json:"resourceId,omitempty"`
	// Deprecated: write resourceID.
	OldResourceIDLower string `json:"resourceid,omitempty"`
	// Deprecated: write clientID.
	OldClientID string `json:"ClientID,omitempty"`
	// Deprecated: write clientID.
	OldClientIDCamel string `json:"clientId,omitempty"`
	// Deprecated: write clientID.
	OldClientIDLower string `json:"clientid,omitempty"`
	// Deprecated: write clientPassword.
	OldClientPassword SecretReference `json:"ClientPassword,omitempty,omitzero"`
	// Deprecated: write clientPassword.
	OldClientPasswordLower SecretReference `json:"clientpassword,omitempty,omitzero"`
	// Deprecated: write tenantID.
	OldTenantID string `json:"TenantID,omitempty"`
	// Deprecated: write tenantID.
	OldTenantIDCamel string `json:"tenantId,omitempty"`
	// Deprecated: write tenantID.
	OldTenantIDLower string `json:"tenantid,omitempty"`
	// Deprecated: write adResourceID.
	OldADResourceID string `json:"ADResourceID,omitempty"`
	// Deprecated: write adResourceID.
	OldADResourceIDLower string `json:"adresourceid,omitempty"`
	// Deprecated: write adEndpoint.
	OldADEndpoint string `json:"ADEndpoint,omitempty"`
	// Deprecated: write adEndpoint.
	OldADEndpointLower string `json:"adendpoint,omitempty"`
}

// SecretReference names a Secret.
type SecretReference struct {
	// name of the Secret.
	Name string `json:"name,omitempty"`
	// namespace of the Secret.
	Namespace string `json:"namespace,omitempty"`
	// Deprecated: write name.
	OldName string `json:"Name,omitempty"`
	// Deprecated: write namespace.
	OldNamespace string `json:"Namespace,omitempty"`
}

// AzureIdentityStatus says whether the identity can be used.
type AzureIdentityStatus struct {
	// metadata is not used.
	Metadata metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	AvailableReplicas int32 `json:"availableReplicas,omitempty"`
	// conditions say what is wrong; the type is Ready.
	//
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AzureAssignedIdentity records that one pod uses one identity. Only mic writes
// it; its name is {pod}-{pod's namespace}-{identity}.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=azureassignedidentities,singular=azureassignedidentity,scope=Namespaced
// +kubebuilder:metadata:annotations="api-approved.kubernetes.io=unapproved"
type AzureAssignedIdentity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AzureAssignedIdentitySpec   `json:"spec,omitempty"`
	Status AzureAssignedIdentityStatus `json:"status,omitempty,omitzero"`
}

// AzureAssignedIdentitySpec holds copies of the identity and the binding as they
// were when the assignment was last written.
type AzureAssignedIdentitySpec struct {
	// metadata is not used.
	Metadata metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	// azureIdentityRef is a copy of the identity.
	//
	// +kubebuilder:validation:EmbeddedResource
	AzureIdentityRef *AzureIdentity `json:"azureIdentityRef,omitempty"`
	// azureBindingRef is a copy of the binding.
	//
	// +kubebuilder:validation:EmbeddedResource
	AzureBindingRef *AzureIdentityBinding `json:"azureBindingRef,omitempty"`
	// pod is the name of the pod.
	Pod string `json:"pod,omitempty"`
	// podNamespace is the namespace of the pod.
	PodNamespace string `json:"podNamespace,omitempty"`
	// nodename is the node on which the pod runs.
	NodeName string `json:"nodename,omitempty"`
	// replicas is not used.
	//
	// +nullable
	// +optional
	Replicas *int32 `json:"replicas,omitempty"`
}

// AzureAssignedIdentityStatus says how far the assignment is.
type AzureAssignedIdentityStatus struct {
	// metadata is not used.
	Metadata metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	// status is Created, Assigned or Unassigned.
	Status string `json:"status,omitempty"`
	// availableReplicas is always 1.
	AvailableReplicas int32 `json:"availableReplicas,omitempty"`
	// conditions say why the assignment does not get on.
	//
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AzurePodIdentityException lets pods of its namespace reach the metadata
// service directly.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=azurepodidentityexceptions,singular=azurepodidentityexception,scope=Namespaced
// +kubebuilder:metadata:annotations="api-approved.kubernetes.io=unapproved"
type AzurePodIdentityException struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AzurePodIdentityExceptionSpec   `json:"spec,omitempty"`
	Status AzurePodIdentityExceptionStatus `json:"status,omitempty,omitzero"`
}

// AzurePodIdentityExceptionSpec says which pods.
type AzurePodIdentityExceptionSpec struct {
	// metadata is not used.
	Metadata metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	// podLabels excepts every pod that has at least one of these labels.
	PodLabels map[string]string `json:"podLabels,omitempty"`

	OldAzurePodIdentityExceptionSpec `json:",inline"`
}

// OldAzurePodIdentityExceptionSpec declares the spellings of releases before 1.6.
type OldAzurePodIdentityExceptionSpec struct {
	// Deprecated: write podLabels.
	OldPodLabels map[string]string `json:"PodLabels,omitempty"`
	// Deprecated: write podLabels.
	OldPodLabelsLower map[string]string `json:"podlabels,omitempty"`
}

// AzurePodIdentityExceptionStatus is not used.
type AzurePodIdentityExceptionStatus struct {
	// metadata is not used.
	Metadata metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	Status string `json:"status,omitempty"`
}

// AzureIdentityList is a list of identities.
//
// +kubebuilder:object:root=true
type AzureIdentityList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AzureIdentity `json:"items"`
}

// AzureIdentityBindingList is a list of bindings.
//
// +kubebuilder:object:root=true
type AzureIdentityBindingList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AzureIdentityBinding `json:"items"`
}

// AzureAssignedIdentityList is a list of assignments.
//
// +kubebuilder:object:root=true
type AzureAssignedIdentityList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AzureAssignedIdentity `json:"items"`
}

// AzurePodIdentityExceptionList is a list of exceptions.
//
// +kubebuilder:object:root=true
type AzurePodIdentityExceptionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AzurePodIdentityException `json:"items"`
}

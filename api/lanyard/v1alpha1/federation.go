package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// FederatedIdentity makes a service account of its namespace an identity of
// Azure: the controller keeps a federated credential for it at a managed
// identity or at an application. It is made from an annotated service account,
// or written by hand.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=federatedidentities,singular=federatedidentity,scope=Namespaced,shortName=fid
// +kubebuilder:printcolumn:name="ServiceAccount",type=string,JSONPath=`.spec.serviceAccountName`
// +kubebuilder:printcolumn:name="Client-ID",type=string,JSONPath=`.status.clientID`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Usable-Since",type=date,JSONPath=`.status.usableSince`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Credential",type=string,JSONPath=`.status.credentialName`,priority=1
// +kubebuilder:printcolumn:name="Issuer",type=string,JSONPath=`.status.issuer`,priority=1
// +kubebuilder:printcolumn:name="Parent",type=string,JSONPath=`.status.parentID`,priority=1
type FederatedIdentity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a federated identity cannot be changed: delete it and make another one"
	Spec FederatedIdentitySpec `json:"spec"`
	// +optional
	Status FederatedIdentityStatus `json:"status,omitempty,omitzero"`
}

// FederatedIdentitySpec says which service account is which identity. It never
// changes.
//
// +kubebuilder:validation:XValidation:rule="has(self.clientID) != has(self.resourceID)",message="name the identity by exactly one of clientID and resourceID"
type FederatedIdentitySpec struct {
	// serviceAccountName is a service account of the same namespace.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`
	ServiceAccountName string `json:"serviceAccountName"`
	// clientID of a managed identity or an application. It is looked up in
	// Microsoft Graph.
	//
	// +kubebuilder:validation:Pattern=`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`
	// +kubebuilder:validation:MaxLength=36
	// +optional
	ClientID string `json:"clientID,omitempty"`
	// resourceID is the Azure Resource Manager id of a user-assigned managed
	// identity. It needs no permission in Microsoft Graph.
	//
	// +kubebuilder:validation:Pattern=`^/(?i:subscriptions/[0-9a-f-]{36}/resourcegroups/[^/?#%\\]{1,90}/providers/microsoft\.managedidentity/userassignedidentities)/[A-Za-z0-9_-]{1,128}$`
	// +kubebuilder:validation:MaxLength=512
	// +optional
	ResourceID string `json:"resourceID,omitempty"`
	// tenantID, if given, must be the tenant of the identity.
	//
	// +kubebuilder:validation:Pattern=`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`
	// +kubebuilder:validation:MaxLength=36
	// +optional
	TenantID string `json:"tenantID,omitempty"`
	// audience of the service account's tokens; empty means the cloud's own,
	// api://AzureADTokenExchange in the public cloud.
	//
	// +kubebuilder:validation:MaxLength=600
	// +optional
	Audience string `json:"audience,omitempty"`
}

// FederatedIdentityStatus is what the controller found and did. It decides
// nothing: what is changed here is put right again.
type FederatedIdentityStatus struct {
	// observedGeneration of the spec that the conditions are about.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// issuer and subject of the service account's tokens, and the audience, as
	// the credential trusts them.
	//
	// +optional
	Issuer string `json:"issuer,omitempty"`
	// +optional
	Subject string `json:"subject,omitempty"`
	// +optional
	Audience string `json:"audience,omitempty"`
	// credentialName in Azure; the name of another's credential if the reason of
	// Created is Foreign.
	//
	// +optional
	CredentialName string `json:"credentialName,omitempty"`
	// parentID is the ARM id of the managed identity, or the application's object id.
	//
	// +optional
	ParentID string `json:"parentID,omitempty"`
	// clientID of the identity.
	//
	// +optional
	ClientID string `json:"clientID,omitempty"`
	// usableSince is when Entra first accepted a token of the service account with
	// the credential as it is now; absent while it has not.
	//
	// +optional
	UsableSince *metav1.Time `json:"usableSince,omitempty"`
	// conditions: Accepted, Created, Usable and Ready.
	//
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Conditions of a FederatedIdentity.
const (
	// ConditionAccepted: a FederationPolicy allows it.
	ConditionAccepted = "Accepted"
	// ConditionCreated: the credential is in Azure.
	ConditionCreated = "Created"
	// ConditionUsable: Entra accepted the service account's token; Unknown if
	// nobody tries.
	ConditionUsable = "Usable"
	// ConditionReady: all of them; where nobody tries, the first two.
	ConditionReady = "Ready"
)

// FederatedIdentityList is a list of federated identities.
//
// +kubebuilder:object:root=true
type FederatedIdentityList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []FederatedIdentity `json:"items"`
}

// FederationPolicy allows service accounts to claim identities. What no policy
// allows is refused; policies only add to each other.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=federationpolicies,singular=federationpolicy,scope=Cluster,shortName=fedpolicy
// +kubebuilder:printcolumn:name="Namespaces",type=string,JSONPath=`.spec.namespaces`
// +kubebuilder:printcolumn:name="ServiceAccounts",type=string,JSONPath=`.spec.serviceAccountNames`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type FederationPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec FederationPolicySpec `json:"spec"`
}

// FederationPolicySpec says which service accounts may claim which identities.
//
// +kubebuilder:validation:XValidation:rule="has(self.namespaces) && size(self.namespaces) > 0 || has(self.namespaceSelector)",message="say which namespaces: namespaces, or namespaceSelector ({} means all)"
type FederationPolicySpec struct {
	// namespaces by name; those of namespaceSelector are added.
	//
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +listType=set
	// +optional
	Namespaces []string `json:"namespaces,omitempty"`
	// namespaceSelector chooses namespaces by labels; {} means all. Whoever may
	// label a namespace can make it match.
	//
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	// serviceAccountNames limits the policy to service accounts of these names;
	// empty means any.
	//
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +listType=set
	// +optional
	ServiceAccountNames []string `json:"serviceAccountNames,omitempty"`
	// identities that may be claimed.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1000
	// +listType=atomic
	Identities []PolicyIdentity `json:"identities"`
}

// PolicyIdentity is an identity, or all managed identities of a resource group.
//
// +kubebuilder:validation:XValidation:rule="(has(self.clientID) ? 1 : 0) + (has(self.resourceID) ? 1 : 0) + (has(self.resourceGroup) ? 1 : 0) == 1",message="name exactly one of clientID, resourceID and resourceGroup"
type PolicyIdentity struct {
	// clientID of a managed identity or an application.
	//
	// +kubebuilder:validation:Pattern=`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`
	// +kubebuilder:validation:MaxLength=36
	// +optional
	ClientID string `json:"clientID,omitempty"`
	// resourceID of a user-assigned managed identity.
	//
	// +kubebuilder:validation:Pattern=`^/(?i:subscriptions/[0-9a-f-]{36}/resourcegroups/[^/?#%\\]{1,90}/providers/microsoft\.managedidentity/userassignedidentities)/[A-Za-z0-9_-]{1,128}$`
	// +kubebuilder:validation:MaxLength=512
	// +optional
	ResourceID string `json:"resourceID,omitempty"`
	// resourceGroup: /subscriptions/ID/resourceGroups/NAME, for all managed
	// identities in it, now and later.
	//
	// +kubebuilder:validation:Pattern=`^/(?i:subscriptions/[0-9a-f-]{36}/resourcegroups)/[^/?#%\\]{1,90}$`
	// +kubebuilder:validation:MaxLength=200
	// +optional
	ResourceGroup string `json:"resourceGroup,omitempty"`
}

// FederationPolicyList is a list of policies.
//
// +kubebuilder:object:root=true
type FederationPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []FederationPolicy `json:"items"`
}

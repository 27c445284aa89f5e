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

// AzureIdentityBinding lets pods use an identity of the binding's namespace: those
// that match every one of selector, podSelector and service accounts that is
// given, while notBefore, notAfter, schedule and access allow it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=azureidentitybindings,singular=azureidentitybinding,scope=Namespaced
// +kubebuilder:metadata:annotations="api-approved.kubernetes.io=unapproved"
// +kubebuilder:printcolumn:name="AzureIdentity",type=string,JSONPath=`.spec.azureIdentity`
// +kubebuilder:printcolumn:name="Selector",type=string,JSONPath=`.spec.selector`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Open",type=string,JSONPath=`.status.conditions[?(@.type=="Open")].status`
// +kubebuilder:printcolumn:name="Access",type=string,JSONPath=`.spec.access`
type AzureIdentityBinding struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AzureIdentityBindingSpec   `json:"spec,omitempty"`
	Status AzureIdentityBindingStatus `json:"status,omitempty,omitzero"`
}

// AzureIdentityBindingSpec says which pods and which identity, and when.
//
// +kubebuilder:validation:XValidation:rule="!has(self.notBefore) || !has(self.notAfter) || self.notBefore < self.notAfter",message="notBefore must be earlier than notAfter"
// +kubebuilder:validation:XValidation:rule="!has(self.approval) || has(self.access) && self.access == 'OnRequest'",message="approval has a meaning only with access: OnRequest"
type AzureIdentityBindingSpec struct {
	// metadata is not used.
	Metadata metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	// azureIdentity is the name of an AzureIdentity in the binding's namespace.
	AzureIdentity string `json:"azureIdentity,omitempty"`
	// selector is the value of the label aadpodidbinding that pods carry.
	Selector string `json:"selector,omitempty"`
	// weight is not used.
	Weight int `json:"weight,omitempty"`

	// podSelector chooses pods of the binding's namespace by their labels. Pods
	// need the label aadpodidbinding only if selector is given too.
	//
	// +optional
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`
	// serviceAccountName limits the binding to pods of its namespace that run as
	// this service account, or as one of serviceAccountNames.
	//
	// +kubebuilder:validation:MaxLength=253
	// +optional
	ServiceAccountName string `json:"serviceAccountName,omitempty"`
	// serviceAccountNames limits the binding to pods of its namespace that run as
	// one of these service accounts, or as serviceAccountName.
	//
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +listType=set
	// +optional
	ServiceAccountNames []string `json:"serviceAccountNames,omitempty"`

	// notBefore is the first instant at which the binding is open.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`
	// +optional
	NotBefore *metav1.Time `json:"notBefore,omitempty"`
	// notAfter is the first instant at which the binding is open no more.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`
	// +optional
	NotAfter *metav1.Time `json:"notAfter,omitempty"`
	// schedule opens the binding at recurring times; absent means at all times.
	//
	// +optional
	Schedule *Schedule `json:"schedule,omitempty"`
	// access is Always (the same as absent) or OnRequest: then the binding is open
	// only while an approved AccessRequest for it is in force.
	//
	// +optional
	Access AccessMode `json:"access,omitempty"`
	// approval says which AccessRequests need nobody's approval.
	//
	// +optional
	Approval *Approval `json:"approval,omitempty"`
	// minimumRemaining refuses a token when the binding closes sooner than this,
	// because a token outlives its window.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$`
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=21
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('8760h')",message="at most 8760h"
	// +optional
	MinimumRemaining *metav1.Duration `json:"minimumRemaining,omitempty"`

	OldAzureIdentityBindingSpec `json:",inline"`
}

// AccessMode says whether a binding waits to be asked for.
//
// +kubebuilder:validation:Enum=Always;OnRequest
type AccessMode string

const (
	// AccessAlways needs no request; so does the empty string.
	AccessAlways AccessMode = "Always"
	// AccessOnRequest needs an approved AccessRequest.
	AccessOnRequest AccessMode = "OnRequest"
)

// A Schedule is recurring time: the union of windows and of what cron starts. A
// window, or a run of cron, that starts on a holiday does not happen.
//
// +kubebuilder:validation:XValidation:rule="has(self.cron) == has(self.duration)",message="cron says when and duration says how long: give both or neither"
// +kubebuilder:validation:XValidation:rule="has(self.cron) || has(self.windows) && size(self.windows) > 0",message="give windows, or cron and duration: an empty schedule never opens"
type Schedule struct {
	// timeZone is a name of the IANA time zone database such as Europe/Berlin;
	// absent means UTC. All times and dates of the schedule are local to it.
	//
	// +kubebuilder:validation:MaxLength=64
	// +optional
	TimeZone string `json:"timeZone,omitempty"`
	// windows are open by the clock on the wall: when the clocks change, both
	// passes of a repeated hour count, and a start that is skipped happens right
	// after the gap.
	//
	// +kubebuilder:validation:MaxItems=50
	// +listType=atomic
	// +optional
	Windows []Window `json:"windows,omitempty"`
	// cron starts an opening of the given duration: minute, hour, day of month,
	// month, day of week, as in a CronJob. A start that the clocks skip happens
	// right after the gap.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +optional
	Cron string `json:"cron,omitempty"`
	// duration is the time that passes from a start of cron to its end, such as 1h30m.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$`
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=21
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s') && duration(self) <= duration('8760h')",message="more than 0s and at most 8760h"
	// +optional
	Duration metav1.Duration `json:"duration,omitempty,omitzero"`
	// holidays are local dates such as 2026-12-25. What starts on one of them does
	// not happen; what started the day before goes on to its end.
	//
	// +kubebuilder:validation:MaxItems=400
	// +kubebuilder:validation:items:MaxLength=10
	// +kubebuilder:validation:items:Pattern=`^[0-9]{4}-[0-9]{2}-[0-9]{2}$`
	// +kubebuilder:validation:items:Format=date
	// +listType=set
	// +optional
	Holidays []string `json:"holidays,omitempty"`
}

// A Window is open from start to end on each of its days.
type Window struct {
	// days on which the window starts; absent means every day.
	//
	// +kubebuilder:validation:MaxItems=7
	// +listType=set
	// +optional
	Days []Day `json:"days,omitempty"`
	// start is the local time HH:MM at which the window opens.
	//
	// +kubebuilder:validation:MaxLength=5
	// +kubebuilder:validation:Pattern=`^([01][0-9]|2[0-3]):[0-5][0-9]$`
	Start string `json:"start"`
	// end is the local time HH:MM at which the window closes, up to 24:00. If it is
	// not later than start, it is on the following day.
	//
	// +kubebuilder:validation:MaxLength=5
	// +kubebuilder:validation:Pattern=`^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$`
	End string `json:"end"`
}

// A Day is a day of the week.
//
// +kubebuilder:validation:Enum=mon;tue;wed;thu;fri;sat;sun
type Day string

// Approval says which AccessRequests need nobody's approval.
type Approval struct {
	// automatic approves the requests that match one of these rules.
	//
	// +kubebuilder:validation:MaxItems=50
	// +listType=atomic
	// +optional
	Automatic []AutomaticApproval `json:"automatic,omitempty"`
}

// An AutomaticApproval matches requests of any of the users, or of members of any
// of the groups, for at most the duration.
//
// +kubebuilder:validation:XValidation:rule="has(self.users) && size(self.users) > 0 || has(self.groups) && size(self.groups) > 0",message="name users or groups"
type AutomaticApproval struct {
	// users are user names as Kubernetes authenticates them.
	//
	// +kubebuilder:validation:MaxItems=200
	// +kubebuilder:validation:items:MinLength=1
	// +listType=set
	// +optional
	Users []string `json:"users,omitempty"`
	// groups are group names as Kubernetes authenticates them.
	//
	// +kubebuilder:validation:MaxItems=200
	// +kubebuilder:validation:items:MinLength=1
	// +listType=set
	// +optional
	Groups []string `json:"groups,omitempty"`
	// maxDuration is the longest duration that is approved.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$`
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=21
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s') && duration(self) <= duration('8760h')",message="more than 0s and at most 8760h"
	MaxDuration metav1.Duration `json:"maxDuration"`
}

// OldAzureIdentityBindingSpec declares the spellings of releases before 1.6.
type OldAzureIdentityBindingSpec struct {
	// Deprecated: write azureIdentity.
	OldAzureIdentity string `json:"AzureIdentity,omitempty"`
	// Deprecated: write azureIdentity.
	OldAzureIdentityLower string `json:"azureidentity,omitempty"`
	// Deprecated: write selector.
	OldSelector string `json:"Selector,omitempty"`
}

// AzureIdentityBindingStatus says whether the binding can be used, and whether it
// is open.
type AzureIdentityBindingStatus struct {
	// metadata is not used.
	Metadata metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	AvailableReplicas int32 `json:"availableReplicas,omitempty"`
	// conditions say what is wrong (Ready) and whether the binding is open (Open).
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

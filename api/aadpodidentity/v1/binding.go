package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

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

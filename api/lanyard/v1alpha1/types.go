package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AccessRequest asks that an AzureIdentityBinding of its namespace with access
// OnRequest be open for a while.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=accessrequests,singular=accessrequest,scope=Namespaced,shortName=areq
// +kubebuilder:printcolumn:name="Binding",type=string,JSONPath=`.spec.binding`
// +kubebuilder:printcolumn:name="Requester",type=string,JSONPath=`.spec.requester.username`
// +kubebuilder:printcolumn:name="Duration",type=string,JSONPath=`.spec.duration`
// +kubebuilder:printcolumn:name="Verdict",type=string,JSONPath=`.status.decision.verdict`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.status) || !has(oldSelf.status.decision) || has(self.status) && has(self.status.decision)",message="a decision cannot be taken back: revoke it, or delete the request"
type AccessRequest struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a request cannot be changed: make another one"
	Spec AccessRequestSpec `json:"spec"`
	// +optional
	Status AccessRequestStatus `json:"status,omitempty,omitzero"`
}

// AccessRequestSpec says who asks, for what, why and how long. It never changes.
type AccessRequestSpec struct {
	// binding is the name of an AzureIdentityBinding of the same namespace.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Binding string `json:"binding"`
	// pod limits the access to the pod of this name in the same namespace; absent
	// means every pod that the binding matches.
	//
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Pod string `json:"pod,omitempty"`
	// reason tells the approver why.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason"`
	// duration is how long the binding is open from the decision on, such as 1h30m.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$`
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=21
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s') && duration(self) <= duration('8760h')",message="more than 0s and at most 8760h"
	Duration metav1.Duration `json:"duration"`
	// requester is the user who asks; admission refuses anybody else's name.
	Requester Requester `json:"requester"`
}

// A Requester is a user as Kubernetes authenticated it.
type Requester struct {
	// username of the user.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Username string `json:"username"`
	// groups of the user, for the rules of automatic approval.
	//
	// +kubebuilder:validation:MaxItems=500
	// +kubebuilder:validation:items:MaxLength=1024
	// +listType=set
	// +optional
	Groups []string `json:"groups,omitempty"`
}

// AccessRequestStatus holds what was decided.
type AccessRequestStatus struct {
	// decision is absent until somebody, or a rule, has decided.
	//
	// +optional
	Decision *Decision `json:"decision,omitempty"`
	// conditions tell the story of the request to people; the type is Approved.
	//
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ConditionApproved of an AccessRequest: its message names who decided.
const ConditionApproved = "Approved"

// A Verdict is how a request was decided.
//
// +kubebuilder:validation:Enum=Approved;Denied;Revoked
type Verdict string

const (
	// Approved opens the binding from the decision for the duration of the request.
	Approved Verdict = "Approved"
	// Denied is final.
	Denied Verdict = "Denied"
	// Revoked ends an approval at once, and is final.
	Revoked Verdict = "Revoked"
)

// A Decision is what an approver, or a rule, said. An approval can only become a
// revocation; everything else is final.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf || oldSelf.verdict == 'Approved' && self.verdict == 'Revoked'",message="this was decided: an approval can be revoked, everything else is final; make another request"
type Decision struct {
	// verdict is Approved, Denied or Revoked.
	Verdict Verdict `json:"verdict"`
	// by is the user who decided; admission refuses anybody else's name.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	By string `json:"by"`
	// at is the instant from which the decision is in force.
	//
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`
	At metav1.Time `json:"at"`
	// reason tells the requester why.
	//
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Reason string `json:"reason,omitempty"`
	// automatic is true if a rule of the binding decided.
	//
	// +optional
	Automatic bool `json:"automatic,omitempty"`
}

// AccessRequestList is a list of requests.
//
// +kubebuilder:object:root=true
type AccessRequestList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AccessRequest `json:"items"`
}

package migrate

import (
	"strings"
	"unicode"
)

// A Reason says why a workload is left as it is. It is part of -o json, hence
// stable.
type Reason string

// Reasons.
const (
	NoIdentity        Reason = "NoIdentity"        // the label or a binding is there, but it leads to no identity
	Excepted          Reason = "Excepted"          // an AzurePodIdentityException lets its pods reach the machine's identities
	HostNetwork       Reason = "HostNetwork"       // its pods have the node's network, where v1 never answered
	Unbounded         Reason = "Unbounded"         // the binding is limited in time or to requests, which door 2 cannot keep
	InvalidIdentity   Reason = "InvalidIdentity"   // the AzureIdentity cannot be used as it is written
	MissingClientID   Reason = "MissingClientID"   // neither the AzureIdentity nor Azure tells the client id
	OtherClientID     Reason = "OtherClientID"     // Azure's client id is not the AzureIdentity's
	OtherTenant       Reason = "OtherTenant"       // the identity is of another tenant than the one signed in to
	AuxiliaryTenants  Reason = "AuxiliaryTenants"  // one request gave tokens of several tenants
	OtherCloud        Reason = "OtherCloud"        // the identity's authority is not the cloud's
	Unproven          Reason = "Unproven"          // nothing shows that v1 gives the identity
	UnknownIdentity   Reason = "UnknownIdentity"   // Azure does not know the identity, or does not tell
	Limit             Reason = "Limit"             // the identity has all the federated credentials that it can have
	CredentialTaken   Reason = "CredentialTaken"   // another credential has the name or the subject
	AccountTaken      Reason = "AccountTaken"      // the service account is annotated with another identity
	AccountMissing    Reason = "AccountMissing"    // the service account does not exist
	RoleBindings      Reason = "RoleBindings"      // a new service account would lack the old one's role bindings
	BarePod           Reason = "BarePod"           // nobody makes the pod again
	NoRollout         Reason = "NoRollout"         // nobody replaces the pods when the template changes
	Controlled        Reason = "Controlled"        // another object makes this one, and would change it back
	Paused            Reason = "Paused"            // the rollout is paused
	Running           Reason = "Running"           // a Job that runs cannot be changed
	Immutable         Reason = "Immutable"         // a Job that has not begun cannot be changed
	Finished          Reason = "Finished"          // a Job that has ended needs no identity
	Windows           Reason = "Windows"           // the proxy sidecar does not run on Windows
	NotMigrated       Reason = "NotMigrated"       // --finish for what has not been migrated
	SelectorHasLabel  Reason = "SelectorHasLabel"  // the workload's own selector names aadpodidbinding and never changes
	StillAsksMetadata Reason = "StillAsksMetadata" // --finish for a program that nmi still serves
)

// A Left is a workload that is not migrated.
type Left struct {
	Workload Ref    `json:"workload"`
	Reason   Reason `json:"reason"`
	Text     string `json:"text"`
	WayOut   string `json:"wayOut,omitempty"`
}

// no makes a Left of a workload that is filled in later.
func no(r Reason, text, wayOut string) *Left { return &Left{Reason: r, Text: text, WayOut: wayOut} }

// oneLine makes what others wrote fit for a terminal and for a comment.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
}

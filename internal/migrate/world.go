package migrate

import (
	"cmp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/federated"
)

// A World is what a plan is made from. Nothing in it is modified.
type World struct {
	Identities []*v1.AzureIdentity
	Bindings   []*v1.AzureIdentityBinding
	Exceptions []*v1.AzurePodIdentityException
	// Workloads are all objects of Kinds in the namespaces in question, pods and
	// what controllers made included: who else uses a service account matters.
	Workloads []*unstructured.Unstructured
	// Accounts are the service accounts of the namespaces.
	Accounts []*unstructured.Unstructured
	// Roles are role bindings of all namespaces and those of the cluster.
	Roles []*unstructured.Unstructured
	// Federated are the FederatedIdentities of the namespaces, if the federation
	// controller makes credentials.
	Federated []*unstructured.Unstructured
	// Azure tells what Azure knows, by namespace/name of the AzureIdentity. Of an
	// identity that is not in it nothing is known.
	Azure map[string]Facts
	// Requests are what nmi's audit tells of who asked it.
	Requests []Request
	// Proven are the AzureIdentities, by namespace/name, that nmi does give tokens
	// of; nil means that this is not asked. Whoever may write an AzureIdentity can
	// name any identity in it: that Azure honoured it shows that it is meant.
	Proven map[string]bool
}

// Facts are what Azure knows of an identity.
type Facts struct {
	Parent      federated.Parent
	Credentials []federated.Credential // that it has now
	Problem     string                 // why nothing else is known; empty if it is
}

// ProxyMode says who gets the proxy sidecar, which answers what a workload asks
// the instance metadata service.
type ProxyMode string

// Proxy modes.
const (
	ProxyAuto   ProxyMode = "auto"
	ProxyAlways ProxyMode = "always"
	ProxyNever  ProxyMode = "never"
)

// FederationMode says who makes federated credentials.
type FederationMode string

// Federation modes.
const (
	FederationAzure      FederationMode = "azure"      // this program, by requests to Azure
	FederationController FederationMode = "controller" // Lanyard's federation controller
)

// NeedsIMDS is an annotation on a workload, or on its pod template: "true" if the
// program asks the instance metadata service and knows no better, "false" if its
// Azure SDK reads the projected token.
const NeedsIMDS = "lanyard.id/needs-imds"

// Options say what to plan.
type Options struct {
	Namespace string // empty means all
	Workloads []Ref  // empty means all of the namespaces

	Issuer    string // of the cluster's service-account tokens
	Audience  string // empty means workloadidentity.Audience
	TenantID  string // that the requests to Azure are made in; empty if it is not known
	Authority string // of the cloud; empty means that it is not compared

	Proxy           ProxyMode      // empty means ProxyAuto
	Federation      FederationMode // empty means FederationAzure
	ForceNamespaced bool           // as nmi runs
	AllowUnproven   bool           // federate identities that nmi was never seen to give
	AllowUnbounded  bool           // give up limits in time that only nmi can keep
	CopyRBAC        bool           // give a new service account the old one's role bindings
	RecreateJobs    bool           // delete unfinished Jobs and make them again
	Finish          bool           // take the label aadpodidbinding from what is migrated
}

func (o Options) audience() string { return cmp.Or(o.Audience, workloadidentity.Audience) }

func (o Options) wants(r Ref) bool {
	if o.Namespace != "" && r.Namespace != o.Namespace {
		return false
	}
	if len(o.Workloads) == 0 {
		return true
	}
	for _, w := range o.Workloads {
		if w == r {
			return true
		}
	}
	return false
}

func sameAuthority(a, b string) bool {
	return strings.EqualFold(strings.TrimSuffix(a, "/"), strings.TrimSuffix(b, "/"))
}

// describe names an identity to a person, whether Azure was asked or not.
func describe(p federated.Parent) string {
	switch {
	case p.Kind == federated.Application && p.DisplayName == "":
		return "the application " + p.ClientID
	case p.Kind == federated.ManagedIdentity && p.ResourceID == "":
		return "the managed identity " + p.ClientID
	}
	return p.String()
}

// Has reports whether a workload is there.
func (w World) Has(r Ref) bool {
	return slices.ContainsFunc(w.Workloads, func(o *unstructured.Unstructured) bool { return RefOf(o) == r })
}

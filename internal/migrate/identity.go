package migrate

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/federated"
)

// resolve finds what the identities of a workload are in Azure.
func (p *planner) resolve(i *item) *Left {
	for _, b := range i.bound {
		if !binding.Unlimited(b.Binding) {
			name := b.Binding.Namespace + "/" + b.Binding.Name
			if !p.options.AllowUnbounded {
				return no(Unbounded, fmt.Sprintf("AzureIdentityBinding %s is limited by time or to requests; with Workload Identity the pod asks Entra itself, and nobody can keep the limit", name),
					"leave it with nmi, which keeps the limit; --allow-unbounded gives the limit up")
			}
			i.notes = append(i.notes, fmt.Sprintf("the limit of AzureIdentityBinding %s in time or to requests is given up", name))
		}
		id, left := p.identity(b.Identity)
		if left != nil {
			i.identities = nil
			return left
		}
		if !slices.ContainsFunc(i.identities, func(have Identity) bool { return strings.EqualFold(have.ClientID, id.ClientID) }) {
			i.identities = append(i.identities, id)
		}
	}
	if n := len(i.identities); n > 1 {
		i.notes = append(i.notes, fmt.Sprintf("its pods have %d identities: AZURE_CLIENT_ID is that of AzureIdentity %s, which nmi gives to who names none; the others are asked for by client id", n, i.identities[0].AzureIdentity))
	}
	return nil
}

// identity finds out what an AzureIdentity is in Azure.
func (p *planner) identity(id *v1.AzureIdentity) (Identity, *Left) {
	name := "AzureIdentity " + nameOf(id)
	if err := binding.Valid(id); err != nil {
		return Identity{}, no(InvalidIdentity, name+": "+err.Error(), "it gets no token from nmi either: correct the AzureIdentity")
	}
	s := &id.Spec
	parent := federated.Parent{Kind: federated.ManagedIdentity, ResourceID: s.ResourceID, ClientID: s.ClientID, TenantID: p.options.TenantID}
	if s.Type != v1.UserAssignedMSI {
		parent = federated.Parent{Kind: federated.Application, ClientID: s.ClientID, TenantID: s.TenantID}
		switch {
		case len(s.AuxiliaryTenantIDs) > 0:
			return Identity{}, no(AuxiliaryTenants, name+" has auxiliaryTenantIDs: nmi answers with a token of each tenant, which Workload Identity cannot",
				"have the program ask in each tenant itself (AdditionallyAllowedTenants of the Azure SDKs), then remove auxiliaryTenantIDs")
		case s.ADEndpoint != "" && p.options.Authority != "" && !sameAuthority(s.ADEndpoint, p.options.Authority):
			return Identity{}, no(OtherCloud, fmt.Sprintf("%s is of the cloud at %s, and the cluster's cloud is at %s: the webhook tells pods the latter", name, s.ADEndpoint, p.options.Authority),
				"leave it with nmi, or use an application of the cluster's cloud")
		case p.options.TenantID != "" && !strings.EqualFold(s.TenantID, p.options.TenantID):
			return Identity{}, no(OtherTenant, fmt.Sprintf("%s is of tenant %s, and the requests to Azure are made in tenant %s", name, s.TenantID, p.options.TenantID),
				"sign in to that tenant and run the same with --workload for this workload; or give its application a federated credential there by hand")
		}
	}
	facts, known := p.world.Azure[nameOf(id)]
	if known {
		switch {
		case facts.Problem != "":
			return Identity{}, no(UnknownIdentity, name+": "+facts.Problem, "see that the identity exists and that you may read it and its federated credentials")
		case s.ClientID != "" && !strings.EqualFold(s.ClientID, facts.Parent.ClientID):
			return Identity{}, no(OtherClientID, fmt.Sprintf("%s: spec.clientID is %s, and the client id in Azure is %s", name, s.ClientID, facts.Parent.ClientID),
				"find out which of the two the workload should have, and correct the AzureIdentity")
		}
		tenant := parent.TenantID
		parent = facts.Parent
		if parent.TenantID == "" {
			parent.TenantID = tenant
		}
	}
	if parent.ClientID == "" {
		return Identity{}, no(MissingClientID, name+" has no spec.clientID, and Azure was not asked", "sign in to Azure, or set spec.clientID: `az identity show --ids "+s.ResourceID+" --query clientId` prints it")
	}
	if !guid.MatchString(parent.ClientID) {
		return Identity{}, no(InvalidIdentity, fmt.Sprintf("%s: the client id %q is no GUID", name, short(parent.ClientID)), "correct spec.clientID")
	}
	if p.world.Proven != nil && !p.world.Proven[nameOf(id)] && !p.options.AllowUnproven {
		return Identity{}, no(Unproven, fmt.Sprintf("nothing shows that nmi gives tokens of %s: no machine has it, no audit line tells of one, and whoever may write an AzureIdentity can name any identity in it", name),
			"start a pod that uses it and look again; if you know that the workload is to have this identity, --allow-unproven")
	}
	return Identity{AzureIdentity: nameOf(id), Parent: parent}, nil
}

var guid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// claim plans the credentials of a workload's account, as far as they are not
// there or planned already.
func (p *planner) claim(i *item, a Account) *Left {
	var claims []NewCredential
	for _, id := range a.Identities {
		key := strings.ToLower(id.ClientID)
		c := NewCredential{
			Credential: federated.Credential{Name: federated.AccountName(a.Namespace, a.Name, p.options.Issuer), Issuer: p.options.Issuer, Subject: federated.Subject(a.Namespace, a.Name), Audience: p.options.audience()},
			Parent:     id.Parent, Namespace: a.Namespace, ServiceAccount: a.Name,
		}
		if p.plan.Federation == FederationController && p.claims(c) {
			continue
		}
		have := p.world.Azure[id.AzureIdentity].Credentials
		fits := func(h federated.Credential) bool { return h.Issuer == c.Issuer && h.Subject == c.Subject }
		if at := slices.IndexFunc(have, fits); at >= 0 {
			if !have[at].Same(c.Credential) {
				return no(CredentialTaken, fmt.Sprintf("the federated credential %s of %s has the service account already, for the audience %s", have[at].Name, describe(id.Parent), have[at].Audience),
					"delete it if nobody needs it: an identity has one credential for an issuer and a subject")
			}
			continue
		}
		if slices.ContainsFunc(p.claimed[key], func(n NewCredential) bool { return fits(n.Credential) }) {
			continue
		}
		if slices.ContainsFunc(have, func(h federated.Credential) bool { return h.Name == c.Name }) {
			return no(CredentialTaken, fmt.Sprintf("%s has a federated credential %s for something else", describe(id.Parent), c.Name), "delete it if nobody needs it")
		}
		if n := len(have) + len(p.claimed[key]); n >= federated.MaxPerParent {
			return no(Limit, fmt.Sprintf("%s would have %d federated credentials, and can have %d", describe(id.Parent), n+1, federated.MaxPerParent),
				"let workloads with the same identity share a service account (one credential serves them all), delete credentials that nobody uses, or divide the work among several identities")
		}
		claims = append(claims, c)
	}
	for _, c := range claims {
		key := strings.ToLower(c.Parent.ClientID)
		p.claimed[key] = append(p.claimed[key], c)
	}
	p.plan.Credentials = append(p.plan.Credentials, claims...)
	if p.plan.Federation == FederationController {
		for _, c := range claims {
			p.change("create", nil, c.FederatedIdentity())
		}
	}
	return nil
}

// claims reports whether a FederatedIdentity claims the identity for the service
// account already.
func (p *planner) claims(c NewCredential) bool {
	return slices.ContainsFunc(p.world.Federated, func(f *unstructured.Unstructured) bool {
		text := func(field string) string { s, _, _ := unstructured.NestedString(f.Object, "spec", field); return s }
		return f.GetNamespace() == c.Namespace && text("serviceAccountName") == c.ServiceAccount &&
			(strings.EqualFold(text("clientID"), c.Parent.ClientID) || c.Parent.ResourceID != "" && strings.EqualFold(text("resourceID"), c.Parent.ResourceID))
	})
}

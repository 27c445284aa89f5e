package serviceaccount_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/graph"
	. "github.com/lanyard-id/lanyard/internal/serviceaccount"
)

func TestCreateRepeatDeleteAndDeleteAgain(t *testing.T) {
	for _, c := range []struct {
		name    string
		options func(*desk) Options

		first, again, deleted, gone []string
	}{
		{
			"an application", (*desk).options,
			[]string{"aad-application created", "aad-application created", "service-account created", "federated-identity created", "role-assignment created"},
			[]string{"aad-application unchanged", "aad-application unchanged", "service-account unchanged", "federated-identity unchanged", "role-assignment unchanged"},
			[]string{"role-assignment deleted", "service-account deleted", "aad-application deleted"},
			[]string{"role-assignment absent", "service-account absent", "aad-application absent"},
		},
		{
			"a managed identity", (*desk).managed,
			[]string{"managed-identity created", "service-account created", "federated-identity created", "role-assignment created"},
			[]string{"managed-identity unchanged", "service-account unchanged", "federated-identity unchanged", "role-assignment unchanged"},
			[]string{"role-assignment deleted", "federated-identity deleted", "service-account deleted", "managed-identity deleted"},
			[]string{"role-assignment absent", "federated-identity absent", "service-account absent", "managed-identity absent"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDesk(t)
			o := c.options(d)
			d.must(Create, o, c.first)
			p := d.result.Identity
			if diff := cmp.Diff(map[string]string{
				"azure.workload.identity/client-id":                        p.ClientID,
				"azure.workload.identity/tenant-id":                        d.cloud.Tenant.ID,
				"azure.workload.identity/service-account-token-expiration": "3600",
			}, d.account().Annotations); diff != "" {
				t.Errorf("annotations (-want +got)\n%s", diff)
			}
			want := federated.Credential{
				Name: federated.AccountName(d.namespace, "payroll", issuer), Issuer: issuer,
				Subject: "system:serviceaccount:" + d.namespace + ":payroll", Audience: "api://AzureADTokenExchange",
			}
			if p.Kind == federated.Application {
				want.Description = "Federated Service Account for " + d.namespace + "/payroll"
			}
			if diff := cmp.Diff([]federated.Credential{want}, d.credentials()); diff != "" {
				t.Errorf("federated credentials (-want +got)\n%s", diff)
			}
			if got := d.assignments(p.PrincipalID); len(got) != 1 || !strings.HasPrefix(got[0], "ServicePrincipal ") {
				t.Errorf("role assignments %q", got)
			}
			d.must(Create, o, c.again)
			if got := d.assignments(p.PrincipalID); len(got) != 1 {
				t.Errorf("role assignments after a repetition: %q", got)
			}
			d.must(Delete, o, c.deleted)
			if d.account() != nil || len(d.assignments(p.PrincipalID)) > 0 {
				t.Error("something is left")
			}
			d.must(Delete, o, c.gone)
		})
	}
}

func TestADryRunChangesNothing(t *testing.T) {
	for _, options := range []func(*desk) Options{(*desk).options, (*desk).managed} {
		d := newDesk(t)
		o := options(d)
		o.DryRun = true
		if err := d.run(Create, o); err != nil {
			t.Fatal(err)
		}
		for _, s := range d.steps {
			if !strings.HasSuffix(s, " created") {
				t.Error(s)
			}
		}
		if d.account() != nil {
			t.Error("there is a service account")
		}
		o.DryRun = false
		if err := d.run(Create, o); err != nil {
			t.Fatal(err)
		}
		real := d.steps
		o.DryRun = true
		if err := d.run(Delete, o); err != nil {
			t.Fatal(err)
		}
		for _, s := range d.steps {
			if !strings.HasSuffix(s, " deleted") {
				t.Error(s)
			}
		}
		o.DryRun = false
		if err := d.run(Create, o); err != nil {
			t.Fatal(err)
		}
		for i, s := range d.steps {
			if phase, _, _ := strings.Cut(s, " "); s != phase+" unchanged" {
				t.Errorf("after a dry run of delete: %s (it was: %s)", s, real[i])
			}
		}
	}
}

func TestPhasesOneByOne(t *testing.T) {
	d := newDesk(t)
	o := d.options()
	d.must(Create, o, []string{"aad-application created", "aad-application created"}, PhaseApplication)
	clientID, objectID := d.result.Identity.ClientID, d.result.Identity.ObjectID

	// Each finds what the others made, by name, client id or object id.
	d.must(Create, Options{Namespace: d.namespace, Name: "payroll", Expiration: 2 * MinExpiration, ApplicationClientID: clientID}, []string{"service-account created"}, PhaseAccount)
	if got := d.account().Annotations["azure.workload.identity/service-account-token-expiration"]; got != "7200" {
		t.Errorf("expiration %q", got)
	}
	d.must(Create, Options{Namespace: d.namespace, Name: "named", Expiration: MinExpiration, ApplicationName: DefaultApplicationName(d.namespace, "payroll", issuer)}, []string{"service-account created"}, PhaseAccount)
	if got := d.result.ServiceAccount.Annotations["azure.workload.identity/tenant-id"]; got != d.cloud.Tenant.ID {
		t.Errorf("tenant %q: an empty one takes AZURE_TENANT_ID from pods", got)
	}
	d.must(Create, Options{Namespace: d.namespace, Name: "payroll", Issuer: issuer, ApplicationObjectID: objectID}, []string{"federated-identity created"}, PhaseFederated)
	d.must(Create, Options{ApplicationClientID: clientID, Scope: d.group(), Role: "acdd72a7-3385-48ef-bd42-f606fba81ae7"}, []string{"role-assignment created"}, PhaseRoleAssignment)
	id := d.result.RoleAssignment.ID
	d.must(Create, o, []string{"role-assignment unchanged"}, PhaseRoleAssignment)
	d.must(Create, Options{PrincipalName: DefaultApplicationName(d.namespace, "payroll", issuer), Scope: d.group(), Role: "reader"}, []string{"role-assignment unchanged"}, PhaseRoleAssignment)

	d.must(Delete, Options{RoleAssignment: id}, []string{"role-assignment deleted"}, PhaseRoleAssignment)
	d.must(Delete, Options{RoleAssignment: id}, []string{"role-assignment absent"}, PhaseRoleAssignment)
	d.must(Delete, o, []string{"federated-identity deleted"}, PhaseFederated)
	d.must(Delete, o, []string{"federated-identity absent"}, PhaseFederated)
	d.must(Delete, Options{ApplicationObjectID: objectID}, []string{"aad-application deleted"}, PhaseApplication)
	d.must(Delete, Options{ApplicationObjectID: objectID}, []string{"aad-application absent"}, PhaseApplication)
	d.must(Delete, Options{ApplicationClientID: clientID}, []string{"aad-application absent"}, PhaseApplication)
	d.must(Delete, o, []string{"service-account deleted"}, PhaseAccount)
}

func TestAnExistingServiceAccountKeepsWhatItHas(t *testing.T) {
	d := newDesk(t)
	before := &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: d.namespace, Name: "payroll",
			Labels: map[string]string{"app": "payroll"}, Annotations: map[string]string{"team": "hr", "azure.workload.identity/client-id": "old"},
		},
		Secrets:          []corev1.ObjectReference{{Name: "legacy"}},
		ImagePullSecrets: []corev1.LocalObjectReference{{Name: "registry"}},
	}
	if err := d.cluster.Create(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	o := Options{Namespace: d.namespace, Name: "payroll", Expiration: MinExpiration, ApplicationClientID: "new"}
	d.must(Create, o, []string{"service-account updated"}, PhaseAccount)
	after := d.account()
	if diff := cmp.Diff(before.Labels, after.Labels) + cmp.Diff(before.Secrets, after.Secrets) + cmp.Diff(before.ImagePullSecrets, after.ImagePullSecrets); diff != "" {
		t.Errorf("(-before +after)\n%s", diff)
	}
	if after.Annotations["team"] != "hr" || after.Annotations["azure.workload.identity/client-id"] != "new" {
		t.Errorf("annotations %v", after.Annotations)
	}
	if detail := d.result.Steps[0].Detail; !strings.Contains(detail, `azure.workload.identity/client-id was "old"`) || !strings.Contains(detail, "restart") {
		t.Errorf("it says %q", detail)
	}
}

func TestANameThatSeveralHaveIsNotGuessed(t *testing.T) {
	d := newDesk(t)
	o := d.options()
	o.ApplicationName = "it's payroll' or displayName ne '"
	d.must(Create, o, []string{"aad-application created", "aad-application created"}, PhaseApplication)
	first := d.result.Identity.ClientID
	d.must(Create, o, []string{"aad-application unchanged", "aad-application unchanged"}, PhaseApplication)
	if first != d.result.Identity.ClientID {
		t.Error("it is another application")
	}
	second, err := d.graph().CreateApplication(t.Context(), graph.Application{DisplayName: o.ApplicationName})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		verb  Verb
		phase string
	}{{Create, PhaseApplication}, {Create, PhaseAccount}, {Create, PhaseFederated}, {Create, PhaseRoleAssignment}, {Delete, PhaseApplication}, {Delete, PhaseFederated}} {
		err := d.run(c.verb, o, c.phase)
		if err == nil || !strings.Contains(err.Error(), "2 applications have the name") || !strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), second.AppID) {
			t.Errorf("%s %s: %v", c.verb, c.phase, err)
		}
	}
	o.ApplicationName, o.ApplicationObjectID = "", second.ID
	d.must(Delete, o, []string{"aad-application deleted"}, PhaseApplication)
}

func TestWhoMayNotIsToldWhatIsMissing(t *testing.T) {
	d := newDesk(t)
	o := d.managed()
	d.must(Create, o, []string{"managed-identity created", "service-account created", "federated-identity created", "role-assignment created"})
	_, d.who = d.cloud.Application("stranger")
	other := o
	other.Scope = d.group() + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/payroll"
	other.Role, other.PrincipalObjectID = "acdd72a7-3385-48ef-bd42-f606fba81ae7", d.result.Identity.PrincipalID
	for _, c := range []struct {
		verb    Verb
		phase   string
		options Options
		want    string
	}{
		{Create, PhaseRoleAssignment, other, "Microsoft.Authorization/roleAssignments/write on " + other.Scope},
		{Create, PhaseFederated, o, "role Reader or Managed Identity Contributor on " + o.IdentityID},
		{Create, PhaseApplication, d.options(), "Application.ReadWrite.OwnedBy"},
		{Create, PhaseIdentity, o, "Managed Identity Contributor"},
		{Delete, PhaseIdentity, o, "Managed Identity Contributor"},
	} {
		err := d.run(c.verb, c.options, c.phase)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s %s: got %v, want %s", c.verb, c.phase, err, c.want)
		}
		if len(d.steps) > 0 {
			t.Errorf("%s %s: it says %q", c.verb, c.phase, d.steps)
		}
	}
}

func TestAnIdentityOfOthersIsNotDeleted(t *testing.T) {
	d := newDesk(t)
	o := d.managed()
	d.cloud.Do("PUT", o.IdentityID, map[string]any{"location": "westeurope", "tags": map[string]string{"team": "hr"}}, nil)
	d.must(Create, o, []string{"managed-identity unchanged", "service-account created", "federated-identity created", "role-assignment created"})
	d.must(Delete, o, []string{"role-assignment deleted", "federated-identity deleted", "service-account deleted", "managed-identity kept"})
	if !strings.Contains(d.result.Steps[3].Detail, "az identity delete --ids "+o.IdentityID) {
		t.Error(d.result.Steps[3].Detail)
	}
}

func TestAForeignCredentialThatDoesTheSameIsEnough(t *testing.T) {
	d := newDesk(t)
	o := d.managed()
	d.must(Create, o, []string{"managed-identity created"}, PhaseIdentity)
	d.cloud.Do("PUT", o.IdentityID+"/federatedIdentityCredentials/theirs", map[string]any{"properties": map[string]any{
		"issuer": issuer, "subject": federated.Subject(d.namespace, "payroll"), "audiences": []string{federated.Audience},
	}}, nil)
	d.must(Create, o, []string{"federated-identity unchanged"}, PhaseFederated)
	if got := d.result.FederatedCredential.Name; got != "theirs" {
		t.Errorf("it names %q", got)
	}
	d.must(Delete, o, []string{"federated-identity deleted"}, PhaseFederated) // azwi names its own differently
	d.must(Delete, o, []string{"federated-identity absent"}, PhaseFederated)
}

func TestAtTheLimitItSaysSo(t *testing.T) {
	d := newDesk(t)
	o := d.managed()
	d.must(Create, o, []string{"managed-identity created"}, PhaseIdentity)
	for i := range federated.MaxPerParent {
		d.cloud.Do("PUT", o.IdentityID+"/federatedIdentityCredentials/other-"+string(rune('a'+i)), map[string]any{"properties": map[string]any{
			"issuer": issuer, "subject": "system:serviceaccount:other:" + string(rune('a'+i)), "audiences": []string{federated.Audience},
		}}, nil)
	}
	err := d.run(Create, o, PhaseFederated)
	if err == nil || !strings.Contains(err.Error(), "20 federated credentials, which is Azure's limit") || !strings.Contains(err.Error(), "another identity") {
		t.Error(err)
	}
}

func TestWhatDoesNotExistIsNamed(t *testing.T) {
	d := newDesk(t)
	for _, c := range []struct {
		name  string
		edit  func(*Options)
		phase string
		want  string
	}{
		{"the namespace", func(o *Options) { o.Namespace, o.ApplicationClientID = "nowhere", "x" }, PhaseAccount, "kubectl create namespace nowhere"},
		{"the role", func(o *Options) { o.Role = "Payroll Clerk" }, PhaseRoleAssignment, `no role "Payroll Clerk"`},
		{"the application", func(o *Options) { o.ApplicationName = "nobody" }, PhaseFederated, `no application "nobody"`},
		{"the service principal", func(o *Options) { o.PrincipalName = "nobody" }, PhaseRoleAssignment, `no service principal "nobody"`},
		{"the resource group", func(o *Options) {
			o.IdentityID = strings.Replace(d.managed().IdentityID, "/rg/", "/nowhere/", 1)
		}, PhaseIdentity, "az group create --name nowhere"},
		{"the managed identity", func(o *Options) { o.IdentityID = d.managed().IdentityID }, PhaseFederated, "does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := d.options()
			c.edit(&o)
			if err := d.run(Create, o, c.phase); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

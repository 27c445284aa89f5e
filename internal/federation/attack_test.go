package federation_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/federation"
)

func TestWithoutAPolicyNothingIsAllowedAndNothingIsAsked(t *testing.T) {
	w := newWorld(t)
	p := w.identity("secret")
	w.run()
	w.account("web", p.ClientID)
	w.byHand("by-id", lanyard.FederatedIdentitySpec{ServiceAccountName: "web", ResourceID: p.ResourceID})
	w.byHand("none", lanyard.FederatedIdentitySpec{ServiceAccountName: "web", ClientID: "00000000-0000-0000-0000-000000000001"})
	for _, name := range []string{"web", "by-id", "none"} {
		w.await(name, "Accepted=False NotAllowed")
		w.await(name, "Created=False NotAccepted")
		w.await(name, "Ready=False NotAllowed")
	}
	w.awaitEvent("ServiceAccount", "web", "NotAllowed", "FederationPolicies can allow it with")
	w.awaitCredentials(p)
	if w.azure.count("find "+p.ClientID)+w.azure.count("find "+p.ResourceID) > 0 {
		t.Error("Azure was asked about an identity that nobody may have")
	}
}

func TestAPolicyNamesAnIdentityInAnyWay(t *testing.T) {
	w := newWorld(t)
	p, app := w.identity("web"), w.application("app")
	w.run()
	group, _, _ := strings.Cut(p.ResourceID, "/providers/")
	w.allow(lanyard.PolicyIdentity{ResourceGroup: group})
	w.account("in", p.ClientID)
	w.account("out", app.ClientID)
	w.account("nobody", "00000000-0000-0000-0000-000000000001")
	w.await("in", "Ready=True Ready")
	outside := w.await("out", "Accepted=False NotAllowed")
	nobody := w.await("nobody", "Accepted=False NotAllowed")
	// Whether an identity exists is not for those who may not have it.
	text := func(f *lanyard.FederatedIdentity) string {
		m := meta.FindStatusCondition(f.Status.Conditions, lanyard.ConditionAccepted).Message
		return strings.NewReplacer(f.Spec.ClientID, "ID", f.Spec.ServiceAccountName, "SA").Replace(m)
	}
	if text(outside) != text(nobody) {
		t.Errorf("%q tells more than %q", text(outside), text(nobody))
	}
}

func TestAPolicyThatIsTakenBackTakesTheCredential(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	allowed := w.allow(byClient(p))
	w.run()
	w.account("web", p.ClientID)
	w.await("web", "Ready=True Ready")
	if err := w.Delete(t.Context(), allowed); err != nil {
		t.Fatal(err)
	}
	w.await("web", "Accepted=False NotAllowed")
	w.awaitCredentials(p)
	w.await("web", "Created=False NotAccepted")
	w.eventually(func() error {
		f, err := w.get("web")
		if err == nil && (f.Status.UsableSince != nil || f.Status.CredentialName != "" || len(f.Finalizers) > 0) {
			err = fmt.Errorf("status %+v, finalizers %q", f.Status, f.Finalizers)
		}
		return err
	})
	w.allow(byClient(p))
	w.await("web", "Ready=True Ready")
}

func TestAnotherTenantIsRefused(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	w.allow(byClient(p))
	w.run()
	w.make(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "web", Annotations: map[string]string{
		workloadidentity.AnnotationClientID: p.ClientID, workloadidentity.AnnotationTenantID: "00000000-0000-0000-0000-00000000bad0",
	}}})
	w.await("web", "Accepted=False OtherTenant")
	w.awaitCredentials(p)
}

func TestAnnotationsThatMakeNoSenseAreTold(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.account("web", "../../applications")
	w.awaitEvent("ServiceAccount", "web", "InvalidAnnotation", "is not a client id")
	if _, err := w.get("web"); !apierrors.IsNotFound(err) {
		t.Errorf("an object was made: %v", err)
	}
}

func TestTheSchemaRefuses(t *testing.T) {
	w := newWorld(t)
	const group = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/g"
	const identity = group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"
	const id = "c0ffee00-0000-0000-0000-000000000001"
	for name, tc := range map[string]struct {
		spec    lanyard.FederatedIdentitySpec
		refused string
	}{
		"a client id":                  {lanyard.FederatedIdentitySpec{ServiceAccountName: "a", ClientID: id}, ""},
		"a resource id":                {lanyard.FederatedIdentitySpec{ServiceAccountName: "a", ResourceID: identity + "web"}, ""},
		"both":                         {lanyard.FederatedIdentitySpec{ServiceAccountName: "a", ClientID: id, ResourceID: identity + "web"}, "exactly one"},
		"neither":                      {lanyard.FederatedIdentitySpec{ServiceAccountName: "a"}, "exactly one"},
		"a client id that is a path":   {lanyard.FederatedIdentitySpec{ServiceAccountName: "a", ClientID: "../" + id[3:]}, "clientID"},
		"a resource id with dots":      {lanyard.FederatedIdentitySpec{ServiceAccountName: "a", ResourceID: identity + "../x"}, "resourceID"},
		"a resource id with a query":   {lanyard.FederatedIdentitySpec{ServiceAccountName: "a", ResourceID: identity + "x?a=b"}, "resourceID"},
		"a resource id of a vault":     {lanyard.FederatedIdentitySpec{ServiceAccountName: "a", ResourceID: group + "/providers/Microsoft.KeyVault/vaults/x"}, "resourceID"},
		"a resource id below another":  {lanyard.FederatedIdentitySpec{ServiceAccountName: "a", ResourceID: identity + "x/federatedIdentityCredentials/y"}, "resourceID"},
		"a tenant that is a host":      {lanyard.FederatedIdentitySpec{ServiceAccountName: "a", ClientID: id, TenantID: "attacker.example"}, "tenantID"},
		"a name no account can have":   {lanyard.FederatedIdentitySpec{ServiceAccountName: "A_b", ClientID: id}, "serviceAccountName"},
		"a name of another namespace":  {lanyard.FederatedIdentitySpec{ServiceAccountName: "a:b", ClientID: id}, "serviceAccountName"},
		"a name with dots":             {lanyard.FederatedIdentitySpec{ServiceAccountName: "a.b-c", ClientID: id}, ""},
		"nobody's identity":            {lanyard.FederatedIdentitySpec{ClientID: id}, "serviceAccountName"},
		"an escaped character in a id": {lanyard.FederatedIdentitySpec{ServiceAccountName: "a", ResourceID: strings.Replace(identity, "/g/", "/g%2f/", 1) + "x"}, "resourceID"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &lanyard.FederatedIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, GenerateName: "f-"}, Spec: tc.spec}
			err := w.Create(t.Context(), f, client.DryRunAll)
			if tc.refused == "" && err != nil || tc.refused != "" && (err == nil || !strings.Contains(err.Error(), tc.refused)) {
				t.Errorf("%v, want %q", err, tc.refused)
			}
		})
	}
	f := w.byHand("f", lanyard.FederatedIdentitySpec{ServiceAccountName: "a", ClientID: id})
	next := f.DeepCopy()
	next.Spec.ServiceAccountName = "b"
	if err := w.Patch(t.Context(), next, client.MergeFrom(f)); err == nil || !strings.Contains(err.Error(), "cannot be changed") {
		t.Errorf("the spec was changed: %v", err)
	}
	p := &lanyard.FederationPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: lanyard.FederationPolicySpec{Identities: []lanyard.PolicyIdentity{{ClientID: id}}}}
	if err := w.Create(t.Context(), p, client.DryRunAll); err == nil || !strings.Contains(err.Error(), "say which namespaces") {
		t.Errorf("a policy for nobody: %v", err)
	}
}

// Who may write in a namespace writes a FederatedIdentity for a service account
// that is not there, twice for one that is, and a status that is a lie.
func TestLiesInStatusAndSecondClaimsChangeNothing(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	victim := w.identity("victim")
	w.put(victim, federated.Credential{Name: "precious", Issuer: "https://elsewhere.example", Subject: "s", Audience: federated.Audience})
	w.allow(byClient(p))
	w.run()
	w.account("web", p.ClientID)
	w.await("web", "Ready=True Ready")
	w.byHand("absent", lanyard.FederatedIdentitySpec{ServiceAccountName: "absent", ClientID: p.ClientID})
	w.await("absent", "Created=False NoServiceAccount")
	second := w.byHand("zz-second", lanyard.FederatedIdentitySpec{ServiceAccountName: "web", ResourceID: p.ResourceID})
	w.await("zz-second", "Created=False Duplicate")
	lying, err := w.get("zz-second")
	if err != nil {
		t.Fatal(err)
	}
	lie := lying.DeepCopy()
	now := metav1.Now()
	lie.Status.ParentID, lie.Status.CredentialName, lie.Status.UsableSince = victim.ResourceID, "precious", &now
	meta.SetStatusCondition(&lie.Status.Conditions, metav1.Condition{Type: lanyard.ConditionCreated, Status: metav1.ConditionTrue, Reason: "Created"})
	meta.SetStatusCondition(&lie.Status.Conditions, metav1.Condition{Type: lanyard.ConditionUsable, Status: metav1.ConditionTrue, Reason: "Exchanged"})
	if err := w.Status().Patch(t.Context(), lie, client.MergeFrom(lying)); err != nil {
		t.Fatal(err)
	}
	w.eventually(func() error {
		f, err := w.get("zz-second")
		if err == nil && (f.Status.UsableSince != nil || f.Status.ParentID != "") {
			err = errors.New("the lie is still there")
		}
		return err
	})
	w.await("zz-second", "Created=False Duplicate")
	if err := w.Delete(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	w.awaitGone("zz-second")
	w.awaitCredentials(p, "web")
	w.awaitCredentials(victim, "s https://elsewhere.example")
}

func TestTheAdmissionPolicyPinsTheTokensOfTheProbe(t *testing.T) {
	w := newWorld(t)
	c, err := client.New(w.asController(), client.Options{Scheme: w.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "default"}}
	ask := func(seconds int64, audiences ...string) error {
		return c.SubResource("token").Create(t.Context(), sa.DeepCopy(), &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences, ExpirationSeconds: &seconds}})
	}
	w.eventually(func() error { // a new policy takes a moment
		if err := ask(600, "https://kubernetes.default.svc"); !apierrors.IsForbidden(err) {
			return errors.Join(errors.New("a token for another audience was made"), err)
		}
		return nil
	})
	for name, err := range map[string]error{
		"no audience":     ask(600),
		"two audiences":   ask(600, federated.Audience, "https://kubernetes.default.svc"),
		"a long lifetime": ask(3600, federated.Audience),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := ask(600, federated.Audience); err != nil {
		t.Error(err)
	}
}

func TestNobodyElseIsBoundByTheAdmissionPolicy(t *testing.T) {
	w := newWorld(t)
	hour := int64(3600)
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "default"}}
	if err := w.SubResource("token").Create(t.Context(), sa, &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"x"}, ExpirationSeconds: &hour}}); err != nil {
		t.Error(err)
	}
}

func TestPeopleMayWriteClaimsButNoPoliciesAndNoStatus(t *testing.T) {
	w := newWorld(t)
	config := cluster.Config(t)
	config.Impersonate = rest.ImpersonationConfig{UserName: "dev-" + w.ns}
	dev, err := client.New(config, client.Options{Scheme: w.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	w.bind("lanyard-federation-editor", "dev-"+w.ns)
	f := &lanyard.FederatedIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "mine"}, Spec: lanyard.FederatedIdentitySpec{ServiceAccountName: "default", ClientID: "c0ffee00-0000-0000-0000-000000000001"}}
	w.eventually(func() error { return dev.Create(t.Context(), f) })
	lie := f.DeepCopy()
	lie.Status.ClientID = "x"
	if err := dev.Status().Patch(t.Context(), lie, client.MergeFrom(f)); !apierrors.IsForbidden(err) {
		t.Errorf("a person wrote a status: %v", err)
	}
	p := &lanyard.FederationPolicy{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: lanyard.FederationPolicySpec{Namespaces: []string{w.ns}, Identities: []lanyard.PolicyIdentity{{ClientID: f.Spec.ClientID}}}}
	if err := dev.Create(t.Context(), p); !apierrors.IsForbidden(err) {
		t.Errorf("a person of a namespace wrote a policy: %v", err)
	}
}

func TestAzureGoneDoesNotHoldUpDeletionForEver(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	w.allow(byClient(p))
	stop := w.run()
	w.account("web", p.ClientID)
	w.await("web", "Ready=True Ready")
	stop()
	w.azure.set(func(string, federated.Parent, string) error { return errors.New("dial tcp: no route to host") })
	f, err := w.get("web")
	if err != nil {
		t.Fatal(err)
	}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "web"}}
	if err := errors.Join(w.Delete(t.Context(), sa), w.Delete(t.Context(), f)); err != nil {
		t.Fatal(err)
	}
	stop = w.run(func(c *federation.Config) { c.AbandonAfter = time.Hour })
	w.await("web", "Created=Unknown AzureError")
	w.await("web", "Ready=False Removing")
	stop()
	w.run(func(c *federation.Config) { c.AbandonAfter = time.Nanosecond })
	w.awaitGone("web")
	w.awaitEvent("FederatedIdentity", "web", "Abandoned", "left behind")
	w.azure.set(nil)
	w.awaitCredentials(p, "web")
}

func TestAnIdentityThatIsGoneIsDone(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	w.allow(byClient(p))
	w.run(func(c *federation.Config) { c.Interval = 100 * time.Millisecond })
	w.account("web", p.ClientID)
	w.await("web", "Ready=True Ready")
	w.cloud.Do("DELETE", p.ResourceID, nil, nil)
	w.await("web", "Created=False IdentityNotFound")
	w.awaitEvent("ServiceAccount", "web", "IdentityNotFound", "check the id")
	w.remove("web")
}

// The controller is killed after each write to Azure, before it can note that.
func TestKilledBetweenAzureAndStatusNothingIsLost(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	w.allow(byClient(p))
	killed := make(chan struct{}, 1)
	ctx, kill := context.WithCancel(t.Context())
	w.azure.after = func(string) {
		kill()
		select {
		case killed <- struct{}{}:
		default:
		}
	}
	start := func() {
		w.azure.open()
		done := make(chan error, 1)
		go func() { done <- federation.Run(ctx, w.config()) }()
		select {
		case <-killed:
		case <-time.After(30 * time.Second):
			t.Fatal("nothing was written to Azure")
		}
		if err := <-done; err != nil {
			t.Errorf("the controller ended with %v", err)
		}
	}
	w.account("web", p.ClientID)
	start()
	w.awaitCredentials(p, "web")
	if f, err := w.get("web"); err != nil || meta.IsStatusConditionTrue(f.Status.Conditions, lanyard.ConditionCreated) {
		t.Fatalf("it was not killed in time: %v", err)
	}
	w.azure.after = nil
	stop := w.run()
	w.await("web", "Ready=True Ready")
	if n := w.azure.count("put web"); n != 1 {
		t.Errorf("%d writes", n)
	}
	stop()

	ctx, kill = context.WithCancel(t.Context())
	w.azure.after = func(string) { kill(); killed <- struct{}{} }
	f, err := w.get("web")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Delete(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "web"}}), w.Delete(t.Context(), f)); err != nil {
		t.Fatal(err)
	}
	start()
	w.awaitCredentials(p)
	if _, err := w.get("web"); err != nil {
		t.Fatalf("the object went before the controller knew: %v", err)
	}
	w.azure.after = nil
	w.run()
	w.awaitGone("web")
}

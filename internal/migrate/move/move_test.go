package move

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/migrate"
	"github.com/lanyard-id/lanyard/internal/migrate/move/survey"
	"github.com/lanyard-id/lanyard/internal/token"
	"github.com/lanyard-id/lanyard/internal/webhook"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

var cluster = labtest.Cluster{CRDs: deploy.FS}

const (
	tenant     = "33333333-0000-0000-0000-000000000001"
	clientID   = "22222222-0000-0000-0000-000000000001"
	principal  = "44444444-0000-0000-0000-000000000001"
	resourceID = "/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/blue"
)

// A fakeAzure has one managed identity, and gives tokens of it to whom its
// credentials say.
type fakeAzure struct {
	mu          sync.Mutex
	credentials []federated.Credential
	oid         string
}

func (f *fakeAzure) parent() federated.Parent {
	return federated.Parent{Kind: federated.ManagedIdentity, ResourceID: resourceID, ClientID: clientID, TenantID: tenant, PrincipalID: principal}
}

func (f *fakeAzure) Find(context.Context, string) (federated.Parent, error) {
	return federated.Parent{}, federated.ErrNotFound
}

func (f *fakeAzure) FindResource(context.Context, string) (federated.Parent, error) {
	return f.parent(), nil
}

func (f *fakeAzure) List(context.Context, federated.Parent) ([]federated.Credential, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.credentials), nil
}

func (f *fakeAzure) Put(_ context.Context, _ federated.Parent, c federated.Credential) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.credentials = append(f.credentials, c)
	return nil
}

func (f *fakeAzure) Delete(_ context.Context, _ federated.Parent, name string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.credentials)
	f.credentials = slices.DeleteFunc(f.credentials, func(c federated.Credential) bool { return c.Name == name })
	return len(f.credentials) < before, nil
}

// Token is the token endpoint: it looks at the assertion's subject and audience.
func (f *fakeAzure) Token(_ context.Context, app entra.Application, cred entra.Credential, _ string) (token.Token, error) {
	form, err := cred.Form(app.ClientID, "", time.Now())
	if err != nil {
		return token.Token{}, err
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(form.Get("client_assertion"), ".")[1])
	if err != nil {
		return token.Token{}, err
	}
	var claims struct {
		Sub string   `json:"sub"`
		Aud []string `json:"aud"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return token.Token{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.ContainsFunc(f.credentials, func(c federated.Credential) bool {
		return c.Subject == claims.Sub && slices.Contains(claims.Aud, c.Audience)
	}) {
		return token.Token{}, &entra.Refusal{Status: 401, Name: "invalid_client", Text: "AADSTS700213: no matching federated identity record", Codes: []int{700213}}
	}
	body := fmt.Sprintf(`{"appid":%q,"oid":%q,"tid":%q}`, app.ClientID, f.oid, app.Tenant)
	return token.Token{AccessToken: "e30." + base64.RawURLEncoding.EncodeToString([]byte(body)) + ".s"}, nil
}

// accounts reads service accounts for the webhook.
type accounts struct{ kube kubernetes.Interface }

func (a accounts) ServiceAccount(ctx context.Context, namespace, name string) (mutation.ServiceAccount, error) {
	sa, err := a.kube.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return mutation.ServiceAccount{}, err
	}
	return mutation.ServiceAccount{Namespace: namespace, Name: name, Annotations: sa.Annotations}, nil
}

// A bed is a namespace with a workload of Pod Identity, whose webhook is real.
type bed struct {
	*Mover
	azure     *fakeAzure
	namespace string
	kube      kubernetes.Interface
}

func pemOf(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newBed(t *testing.T, objects ...runtime.Object) *bed {
	t.Helper()
	m, err := New(cluster.Config(t))
	must(t, err)
	b := &bed{Mover: m, azure: &fakeAzure{oid: principal}, namespace: cluster.Namespace(t), kube: m.Kube}
	m.Azure, m.Writer, m.Entra, m.Timeout = b.azure, b.azure, b.azure, 20*time.Second
	b.serveWebhook(t)
	meta := metav1.ObjectMeta{Name: "blue", Namespace: b.namespace}
	id := &v1.AzureIdentity{ObjectMeta: meta, Spec: v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: clientID}}
	b.create(t, v1.GroupVersion().String(), "AzureIdentity", "azureidentities", id)
	b.create(t, v1.GroupVersion().String(), "AzureIdentityBinding", "azureidentitybindings", &v1.AzureIdentityBinding{ObjectMeta: meta, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "blue", Selector: "blue"}})
	_, err = b.kube.CoreV1().ServiceAccounts(b.namespace).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "app", Annotations: map[string]string{"mine": "too"}}}, metav1.CreateOptions{})
	must(t, err)
	return b
}

func (b *bed) create(t *testing.T, api, kind, resource string, o any) {
	t.Helper()
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	must(t, err)
	u := &unstructured.Unstructured{Object: raw}
	u.SetAPIVersion(api)
	u.SetKind(kind)
	_, err = b.Objects.Resource(v1.GroupVersion().WithResource(resource)).Namespace(b.namespace).Create(t.Context(), u, metav1.CreateOptions{})
	must(t, err)
}

// serveWebhook registers the real webhook for the namespace.
func (b *bed) serveWebhook(t *testing.T) {
	t.Helper()
	s := httptest.NewTLSServer(&webhook.Handler{
		ServiceAccounts: accounts{b.kube}, Logger: slog.New(slog.DiscardHandler),
		Config: mutation.Config{TenantID: tenant, AuthorityHost: "https://login.microsoftonline.com/", Audience: workloadidentity.Audience, Proxy: mutation.Proxy{Image: "lanyard/proxy:dev", InitImage: "lanyard/proxy-init:dev"}},
	})
	t.Cleanup(s.Close)
	url, fail, none := s.URL+"/", admissionv1.Fail, admissionv1.SideEffectClassNone
	c := &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: b.namespace},
		Webhooks: []admissionv1.MutatingWebhook{{
			Name: workloadidentity.WebhookName, AdmissionReviewVersions: []string{"v1"}, SideEffects: &none, FailurePolicy: &fail,
			ClientConfig:      admissionv1.WebhookClientConfig{URL: &url, CABundle: pemOf(s)},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": b.namespace}},
			ObjectSelector:    &metav1.LabelSelector{MatchLabels: map[string]string{workloadidentity.LabelUse: "true"}},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		}},
	}
	hooks := b.kube.AdmissionregistrationV1().MutatingWebhookConfigurations()
	_, err := hooks.Create(t.Context(), c, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		if err := hooks.Delete(context.WithoutCancel(t.Context()), c.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// deploy makes a deployment without pods: this cluster has no node.
func (b *bed) deploy(t *testing.T, name, account, label string) {
	t.Helper()
	labels := map[string]string{"app": name}
	pods := map[string]string{"app": name}
	if label != "" {
		pods[v1.BindingLabel] = label
	}
	_, err := b.kube.AppsV1().Deployments(b.namespace).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"owner": "me"}},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: pods},
				Spec:       corev1.PodSpec{ServiceAccountName: account, Containers: []corev1.Container{{Name: "main", Image: "x"}}},
			},
		},
	}, metav1.CreateOptions{})
	must(t, err)
}

func (b *bed) plan(t *testing.T, edit func(*migrate.Options)) migrate.Plan {
	t.Helper()
	o := migrate.Options{Namespace: b.namespace, Issuer: "https://issuer.example/", TenantID: tenant, AllowUnproven: true}
	if edit != nil {
		edit(&o)
	}
	w, err := b.Read(t.Context(), o)
	must(t, err)
	return migrate.Make(w, o)
}

// snapshot is everything that a migration might touch.
func (b *bed) snapshot(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, kind := range []string{"Deployment", migrate.KindServiceAccount, migrate.KindRoleBinding} {
		gvr, _ := migrate.ResourceOf(kind)
		list, err := survey.List(t.Context(), b.Objects, gvr, b.namespace, kind)
		must(t, err)
		for _, o := range list {
			all[kind+"/"+o.GetName()] = string(text(t, o))
		}
	}
	secrets, err := b.kube.CoreV1().Secrets(b.namespace).List(t.Context(), metav1.ListOptions{})
	must(t, err)
	for _, s := range secrets.Items {
		all["Secret/"+s.Name] = string(s.Type)
	}
	list, err := b.azure.List(t.Context(), federated.Parent{})
	must(t, err)
	for _, c := range list {
		all["Credential/"+c.Name] = c.Subject
	}
	return all
}

func text(t *testing.T, o *unstructured.Unstructured) []byte {
	t.Helper()
	raw, err := json.Marshal(migrate.Canonical(o).Object)
	must(t, err)
	return raw
}

func (b *bed) back(t *testing.T, e Edits) error {
	t.Helper()
	return b.Rollback(t.Context(), Rollback{Namespace: b.namespace, Edits: e, Issuer: "https://issuer.example/"})
}

func TestAMigrationMayBeInterruptedAnywhere(t *testing.T) {
	for calls := 1; ; calls++ {
		b := newBed(t)
		b.deploy(t, "api", "app", "blue")
		b.deploy(t, "web", "app", "blue")
		before := b.snapshot(t)
		ended := b.interruptedAfter(t, calls)
		if calls%2 == 0 { // and goes on
			must(t, b.Apply(t.Context(), b.plan(t, nil)))
			p := b.plan(t, nil)
			if len(p.Changes)+len(p.Credentials) > 0 {
				t.Errorf("after %d steps and the rest, there is still something to do: %+v", calls, p)
			}
		}
		if records, err := b.Records(t.Context(), b.namespace); err != nil {
			t.Error(err)
		} else if len(records) > 0 {
			must(t, b.back(t, RefuseEdits))
		}
		if diff := cmp.Diff(before, b.snapshot(t)); diff != "" {
			t.Errorf("interrupted after %d steps and rolled back:\n%s", calls, diff)
		}
		if ended {
			return
		}
		if calls > 30 {
			t.Fatal("it never ends")
		}
	}
}

// interruptedAfter applies until it has told of so many steps; it reports whether
// that was the end.
func (b *bed) interruptedAfter(t *testing.T, steps int) bool {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := b.plan(t, nil)
	n := 0
	b.Step = func(string, ...any) {
		if n++; n == steps {
			cancel()
		}
	}
	err := b.Apply(ctx, p)
	b.Step = nil
	if err != nil && ctx.Err() == nil {
		t.Fatal(err)
	}
	return err == nil
}

func TestEditsOfOthersAreNotOverwritten(t *testing.T) {
	b := newBed(t)
	b.deploy(t, "api", "app", "blue")
	before := b.snapshot(t)
	must(t, b.Apply(t.Context(), b.plan(t, nil)))
	edit := func(image string) {
		d, err := b.kube.AppsV1().Deployments(b.namespace).Get(t.Context(), "api", metav1.GetOptions{})
		must(t, err)
		d.Spec.Template.Spec.Containers[0].Image = image
		_, err = b.kube.AppsV1().Deployments(b.namespace).Update(t.Context(), d, metav1.UpdateOptions{})
		must(t, err)
	}
	edit("new")
	now := b.snapshot(t)
	if err := b.back(t, RefuseEdits); !errors.Is(err, ErrEdited) || !strings.Contains(err.Error(), "image: new") {
		t.Errorf("refused: %v", err)
	}
	if diff := cmp.Diff(now, b.snapshot(t)); diff != "" {
		t.Errorf("a refused rollback changes something:\n%s", diff)
	}
	must(t, b.back(t, KeepEdits))
	want := before
	want["Deployment/api"] = strings.Replace(before["Deployment/api"], `"image":"x"`, `"image":"new"`, 1)
	if diff := cmp.Diff(want, b.snapshot(t)); diff != "" {
		t.Errorf("with --keep-edits:\n%s", diff)
	}

	must(t, b.Apply(t.Context(), b.plan(t, nil)))
	edit("newer")
	must(t, b.back(t, OverwriteEdits))
	if diff := cmp.Diff(want, b.snapshot(t)); diff != "" {
		t.Errorf("with --force:\n%s", diff)
	}

	// What is edited between two runs of apply belongs to the workload.
	must(t, b.Apply(t.Context(), b.plan(t, nil)))
	edit("newest")
	must(t, b.Apply(t.Context(), b.plan(t, func(o *migrate.Options) { o.Proxy = migrate.ProxyAlways; o.Finish = true })))
	must(t, b.back(t, RefuseEdits))
	want["Deployment/api"] = strings.Replace(want["Deployment/api"], `"image":"new"`, `"image":"newest"`, 1)
	if diff := cmp.Diff(want, b.snapshot(t)); diff != "" {
		t.Errorf("after an edit and --finish:\n%s", diff)
	}
}

func TestScalingIsNoEdit(t *testing.T) {
	b := newBed(t)
	b.deploy(t, "api", "app", "blue")
	must(t, b.Apply(t.Context(), b.plan(t, nil)))
	d, err := b.kube.AppsV1().Deployments(b.namespace).Get(t.Context(), "api", metav1.GetOptions{})
	must(t, err)
	two := int32(2)
	d.Spec.Replicas, d.Spec.Paused = &two, false
	_, err = b.kube.AppsV1().Deployments(b.namespace).Update(t.Context(), d, metav1.UpdateOptions{})
	must(t, err)
	b.Timeout = time.Second // no pod ever becomes available here
	if err := b.back(t, RefuseEdits); err == nil || errors.Is(err, ErrEdited) {
		t.Errorf("%v", err)
	}
	d, err = b.kube.AppsV1().Deployments(b.namespace).Get(t.Context(), "api", metav1.GetOptions{})
	must(t, err)
	if _, moved := d.Spec.Template.Labels[workloadidentity.LabelUse]; moved || *d.Spec.Replicas != 2 {
		t.Errorf("%d replicas, %v", *d.Spec.Replicas, d.Spec.Template.Labels)
	}
}

func TestANewAccountHasTheRightsOfTheOldOne(t *testing.T) {
	b := newBed(t)
	b.deploy(t, "api", "app", "blue")
	b.deploy(t, "plain", "app", "")
	_, err := b.kube.RbacV1().RoleBindings(b.namespace).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "view"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "app", Namespace: b.namespace}},
	}, metav1.CreateOptions{})
	must(t, err)
	before := b.snapshot(t)
	if p := b.plan(t, nil); len(p.Left) != 1 || p.Left[0].Reason != migrate.RoleBindings {
		t.Fatalf("%+v", p.Left)
	}
	must(t, b.Apply(t.Context(), b.plan(t, func(o *migrate.Options) { o.CopyRBAC = true })))
	now := b.snapshot(t)
	if !strings.Contains(now["RoleBinding/view"], `"name":"app-blue"`) || !strings.Contains(now["Deployment/api"], `"serviceAccountName":"app-blue"`) || !strings.Contains(now["Deployment/plain"], `"serviceAccountName":"app"`) {
		t.Errorf("%v", now)
	}
	verdicts, err := b.Verify(t.Context(), b.namespace, nil)
	must(t, err)
	if len(verdicts) != 1 || !verdicts[0].OK || verdicts[0].Tokens[0].ObjectID != principal || len(verdicts[0].Notes) != 1 {
		t.Errorf("%+v", verdicts)
	}
	b.azure.oid = "somebody else"
	if verdicts, err = b.Verify(t.Context(), b.namespace, nil); err != nil || verdicts[0].OK || !strings.Contains(verdicts[0].Problems[0], "object id is somebody else") {
		t.Errorf("%+v, %v", verdicts, err)
	}
	must(t, b.back(t, RefuseEdits))
	if diff := cmp.Diff(before, b.snapshot(t)); diff != "" {
		t.Error(diff)
	}
}

func TestAWorkloadIsNotTouchedBeforeTheExchangeWorks(t *testing.T) {
	b := newBed(t)
	b.deploy(t, "api", "app", "blue")
	before := b.snapshot(t)
	b.Timeout = time.Second
	b.azure.oid = "another"
	if err := b.Apply(t.Context(), b.plan(t, nil)); err == nil || !strings.Contains(err.Error(), "no workload was touched") {
		t.Errorf("a token of another identity: %v", err)
	}
	b.azure.oid, b.Writer = principal, deaf{}
	b.azure.credentials = nil
	if err := b.Apply(t.Context(), b.plan(t, nil)); err == nil || !strings.Contains(err.Error(), "AADSTS700213") {
		t.Errorf("no credential: %v", err)
	}
	if got := b.snapshot(t)["Deployment/api"]; got != before["Deployment/api"] {
		t.Errorf("%s", got)
	}
	b.Writer = b.azure
	must(t, b.back(t, RefuseEdits))
	if diff := cmp.Diff(before, b.snapshot(t)); diff != "" {
		t.Error(diff)
	}
}

// deaf makes no credential.
type deaf struct{}

func (deaf) Put(context.Context, federated.Parent, federated.Credential) error { return nil }

func (deaf) Delete(context.Context, federated.Parent, string) (bool, error) { return false, nil }

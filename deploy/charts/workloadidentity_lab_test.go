package charts_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

const (
	kindWebhooks   = "admissionregistration.k8s.io/v1 MutatingWebhookConfiguration"
	kindDeployment = "apps/v1 Deployment"
)

// Someone who runs v1.6 swaps the chart: pods before, during and after it get
// their identity.
func workloadIdentityOnTheLab(w *world, l *labHandle) {
	manifests, err := deploy.Manifests("webhook")
	if err != nil {
		w.Fatal(err)
	}
	w.remove(parse(w, manifests[0])) // the lab's own
	w.federated(l)
	done := w.steps()

	w.installV16(l.env["AZURE_TENANT_ID"])
	labtest.Eventually(w, w.Context(), func() error { // the node learns of the first endpoints
		return w.tryCreating(w.Context(), l, "none-yet")
	})
	done("installed as v1.6")
	w.succeeds(l.labelled("before"))
	done("a pod had a token")
	before := w.state()

	stop := w.keepCreating(l)
	if err := w.upgrade(workloadIdentity.load(w), values(w, "{}")); err != nil {
		w.Errorf("upgrading: %v", err)
	}
	done("upgraded")
	if n := stop(); n < 10 {
		w.Errorf("only %d pods were created meanwhile", n)
	}
	if d := cmp.Diff(before, w.state()); d != "" {
		w.Errorf("the upgrade replaced what it should keep (-before +after)\n%s", d)
	}
	w.asRendered(workloadIdentity, values(w, "azureTenantID: "+l.env["AZURE_TENANT_ID"]))
	if n := w.deployment("status", "availableReplicas"); n != 2 {
		w.Errorf("%d replicas are available", n)
	}
	w.succeeds(l.labelled("after"))
	done("a pod had a token")

	stop = w.keepCreating(l)
	if err := w.upgrade(workloadIdentity.load(w), values(w, "{service: {targetPort: 10250}, tokenLayout: legacy}")); err != nil {
		w.Errorf("changing the port: %v", err)
	}
	stop()
	done("the port was changed")
	w.succeeds(l.labelled("legacy"))

	w.uninstall()
	done("uninstalled")
	for _, o := range parse(w, manifests[0]) {
		if o.GetKind() != "Namespace" { // which Helm did not make, or leaves
			w.gone(o.GetAPIVersion()+" "+o.GetKind(), o.GetName())
		}
	}
}

// federated makes the service account of the pods, and its credential.
func (w *world) federated(l *labHandle) {
	w.Helper()
	text, err := w.kube.RESTClient().Get().AbsPath("/.well-known/openid-configuration").DoRaw(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	var discovery struct{ Issuer string }
	if err := json.Unmarshal(text, &discovery); err != nil {
		w.Fatal(err)
	}
	saman := l.identity("saman-cluster-poc") // it may read the vault
	l.federate(w.T, saman, discovery.Issuer, "system:serviceaccount:default:charts")
	w.create(&corev1.ServiceAccount{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
		ObjectMeta: metav1.ObjectMeta{Name: "charts", Namespace: "default", Annotations: map[string]string{workloadidentity.AnnotationClientID: l.clientID(w.T, saman)}},
	})
}

func (l *labHandle) labelled(name string) *corev1.Pod {
	pod := l.workload(name, "sdk", map[string]string{workloadidentity.LabelUse: "true"})
	pod.Spec.ServiceAccountName = "charts"
	return pod
}

// installV16 installs the simulated release.
func (w *world) installV16(tenant string) {
	w.Helper()
	w.create(&corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{
		Name: w.namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}})
	i := action.NewInstall(w.helm)
	i.ReleaseName, i.Namespace = w.release, w.namespace
	i.ServerSideApply, i.WaitStrategy = false, kube.HookOnlyStrategy // as Helm 3 did
	vals := map[string]any{"azureTenantID": tenant, "replicaCount": 0}
	if _, err := i.RunWithContext(w.Context(), v16Chart(), vals); err != nil {
		w.Fatalf("installing v1.6: %v", err)
	}
	w.fillLikeV16()
	// The users' values: only what they set themselves is reused.
	if err := w.upgrade(v16Chart(), map[string]any{"replicaCount": 2}); err != nil {
		w.Fatalf("starting v1.6: %v", err)
	}
}

// fillLikeV16 does what v1.6's webhook does when it starts: it fills the Secret
// and the caBundle.
func (w *world) fillLikeV16() {
	w.Helper()
	data := v16Certificates(w, workloadidentity.WebhookService+"."+w.namespace+".svc")
	secret, err := w.kube.CoreV1().Secrets(w.namespace).Get(w.Context(), workloadidentity.CertificateSecret, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	secret.Data = data
	if _, err := w.kube.CoreV1().Secrets(w.namespace).Update(w.Context(), secret, metav1.UpdateOptions{}); err != nil {
		w.Fatal(err)
	}
	configurations := w.kube.AdmissionregistrationV1().MutatingWebhookConfigurations()
	c, err := configurations.Get(w.Context(), workloadidentity.WebhookConfiguration, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	c.Webhooks[0].ClientConfig.CABundle = data["ca.crt"]
	if _, err := configurations.Update(w.Context(), c, metav1.UpdateOptions{}); err != nil {
		w.Fatal(err)
	}
}

// state is what an upgrade must keep.
func (w *world) state() map[string]any {
	w.Helper()
	kept := map[string]any{}
	keep := func(kind, name string, fields ...string) {
		o, err := w.get(kind, "", name)
		if err != nil {
			w.Fatal(err)
		}
		kept[name+" uid"] = o.GetUID()
		if len(fields) > 0 {
			kept[name], _, err = unstructured.NestedFieldCopy(o.Object, fields...)
		}
		if err != nil {
			w.Fatal(err)
		}
	}
	keep("v1 Service", workloadidentity.WebhookService, "spec", "clusterIP")
	keep("v1 Secret", workloadidentity.CertificateSecret, "data")
	keep(kindDeployment, workloadidentity.WebhookDeployment, "spec", "selector")
	keep(kindWebhooks, workloadidentity.WebhookConfiguration)
	c, err := w.kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(w.Context(), workloadidentity.WebhookConfiguration, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	kept["caBundle"] = string(c.Webhooks[0].ClientConfig.CABundle)
	return kept
}

func (w *world) deployment(fields ...string) int64 {
	w.Helper()
	o, err := w.get(kindDeployment, "", workloadidentity.WebhookDeployment)
	if err != nil {
		w.Fatal(err)
	}
	n, _, err := unstructured.NestedInt64(o.Object, fields...)
	if err != nil {
		w.Fatal(err)
	}
	return n
}

// keepCreating creates labelled pods, one after the other, without storing
// them: each must be mutated. stop returns how many there were.
func (w *world) keepCreating(l *labHandle) (stop func() int) {
	ctx, cancel := context.WithCancel(w.Context())
	result := make(chan error, 1)
	n := 0
	go func() {
		for ctx.Err() == nil {
			if err := w.tryCreating(context.WithoutCancel(ctx), l, fmt.Sprintf("meanwhile-%d", n)); err != nil {
				result <- err
				return
			}
			n++
		}
		result <- nil
	}()
	return func() int {
		cancel()
		if err := <-result; err != nil {
			w.Errorf("after %d pods: %v", n, err)
		}
		return n
	}
}

// tryCreating creates a labelled pod without storing it.
func (w *world) tryCreating(ctx context.Context, l *labHandle, name string) error {
	made, err := w.kube.CoreV1().Pods("default").Create(ctx, l.labelled(name), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(made.Spec.Containers[0].Env, func(e corev1.EnvVar) bool { return e.Name == workloadidentity.EnvFederatedTokenFile }) {
		return fmt.Errorf("the pod %s was not mutated", name)
	}
	return nil
}

// The plain manifest is the chart's default, but for the namespace, which is no
// part of a release, and the labels that a release adds.
func TestThePlainManifestIsTheChartsDefault(t *testing.T) {
	manifests, err := deploy.Manifests("webhook")
	if err != nil {
		t.Fatal(err)
	}
	filled, err := deploy.Fill(manifests[0], map[string]string{"AZURE_TENANT_ID": tenant})
	if err != nil {
		t.Fatal(err)
	}
	byName := func(list []*unstructured.Unstructured) map[string]map[string]any {
		m := map[string]map[string]any{}
		for _, o := range list {
			m[o.GetKind()+" "+o.GetName()] = o.Object
		}
		return m
	}
	plain, released := byName(parse(t, filled)), byName(objects(t, workloadIdentity.withIn(t, workloadidentity.Namespace, "")))
	namespace := plain["Namespace "+workloadidentity.Namespace]
	if namespace == nil {
		t.Fatalf("no namespace in %v", slices.Sorted(maps.Keys(plain)))
	}
	delete(plain, "Namespace "+workloadidentity.Namespace)
	differences := map[string]bool{}
	r := differenceReporter{differences: differences}
	cmp.Equal(released, plain, cmp.Reporter(&r))
	want := []string{"app", "chart", "annotations", "release"}
	got := slices.Sorted(maps.Keys(differences))
	slices.Sort(want)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("they differ in other members than these:\n%s\n%s", d, cmp.Diff(released, plain))
	}
}

// differenceReporter collects the names of the members that differ.
type differenceReporter struct {
	path        cmp.Path
	differences map[string]bool
}

func (r *differenceReporter) PushStep(s cmp.PathStep) { r.path = append(r.path, s) }
func (r *differenceReporter) PopStep()                { r.path = r.path[:len(r.path)-1] }

func (r *differenceReporter) Report(result cmp.Result) {
	if result.Equal() {
		return
	}
	for i := range r.path {
		if key, ok := r.path.Index(-1 - i).(cmp.MapIndex); ok {
			r.differences[key.Key().String()] = true
			return
		}
	}
	r.differences[r.path.String()] = true
}

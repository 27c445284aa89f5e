package charts_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/deploy/charts"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

const federationPolicies = "federationpolicies.lanyard.id"

// With everything that can be enabled: rights, pod security and what stays.
func TestInstallTheWebhook(t *testing.T) {
	w := newWorld(t, &fresh, "wi-"+workloadidentity.Namespace)
	crds, err := deploy.CRDs(deploy.Federation)
	if err != nil {
		t.Fatal(err)
	}
	for _, crd := range crds { // of other tests, by hand: a release does not adopt them
		w.remove(parse(t, crd))
	}
	vals := workloadIdentity.values(t, "{doctor: {mode: evict}, networkPolicy: {enabled: true}, federation: {enabled: true, clientID: "+tenant+"}}")
	if err := w.install(workloadIdentity.load(t), vals); err != nil {
		t.Fatal(err)
	}
	t.Run("rights", w.sub(func(w *world) { w.webhookRights() }))
	t.Run("its pods meet the restricted standard", w.sub(func(w *world) {
		w.create(&corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
			ObjectMeta: metav1.ObjectMeta{Name: "restricted", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}})
		account(w, "restricted")
		for _, o := range objects(w, workloadIdentity.render(w, charts.Release{Values: vals})) {
			if o.GetKind() != "Deployment" {
				continue
			}
			pod := podFrom(w, o)
			pod.Namespace = "restricted"
			delete(pod.Labels, workloadidentity.LabelUse) // nothing mutates here
			if _, err := w.kube.CoreV1().Pods("restricted").Create(w.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
				w.Errorf("%s: %v", o.GetName(), err)
			}
		}
	}))
	t.Run("the probe may ask for Entra's tokens only", w.sub(func(w *world) {
		config, err := clientcmd.BuildConfigFromFlags("", w.kubeconfigFile)
		if err != nil {
			w.Fatal(err)
		}
		config.Impersonate.UserName = "system:serviceaccount:" + w.namespace + ":lanyard-federation"
		controller, err := kubernetes.NewForConfig(config)
		if err != nil {
			w.Fatal(err)
		}
		account(w, "default")
		labtest.Eventually(w, w.Context(), func() error { // a policy takes a moment
			_, err := controller.CoreV1().ServiceAccounts("default").CreateToken(w.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
			if err == nil || !contains(err.Error(), "Entra's token exchange only") {
				return fmt.Errorf("a token for the API server: %w", err)
			}
			return nil
		})
		_, err = controller.CoreV1().ServiceAccounts("default").CreateToken(w.Context(), "default", &authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{Audiences: []string{workloadidentity.Audience}, ExpirationSeconds: new(int64(600))},
		}, metav1.CreateOptions{})
		if err != nil {
			w.Errorf("a token for Entra: %v", err)
		}
	}))
	t.Run("uninstalling leaves the kinds and nothing else", w.sub(func(w *world) {
		w.uninstall()
		for _, o := range objects(w, workloadIdentity.render(w, charts.Release{Namespace: w.namespace, Values: vals})) {
			if kind := o.GetAPIVersion() + " " + o.GetKind(); kind == crdKind {
				w.there(kind, "", o.GetName())
			} else {
				w.gone(kind, o.GetName())
			}
		}
	}))
	t.Run("installing again finds the kinds and upgrades them", w.sub(func(w *world) {
		if err := w.install(workloadIdentity.load(w), vals); err != nil {
			w.Fatal(err)
		}
		w.there(crdKind, "", federationPolicies)
		w.uninstall()
	}))
}

func (w *world) webhookRights() {
	w.Helper()
	const webhook, federation = "azure-wi-webhook-admin", "lanyard-federation"
	const admission = "admissionregistration.k8s.io"
	own := w.namespace
	for _, test := range []struct {
		account string
		right   right
		want    bool
	}{
		{webhook, right{"watch", "", "serviceaccounts", "", ""}, true},
		{webhook, right{"create", "", "serviceaccounts/token", "any", "s"}, false},
		{webhook, right{"create", "", "secrets", own, ""}, true},
		{webhook, right{"update", "", "secrets", own, workloadidentity.CertificateSecret}, true},
		{webhook, right{"get", "", "secrets", own, "another"}, false},
		{webhook, right{"list", "", "secrets", own, ""}, false},
		{webhook, right{"get", "", "secrets", "any", workloadidentity.CertificateSecret}, false},
		{webhook, right{"patch", admission, "mutatingwebhookconfigurations", "", workloadidentity.WebhookConfiguration}, true},
		{webhook, right{"patch", admission, "mutatingwebhookconfigurations", "", "another"}, false},
		{webhook, right{"create", admission, "mutatingwebhookconfigurations", "", ""}, false},
		{webhook, right{"watch", "", "pods", "", ""}, true},
		{webhook, right{"create", "", "pods/eviction", "any", "p"}, true},
		{webhook, right{"delete", "", "pods", "any", "p"}, false},
		{webhook, right{"patch", "", "pods", "any", "p"}, false},
		{webhook, right{"create", "events.k8s.io", "events", "any", ""}, true},
		{webhook, right{"update", "coordination.k8s.io", "leases", own, "azure-wi-webhook-doctor"}, true},
		{webhook, right{"update", "coordination.k8s.io", "leases", own, "another"}, false},
		{webhook, right{"create", "coordination.k8s.io", "leases", "any", ""}, false},
		{federation, right{"watch", "", "serviceaccounts", "", ""}, true},
		{federation, right{"create", "", "serviceaccounts/token", "any", "s"}, true}, // see the admission policy
		{federation, right{"patch", "lanyard.id", "federatedidentities/status", "any", "f"}, true},
		{federation, right{"create", "lanyard.id", "federationpolicies", "", ""}, false},
		{federation, right{"get", "", "secrets", own, "any"}, false},
		{federation, right{"update", "coordination.k8s.io", "leases", own, "lanyard-federation"}, true},
	} {
		if got := w.may(test.account, test.right); got != test.want {
			w.Errorf("may %s %+v: %v, want %v", test.account, test.right, got, test.want)
		}
	}
}

// Someone who applied v1.6's plain manifest applies ours over it.
func TestThePlainManifestReplacesV16s(t *testing.T) {
	w := newWorld(t, &old, workloadidentity.Namespace)
	v16, err := charts.Plain(t.Context(), v16Chart())
	if err != nil {
		t.Fatal(err)
	}
	ours, err := deploy.Manifests("webhook")
	if err != nil {
		t.Fatal(err)
	}
	apply := func(manifest []byte) {
		t.Helper()
		filled, err := deploy.Fill(manifest, map[string]string{"AZURE_TENANT_ID": tenant, "AZURE_ENVIRONMENT": "AzureChinaCloud"})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range parse(t, filled) {
			if err := w.objects.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(o), client.FieldOwner("kubectl"), client.ForceOwnership); err != nil {
				t.Fatalf("%s %s: %v", o.GetKind(), o.GetName(), err)
			}
		}
	}
	apply(v16["manifests/webhook.yaml"])
	w.fillLikeV16()
	before := w.state()
	apply(ours[0])
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Errorf("it replaced what it should keep (-before +after)\n%s", d)
	}
	deployment := w.workload("Deployment", workloadidentity.WebhookDeployment)
	if mounts := podFrom(t, deployment).Spec.Containers[0].VolumeMounts; len(mounts) != 0 {
		t.Errorf("the key of the authority is still mounted: %v", mounts)
	}
	config, err := w.get("v1 ConfigMap", "", workloadidentity.WebhookConfigMap)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"AZURE_ENVIRONMENT": "AzureChinaCloud", "AZURE_TENANT_ID": tenant, "PROXY_IMAGE": "lanyard/proxy:dev", "PROXY_INIT_IMAGE": "lanyard/proxy-init:dev"}
	got, _, err := unstructured.NestedStringMap(config.Object, "data")
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%s (%v)", d, err)
	}
	for _, o := range parse(t, ours[0]) {
		if err := w.objects.Delete(t.Context(), o); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	}
}

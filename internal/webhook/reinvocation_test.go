package webhook

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

// switchAccount installs another mutating webhook, whose name makes it come
// after ours: it makes every pod of a namespace run as another account.
func switchAccount(t *testing.T, namespace, account string) {
	t.Helper()
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Error(err)
			return
		}
		var pod corev1.Pod
		if err := json.Unmarshal(review.Request.Object.Raw, &pod); err != nil {
			t.Error(err)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		if pod.Spec.ServiceAccountName != account {
			kind := admissionv1.PatchTypeJSONPatch
			review.Response.PatchType = &kind
			review.Response.Patch = []byte(`[{"op":"replace","path":"/spec/serviceAccountName","value":"` + account + `"}]`)
		}
		review.Request = nil
		if err := json.NewEncoder(w).Encode(review); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(other.Close)
	c, err := client.New(cluster.Config(t), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	none := admissionregistrationv1.SideEffectClassNone
	configuration := &admissionregistrationv1.MutatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: "zz-switch-account"},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "switch.account.example", SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			ClientConfig: admissionregistrationv1.WebhookClientConfig{
				URL: &other.URL, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate().Raw}),
			},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": namespace}},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{"CREATE"},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		}},
	}
	if err := c.Create(t.Context(), configuration, client.FieldOwner("test")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, c, configuration) })
}

func TestASecondPassFollowsTheServiceAccount(t *testing.T) {
	started(t)
	kube, _ := clientset(t)
	namespace := cluster.Namespace(t)
	makeAccount(t, kube, namespace, "first", map[string]string{"azure.workload.identity/client-id": testClient, "azure.workload.identity/service-account-token-expiration": "7200"})
	const second = "99999999-8888-7777-6666-555555555555"
	makeAccount(t, kube, namespace, "second", map[string]string{"azure.workload.identity/client-id": second})
	switchAccount(t, namespace, "second")
	pod := podOf("first", map[string]string{"azure.workload.identity/inject-proxy-sidecar": "true"})
	own := pod.Spec.Containers[0]
	own.Name, own.Env = "own", []corev1.EnvVar{{Name: "AZURE_CLIENT_ID", Value: "of-the-user"}}
	pod.Spec.Containers = append(pod.Spec.Containers, own)
	var made *corev1.Pod
	labtest.Eventually(t, t.Context(), func() error { // the API server reads the configuration after it is stored
		var err error
		made, err = kube.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			return err
		}
		if made.Spec.ServiceAccountName != "second" {
			return errors.New("the account was not switched")
		}
		return nil
	})
	want := map[string]string{"main": second, "own": "of-the-user", "azwi-proxy": second, "azwi-proxy-init": second}
	all := append(made.Spec.InitContainers, made.Spec.Containers...)
	if len(all) != len(want) {
		t.Errorf("%d containers, want %d", len(all), len(want))
	}
	for _, c := range all {
		for _, e := range c.Env {
			if e.Name == "AZURE_CLIENT_ID" && e.Value != want[c.Name] {
				t.Errorf("%s has client id %s, want %s", c.Name, e.Value, want[c.Name])
			}
		}
	}
	volume := made.Spec.Volumes[len(made.Spec.Volumes)-1]
	if got := *volume.Projected.Sources[0].ServiceAccountToken.ExpirationSeconds; got != 3600 {
		t.Errorf("the token lives %d s, as the first account's", got)
	}
}

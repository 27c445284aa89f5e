package labtest_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

const issuer = "https://issuer.example/cluster-0/"

const widgets = `# two documents: only the definition is applied
apiVersion: v1
kind: ConfigMap
metadata: {name: ignored, namespace: default}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.lanyard.example}
spec:
  group: lanyard.example
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              size: {type: integer}
`

var cluster = labtest.Cluster{
	CRDs: fstest.MapFS{"crds/widgets.yaml": {Data: []byte(widgets)}, "crds/readme.txt": {Data: []byte("{")}},
	Args: []string{"--service-account-issuer=" + issuer},
	Configure: func(dir string) ([]string, error) {
		policy := filepath.Join(dir, "audit.yaml")
		content := "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata, resources: [{group: '', resources: [configmaps]}]}, {level: None}]\n"
		return []string{"--audit-policy-file=" + policy}, os.WriteFile(policy, []byte(content), 0o600)
	},
}

// childEnv makes this test binary a test process that a test kills.
const childEnv = "LABTEST_CHILD"

func TestMain(m *testing.M) {
	// client-go keeps its connections open and shares them between clients.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("golang.org/x/net/http2.(*clientConnReadLoop).run"))
}

func clientset(t *testing.T) *kubernetes.Clientset {
	t.Helper()
	client, err := kubernetes.NewForConfig(cluster.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestClusterServesItsCRDs(t *testing.T) {
	client, err := dynamic.NewForConfig(cluster.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	resource := client.Resource(schema.GroupVersionResource{Group: "lanyard.example", Version: "v1", Resource: "widgets"}).Namespace(cluster.Namespace(t))
	widget := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "lanyard.example/v1", "kind": "Widget", "metadata": map[string]any{"name": "w"}, "spec": map[string]any{"size": int64(3)},
	}}
	if _, err := resource.Create(t.Context(), widget, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := resource.Get(t.Context(), "w", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(widget.Object["spec"], got.Object["spec"]); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	if _, err := clientset(t).CoreV1().ConfigMaps("default").Get(t.Context(), "ignored", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a manifest that is no CRD was applied: %v", err)
	}
}

func TestClusterTakesFlagsAndFiles(t *testing.T) {
	client, namespace := clientset(t), cluster.Namespace(t)
	token, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), "default",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"api://AzureADTokenExchange"}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := claims(t, token.Status.Token)["iss"]; got != issuer {
		t.Errorf("iss = %q, want %q with its slash", got, issuer)
	}
	if _, err := client.CoreV1().ConfigMaps(namespace).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "watched"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, t.Context(), func() error {
		log, err := os.ReadFile(filepath.Join(cluster.Dir(t), "audit.log"))
		if err == nil && !strings.Contains(string(log), `"name":"watched"`) {
			err = fmt.Errorf("no entry for the ConfigMap in %d bytes", len(log))
		}
		return err
	})
}

func TestNamespacesAreApartAndGoAway(t *testing.T) {
	client := clientset(t)
	var first string
	t.Run("in a test", func(t *testing.T) {
		first = cluster.Namespace(t)
		if second := cluster.Namespace(t); first == second {
			t.Errorf("two namespaces with the name %s", first)
		}
		// The default ServiceAccount is there: a pod is admitted.
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
		if _, err := client.CoreV1().Pods(first).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Error(err)
		}
	})
	labtest.Eventually(t, t.Context(), func() error {
		_, err := client.CoreV1().Namespaces().Get(t.Context(), first, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("namespace %s is still there: %w", first, errors.Join(err))
	})
}

func TestWebhookOnLoopbackIsAsked(t *testing.T) {
	webhook := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Result: &metav1.Status{Message: "not on my watch"}}
		if err := json.NewEncoder(w).Encode(review); err != nil {
			t.Error(err)
		}
	}))
	defer webhook.Close()
	client, namespace := clientset(t), cluster.Namespace(t)
	url, none, fail := webhook.URL+"/validate", admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.Fail
	configuration := &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "labtest-"},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name:                    "secrets.lanyard.example",
			ClientConfig:            admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: labtest.CABundle(webhook)},
			SideEffects:             &none,
			FailurePolicy:           &fail,
			AdmissionReviewVersions: []string{"v1"},
			NamespaceSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": namespace}},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"secrets"}},
			}},
		}},
	}
	created, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), configuration, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(context.WithoutCancel(t.Context()), created.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	// The API server learns of a configuration a moment after it is made.
	labtest.Eventually(t, t.Context(), func() error {
		_, err := client.CoreV1().Secrets(namespace).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{GenerateName: "s-"}}, metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), "not on my watch") {
			return fmt.Errorf("the webhook did not refuse: %w", errors.Join(err))
		}
		return nil
	})
}

func TestKubeconfigIsSelfContained(t *testing.T) {
	content, err := os.ReadFile(cluster.Kubeconfig(t))
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(content)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if version, err := client.Discovery().ServerVersion(); err != nil || !strings.HasPrefix(version.GitVersion, "v1.") {
		t.Errorf("version = %v, %v", version, err)
	}
}

// TestServerEndsWithTheTestProcess kills a test process that has a cluster.
func TestServerEndsWithTheTestProcess(t *testing.T) {
	if os.Getenv(childEnv) != "" {
		fmt.Printf("%s\n", cluster.Dir(t))
		select {} // until it is killed
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), childEnv+"=1")
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var dir string
	_, scanErr := fmt.Fscanln(stdout, &dir)
	var ready struct{ PID int }
	var readyErr error
	if scanErr == nil {
		var content []byte
		if content, readyErr = os.ReadFile(filepath.Join(dir, "ready.json")); readyErr == nil {
			readyErr = json.Unmarshal(content, &ready)
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Error(err)
	}
	_, _ = io.Copy(io.Discard, stdout)
	_ = child.Wait() // it was killed
	if err := errors.Join(scanErr, readyErr); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, t.Context(), func() error {
		// A process that has ended has no command line, reaped or not.
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", ready.PID)); err == nil && len(line) > 0 {
			return fmt.Errorf("the server lives: process id %d, %q", ready.PID, line)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is still there: %w", dir, errors.Join(err))
		}
		return nil
	})
}

func claims(t *testing.T, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("a token of %d parts", len(parts))
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(payload, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

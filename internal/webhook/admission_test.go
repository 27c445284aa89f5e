package webhook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

const testClient = "11111111-2222-3333-4444-555555555555"

// A warningLog collects what kubectl would print.
type warningLog struct {
	mu   sync.Mutex
	text []string
}

func (w *warningLog) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, text)
}

func (w *warningLog) HandleWarningHeaderWithContext(_ context.Context, code int, agent, text string) {
	w.HandleWarningHeader(code, agent, text)
}

func (w *warningLog) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.text, "\n")
}

func clientset(t *testing.T) (kubernetes.Interface, *warningLog) {
	t.Helper()
	w := &warningLog{}
	config := cluster.Config(t)
	config.WarningHandler = w
	config.WarningHandlerWithContext = w
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return kube, w
}

func makeAccount(t *testing.T, kube kubernetes.Interface, namespace, name string, annotations map[string]string) {
	t.Helper()
	_, err := kube.CoreV1().ServiceAccounts(namespace).Create(t.Context(), &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func podOf(account string, annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Labels: map[string]string{"azure.workload.identity/use": "true"}, Annotations: annotations},
		Spec: corev1.PodSpec{
			ServiceAccountName: account,
			Containers:         []corev1.Container{{Name: "main", Image: "busybox"}},
		},
	}
}

func TestTheAPIServerStoresTheMutatedPod(t *testing.T) {
	started(t)
	kube, warnings := clientset(t)
	namespace := cluster.Namespace(t)
	// Created in the same breath as the pod: the cache does not have it yet.
	makeAccount(t, kube, namespace, "pod-identity-sa", map[string]string{"azure.workload.identity/client-id": testClient})
	pod, err := kube.CoreV1().Pods(namespace).Create(t.Context(), podOf("pod-identity-sa", nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantEnv := []corev1.EnvVar{
		{Name: "AZURE_CLIENT_ID", Value: testClient},
		{Name: "AZURE_TENANT_ID", Value: testConfig.TenantID},
		{Name: "AZURE_FEDERATED_TOKEN_FILE", Value: "/var/run/secrets/azure/wi/token/azure-identity-token"},
		{Name: "AZURE_AUTHORITY_HOST", Value: "https://login.microsoftonline.com/"},
	}
	if diff := cmp.Diff(wantEnv, pod.Spec.Containers[0].Env); diff != "" {
		t.Error(diff)
	}
	mode, expiration := int32(420), int64(3600)
	wantVolume := corev1.Volume{
		Name: "azure-workload-identity-reserved-a172cedcae47474b615c54d510a5d8",
		VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			DefaultMode: &mode,
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Path: "token/azure-identity-token", Audience: "api://AzureADTokenExchange", ExpirationSeconds: &expiration,
			}}},
		}},
	}
	if diff := cmp.Diff(wantVolume, pod.Spec.Volumes[len(pod.Spec.Volumes)-1]); diff != "" {
		t.Error(diff)
	}
	if warnings.String() != "" {
		t.Errorf("warnings for a good pod: %s", warnings)
	}
}

func TestAReplicaSetsPodsAreMutated(t *testing.T) {
	started(t)
	kube, _ := clientset(t)
	namespace := cluster.Namespace(t)
	makeAccount(t, kube, namespace, "pod-identity-sa", map[string]string{"azure.workload.identity/client-id": testClient})
	template := podOf("pod-identity-sa", nil)
	template.Name = ""
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: template.Labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: template.ObjectMeta, Spec: template.Spec},
		},
	}
	if _, err := kube.AppsV1().Deployments(namespace).Create(t.Context(), deployment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, t.Context(), func() error {
		pods, err := kube.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(pods.Items) == 0 {
			return errors.New("there is no pod yet")
		}
		p := pods.Items[0]
		last := p.Spec.Volumes[len(p.Spec.Volumes)-1].Name
		if want := mutation.VolumeName(mutation.Pod{GenerateName: p.GenerateName}, testConfig); last != want || len(p.Spec.Containers[0].Env) != 4 {
			t.Fatalf("volume %s, want %s; %d variables", last, want, len(p.Spec.Containers[0].Env))
		}
		return nil
	})
}

// Whatever the API server knows of pods passes through: two pods that differ
// in the label only differ afterwards in what the webhook adds.
func TestNewFieldsOfPodsAreStored(t *testing.T) {
	started(t)
	namespace := cluster.Namespace(t)
	c, err := client.New(cluster.Config(t), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	create := func(name, label string) map[string]any {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(`
apiVersion: v1
kind: Pod
metadata:
  name: `+name+`
  labels: {azure.workload.identity/use: "`+label+`"}
spec:
  os: {name: linux}
  hostnameOverride: fixed
  resources: {limits: {cpu: "1", memory: 64Mi}}
  containers:
  - name: main
    image: busybox
    lifecycle: {stopSignal: SIGUSR1}
    restartPolicy: Never
    restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
`), &o.Object); err != nil {
			t.Fatal(err)
		}
		o.SetNamespace(namespace)
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		spec, _, err := unstructured.NestedMap(o.Object, "spec")
		if err != nil {
			t.Fatal(err)
		}
		return spec
	}
	without, with := create("without", "false"), create("with", "true")
	if _, ok := without["resources"]; !ok {
		t.Fatal("the API server dropped spec.resources by itself: the test shows nothing")
	}
	if missing := lacks("spec", withoutToken(without), withoutToken(with)); missing != "" {
		t.Error(missing)
	}
}

// withoutToken removes the API server's own token volume: its name is random.
func withoutToken(spec map[string]any) map[string]any {
	delete(spec, "volumes")
	for _, c := range spec["containers"].([]any) {
		delete(c.(map[string]any), "volumeMounts")
	}
	return spec
}

func TestTheUserIsToldWhatToDo(t *testing.T) {
	started(t)
	kube, warnings := clientset(t)
	namespace := cluster.Namespace(t)
	makeAccount(t, kube, namespace, "bare", nil)
	tests := map[string]struct {
		pod           *corev1.Pod
		err, warnings string
	}{
		"an expiration in hours": {pod: podOf("bare", map[string]string{"azure.workload.identity/service-account-token-expiration": "1h"}),
			err: `admission webhook "mutation.azure-workload-identity.io" denied the request: annotation azure.workload.identity/service-account-token-expiration of the pod: strconv.ParseInt: parsing "1h": invalid syntax: write the token's lifetime as a number of seconds`},
		"an expiration that is too short": {pod: podOf("bare", map[string]string{"azure.workload.identity/service-account-token-expiration": "100"}),
			err: "token expiration 100 not valid. Expected value to be between 3600 and 86400"},
		"the proxy sidecar's port": {pod: podOf("bare", map[string]string{"azure.workload.identity/inject-proxy-sidecar": "true", "azure.workload.identity/proxy-sidecar-port": "x"}),
			err: `failed to parse proxy sidecar port: strconv.ParseInt: parsing "x": invalid syntax`},
		"no client id": {pod: podOf("bare", nil),
			warnings: "service account " + namespace + "/bare has no annotation azure.workload.identity/client-id: AZURE_CLIENT_ID is not set in container \"main\""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := kube.CoreV1().Pods(namespace).Create(t.Context(), tc.pod, metav1.CreateOptions{})
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("error %v\nwant  %s", err, tc.err)
			}
			if !strings.Contains(warnings.String(), tc.warnings) {
				t.Errorf("warnings %q lack %q", warnings, tc.warnings)
			}
		})
	}
}

func TestWithoutTheWebhookOnlyPodsThatAskAreRefused(t *testing.T) {
	install(t, "https://127.0.0.1:1")
	kube, _ := clientset(t)
	namespace := cluster.Namespace(t)
	labtest.Eventually(t, t.Context(), func() error { // the API server reads the configuration after it is stored
		pod := podOf("default", nil)
		_, err := kube.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil || !strings.Contains(err.Error(), "failed calling webhook") {
			return fmt.Errorf("a pod that asks is not refused: %w", err)
		}
		return nil
	})
	other := podOf("default", nil)
	other.Labels = nil
	if _, err := kube.CoreV1().Pods(namespace).Create(t.Context(), other, metav1.CreateOptions{}); err != nil {
		t.Errorf("a pod that does not ask is refused: %v", err)
	}
}

func TestAnAccountsAnnotationsAreFollowed(t *testing.T) {
	r := started(t)
	kube, _ := clientset(t)
	namespace := cluster.Namespace(t)
	known := r.accounts.Len()
	makeAccount(t, kube, namespace, "a", map[string]string{"azure.workload.identity/client-id": "one", "other.example/x": "y"})
	makeAccount(t, kube, namespace, "bare", map[string]string{"other.example/x": "y"})
	annotations := func(want map[string]string) func() error {
		return func() error {
			r.accounts.mu.RLock()
			defer r.accounts.mu.RUnlock()
			for key, got := range r.accounts.annotated {
				if strings.HasPrefix(key, namespace+"/") {
					if diff := cmp.Diff(want, got.unpack().Annotations); diff == "" {
						return nil
					}
				}
			}
			return fmt.Errorf("not %v in %v", want, r.accounts.annotated)
		}
	}
	labtest.Eventually(t, t.Context(), annotations(map[string]string{"azure.workload.identity/client-id": "one"}))
	if got := r.accounts.Len(); got != known+1 {
		t.Errorf("%d accounts are kept, %d before: only annotated ones should be", got, known)
	}
	a, err := kube.CoreV1().ServiceAccounts(namespace).Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a.Annotations["azure.workload.identity/client-id"] = "two"
	if _, err := kube.CoreV1().ServiceAccounts(namespace).Update(t.Context(), a, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, t.Context(), annotations(map[string]string{"azure.workload.identity/client-id": "two"}))
	if err := kube.CoreV1().ServiceAccounts(namespace).Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, t.Context(), func() error {
		if got := r.accounts.Len(); got != known {
			return fmt.Errorf("%d accounts are kept, want %d", got, known)
		}
		return nil
	})
	got, err := r.accounts.ServiceAccount(t.Context(), namespace, "bare")
	if err != nil || len(got.Annotations) != 0 {
		t.Errorf("live read of an account without annotations: %v, %v", got, err)
	}
}

func TestAnAPIServerThatIsAwayAtTheStartIsWaitedFor(t *testing.T) {
	install(t, "https://127.0.0.1:1")
	config := account(t)
	target := strings.TrimPrefix(config.Host, "https://")
	away := listen(t) // nobody accepts: connections wait, as they do behind a dead load balancer
	config.Host = "https://" + away.Addr().String()
	r := newReplica(t, config)
	redirect(t, r.url())
	r.run(t)
	labtest.Eventually(t, t.Context(), func() error {
		err := r.ready()
		if err == nil {
			t.Fatal("ready without an API server")
		}
		for _, want := range []string{"503", "service accounts are not listed yet", "serving certificate: there is none yet", "version is not known yet"} {
			if !strings.Contains(err.Error(), want) {
				return fmt.Errorf("%w lacks %q", err, want)
			}
		}
		return nil
	})
	go forward(away, target)
	labtest.Eventually(t, t.Context(), r.ready)
	kube, _ := clientset(t)
	if _, err := kube.CoreV1().Pods(cluster.Namespace(t)).Create(t.Context(), podOf("default", nil), metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
}

// The API server checks what the namespace's pod security and the schema ask.
func TestTheManifestsOwnPodsAreAdmitted(t *testing.T) {
	install(t, "https://127.0.0.1:1")
	kube, _ := clientset(t)
	labtest.Eventually(t, t.Context(), func() error {
		pods, err := kube.CoreV1().Pods(workloadidentity.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "azure-workload-identity.io/system=true"})
		if err != nil {
			return err
		}
		if len(pods.Items) < 2 {
			return fmt.Errorf("%d pods, want 2", len(pods.Items))
		}
		return nil
	})
}

// forward passes connections on until the listener is closed.
func forward(l net.Listener, target string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := net.Dial("tcp", target)
			if err != nil {
				return
			}
			defer out.Close()
			go func() {
				_, _ = io.Copy(out, in)
				_ = out.Close()
			}()
			_, _ = io.Copy(in, out)
		}()
	}
}

package charts_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/deploy/charts"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

// The charts on a cluster with a node and a cloud, with "helm --wait" at every
// step: what they install gives pods tokens, and so does what an upgrade makes
// of it.
func TestOnTheLab(t *testing.T) {
	l := startLab(t)
	for _, test := range []struct {
		chart, namespace string
		run              func(*world, *labHandle)
	}{
		{charts.PodIdentity, "pod-identity-system", podIdentityOnTheLab},
		{charts.WorkloadIdentity, "azure-workload-identity-system", workloadIdentityOnTheLab},
	} {
		t.Run(test.chart, func(t *testing.T) {
			w := connect(t, l.Kubeconfig, test.namespace, kube.StatusWatcherStrategy)
			t.Cleanup(func() {
				if t.Failed() {
					w.tell(context.WithoutCancel(t.Context()))
				}
			})
			test.run(w, l)
		})
	}
}

// steps logs how long each step took.
func (w *world) steps() (done func(what string)) {
	since := time.Now()
	return func(what string) {
		w.Logf("%s after %.1f s", what, time.Since(since).Seconds())
		since = time.Now()
	}
}

// A labHandle is what "lanyard lab" tells of a running lab.
type labHandle struct {
	Node, Kubeconfig, Vault string

	env map[string]string
}

// startLab runs the lab that people start, until the test ends.
func startLab(t *testing.T) *labHandle {
	t.Helper()
	program, err := filepath.Abs(filepath.Join("..", "..", "bin", "lanyard"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run make build", err)
	}
	state := t.TempDir()
	up := exec.CommandContext(context.WithoutCancel(t.Context()), program, "lab", "up", "--state", state, "-o", "json")
	up.Stderr = t.Output()
	// If the tests are killed, the lab stops too. The kernel means the thread that starts it.
	runtime.LockOSThread()
	up.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	stdout, err := up.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		interrupted := up.Process.Signal(os.Interrupt)
		kill := time.AfterFunc(time.Minute, func() { _ = up.Process.Kill() })
		defer kill.Stop()
		if err := errors.Join(interrupted, up.Wait()); err != nil {
			t.Errorf("stopping the lab: %v", err)
		}
		runtime.UnlockOSThread()
	})
	l := &labHandle{env: map[string]string{}}
	if err := json.NewDecoder(stdout).Decode(l); err != nil { // it is printed when the lab is ready
		t.Fatalf("the lab did not start: %v", err)
	}
	out, err := exec.CommandContext(t.Context(), program, "lab", "env", "--state", state, "-o", "json").Output()
	var env []struct{ Name, Value string }
	if err := errors.Join(err, json.Unmarshal(out, &env)); err != nil {
		t.Fatalf("lab env: %v", err)
	}
	for _, v := range env {
		l.env[v.Name] = v.Value
	}
	return l
}

// identity is the ARM id of a managed identity of the lab's cloud.
func (l *labHandle) identity(name string) string {
	return "/subscriptions/" + l.env["AZURE_SUBSCRIPTION_ID"] + "/resourceGroups/myResourceGroup/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + name
}

// clientID asks the lab's cloud, as "az identity show" does.
func (l *labHandle) clientID(t *testing.T, identity string) string {
	t.Helper()
	var answer struct{ Properties struct{ ClientID string } }
	l.manage(t, http.MethodGet, identity, nil, &answer)
	if answer.Properties.ClientID == "" {
		t.Fatal("the managed identity has no client id")
	}
	return answer.Properties.ClientID
}

// federate lets a service account be an identity, as "az identity
// federated-credential create" does.
func (l *labHandle) federate(t *testing.T, identity, issuer, subject string) {
	t.Helper()
	var answer struct{ ID string }
	l.manage(t, http.MethodPut, identity+"/federatedIdentityCredentials/charts", map[string]any{"properties": map[string]any{
		"issuer": issuer, "subject": subject, "audiences": []string{"api://AzureADTokenExchange"},
	}}, &answer)
}

// manage asks the resource manager of the lab's cloud, as its operator.
func (l *labHandle) manage(t *testing.T, method, resource string, body, into any) {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(read(t, l.env["SSL_CERT_FILE"])) {
		t.Fatal("the cloud's certificate authority does not parse")
	}
	proxy, err := url.Parse(l.env["HTTPS_PROXY"])
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{Proxy: http.ProxyURL(proxy), TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	ask := func(method, address, contentType, token, body string, into any) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", contentType)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode >= http.StatusMultipleChoices {
			t.Fatalf("%s %s: %s (%v)", method, address, response.Status, err)
		}
		if err := json.Unmarshal(text, into); err != nil {
			t.Fatal(err)
		}
	}
	var token struct {
		AccessToken string `json:"access_token"`
	}
	ask(http.MethodPost, "https://login.microsoftonline.com/"+l.env["AZURE_TENANT_ID"]+"/oauth2/v2.0/token", "application/x-www-form-urlencoded", "", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {l.env["AZURE_CLIENT_ID"]}, "client_secret": {l.env["AZURE_CLIENT_SECRET"]},
		"scope": {"https://management.azure.com/.default"},
	}.Encode(), &token)
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	ask(method, "https://management.azure.com"+resource+"?api-version=2023-01-31", "application/json", token.AccessToken, string(text), into)
}

// remove deletes objects and waits until they, and the pods that are theirs,
// are gone.
func (w *world) remove(list []*unstructured.Unstructured) {
	w.Helper()
	for _, o := range list {
		err := w.objects.Delete(w.Context(), o, client.PropagationPolicy(metav1.DeletePropagationForeground))
		if client.IgnoreNotFound(err) != nil {
			w.Fatalf("deleting %s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
	labtest.Eventually(w, w.Context(), func() error {
		for _, o := range list {
			if err := w.objects.Get(w.Context(), client.ObjectKeyFromObject(o), o.DeepCopy()); !apierrors.IsNotFound(err) {
				return fmt.Errorf("%s %s is still there (%w)", o.GetKind(), o.GetName(), err)
			}
		}
		return nil
	})
}

// succeeds runs a pod of the workload to its end, which must have got a token
// and read the vault's secret with it.
func (w *world) succeeds(pod *corev1.Pod) {
	w.Helper()
	pods := w.kube.CoreV1().Pods("default")
	pod, err := pods.Create(w.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute) // a node with a taint, an identity to assign
	defer cancel()
	labtest.Eventually(w, ctx, func() error {
		if pod, err = pods.Get(ctx, pod.Name, metav1.GetOptions{}); err != nil {
			return err
		}
		if phase := pod.Status.Phase; phase != corev1.PodSucceeded && phase != corev1.PodFailed {
			return fmt.Errorf("the pod %s is %s: %+v", pod.Name, phase, pod.Status)
		}
		return nil
	})
	said, err := w.logs(w.Context(), pod)
	if err != nil {
		w.Fatal(err)
	}
	var report struct{ OK bool }
	lines := bytes.Split(bytes.TrimSpace(said), []byte("\n"))
	if err := json.Unmarshal(lines[len(lines)-1], &report); err != nil || !report.OK || pod.Status.Phase != corev1.PodSucceeded {
		w.Fatalf("the pod %s has %s and said %s", pod.Name, pod.Status.Phase, said)
	}
}

// workload is a pod that reads the vault's secret and ends.
func (l *labHandle) workload(name, verb string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: labels},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			Containers: []corev1.Container{{
				Name: "workload", Image: "lanyard/workload:dev", ImagePullPolicy: corev1.PullIfNotPresent,
				Args: []string{verb, "--vault", l.Vault, "--secret", "greeting"},
			}},
		},
	}
}

func (w *world) logs(ctx context.Context, pod *corev1.Pod) ([]byte, error) {
	return w.kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
}

// tell logs what a person would look at first.
func (w *world) tell(ctx context.Context) {
	pods, err := w.kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		w.Logf("listing the pods: %v", err)
		return
	}
	for _, pod := range pods.Items {
		if pod.Namespace != w.namespace && pod.Namespace != "default" {
			continue
		}
		said, err := w.logs(ctx, &pod)
		said = said[max(0, len(said)-3000):]
		w.Logf("pod %s/%s is %s\n%s%s (%v)", pod.Namespace, pod.Name, pod.Status.Phase, containers(&pod), said, err)
	}
	events, err := w.kube.CoreV1().Events("").List(ctx, metav1.ListOptions{FieldSelector: "type=Warning"})
	if err != nil {
		w.Logf("listing the events: %v", err)
		return
	}
	for _, e := range events.Items {
		w.Logf("%s %s/%s: %s: %s", e.InvolvedObject.Kind, e.InvolvedObject.Namespace, e.InvolvedObject.Name, e.Reason, e.Message)
	}
}

func containers(pod *corev1.Pod) string {
	var b strings.Builder
	for _, c := range pod.Status.ContainerStatuses {
		state, err := json.Marshal(c.State)
		fmt.Fprintf(&b, "%s: %s, ready %t, %d restarts (%v)\n", c.Name, state, c.Ready, c.RestartCount, err)
	}
	return b.String()
}

// parse reads the objects of a manifest.
func parse(t testing.TB, manifest []byte) []*unstructured.Unstructured {
	t.Helper()
	list, err := charts.Objects(string(manifest))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

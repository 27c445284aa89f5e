package charts_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
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
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/deploy/charts"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

const (
	adminSecret  = "aadpodidentity-admin-secret" // the lab makes it, for the plain manifests
	startupTaint = "lanyard.id/nmi-not-ready"
	crdKind      = "apiextensions.k8s.io/v1 CustomResourceDefinition"
)

// The chart on a cluster with a node and a cloud, with "helm --wait" at every
// step: what it installs gives pods tokens, and so does what an upgrade makes
// of it.
func TestOnTheLab(t *testing.T) {
	l := startLab(t)
	w := connect(t, l.Kubeconfig, "pod-identity-system", kube.StatusWatcherStrategy)
	t.Cleanup(func() {
		if t.Failed() {
			w.tell(context.WithoutCancel(t.Context()))
		}
	})
	w.removeLabsOwn()
	w.createAdminSecret()

	identity := fmt.Sprintf("resourceID: %q, clientID: %q", l.identity, l.clientID(t))
	step := time.Now()
	done := func(what string) {
		t.Logf("%s after %.1f s", what, time.Since(step).Seconds())
		step = time.Now()
	}
	if err := w.install(podIdentity.load(t), values(t, `{mic: {tag: dev, existingSecret: `+adminSecret+`}, nmi: {tag: dev},
  azureIdentities: {first: {namespace: default, `+identity+`, binding: {selector: first}}}}`)); err != nil {
		t.Fatalf("installing: %v", err)
	}
	done("installed")
	w.readsTheSecret(l, "first")
	done("a pod had a token")
	users := &v1.AzureIdentity{TypeMeta: typeOf("AzureIdentity"), ObjectMeta: metav1.ObjectMeta{Name: "users-own", Namespace: "default"}, Spec: v1.AzureIdentitySpec{ClientID: "x"}}
	w.create(users)

	w.taint(l.Node) // as a new node is made where startupTaint is set
	if err := w.upgrade(podIdentity.load(t), values(t, `{mic: {replicas: 1, startupTaint: `+startupTaint+`}, nmi: {blockHostNetwork: true},
  azureIdentities: {second: {namespace: default, `+identity+`, binding: {selector: second}}}}`)); err != nil {
		t.Fatalf("upgrading: %v", err)
	}
	done("upgraded")
	w.readsTheSecret(l, "second") // which mic had to take the taint away for
	done("a pod had a token")

	w.uninstall()
	done("uninstalled")
	for _, name := range []string{"first", "second"} {
		for _, kind := range []string{"AzureIdentity", "AzureIdentityBinding"} {
			if _, err := w.get("aadpodidentity.k8s.io/v1 "+kind, "default", name); !apierrors.IsNotFound(err) {
				t.Errorf("%s %s of the release: %v, want it gone", kind, name, err)
			}
		}
	}
	w.there("aadpodidentity.k8s.io/v1 AzureIdentity", "default", "users-own")
	for _, crd := range w.crds() {
		w.there(crdKind, "", crd.GetName())
	}
}

// A labHandle is what "lanyard lab" tells of a running lab.
type labHandle struct {
	Node, Kubeconfig, Vault string

	env      map[string]string
	identity string // ARM id of the managed identity that may read the vault
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
	l.identity = "/subscriptions/" + l.env["AZURE_SUBSCRIPTION_ID"] + "/resourceGroups/myResourceGroup/providers/Microsoft.ManagedIdentity/userAssignedIdentities/vpl-id"
	return l
}

// clientID asks the lab's cloud, as "az identity show" does.
func (l *labHandle) clientID(t *testing.T) string {
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
	ask := func(method, address, token string, form url.Values, into any) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		if form != nil {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		} else {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Fatalf("%s %s: %s", method, address, response.Status)
		}
		if err := json.NewDecoder(response.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	var token struct {
		AccessToken string `json:"access_token"`
	}
	ask(http.MethodPost, "https://login.microsoftonline.com/"+l.env["AZURE_TENANT_ID"]+"/oauth2/v2.0/token", "", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {l.env["AZURE_CLIENT_ID"]}, "client_secret": {l.env["AZURE_CLIENT_SECRET"]},
		"scope": {"https://management.azure.com/.default"},
	}, &token)
	var identity struct{ Properties struct{ ClientID string } }
	ask(http.MethodGet, "https://management.azure.com"+l.identity+"?api-version=2023-01-31", token.AccessToken, nil, &identity)
	if identity.Properties.ClientID == "" {
		t.Fatal("the managed identity has no client id")
	}
	return identity.Properties.ClientID
}

// removeLabsOwn deletes what the lab installed from the plain manifests, with
// the CRDs, until nothing of it runs: a release adopts no object.
func (w *world) removeLabsOwn() {
	w.Helper()
	manifests, err := deploy.Manifests("mic", "nmi", "access")
	if err != nil {
		w.Fatal(err)
	}
	var workloads, rest []*unstructured.Unstructured
	for _, m := range manifests {
		for _, o := range parse(w, m) {
			if o.GroupVersionKind().Group == "apps" {
				workloads = append(workloads, o)
			} else {
				rest = append(rest, o)
			}
		}
	}
	w.remove(workloads) // with its rights, mic gives up its lease as it ends
	w.remove(rest)
	w.remove(w.crds())
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

func (w *world) crds() []*unstructured.Unstructured {
	w.Helper()
	docs, err := deploy.CRDs()
	if err != nil {
		w.Fatal(err)
	}
	var list []*unstructured.Unstructured
	for _, doc := range docs {
		list = append(list, parse(w, doc)...)
	}
	return list
}

// createAdminSecret copies the lab's into the release's namespace.
func (w *world) createAdminSecret() {
	w.Helper()
	labs, err := w.kube.CoreV1().Secrets("default").Get(w.Context(), adminSecret, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	w.create(&corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: w.namespace}})
	w.create(&corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: adminSecret, Namespace: w.namespace}, Data: labs.Data})
}

func (w *world) taint(node string) {
	w.Helper()
	patch := `{"spec": {"taints": [{"key": "` + startupTaint + `", "effect": "NoSchedule"}]}}`
	if _, err := w.kube.CoreV1().Nodes().Patch(w.Context(), node, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		w.Fatal(err)
	}
}

// readsTheSecret runs a pod with the label, which gets a token and reads the
// vault's secret with it.
func (w *world) readsTheSecret(l *labHandle, label string) {
	w.Helper()
	pods := w.kube.CoreV1().Pods("default")
	pod, err := pods.Create(w.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: label, Labels: map[string]string{"aadpodidbinding": label}},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			Containers: []corev1.Container{{
				Name: "workload", Image: "lanyard/workload:dev", ImagePullPolicy: corev1.PullIfNotPresent,
				Args: []string{"imds", "--vault", l.Vault, "--secret", "greeting"},
			}},
		},
	}, metav1.CreateOptions{})
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
			return fmt.Errorf("the pod %s is %s: %+v", label, phase, pod.Status)
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
		w.Fatalf("the pod %s has %s and said %s", label, pod.Status.Phase, said)
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

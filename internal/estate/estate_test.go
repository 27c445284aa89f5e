package estate

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"github.com/lanyard-id/lanyard/internal/lab"
)

func TestIssuersThatEntraCannotAskAreRefused(t *testing.T) {
	for _, issuer := range []string{
		"http://issuer.test/", "https://issuer.test:8443/", "https:///path", "issuer.test", "https://issuer.test/?a=b", "https://issuer.test/#x", "%",
	} {
		if _, _, err := (&publisher{}).serve(issuer); err == nil || !strings.Contains(err.Error(), "must be https://HOST/PATH") {
			t.Errorf("%q: %v", issuer, err)
		}
	}
}

func TestTheIssuersDocumentsAreTheClusters(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/broken" {
			http.Error(w, "no", http.StatusInternalServerError)
			return
		}
		_, _ = w.Write([]byte("document " + r.URL.Path))
	}))
	defer api.Close()
	client, err := discovery.NewDiscoveryClientForConfig(&rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	var p publisher
	host, handler, err := p.serve("https://oidc.example.test/cluster/")
	if err != nil || host != "oidc.example.test" {
		t.Fatalf("%s, %v", host, err)
	}
	issuer := httptest.NewServer(handler)
	defer issuer.Close()
	get := func(path string) (int, string) {
		res, err := http.Get(issuer.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var b strings.Builder
		if err := res.Write(&b); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, b.String()
	}
	if status, _ := get("/cluster/openid/v1/jwks"); status != http.StatusServiceUnavailable {
		t.Errorf("before the cluster is up: %d", status)
	}
	p.from(client.RESTClient())
	for path, want := range map[string]string{
		"/cluster/.well-known/openid-configuration": "document /.well-known/openid-configuration",
		"/cluster/openid/v1/jwks":                   "document /openid/v1/jwks",
	} {
		if status, body := get(path); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	// Nothing else of the API server may be read through it.
	for _, path := range []string{"/openid/v1/jwks", "/cluster/api/v1/secrets", "/cluster/openid/v1/jwks/../../../api", "/"} {
		if status, body := get(path); status != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

func TestTheCloudKeepsItsSubscriptionAndItsSecrets(t *testing.T) {
	dir := t.TempDir()
	config := CloudConfig{StateDir: dir, Logger: slog.New(slog.DiscardHandler)}
	open := func() *Cloud {
		t.Helper()
		c, err := OpenCloud(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := open()
	if first.VaultURL != "https://lanyard-demo.vault.azure.net/" && first.VaultURL != "https://lanyard-demo.vault.azure.net" {
		t.Errorf("vault: %q", first.VaultURL)
	}
	if !strings.HasSuffix(first.MachineID, "/virtualMachineScaleSets/aks-nodepool1-vmss/virtualMachines/0") {
		t.Errorf("machine: %q", first.MachineID)
	}
	admin := first.adminSecret()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := open()
	if diff := cmp.Diff(admin, second.adminSecret()); diff != "" || admin["ClientSecret"] == "" {
		t.Errorf("the principal of mic changed with a restart (-was +is)\n%s", diff)
	}
	if second.OperatorSecret() == "" {
		t.Error("the owner's secret is lost")
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	secrets := filepath.Join(dir, "secrets.json")
	if info, err := os.Stat(secrets); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.Remove(secrets); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCloud(t.Context(), config); err == nil || !strings.Contains(err.Error(), "to start anew") {
		t.Errorf("without its secrets: %v", err)
	}
}

func TestEnvIsForAShell(t *testing.T) {
	var b strings.Builder
	env := append(Env{{"PATH", "/a b"}}, PrincipalEnv("t", "s", "c", "it's $HOME")...)
	if err := env.WriteShell(&b); err != nil {
		t.Fatal(err)
	}
	want := `export PATH='/a b'":$PATH"
export AZURE_TENANT_ID='t'
export AZURE_SUBSCRIPTION_ID='s'
export AZURE_CLIENT_ID='c'
export AZURE_CLIENT_SECRET='it'\''s $HOME'
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestStatusOfNothingSaysWhatToDo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	for name, err := range map[string]error{
		"status": func() error { _, err := ReadStatus(dir); return err }(),
		"down":   Down(t.Context(), dir),
	} {
		if !errors.Is(err, lab.ErrNotRunning) || !strings.Contains(err.Error(), "lanyard lab up --state "+dir) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWorkloadsAreReadyWhenAllTheirPodsAre(t *testing.T) {
	two := int32(2)
	deployment := func(edit func(*appsv1.Deployment)) map[string]any {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: 3}, Spec: appsv1.DeploymentSpec{Replicas: &two}}
		d.Status = appsv1.DeploymentStatus{ObservedGeneration: 3, AvailableReplicas: 2, UpdatedReplicas: 2}
		edit(d)
		return object(t, d)
	}
	daemons := func(edit func(*appsv1.DaemonSet)) map[string]any {
		d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Generation: 1}}
		d.Status = appsv1.DaemonSetStatus{ObservedGeneration: 1, DesiredNumberScheduled: 1, NumberReady: 1}
		edit(d)
		return object(t, d)
	}
	for name, tt := range map[string]struct {
		missing func(map[string]any) (string, error)
		object  map[string]any
		want    string
	}{
		"a deployment with all replicas":         {deploymentReady, deployment(func(*appsv1.Deployment) {}), ""},
		"a deployment that lacks one":            {deploymentReady, deployment(func(d *appsv1.Deployment) { d.Status.AvailableReplicas = 1 }), "1 of 2 replicas are available"},
		"a deployment whose change is not seen":  {deploymentReady, deployment(func(d *appsv1.Deployment) { d.Generation = 4 }), notSeen},
		"a deployment that still runs old pods":  {deploymentReady, deployment(func(d *appsv1.Deployment) { d.Status.UpdatedReplicas = 1 }), "1 of 2 replicas are available"},
		"a daemon set on its one node":           {daemonSetReady, daemons(func(*appsv1.DaemonSet) {}), ""},
		"a daemon set before it knows its nodes": {daemonSetReady, daemons(func(d *appsv1.DaemonSet) { d.Status.DesiredNumberScheduled = 0 }), notSeen},
		"a daemon set whose pod is not ready":    {daemonSetReady, daemons(func(d *appsv1.DaemonSet) { d.Status.NumberReady = 0 }), "0 of 1 pods are ready"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := tt.missing(tt.object); got != tt.want || err != nil {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func object(t *testing.T, o any) map[string]any {
	t.Helper()
	u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/webhook/servingcert"
)

var cluster labtest.Cluster

// install applies the manifest that users install, except that the API server
// calls the webhook by URL, and removes it when the test ends.
func install(t *testing.T, url string) {
	t.Helper()
	c, err := client.New(cluster.Config(t), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := deploy.Manifests("webhook")
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := deploy.Fill(manifests[0], map[string]string{"AZURE_TENANT_ID": testConfig.TenantID})
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range strings.Split(string(manifest), "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatal(err)
		}
		if o.GetKind() == "MutatingWebhookConfiguration" {
			pointTo(o, url)
			t.Cleanup(func() { remove(t, c, o) })
		}
		if err := c.Create(t.Context(), o); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatalf("%s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
	secret := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Secret"}}
	secret.SetName(workloadidentity.CertificateSecret)
	secret.SetNamespace(workloadidentity.Namespace)
	t.Cleanup(func() { remove(t, c, secret) })
}

func pointTo(o *unstructured.Unstructured, url string) {
	for _, w := range o.Object["webhooks"].([]any) {
		w.(map[string]any)["clientConfig"] = map[string]any{"url": url + workloadidentity.WebhookPath}
	}
}

func remove(t *testing.T, c client.Client, o client.Object) {
	// t.Context has ended by now.
	if err := c.Delete(context.WithoutCancel(t.Context()), o); client.IgnoreNotFound(err) != nil {
		t.Errorf("removing %s: %v", o.GetName(), err)
	}
}

// account returns client settings with the rights that the manifest gives.
func account(t *testing.T) *rest.Config {
	t.Helper()
	admin := cluster.Config(t)
	kube, err := kubernetes.NewForConfig(admin)
	if err != nil {
		t.Fatal(err)
	}
	token, err := kube.CoreV1().ServiceAccounts(workloadidentity.Namespace).CreateToken(t.Context(), "azure-wi-webhook-admin", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(admin)
	config.BearerToken, config.QPS = token.Status.Token, -1
	return config
}

// replica is one running webhook.
type replica struct {
	certificates *servingcert.Keeper
	accounts     *AccountCache
	version      *ServerVersion
	server       *Server
	log          *safeBuffer
}

func newReplica(t *testing.T, config *rest.Config) *replica {
	t.Helper()
	r := &replica{log: &safeBuffer{}}
	logger := slog.New(slog.NewTextHandler(r.log, nil))
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	r.accounts = &AccountCache{Client: meta, Logger: logger}
	r.certificates = &servingcert.Keeper{
		Client: objects, Namespace: workloadidentity.Namespace, Secret: workloadidentity.CertificateSecret,
		Configuration: workloadidentity.WebhookConfiguration, Webhook: workloadidentity.WebhookName,
		Names: []string{"127.0.0.1"}, Logger: logger,
	}
	r.version = &ServerVersion{Logger: logger}
	if r.version.Get, err = GetVersion(config); err != nil {
		t.Fatal(err)
	}
	r.server = &Server{
		Admission: &Handler{ServiceAccounts: r.accounts, Config: testConfig, NativeSidecars: r.version.NativeSidecars, Logger: logger},
		TLS:       &tls.Config{GetCertificate: r.certificates.GetCertificate},
		Ready:     []func() error{r.accounts.Ready, r.version.Ready, r.certificates.Ready},
		Logger:    logger,
	}
	r.server.Listen.Admission, r.server.Listen.Health = listen(t), listen(t)
	return r
}

func (r *replica) url() string { return "https://" + r.server.Listen.Admission.Addr().String() }

// run runs the replica until the test ends.
func (r *replica) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.accounts.Run(ctx) })
	g.Go(func() error { return r.version.Run(ctx) })
	g.Go(func() error { return r.certificates.Run(ctx) })
	g.Go(func() error { return r.server.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("the replica ended with %v", err)
		}
		if t.Failed() {
			t.Logf("log of the replica:\n%s", r.log)
		}
	})
}

// ready asks as the kubelet does.
func (r *replica) ready() error {
	resp, err := http.Get("http://" + r.server.Listen.Health.Addr().String() + "/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%d %s", resp.StatusCode, text)
	}
	return nil
}

// started installs the webhook with one replica and waits until pods are admitted.
func started(t *testing.T) *replica {
	t.Helper()
	install(t, "https://127.0.0.1:1")
	r := newReplica(t, account(t))
	redirect(t, r.url())
	r.run(t)
	labtest.Eventually(t, t.Context(), r.ready)
	return r
}

// redirect makes the API server call another URL.
func redirect(t *testing.T, url string) {
	t.Helper()
	c, err := client.New(cluster.Config(t), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o := configuration(t, c)
	pointTo(o, url)
	if err := c.Update(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

func configuration(t *testing.T, c client.Client) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration"}}
	if err := c.Get(t.Context(), client.ObjectKey{Name: workloadidentity.WebhookConfiguration}, o); err != nil {
		t.Fatal(err)
	}
	return o
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return l
}

// safeBuffer is a log that is read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// lacks says what of before is not in after: the API server adds members and
// items, and takes none away.
func lacks(at string, before, after any) string {
	switch b := before.(type) {
	case map[string]any:
		a, ok := after.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s was an object and is %v", at, after)
		}
		for k, v := range b {
			if missing := lacks(at+"/"+k, v, a[k]); missing != "" {
				return missing
			}
		}
	case []any:
		a, ok := after.([]any)
		if !ok || len(a) < len(b) {
			return fmt.Sprintf("%s was %v and is %v", at, before, after)
		}
		for i := range b {
			if missing := lacks(at+"/"+strconv.Itoa(i), b[i], a[i]); missing != "" {
				return missing
			}
		}
	default:
		if fmt.Sprint(before) != fmt.Sprint(after) { // numbers are of several types
			return fmt.Sprintf("%s was %v and is %v", at, before, after)
		}
	}
	return ""
}

// Package keyrotation rotates the key of a cluster's issuer under pods that
// exchange their tokens all the time: a real kube-apiserver, a real kubelet that
// refreshes projected tokens, documents in blob storage, and the command itself as
// an operator would call it. It is a package of its own because it needs an estate
// whose issuer is in blob storage, and an estate takes a while.
//
//	pods ── workload exchange ──> login.microsoftonline.com ──> the keys at lanyardoidc.blob.core.windows.net/cluster
//	  │                                     │                                ^
//	  logs ────────────> judge <──────── journal          lanyard issuer rotate --to, --restart-command
//
// The judge believes neither the pods nor the cloud alone: every exchange must be
// in both records, and have succeeded in both.
//
// With the build tag soak (make soak), nothing is shortened: nobody replaces the
// pods, and the kubelet refreshes their tokens of ten minutes during the drain.
package keyrotation

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/cmd/lanyard/issuer"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud"
	"github.com/lanyard-id/lanyard/internal/cloud/control"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/estate"
	"github.com/lanyard-id/lanyard/internal/issuer/rotation"
	"github.com/lanyard-id/lanyard/internal/lab"
)

const (
	namespace = metav1.NamespaceDefault
	account   = "shop" // the service account of all pods
	container = "cluster"
	place     = "https://" + estate.StorageAccount + "." + azure.SuffixBlob + "/" + container
)

// The test binary is also the first process of the lab's node and containers,
// the command `lanyard issuer`, and what it is told to restart API servers with.
// Without root it runs itself in a user namespace, as `lanyard demo` does.
func TestMain(m *testing.M) {
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	var err error
	switch {
	case mode == "internal":
		err = lab.Main(context.Background(), os.Args[2:], os.Stdin, os.Stdout)
	case mode == "issuer":
		root := &cobra.Command{Use: "lanyard", SilenceErrors: true, SilenceUsage: true}
		root.AddCommand(issuer.Command("lanyard"))
		err = root.Execute()
	case mode == "restart":
		err = askForRestart(os.Args[2])
	case os.Getuid() != 0 && !lab.InUserNamespace():
		var code int
		if code, err = lab.RunInUserNamespace(context.Background(), os.Args[1:]); err == nil {
			os.Exit(code)
		}
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func askForRestart(where string) error {
	res, err := http.Post(where, "text/plain", strings.NewReader(os.Getenv("LANYARD_STEP")))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the restart was answered with %d", res.StatusCode)
	}
	return nil
}

// A bed is an estate whose issuer is in blob storage.
type bed struct {
	*estate.Estate
	*judge          // of the pods
	self     string // this program
	env      []string
	identity cloud.Principal
	settings control.Settings
	hook     string // URL that restarts the API server

	mu    sync.Mutex
	steps []string // in which the API server was restarted
}

// newBed starts the estate: with a real node where one is possible, like every
// lab. LANYARD_BIN names another directory of its programs than bin.
func newBed(t *testing.T, settings control.Settings) *bed {
	t.Helper()
	bin := os.Getenv("LANYARD_BIN")
	if bin == "" {
		bin = "../../../bin"
	}
	bin, err := filepath.Abs(bin)
	must(t, err)
	for _, program := range estate.Programs() {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			t.Fatalf("%v: run make build", err)
		}
	}
	missing := lab.Missing()
	if len(missing) > 0 {
		t.Logf("simulated node: pods run as local processes, because a real node needs %v", missing)
	}
	b := &bed{settings: settings}
	b.self, err = os.Executable()
	must(t, err)
	dir := filepath.Join(t.TempDir(), "state")
	b.Estate, err = estate.Up(t.Context(), estate.Config{
		StateDir: dir, BinDir: bin, Self: []string{"/proc/self/exe", "internal"},
		APIServer: lab.APIServer{Issuer: place + "/"}, CloudSettings: settings,
		ProcessNode: len(missing) > 0, Step: t.Logf, Logger: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	t.Cleanup(func() {
		if err := b.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	t.Cleanup(func() {
		if t.Failed() {
			b.tell(t)
		}
	})
	status, err := estate.ReadStatus(dir)
	must(t, err)
	b.env = os.Environ()
	for _, v := range status.Env {
		value := v.Value
		if v.Name == "PATH" {
			value += ":" + os.Getenv("PATH")
		}
		b.env = append(b.env, v.Name+"="+value)
	}
	b.seed(t)
	hook := httptest.NewServer(http.HandlerFunc(b.restart))
	t.Cleanup(hook.Close)
	b.hook = hook.URL
	b.judge = newJudge(t, b.Estate, b.identity.ClientID)
	return b
}

// restart is what --restart-command asks for.
func (b *bed) restart(w http.ResponseWriter, r *http.Request) {
	step, err := io.ReadAll(io.LimitReader(r.Body, 100))
	if err == nil {
		b.away.Lock()
		err = b.Lab.RestartAPIServer(r.Context())
		b.away.Unlock()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.steps = append(b.steps, string(step))
}

func (b *bed) restarted() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.steps)
}

// seed makes an identity that trusts the pods' service account, and a container
// that anybody may read.
func (b *bed) seed(t *testing.T) {
	t.Helper()
	seeded, err := b.Cloud.Seed(t.Context(), cloud.Seed{
		SubscriptionID: b.Cloud.SubscriptionID, ResourceGroup: estate.ResourceGroup, Location: estate.Location,
		Identities: []cloud.SeedIdentity{{Name: account, Federated: []directory.FederatedCredential{
			{Name: account, Issuer: b.Issuer, Subject: "system:serviceaccount:" + namespace + ":" + account, Audiences: []string{azure.AudienceExchange}},
		}}},
	})
	must(t, err)
	b.identity = seeded.Identities[account]
	must(t, b.Objects.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: account, Annotations: map[string]string{workloadidentity.AnnotationClientID: b.identity.ClientID},
	}}))

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(b.Cloud.CACertPEM())
	transport := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: b.Proxy}), TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	options := azcore.ClientOptions{Transport: &http.Client{Transport: transport, Timeout: 10 * time.Second}}
	owner, err := azidentity.NewClientSecretCredential(b.Cloud.Tenant.ID, b.Cloud.Operator.ClientID, b.Cloud.OperatorSecret(), &azidentity.ClientSecretCredentialOptions{ClientOptions: options})
	must(t, err)
	blobs, err := azblob.NewClient("https://"+estate.StorageAccount+"."+azure.SuffixBlob, owner, &azblob.ClientOptions{ClientOptions: options})
	must(t, err)
	_, err = blobs.CreateContainer(t.Context(), container, &azblob.CreateContainerOptions{Access: new(azblob.PublicAccessTypeBlob)})
	must(t, err)
}

// lanyard calls the command in a process of its own, as the subscription's
// owner, and returns what it prints.
func (b *bed) lanyard(t *testing.T, args ...string) []byte {
	t.Helper()
	return b.command(t, b.self, args...)
}

func (b *bed) kubectl(t *testing.T, args ...string) {
	t.Helper()
	b.command(t, filepath.Join(filepath.Dir(b.Lab.Kubeconfig), "bin", "kubectl"), args...)
}

func (b *bed) command(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	began := time.Now()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = b.env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if took := time.Since(began); took > time.Second || stderr.Len() > 0 {
		t.Logf("%s %s took %.1f s\n%s", filepath.Base(name), strings.Join(args[:2], " "), took.Seconds(), &stderr)
	}
	if err != nil {
		t.Fatalf("%v: %s%s", err, &stdout, &stderr)
	}
	return stdout.Bytes()
}

// rotate calls lanyard issuer rotate and returns where the rotation is then.
func (b *bed) rotate(t *testing.T, args ...string) (s rotation.State) {
	t.Helper()
	text := b.lanyard(t, append([]string{
		"issuer", "rotate", "--key-dir", b.Lab.KeyDir(), "--api-server", b.Lab.RESTConfig().Host, "--allow-private",
		"--to", place, "--auth-method", "client_secret", "--restart-command", estate.Quote(b.self) + " restart " + b.hook,
		"--interval", "200ms", "-o", "json",
	}, args...)...)
	must(t, json.Unmarshal(text, &s))
	return s
}

// rotateTo calls it again and again, as cron would, until a step is reached.
func (b *bed) rotateTo(t *testing.T, step rotation.Step, args ...string) (s rotation.State) {
	t.Helper()
	until(t, 5*time.Minute, "the rotation is in step "+string(step), func(context.Context) error {
		if s = b.rotate(t, append(args, "--no-wait")...); s.Step != step {
			return fmt.Errorf("it is in step %s", s.Step)
		}
		return nil
	})
	return s
}

// publishFirst publishes what the cluster has before any rotation, and asks the
// command whether Entra would be content.
func (b *bed) publishFirst(t *testing.T) {
	t.Helper()
	b.lanyard(t, "issuer", "publish", "--to", place, "--auth-method", "client_secret", "--api-server", b.Lab.RESTConfig().Host)
	b.check(t)
}

func (b *bed) check(t *testing.T) {
	t.Helper()
	b.lanyard(t, "issuer", "check", "--api-server", b.Lab.RESTConfig().Host, "--allow-private")
}

// forget lets the cloud forget the keys that it has fetched: what is published
// now must do.
func (b *bed) forget() {
	b.settings.JWKSRefetch += fault.Duration(time.Millisecond)
	b.Cloud.SetSettings(b.settings)
}

// replace replaces pods as an operator does who cannot wait for the end of
// their tokens, and those of Lanyard, which use the API server with tokens that
// the kubelet refreshes once in 48 minutes.
func (b *bed) replace(t *testing.T, apps ...string) {
	t.Helper()
	all := map[string][]string{
		namespace:                  append([]string{"deployment/mic", "daemonset/nmi"}, apps...),
		"lanyard-system":           {"deployment"},
		workloadidentity.Namespace: {"deployment"},
	}
	for ns, what := range all {
		b.kubectl(t, append([]string{"rollout", "restart", "-n", ns}, what...)...)
	}
	for ns, what := range all {
		b.kubectl(t, append([]string{"rollout", "status", "-n", ns, "--timeout=2m"}, what...)...)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until calls check until it returns nil.
func until(t *testing.T, limit time.Duration, what string, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for {
		err := check(ctx)
		if err == nil {
			t.Logf("%s after %.1f s", what, time.Since(began).Seconds())
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		case <-tick.C:
		}
	}
}

var errNotYet = errors.New("not yet")

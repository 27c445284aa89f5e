package rotation_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lanyard-id/lanyard/internal/cloud"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/issuer"
	"github.com/lanyard-id/lanyard/internal/issuer/inspect"
	"github.com/lanyard-id/lanyard/internal/issuer/rotation"
	"github.com/lanyard-id/lanyard/internal/lab/controlplane"
)

const (
	issuerURL = "https://oidc.lanyard.test/cluster/"
	audience  = "api://AzureADTokenExchange"
	workers   = 8
)

// A bed is a real control plane beside a local cloud that knows it only by what
// is published in a folder.
type bed struct {
	control *controlplane.ControlPlane
	config  *rest.Config
	client  kubernetes.Interface
	cloud   *cloud.Cloud
	seeded  cloud.Seeded
	web     *http.Client // reaches the cloud's hosts
	folder  string       // what is published
	keys    string       // the key directory
}

// started runs children as the lab does, in this network.
type started struct{}

func (started) Start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd.Start()
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{folder: t.TempDir()}
	kube, err := filepath.Abs("../../../bin/kube")
	must(t, err)
	dir := filepath.Join(t.TempDir(), "cluster")
	b.keys = filepath.Join(dir, "pki")
	b.control, err = controlplane.Start(t.Context(), started{}, controlplane.Config{
		Kube: kube, Dir: dir, Address: netip.MustParseAddrPort("127.0.0.1:0"), Issuer: issuerURL,
		Args: []string{"--no-scheduler", "--controllers=serviceaccount-controller,serviceaccount-token-controller"},
	})
	must(t, err)
	t.Cleanup(func() {
		if err := b.control.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	b.config, err = clientcmd.BuildConfigFromFlags("", b.control.Kubeconfig("admin"))
	must(t, err)
	b.config.QPS = -1
	b.client, err = kubernetes.NewForConfig(b.config)
	must(t, err)
	b.openCloud(t)
	return b
}

func (b *bed) openCloud(t *testing.T) {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	serve := &issuer.Server{Source: issuer.Folder{Directory: issuer.Directory{Path: b.folder}}, Interval: 100 * time.Millisecond, Retry: 100 * time.Millisecond, Logger: quiet}
	c, err := cloud.Open(cloud.Config{StateDir: t.TempDir(), Logger: quiet, Hosts: map[string]http.Handler{"oidc.lanyard.test": serve}})
	must(t, err)
	b.cloud = c
	var federated []directory.FederatedCredential
	for i := range workers {
		federated = append(federated, directory.FederatedCredential{
			Name: fmt.Sprintf("worker-%d", i), Issuer: issuerURL, Subject: fmt.Sprintf("system:serviceaccount:default:worker-%d", i), Audiences: []string{audience},
		})
	}
	b.seeded, err = c.Seed(t.Context(), cloud.Seed{ResourceGroup: "rg", Location: "eastus", Identities: []cloud.SeedIdentity{{Name: "worker", Federated: federated}}})
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.CACertPEM())
	b.web = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, l.Addr().String())
		},
		TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: workers,
	}}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var both sync.WaitGroup
	both.Go(func() { _ = c.Serve(ctx, l) })
	both.Go(func() { _ = serve.Run(ctx) })
	t.Cleanup(func() {
		b.web.CloseIdleConnections()
		cancel()
		both.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

func (b *bed) cluster() *issuer.Cluster { return &issuer.Cluster{Config: b.config} }

func (b *bed) fetcher() inspect.Fetcher { return inspect.Fetcher{HTTP: b.web, AllowPrivate: true} }

// rotation returns the rotation as a new process would begin or continue it.
func (b *bed) rotation(t *testing.T) *rotation.Rotation {
	t.Helper()
	dir, err := rotation.OpenKeyDir(b.keys)
	must(t, err)
	return &rotation.Rotation{
		Dir: dir, Servers: b.cluster(), Public: b.fetcher().KeyIDs,
		Publish: rotation.PublishTo(b.cluster(), issuer.Directory{Path: b.folder}),
		Restart: func(ctx context.Context, step rotation.Step, _ []string) error {
			t.Logf("restarting the API server in step %s", step)
			return b.control.Restart(ctx)
		},
		CacheWait: 2 * time.Second, Lifetime: 4 * time.Second, Poll: 100 * time.Millisecond, Tell: t.Logf,
	}
}

// A load is pods that use their tokens all the time and renew them when they
// can, as a kubelet does.
type load struct {
	bed       *bed
	stop      context.CancelFunc
	all       sync.WaitGroup
	exchanges atomic.Int64
	reviews   atomic.Int64

	mu     sync.Mutex
	failed []error
	kids   map[string]int // of the tokens that were exchanged
}

func (b *bed) startLoad(t *testing.T) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{bed: b, stop: cancel, kids: map[string]int{}}
	for i := range workers {
		name := fmt.Sprintf("worker-%d", i)
		_, err := b.client.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil && !strings.Contains(err.Error(), "already exists") {
			t.Fatal(err)
		}
		token, err := b.token(t.Context(), name)
		must(t, err)
		var current atomic.Pointer[string]
		current.Store(&token)
		l.all.Go(func() { l.renew(ctx, name, &current) })
		l.all.Go(func() { l.use(ctx, &current) })
	}
	t.Cleanup(func() { l.end() })
	return l
}

func (l *load) end() {
	l.stop()
	l.all.Wait()
}

func (b *bed) token(ctx context.Context, account string) (string, error) {
	answer, err := b.client.CoreV1().ServiceAccounts("default").CreateToken(ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return answer.Status.Token, nil
}

// renew asks for a new token every second; while the API server is away the old
// one goes on. The API server must accept its own tokens whenever it answers.
func (l *load) renew(ctx context.Context, account string, current *atomic.Pointer[string]) {
	for every(ctx, time.Second) {
		ask, cancel := context.WithTimeout(ctx, 3*time.Second)
		review, err := l.bed.client.AuthenticationV1().TokenReviews().Create(ask, &authenticationv1.TokenReview{
			Spec: authenticationv1.TokenReviewSpec{Token: *current.Load(), Audiences: []string{audience}},
		}, metav1.CreateOptions{})
		switch {
		case err == nil && !review.Status.Authenticated:
			l.fail(fmt.Errorf("the API server refuses its own token: %s", review.Status.Error))
		case err == nil:
			l.reviews.Add(1)
		}
		if token, err := l.bed.token(ask, account); err == nil {
			current.Store(&token)
		}
		cancel()
	}
}

func (l *load) use(ctx context.Context, current *atomic.Pointer[string]) {
	client := &entra.Client{HTTP: l.bed.web}
	app := entra.Application{Tenant: l.bed.seeded.Tenant.ID, ClientID: l.bed.seeded.Identities["worker"].ClientID}
	for every(ctx, 20*time.Millisecond) {
		raw := *current.Load()
		_, err := client.Token(ctx, app, entra.Assertion(raw), "https://vault.azure.net")
		switch {
		case ctx.Err() != nil:
		case err != nil:
			l.fail(err)
		default:
			l.exchanges.Add(1)
			l.count(raw)
		}
	}
}

func (l *load) count(raw string) {
	kid := keyID(raw)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kids[kid]++
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = append(l.failed, err)
}

func (l *load) failures() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.failed)
}

func (l *load) used(kid string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kids[kid]
}

func every(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// run runs the rotation as processes that end at every step.
func (b *bed) run(t *testing.T, onStep func(rotation.Step)) {
	t.Helper()
	for {
		r := b.rotation(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		before, err := rotation.ReadState(b.keys)
		must(t, err)
		r.Tell = func(format string, args ...any) {
			t.Logf("rotate: "+format, args...)
			if strings.Contains(format, "is done, next") {
				cancel() // the next step begins in another process
			}
		}
		err = r.Run(ctx)
		cancel()
		must(t, r.Dir.Close())
		after, readErr := rotation.ReadState(b.keys)
		must(t, readErr)
		if after.Step != before.Step && onStep != nil {
			onStep(after.Step)
		}
		switch {
		case after.Step == rotation.Done:
			return
		case after.Step == before.Step:
			t.Fatalf("step %s: %v", before.Step, err)
		case err != nil && !errors.Is(err, context.Canceled):
			t.Fatal(err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

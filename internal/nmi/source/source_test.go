package source_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/nmi/source"
)

var cluster labtest.Cluster

func TestMain(m *testing.M) {
	// client-go keeps its connection to the API server for the whole process.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("golang.org/x/net/http2.(*ClientConn).readLoop"))
}

const (
	vault  = "https://vault.azure.net"
	tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	app    = "b52ab4ea-5b1c-4e4a-9c8e-0a1f9c0d7a11"
)

// A directory is a token endpoint that knows the passwords of one application.
type directory struct {
	URL string

	mu        sync.Mutex
	passwords map[string]bool
	asked     []string // the password or the assertion of each request
	answer    func(http.ResponseWriter, *http.Request) bool
}

func newDirectory(t *testing.T, passwords ...string) *directory {
	t.Helper()
	d := &directory{passwords: map[string]bool{}}
	for _, p := range passwords {
		d.passwords[p] = true
	}
	srv := httptest.NewServer(d)
	t.Cleanup(srv.Close)
	d.URL = srv.URL
	return d
}

func (d *directory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	answer := d.answer
	d.mu.Unlock()
	if answer != nil && answer(w, r) {
		return
	}
	q, err := entra.ParseTokenRequest(r, entra.V2)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, q.Secret+q.Assertion)
	refused, _ := err.(*entra.Error)
	switch {
	case refused != nil:
	case q.Assertion == "" && !d.passwords[q.Secret]:
		refused = entra.InvalidSecret(q.ClientID)
	default:
		name, _, _ := strings.Cut(r.URL.Path[1:], "/")
		_ = entra.WriteToken(w, entra.V2, entra.TokenResponse{AccessToken: fmt.Sprintf("%s by %s in %s #%d", q.Scope, q.Secret, name, len(d.asked)), ExpiresIn: time.Hour})
		return
	}
	_ = entra.WriteError(w, entra.Exchange{TraceID: "t", CorrelationID: "c", Time: time.Now()}, refused)
}

func (d *directory) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *directory) requests() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.asked)
}

func (d *directory) client(t *testing.T) *entra.Client {
	c := &entra.Client{Authority: d.URL, AllowHTTP: true}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// run runs s until the test ends.
func run(t *testing.T, s *source.Source) {
	t.Helper()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func identity(namespace, name string, kind v1.IdentityType) *v1.AzureIdentity {
	return &v1.AzureIdentity{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: "u-1"},
		Spec:       v1.AzureIdentitySpec{Type: kind, TenantID: tenant, ClientID: app, ClientPassword: v1.SecretReference{Name: name, Namespace: namespace}},
	}
}

// certificate returns a new key pair with a certificate.
func certificate(t *testing.T, until time.Time) (*rsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app"}, NotBefore: until.Add(-2 * time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func jsonBody(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// Package cloudtest starts the hosts of the local cloud for one test: a real state file, the token service, Resource
// Manager and whatever a test adds, behind TLS under their real names.
//
//	c := cloudtest.New(t)
//	c.Handle("vault.azure.net", vault)                  a host, or all below it
//	armmsi.NewClientFactory(c.Subscription, c.Owner(), c.ARM())   an SDK, unmodified
//
// Every request to Resource Manager is followed by management.Check and directory.Check: a change that breaks an
// invariant fails the test that made it.
package cloudtest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/blob"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/graph"
	"github.com/lanyard-id/lanyard/internal/cloud/login"
	"github.com/lanyard-id/lanyard/internal/cloud/management"
	provider "github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/management/compute"
	"github.com/lanyard-id/lanyard/internal/cloud/management/identity"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// SubscriptionID is the subscription of every cloud.
const SubscriptionID = "11111111-2222-3333-4444-555555555555"

// A Cloud is a running cloud with a tenant, a subscription, and its owner, an application with a client secret.
type Cloud struct {
	T            testing.TB
	DB           *state.DB
	Login        *login.Server
	Management   *management.Server
	Graph        *graph.Server // of which the owner is Global Administrator
	Tenant       directory.Tenant
	Subscription string
	OwnerSP      directory.ServicePrincipal
	Client       *http.Client // dials the cloud, whatever the host
	Log          *Buffer      // of all hosts
	// Compute and Limits are the settings of Resource Manager. They must not change while requests run.
	Compute compute.Settings
	Limits  bool
	// Propagation and FederatedWrite are those of federated credentials: see control.Settings. The same holds.
	Propagation    login.Propagation
	FederatedWrite time.Duration

	secret string
	server *httptest.Server
	mu     sync.Mutex
	hosts  map[string]http.Handler
	shift  time.Duration
}

// New starts a cloud; it ends with the test.
func New(t testing.TB) *Cloud {
	t.Helper()
	db, err := state.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	c := &Cloud{T: t, DB: db, Subscription: SubscriptionID, Log: &Buffer{}, hosts: map[string]http.Handler{}}
	logger := c.Logger()
	if c.Login, err = login.New(login.Config{DB: db, Now: c.Now, Logger: logger, Propagation: func() login.Propagation { return c.Propagation }}); err != nil {
		t.Fatal(err)
	}
	c.Management = &management.Server{
		DB: db, Verify: c.Login.Verify, StorageDeleted: blob.DeleteAccount, Now: c.Now, Logger: logger,
		Compute: func() compute.Settings { return c.Compute }, Limits: func() bool { return c.Limits },
		Identity: identity.Config{Changed: c.Login.FederatedChanged, WriteTime: func() time.Duration { return c.FederatedWrite }},
	}
	c.Update(func(tx *state.Tx) error {
		if c.Tenant, err = directory.PutTenant(tx, directory.Tenant{DisplayName: "Contoso"}); err != nil {
			return err
		}
		if c.OwnerSP, c.secret, err = application(tx, "owner", c.Now()); err != nil {
			return err
		}
		return directory.SetAccess(tx, c.OwnerSP.ID, nil, []string{azure.DirectoryRoleGlobalAdministrator})
	})
	if err := c.Management.CreateSubscription(t.Context(), provider.Subscription{ID: c.Subscription, TenantID: c.Tenant.ID, DisplayName: "Demo"}, c.OwnerSP.ID); err != nil {
		t.Fatal(err)
	}
	c.start()
	for _, h := range azure.LoginHosts() {
		c.Handle(h, c.Login.Handler())
	}
	c.Handle(azure.HostManagement, c.checked(c.Management.Handler()))
	c.Graph = &graph.Server{DB: db, Verify: c.Login.Verify, Changed: c.Login.FederatedChanged, Now: c.Now, Logger: logger}
	c.Handle(azure.HostGraph, c.checked(c.Graph.Handler()))
	blobs := &blob.Server{DB: db, Verify: c.Login.Verify, Now: c.Now, Logger: logger}
	c.Handle(azure.SuffixBlob, c.checked(blobs.Handler()))
	t.Cleanup(func() {
		c.Client.CloseIdleConnections()
		c.server.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func application(tx *state.Tx, name string, now time.Time) (directory.ServicePrincipal, string, error) {
	app, sp, err := directory.CreateApplication(tx, name)
	if err != nil {
		return sp, "", err
	}
	secret, err := directory.AddPassword(tx, app.ObjectID, "test", now.AddDate(1, 0, 0))
	return sp, secret, err
}

// Now is the cloud's clock: the real one plus what Advance added.
func (c *Cloud) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.shift)
}

// Advance moves the cloud's clock.
func (c *Cloud) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shift += d
}

// Handle serves host, and all names below it that have no handler of their own.
func (c *Cloud) Handle(host string, h http.Handler) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hosts[host] = h
}

func (c *Cloud) handler(host string) http.Handler {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h, ok := c.hosts[host]; ok {
		return h
	}
	_, parent, _ := strings.Cut(host, ".")
	return c.hosts[parent]
}

func (c *Cloud) start() {
	dispatch := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := c.handler(r.Host)
		if h == nil {
			http.Error(w, "no such host", http.StatusNotFound)
			return
		}
		h.ServeHTTP(w, r)
	})
	c.server = httptest.NewUnstartedServer(dispatch)
	certificate, roots := c.certificate()
	c.server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	c.server.EnableHTTP2 = true
	c.server.StartTLS()
	address := c.server.Listener.Addr().String()
	c.Client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
	}}
}

func (c *Cloud) certificate() (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.T.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		DNSNames: append(azure.LoginHosts(), azure.HostManagement, azure.HostGraph, "*."+azure.SuffixVault, "*."+azure.SuffixBlob),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		c.T.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		c.T.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

// checked verifies the invariants after each change.
func (c *Cloud) checked(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		if r.Method != http.MethodGet {
			c.Check(r.Method + " " + r.URL.Path)
		}
	})
}

// Check fails the test if an invariant of the state is broken.
func (c *Cloud) Check(after string) {
	c.T.Helper()
	for _, check := range []func(*state.Tx) error{management.Check, directory.Check, blob.Check} {
		if err := c.DB.View(check); err != nil {
			c.T.Errorf("after %s: %v", after, err)
		}
	}
}

// Update changes the state behind the back of the hosts.
func (c *Cloud) Update(f func(*state.Tx) error) {
	c.T.Helper()
	if err := c.DB.Update(f); err != nil {
		c.T.Fatal(err)
	}
}

// Owner is the credential of the subscription's owner.
func (c *Cloud) Owner() azcore.TokenCredential { return c.credential(c.OwnerSP.AppID, c.secret) }

// Application makes another application without any role.
func (c *Cloud) Application(name string) (directory.ServicePrincipal, azcore.TokenCredential) {
	c.T.Helper()
	var (
		sp     directory.ServicePrincipal
		secret string
		err    error
	)
	c.Update(func(tx *state.Tx) error { sp, secret, err = application(tx, name, c.Now()); return err })
	return sp, c.credential(sp.AppID, secret)
}

func (c *Cloud) credential(clientID, secret string) azcore.TokenCredential {
	c.T.Helper()
	cred, err := azidentity.NewClientSecretCredential(c.Tenant.ID, clientID, secret, &azidentity.ClientSecretCredentialOptions{ClientOptions: c.Options()})
	if err != nil {
		c.T.Fatal(err)
	}
	return cred
}

// Options make an SDK client use the cloud and not retry.
func (c *Cloud) Options() azcore.ClientOptions {
	return azcore.ClientOptions{Transport: c.Client, Retry: policy.RetryOptions{MaxRetries: -1}}
}

// ARM are the options of a management client.
func (c *Cloud) ARM() *arm.ClientOptions {
	return &arm.ClientOptions{ClientOptions: c.Options(), DisableRPRegistration: true}
}

// Token gets an access token for a resource.
func (c *Cloud) Token(cred azcore.TokenCredential, resource string) string {
	c.T.Helper()
	t, err := cred.GetToken(c.T.Context(), policy.TokenRequestOptions{Scopes: []string{resource + "/.default"}})
	if err != nil {
		c.T.Fatal(err)
	}
	return t.Token
}

// As are the claims of a service principal, for calls inside the process.
func (c *Cloud) As(sp directory.ServicePrincipal) login.Claims {
	return login.Claims{TenantID: sp.TenantID, ObjectID: sp.ID, AppID: sp.AppID}
}

// Do performs a request to Resource Manager as the owner and decodes the answer into out unless nil.
func (c *Cloud) Do(method, path string, in, out any) {
	c.T.Helper()
	if err := c.Management.Do(c.T.Context(), c.As(c.OwnerSP), method, path, in, out); err != nil {
		c.T.Fatal(err)
	}
	c.Check(method + " " + path)
}

// A Buffer collects what is logged.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends p.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns all that was written.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Logger writes to Log.
func (c *Cloud) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(c.Log, nil)) }

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// The test binary is also the program: the SDK reads proxy and trust from the
// environment that a process starts with.
func TestMain(m *testing.M) {
	if os.Getenv("WORKLOAD_TEST_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

const assertion = "the-projected-token"

// azure answers as Entra and as a vault under their real names, behind a proxy.
type azure struct {
	proxy, roots string
	tokens       atomic.Int32
	forbidden    bool
}

func newAzure(t *testing.T) *azure {
	a := &azure{}
	cloud := httptest.NewUnstartedServer(a)
	cert, root := certificate(t, "login.microsoftonline.com", "*.vault.azure.net")
	cloud.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	cloud.EnableHTTP2 = true
	cloud.StartTLS()
	t.Cleanup(cloud.Close)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
			return
		}
		out, err := net.Dial("tcp", cloud.Listener.Addr().String())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		in, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			_, _ = io.Copy(out, in)
			_ = out.Close()
		}()
		_, _ = io.Copy(in, out)
		_ = in.Close()
	}))
	t.Cleanup(proxy.Close)
	a.proxy, a.roots = proxy.URL, filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(a.roots, root, 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *azure) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	const authority = "https://login.microsoftonline.com/tenant-1"
	switch {
	case r.URL.Path == "/common/discovery/instance":
		answer(map[string]any{
			"tenant_discovery_endpoint": authority + "/v2.0/.well-known/openid-configuration",
			"metadata":                  []any{map[string]any{"preferred_network": "login.microsoftonline.com", "preferred_cache": "login.microsoftonline.com", "aliases": []string{"login.microsoftonline.com"}}},
		})
	case strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration"):
		answer(map[string]any{"issuer": authority + "/v2.0", "authorization_endpoint": authority + "/oauth2/v2.0/authorize", "token_endpoint": authority + "/oauth2/v2.0/token"})
	case r.URL.Path == "/tenant-1/oauth2/v2.0/token":
		if r.FormValue("client_assertion") != assertion || r.FormValue("client_id") != "client-1" || a.forbidden {
			w.WriteHeader(http.StatusBadRequest)
			answer(map[string]any{"error": "invalid_client", "error_description": "AADSTS70021: No matching federated identity record found."})
			return
		}
		a.tokens.Add(1)
		answer(map[string]any{"access_token": jwt(testClaims), "token_type": "Bearer", "expires_in": 3600})
	case r.Header.Get("Authorization") == "":
		w.Header().Set("WWW-Authenticate", `Bearer authorization="`+authority+`", resource="https://vault.azure.net"`)
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == "/secrets/s/" || r.URL.Path == "/secrets/s":
		answer(map[string]any{"value": "hunter2", "id": "https://v.vault.azure.net/secrets/s/1"})
	default:
		http.Error(w, "unexpected "+r.URL.Path, http.StatusNotFound)
	}
}

// pod runs the program with the environment that the webhook gives a pod.
func (a *azure) pod(t *testing.T, args ...string) (report, string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "azure-identity-token")
	if err := os.WriteFile(file, []byte(assertion), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = []string{
		"WORKLOAD_TEST_MAIN=1", "HOME=" + t.TempDir(), "HTTPS_PROXY=" + a.proxy, "SSL_CERT_FILE=" + a.roots,
		"AZURE_CLIENT_ID=client-1", "AZURE_TENANT_ID=tenant-1", "AZURE_FEDERATED_TOKEN_FILE=" + file,
		"AZURE_AUTHORITY_HOST=https://login.microsoftonline.com/",
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	all := stdout.String() + stderr.String()
	for _, secret := range []string{jwt(testClaims), assertion, "hunter2"} {
		if strings.Contains(all, secret) {
			t.Errorf("%q is printed: %s", secret, all)
		}
	}
	var r report
	if json.Unmarshal(stdout.Bytes(), &r) != nil {
		t.Fatalf("no report: %s", all)
	}
	return r, stderr.String(), err
}

func TestSDKReadsTheSecretWithNothingButTheEnvironment(t *testing.T) {
	a := newAzure(t)
	got, stderr, err := a.pod(t, "sdk", "--vault", "https://v.vault.azure.net", "--secret", "s", "--wait", "0")
	if err != nil {
		t.Fatalf("%v: %+v\n%s", err, got, stderr)
	}
	want := report{
		Door: "2 Entra direct", OK: true, Resource: "https://vault.azure.net", Secret: "7 bytes, sha256 f52fbd32",
		Identity: &identity{AppID: "client-1", ObjectID: "object-1", TenantID: "tenant-1", ResourceID: "/subscriptions/s/identity-1"},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(report{}), cmpopts.IgnoreFields(report{}, "FirstToken", "FirstTokenMillis", "SecondTokenMillis")); diff != "" {
		t.Error(diff)
	}
	// The vault's client asks for a token of its own, with continuous access
	// evaluation; the second token of the program comes from the SDK's cache.
	if got.FirstToken == nil || got.FirstTokenMillis <= 0 || got.SecondTokenMillis <= 0 || a.tokens.Load() != 2 {
		t.Errorf("%d tokens, times %v %v %v", a.tokens.Load(), got.FirstToken, got.FirstTokenMillis, got.SecondTokenMillis)
	}
}

func TestSDKReportsEntrasRefusal(t *testing.T) {
	a := newAzure(t)
	a.forbidden = true
	got, stderr, err := a.pod(t, "sdk", "--vault", "https://v.vault.azure.net", "--secret", "s", "--wait", "50ms", "--pause", "20ms")
	if err == nil || got.OK || got.Status != http.StatusBadRequest || !strings.Contains(got.Error, "AADSTS70021") {
		t.Errorf("%v: %+v", err, got)
	}
	if !strings.Contains(stderr, "attempt 1: Entra answered 400") {
		t.Errorf("attempts are not told: %s", stderr)
	}
}

// certificate makes a self-signed certificate.
func certificate(t *testing.T, names ...string) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

package arm_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/arm"
)

func TestCloudsHaveTheirOwnHosts(t *testing.T) {
	for _, c := range []struct {
		names []string
		hosts []string // authority, manager, graph, blobs
	}{
		{[]string{"", "AzureCloud", "AzurePublicCloud", "AZUREPUBLICCLOUD"}, []string{"https://login.microsoftonline.com/", "https://management.azure.com", "https://graph.microsoft.com", "blob.core.windows.net"}},
		{[]string{"AzureUSGovernment", "AzureUSGovernmentCloud"}, []string{"https://login.microsoftonline.us/", "https://management.usgovcloudapi.net", "https://graph.microsoft.us", "blob.core.usgovcloudapi.net"}},
		{[]string{"AzureChinaCloud"}, []string{"https://login.chinacloudapi.cn/", "https://management.chinacloudapi.cn", "https://microsoftgraph.chinacloudapi.cn", "blob.core.chinacloudapi.cn"}},
	} {
		for _, name := range c.names {
			got, err := arm.CloudByName(name)
			if diff := cmp.Diff(c.hosts, []string{got.Authority, got.Manager, got.Graph, got.BlobSuffix}); diff != "" || err != nil || got.Custom {
				t.Errorf("%q: %v (-want +got)\n%s", name, err, diff)
			}
			conf := got.Configuration()
			if m := conf.Services["resourceManager"]; conf.ActiveDirectoryAuthorityHost != c.hosts[0] || m.Endpoint != c.hosts[1] || m.Audience == "" {
				t.Errorf("%q: the SDK gets %+v", name, conf)
			}
		}
	}
	for name, want := range map[string]string{"Nimbus": `unknown cloud "Nimbus"`, "AzureStackCloud": arm.EnvironmentFile, "AzureGermanCloud": "closed"} {
		if _, err := arm.CloudByName(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestACustomCloudIsWhatItsFileSays(t *testing.T) {
	full := `{"name":"Nimbus","activeDirectoryEndpoint":"https://login.nimbus/","resourceManagerEndpoint":"https://manager.nimbus/","serviceManagementEndpoint":"https://audience.nimbus/","microsoftGraphEndpoint":"https://graph.nimbus/","storageEndpointSuffix":"core.nimbus"}`
	for _, c := range []struct {
		name, text string
		want       arm.Cloud
		err        string
	}{
		{"all of it", full, arm.Cloud{Name: "Nimbus", Authority: "https://login.nimbus/", Manager: "https://manager.nimbus/", ManagerAudience: "https://audience.nimbus/", Graph: "https://graph.nimbus", BlobSuffix: "blob.core.nimbus", Custom: true}, ""},
		{"the least", `{"activeDirectoryEndpoint":"https://login.nimbus/","resourceManagerEndpoint":"https://manager.nimbus/"}`, arm.Cloud{Name: "AzureStackCloud", Authority: "https://login.nimbus/", Manager: "https://manager.nimbus/", Custom: true}, ""},
		{"no Resource Manager", `{"activeDirectoryEndpoint":"https://login.nimbus/"}`, arm.Cloud{}, "resourceManagerEndpoint"},
		{"Entra in clear", strings.Replace(full, "https://login", "http://login", 1), arm.Cloud{}, "activeDirectoryEndpoint"},
		{"Graph with a user", strings.Replace(full, "https://graph", "https://graph.microsoft.com@graph", 1), arm.Cloud{}, "microsoftGraphEndpoint"},
		{"not JSON", `{`, arm.Cloud{}, "description"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "cloud.json")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := arm.Find("azurestackcloud", func(name string) string {
				return map[string]string{arm.EnvironmentFile: file}[name]
			})
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v", err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestLoginsSayWhatIsMissing(t *testing.T) {
	cloud, err := arm.CloudByName("")
	if err != nil {
		t.Fatal(err)
	}
	both, certificate, key := certificateFiles(t)
	for _, c := range []struct {
		name  string
		login arm.Login
		err   string
	}{
		{"az", arm.Login{}, ""},
		{"a secret", arm.Login{Method: arm.MethodClientSecret, TenantID: "t", ClientID: "c", ClientSecret: "s3cret"}, ""},
		{"no secret", arm.Login{Method: arm.MethodClientSecret, TenantID: "t", ClientID: "c"}, "--client-secret is required"},
		{"no client", arm.Login{Method: arm.MethodClientSecret, TenantID: "t", ClientSecret: "s3cret"}, "--client-id is required"},
		{"a certificate with its key", arm.Login{Method: arm.MethodClientCertificate, TenantID: "t", ClientID: "c", Certificate: both}, ""},
		{"a certificate and its key", arm.Login{Method: arm.MethodClientCertificate, TenantID: "t", ClientID: "c", Certificate: certificate, PrivateKey: key}, ""},
		{"a certificate alone", arm.Login{Method: arm.MethodClientCertificate, TenantID: "t", ClientID: "c", Certificate: certificate}, "private key"},
		{"no such certificate", arm.Login{Method: arm.MethodClientCertificate, TenantID: "t", ClientID: "c", Certificate: "nowhere"}, "reading the certificate"},
		{"no certificate", arm.Login{Method: arm.MethodClientCertificate, TenantID: "t", ClientID: "c"}, "--certificate-path is required"},
		{"a managed identity", arm.Login{Method: arm.MethodManagedIdentity}, ""},
		{"something else", arm.Login{Method: "magic", ClientSecret: "s3cret"}, `unknown authentication method "magic": there are cli, client_secret`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := c.login.Credential(cloud, policy.ClientOptions{})
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v", err)
			}
			if strings.Contains(fmt.Sprint(err, c.login, &c.login), "s3cret") {
				t.Error("the secret shows")
			}
		})
	}
}

// certificateFiles writes a certificate with its key, the certificate in DER, and the key.
func certificateFiles(t *testing.T) (both, certificate, key string) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	keyText := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	return write("both.pem", append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyText...)), write("certificate.der", der), write("key.pem", keyText)
}

func TestTheTenantIsWhatResourceManagerSays(t *testing.T) {
	const tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	for _, c := range []struct {
		name, challenge string
		status          int
		want, err       string
	}{
		{"as Azure says it", `Bearer authorization_uri="https://login.windows.net/` + tenant + `", error="invalid_token", error_description="x"`, 401, tenant, ""},
		{"with a slash", `Bearer authorization_uri="https://login.microsoftonline.us/` + tenant + `/", error="invalid_token"`, 401, tenant, ""},
		{"no such subscription", "", 404, "", "does not exist in AzurePublicCloud"},
		{"nothing", "", 401, "", "does not say to which tenant"},
		{"not a tenant", `Bearer authorization_uri="https://login.windows.net/../../x"`, 401, "", "does not say to which tenant"},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/subscriptions/s" || r.URL.Query().Get("api-version") == "" || r.Header.Get("Authorization") != "" {
					t.Errorf("%s %v", r.URL, r.Header)
				}
				if c.challenge != "" {
					w.Header().Set("WWW-Authenticate", c.challenge)
				}
				w.WriteHeader(c.status)
			}))
			t.Cleanup(srv.Close)
			cloud, err := arm.CloudByName("")
			if err != nil {
				t.Fatal(err)
			}
			cloud.Manager = srv.URL + "/"
			got, err := arm.TenantOf(t.Context(), cloud, policy.ClientOptions{Transport: srv.Client(), Retry: policy.RetryOptions{MaxRetries: -1}}, "s")
			if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestErrorsAreOneLineAndSayHowLongToWait(t *testing.T) {
	answer := func(status int, header, body string) error {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if name, value, ok := strings.Cut(header, ": "); ok {
				w.Header().Set(name, value)
			}
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}))
		defer srv.Close()
		req, err := runtime.NewRequest(t.Context(), http.MethodGet, srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := runtime.NewPipeline("t", "v1.0.0", runtime.PipelineOptions{}, &policy.ClientOptions{Retry: policy.RetryOptions{MaxRetries: -1}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return arm.AsError(runtime.NewResponseError(resp))
	}
	const body = `{"error":{"code":"C","message":"m"}}`
	for _, c := range []struct {
		name   string
		status int
		header string
		body   string
		want   arm.Error
	}{
		{"Resource Manager's and Graph's shape", 403, "", body, arm.Error{Status: 403, Code: "C", Message: "m"}},
		{"seconds", 429, "Retry-After: 7", body, arm.Error{Status: 429, Code: "C", Message: "m", RetryAfter: 7 * time.Second}},
		{"milliseconds", 429, "x-ms-retry-after-ms: 1500", body, arm.Error{Status: 429, Code: "C", Message: "m", RetryAfter: 1500 * time.Millisecond}},
		{"longer than anybody waits", 429, "Retry-After: 999999999", body, arm.Error{Status: 429, Code: "C", Message: "m", RetryAfter: time.Hour}},
		{"not JSON", 502, "", "<html>", arm.Error{Status: 502, Message: "Bad Gateway"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var e *arm.Error
			if err := answer(c.status, c.header, c.body); !errors.As(err, &e) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("got %v", err)
			}
			got := *e
			got.Err = nil
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	if err := errors.New("x"); arm.AsError(err) != err || arm.AsError(nil) != nil {
		t.Error("it touches other errors")
	}
}

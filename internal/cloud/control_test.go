package cloud

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/control"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
	"github.com/lanyard-id/lanyard/internal/cloud/registration"
	"github.com/lanyard-id/lanyard/internal/imds"
)

func (f *fixture) fault(r fault.Rule) fault.Rule {
	f.t.Helper()
	r, err := f.Faults().Add(r)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// asked are the requests in the log to a host.
func (f *fixture) asked(host string) (entries []journal.Entry) {
	for _, e := range f.Journal().Tail(-1) {
		if e.Host == host {
			entries = append(entries, e)
		}
	}
	return entries
}

func (f *fixture) token(clientID, secret string, retries int32) error {
	f.t.Helper()
	cred, err := azidentity.NewClientSecretCredential(f.tenant.ID, clientID, secret, &azidentity.ClientSecretCredentialOptions{
		ClientOptions: azcore.ClientOptions{Transport: f.proxied(), Retry: policy.RetryOptions{MaxRetries: retries, RetryDelay: time.Millisecond, MaxRetryDelay: time.Millisecond}},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	_, err = cred.GetToken(f.t.Context(), policy.TokenRequestOptions{Scopes: []string{azure.ResourceVault + "/.default"}})
	return err
}

// A storm at the token endpoint: the SDK gets through by retrying, and the log says what happened.
func TestFaultsMeetTheRequestsOfAnSDK(t *testing.T) {
	f := start(t, Config{})
	f.seed(demoSeed())
	app, err := f.Registry().Ensure("storm")
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Registry().AddPassword(app.ClientID, "p", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	rule := f.fault(fault.Rule{Host: azure.HostLogin, Path: "/*/oauth2/v2.0/token", Method: "POST", Status: 503, Count: 2})
	if err := f.token(app.ClientID, string(p.Secret), 3); err != nil {
		t.Fatal(err)
	}
	var statuses []int
	for _, e := range f.asked(azure.HostLogin) {
		if e.Method == "POST" {
			statuses = append(statuses, e.Status)
			if faulty := e.Status == 503; faulty != (e.Fault == rule.ID) {
				t.Errorf("%+v", e)
			}
		}
	}
	if len(statuses) != 3 || statuses[0] != 503 || statuses[2] != 200 {
		t.Errorf("statuses %v", statuses)
	}
	if last := f.asked(azure.HostLogin); last[len(last)-1].Client != app.ClientID {
		t.Errorf("the log lacks the client: %+v", last[len(last)-1])
	}
	for _, place := range []string{filepath.Join(f.config.StateDir, logFile), filepath.Join(f.config.StateDir, stateFile)} {
		raw, err := os.ReadFile(place)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(raw), string(p.Secret)) || strings.HasSuffix(place, logFile) && strings.Contains(string(raw), "eyJ") {
			t.Errorf("%s has a secret", place)
		}
	}
}

func TestFaultsAnswerInTheFormOfTheHost(t *testing.T) {
	f := start(t, Config{})
	seeded := f.seed(demoSeed())
	machine := seeded.ScaleSets["aks-nodepool1-vmss"] + "/virtualMachines/0"
	node := httptest.NewServer(f.Metadata(machine))
	defer node.Close()
	f.fault(fault.Rule{Status: 429, RetryAfter: fault.Duration(7 * time.Second)})
	for name, tt := range map[string]struct {
		client *http.Client
		url    string
		member func(map[string]any) any
	}{
		"the token service": {f.proxied(), "https://" + azure.HostLogin + "/common/discovery/instance", func(b map[string]any) any { return b["error_codes"].([]any)[0] }},
		"Resource Manager":  {f.proxied(), "https://" + azure.HostManagement + "/subscriptions", func(b map[string]any) any { return b["error"].(map[string]any)["code"] }},
		"a vault":           {f.proxied(), "https://demo-vault." + azure.SuffixVault + "/secrets", func(b map[string]any) any { return b["error"].(map[string]any)["code"] }},
		"a machine":         {node.Client(), node.URL + imds.TokenPath, func(b map[string]any) any { return b["error"] }},
	} {
		resp, err := tt.client.Do(getRequest(t, tt.url))
		if err != nil {
			t.Fatal(err)
		}
		var body map[string]any
		err = errors.Join(json.NewDecoder(resp.Body).Decode(&body), resp.Body.Close())
		if err != nil || resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "7" {
			t.Errorf("%s: %d %v, %v", name, resp.StatusCode, resp.Header, err)
			continue
		}
		if got := tt.member(body); got != "TooManyRequests" && got != 90055.0 {
			t.Errorf("%s: %v", name, body)
		}
	}
	last := f.asked(azure.AddressMetadata)
	if len(last) != 1 || last[0].Machine != machine || last[0].Status != 429 {
		t.Errorf("%+v", last)
	}
}

func TestFaultsThatEndConnections(t *testing.T) {
	f := start(t, Config{})
	client := f.proxied()
	const address = "https://" + azure.HostManagement + "/subscriptions"
	f.fault(fault.Rule{Drop: true, Method: "POST"})
	post := getRequest(t, address)
	post.Method = http.MethodPost
	if resp, err := client.Do(post); err == nil {
		resp.Body.Close()
		t.Errorf("dropped: %v", resp.Status)
	}
	hang := f.fault(fault.Rule{Hang: true, Method: "PUT"})
	put := getRequest(t, address)
	put.Method = http.MethodPut
	ended := make(chan error, 1)
	go func() {
		resp, err := client.Do(put)
		if err == nil {
			err = errors.Join(errors.New(resp.Status), resp.Body.Close())
		}
		ended <- err
	}()
	for f.Faults().List()[1].Hits == 0 { // it has arrived when it is counted
		select {
		case err := <-ended:
			t.Fatalf("answered: %v", err)
		default:
			runtime.Gosched()
		}
	}
	if _, err := f.Faults().Clear(hang.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || strings.HasPrefix(err.Error(), "4") {
		t.Errorf("let go: %v", err)
	}
	f.stop() // writes the log of requests that are ending
	for _, e := range f.asked(azure.HostManagement) {
		if e.Status != 0 || e.Fault == "" {
			t.Errorf("%+v", e)
		}
	}
}

// Whoever reaches the cloud over a network, by whatever name, does not reach what its owner can do.
func TestTheOwnersDoorHasNoNetwork(t *testing.T) {
	f := start(t, Config{Control: true})
	owner := &control.Client{StateDir: f.config.StateDir}
	if _, err := owner.Faults(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := f.direct()
	for _, host := range []string{"control", "control.lanyard.test", "localhost", "", azure.HostManagement, azure.HostLogin, "control." + azure.SuffixVault} {
		for _, path := range []string{"/faults", "/clock", "/log", "/settings"} {
			req := getRequest(t, "https://"+azure.HostManagement+path)
			req.Host = host
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err := errors.Join(err, resp.Body.Close()); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode < 400 {
				t.Errorf("%s%s: %d %s", host, path, resp.StatusCode, body)
			}
		}
	}
	if info, err := os.Stat(f.config.StateDir); err != nil || info.Mode().Perm()&0o077 != 0 && !strings.Contains(f.config.StateDir, os.TempDir()) {
		t.Errorf("%v, %v", info, err)
	}
	f.stop()
	if _, err := owner.Faults(t.Context()); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("after the cloud has ended: %v", err)
	}
}

func TestOneClockForAll(t *testing.T) {
	f := start(t, Config{})
	seeded := f.seed(demoSeed())
	claims, err := f.login.ManagedIdentityToken(t.Context(), seeded.Identities["web"].PrincipalID, azure.ResourceVault)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.login.Verify(t.Context(), claims.AccessToken, azure.ResourceVault); err != nil {
		t.Fatal(err)
	}
	f.Clock().Shift(25 * time.Hour)
	resp, err := f.proxied().Do(func() *http.Request {
		r := getRequest(t, "https://demo-vault."+azure.SuffixVault+"/secrets/greeting?api-version=7.4")
		r.Header.Set("Authorization", "Bearer "+claims.AccessToken)
		return r
	}())
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a token a day later: %d, %v", resp.StatusCode, err)
	}
	again, err := f.login.ManagedIdentityToken(t.Context(), seeded.Identities["web"].PrincipalID, azure.ResourceVault)
	if err != nil || again.ExpiresOn.Sub(claims.ExpiresOn) < 25*time.Hour {
		t.Errorf("a new token: %v, %v", again.ExpiresOn, err)
	}
	f.Clock().Reset()
	if _, err := f.login.Verify(t.Context(), claims.AccessToken, azure.ResourceVault); err != nil {
		t.Errorf("after the reset: %v", err)
	}
}

// Two passwords are good at a time; one that has expired or is gone is refused with its own code.
func TestRotationOfPasswordsAndCertificates(t *testing.T) {
	f := start(t, Config{})
	r := f.Registry()
	app, err := r.Ensure("saman-sp")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.Ensure("saman-sp"); err != nil || again != app {
		t.Errorf("again: %+v, %v", again, err)
	}
	var p [2]registration.Password
	for i := range p {
		if p[i], err = r.AddPassword(app.ClientID, "p", time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	try := func(name string, i int, want string) {
		t.Helper()
		err := f.token(app.ClientID, string(p[i].Secret), -1)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	try("the old one", 0, "")
	try("the new one", 1, "")
	if err := r.ExpirePassword(app.ClientID, p[0].KeyID); err != nil {
		t.Fatal(err)
	}
	try("an expired one", 0, "AADSTS7000222")
	try("the other", 1, "")
	if err := r.RemovePassword(app.ClientID, p[1].KeyID); err != nil {
		t.Fatal(err)
	}
	try("one that is gone", 1, "AADSTS7000215")
	if p[1], err = r.AddPassword(app.ClientID, "p", time.Hour); err != nil {
		t.Fatal(err)
	}
	f.Clock().Shift(time.Hour)
	try("after its lifetime", 1, "AADSTS7000222")
	f.Clock().Reset()

	cert, err := r.IssueCertificate(app.ClientID, "saman-cert", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := cert.PEM()
	if err != nil {
		t.Fatal(err)
	}
	pfx, err := registration.PKCS12(pem, "s3cret")
	if err != nil {
		t.Fatal(err)
	}
	withCert := func(file []byte, password []byte) error {
		t.Helper()
		certs, key, err := azidentity.ParseCertificates(file, password)
		if err != nil {
			return err
		}
		cred, err := azidentity.NewClientCertificateCredential(f.tenant.ID, app.ClientID, certs, key, &azidentity.ClientCertificateCredentialOptions{ClientOptions: azcore.ClientOptions{Transport: f.proxied(), Retry: policy.RetryOptions{MaxRetries: -1}}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = cred.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{azure.ResourceVault + "/.default"}})
		return err
	}
	if err := withCert([]byte(pem), nil); err != nil {
		t.Errorf("PEM: %v", err)
	}
	if err := withCert(pfx, []byte("s3cret")); err != nil {
		t.Errorf("PKCS#12: %v", err)
	}
	if err := r.RemoveCertificate(app.ClientID, cert.KeyID); err != nil {
		t.Fatal(err)
	}
	if err := withCert([]byte(pem), nil); err == nil || !strings.Contains(err.Error(), "AADSTS700027") {
		t.Errorf("a certificate that is gone: %v", err)
	}
	if _, err := r.AddCertificate(app.ClientID, "again", cert.DER); err != nil {
		t.Fatal(err)
	}
	if err := withCert([]byte(pem), nil); err != nil {
		t.Errorf("registered again by its owner: %v", err)
	}
	if strings.Contains(f.log.String(), string(p[1].Secret)) || strings.Contains(f.log.String(), "PRIVATE KEY") {
		t.Error("a secret is in the log")
	}
}

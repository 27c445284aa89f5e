package cloud

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

func TestHostsAreServedByName(t *testing.T) {
	f := start(t, Config{Hosts: map[string]http.Handler{"OIDC.cluster.example": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "the cluster ", r.ProtoMajor)
	})}})
	client := f.direct()
	for name, tt := range map[string]struct {
		url    string
		status int
		text   string
	}{
		"the token service":          {"https://login.microsoftonline.com/common/discovery/keys", 200, "x5c"},
		"its aliases":                {"https://sts.windows.net/common/discovery/keys", 200, "x5c"},
		"in any case and port":       {"https://LOGIN.microsoftonline.com:8443/common/discovery/keys", 200, "x5c"},
		"Resource Manager":           {"https://management.azure.com/subscriptions?api-version=2022-12-01", 401, "AuthenticationFailed"},
		"its classic name":           {"https://management.core.windows.net/subscriptions?api-version=2022-12-01", 401, "AuthenticationFailed"},
		"a path that is not cleaned": {"https://management.azure.com//subscriptions/../x?api-version=2022-12-01", 400, "error"},
		"a vault that is not there":  {"https://nothing.vault.azure.net/secrets/x?api-version=7.4", 404, "nothing"},
		"a host of the config":       {"https://oidc.cluster.example/", 200, "the cluster 2"},
		"Graph":                      {"https://graph.microsoft.com/v1.0/applications", 401, `{"error":{"code":"InvalidAuthenticationToken","message":"Access token is empty."`},
		"its predecessor":            {"https://graph.windows.net/me", 404, `{"error":{"code":"HostNotServed","message":"this local cloud does not serve graph.windows.net; it serves graph`},
		"the domain of the vaults":   {"https://vault.azure.net/", 404, "*.vault.azure.net"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := client.Do(getRequest(t, tt.url))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || !strings.Contains(string(body), tt.text) || resp.ProtoMajor != 2 {
				t.Errorf("%s, status %d, %s\nwant %d, %q", resp.Proto, resp.StatusCode, body, tt.status, tt.text)
			}
		})
	}
	req := getRequest(t, "https://login.microsoftonline.com/")
	req.Host = "evil.example"
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 404 || !strings.Contains(string(body), `does not serve evil.example; it serves graph.microsoft.com, login.microsoft.com`) {
		t.Errorf("unknown host: status %d, %s", resp.StatusCode, body)
	}
	if log := f.log.String(); !strings.Contains(log, "host=management.azure.com method=GET path=/subscriptions status=401") {
		t.Errorf("log: %s", log)
	}
}

func TestOpenRefuses(t *testing.T) {
	ok := http.NotFoundHandler()
	for name, c := range map[string]Config{
		"no state directory":    {},
		"a host without answer": {StateDir: t.TempDir(), Hosts: map[string]http.Handler{"x.example": nil}},
		"a host of the cloud":   {StateDir: t.TempDir(), Hosts: map[string]http.Handler{"Management.azure.com": ok}},
		"a vault's name":        {StateDir: t.TempDir(), Hosts: map[string]http.Handler{"x.vault.azure.net": ok}},
		"a host with a port":    {StateDir: t.TempDir(), Hosts: map[string]http.Handler{"x.example:443": ok}},
		"a wildcard":            {StateDir: t.TempDir(), Hosts: map[string]http.Handler{"*.example": ok}},
		"an address":            {StateDir: t.TempDir(), Hosts: map[string]http.Handler{"127.0.0.1": ok}},
		"a single label":        {StateDir: t.TempDir(), Hosts: map[string]http.Handler{"localhost": ok}},
	} {
		t.Run(name, func(t *testing.T) {
			cloud, err := Open(c)
			if err == nil {
				cloud.Close()
				t.Error("opened")
			}
		})
	}
}

func TestStateDirectoryIsPrivateAndForOneProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	f := start(t, Config{StateDir: dir})
	if _, err := Open(Config{StateDir: dir}); !errors.Is(err, state.ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second Open: %v, want ErrInUse that names the directory", err)
	}
	for name, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, stateFile): 0o600} {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := fi.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", name, got, want)
		}
	}
	before := f.CACertPEM()
	if after := f.restart().CACertPEM(); !bytes.Equal(before, after) {
		t.Error("another authority after a restart")
	}
}

func parseCA(t *testing.T, f *fixture) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(f.CACertPEM())
	if block == nil || len(rest) != 0 {
		t.Fatal("not one PEM block")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestANewHostWidensTheAuthorityWithTheSameKey(t *testing.T) {
	f := start(t, Config{})
	before := parseCA(t, f)
	f.config.Hosts = map[string]http.Handler{"oidc.cluster.example": http.NotFoundHandler()}
	f = f.restart()
	after := parseCA(t, f)
	if !slices.Contains(after.PermittedDNSDomains, "oidc.cluster.example") || !before.PublicKey.(*ecdsa.PublicKey).Equal(after.PublicKey) {
		t.Errorf("domains %v, or another key", after.PermittedDNSDomains)
	}
	for _, name := range []string{"login.microsoftonline.com", "oidc.cluster.example"} {
		d := tls.Dialer{Config: &tls.Config{RootCAs: f.roots(), ServerName: name}}
		conn, err := d.DialContext(t.Context(), "tcp", f.addr)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		conn.Close()
	}
	f.config.Hosts = nil
	f = f.restart()
	if third := parseCA(t, f); !slices.Contains(third.PermittedDNSDomains, "oidc.cluster.example") {
		t.Error("the authority was narrowed again: whoever trusts the wide one would lose it")
	}
}

package login

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

func (d *door) get(t *testing.T, method, path, host string, out any) (int, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, d.http.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := d.http.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if out != nil {
		if err := json.Unmarshal(body, out); err != nil {
			t.Fatalf("GET %s: status %d, %q: %v", path, resp.StatusCode, body, err)
		}
	}
	return resp.StatusCode, resp.Header
}

func TestInstanceDiscovery(t *testing.T) {
	d := newDoor(t)
	const query = "/common/discovery/instance?api-version=%s&authorization_endpoint=%s"
	for name, tt := range map[string]struct {
		version, endpoint, host string
		want                    string // discovery endpoint; "" means refused
	}{
		"version 1.1":              {"1.1", "https://login.microsoftonline.com/" + d.tenant.ID + "/oauth2/v2.0/authorize", azure.HostLogin, "https://login.microsoftonline.com/" + d.tenant.ID + "/v2.0/.well-known/openid-configuration"},
		"version 1.0":              {"1.0", "https://login.windows.net/" + d.tenant.ID + "/oauth2/v2.0/authorize", azure.HostLogin, "https://login.microsoftonline.com/" + d.tenant.ID + "/v2.0/.well-known/openid-configuration"},
		"common":                   {"1.1", "https://login.microsoftonline.com/common/oauth2/v2.0/authorize", azure.HostLogin, "https://login.microsoftonline.com/common/v2.0/.well-known/openid-configuration"},
		"the client's port":        {"1.1", "https://login.microsoftonline.com:8443/common/oauth2/v2.0/authorize", azure.HostLogin + ":8443", "https://login.microsoftonline.com:8443/common/v2.0/.well-known/openid-configuration"},
		"no tenant":                {"1.1", "https://login.microsoftonline.com", azure.HostLogin, "https://login.microsoftonline.com/common/v2.0/.well-known/openid-configuration"},
		"a tenant with escapes":    {"1.1", "https://login.microsoftonline.com/a%3Fb/", azure.HostLogin, "https://login.microsoftonline.com/a%3Fb/v2.0/.well-known/openid-configuration"},
		"a host that is not ours":  {"1.1", "https://evil.example/common/oauth2/v2.0/authorize", azure.HostLogin, ""},
		"our host as a user name":  {"1.1", "https://login.microsoftonline.com@evil.example/common", azure.HostLogin, ""},
		"our host by http":         {"1.1", "http://login.microsoftonline.com/common", azure.HostLogin, ""},
		"another cloud":            {"1.1", "https://login.chinacloudapi.cn/common", azure.HostLogin, ""},
		"no authorization address": {"1.1", "", azure.HostLogin, ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := fmt.Sprintf(query, tt.version, strings.NewReplacer("%", "%25").Replace(tt.endpoint))
			if tt.want == "" {
				var e struct{ Error string }
				if status, _ := d.get(t, http.MethodGet, path, tt.host, &e); status != 400 || e.Error != "invalid_instance" {
					t.Errorf("status %d, error %q, want 400 invalid_instance", status, e.Error)
				}
				return
			}
			var got struct {
				Endpoint string `json:"tenant_discovery_endpoint"`
				Version  string `json:"api-version"`
				Metadata []struct{ Aliases []string }
			}
			if status, _ := d.get(t, http.MethodGet, path, tt.host, &got); status != 200 || got.Endpoint != tt.want || got.Version != tt.version {
				t.Errorf("status %d, %+v, want %s", status, got, tt.want)
			}
			if len(got.Metadata) != 5 || !slices.Contains(got.Metadata[0].Aliases, "sts.windows.net") {
				t.Errorf("metadata = %+v", got.Metadata)
			}
		})
	}
}

func TestOpenIDConfiguration(t *testing.T) {
	d := newDoor(t)
	id := d.tenant.ID
	const v1, v2 = "/.well-known/openid-configuration", "/v2.0/.well-known/openid-configuration"
	for name, tt := range map[string]struct {
		path                     string
		issuer, token, keys, rtr string
	}{
		"version 2.0":                {"/" + id + v2, "https://login.microsoftonline.com/" + id + "/v2.0", "/" + id + "/oauth2/v2.0/token", "/" + id + "/discovery/v2.0/keys", "NA"},
		"version 2.0, empty query":   {"/" + id + v2 + "?", "https://login.microsoftonline.com/" + id + "/v2.0", "/" + id + "/oauth2/v2.0/token", "/" + id + "/discovery/v2.0/keys", "NA"},
		"version 2.0 by domain":      {"/" + d.tenant.Domain + v2, "https://login.microsoftonline.com/" + id + "/v2.0", "/" + id + "/oauth2/v2.0/token", "/" + id + "/discovery/v2.0/keys", "NA"},
		"version 2.0, common":        {"/common" + v2, "https://login.microsoftonline.com/{tenantid}/v2.0", "/common/oauth2/v2.0/token", "/common/discovery/v2.0/keys", ""},
		"version 2.0, organizations": {"/organizations" + v2, "https://login.microsoftonline.com/{tenantid}/v2.0", "/organizations/oauth2/v2.0/token", "/organizations/discovery/v2.0/keys", ""},
		"version 1.0":                {"/" + id + v1, "https://sts.windows.net/" + id + "/", "/" + id + "/oauth2/token", "/" + id + "/discovery/keys", "NA"},
		"version 1.0, common":        {"/common" + v1, "https://sts.windows.net/{tenantid}/", "/common/oauth2/token", "/common/discovery/keys", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var got map[string]any
			status, header := d.get(t, http.MethodGet, tt.path, azure.HostLogin, &got)
			if status != 200 || header.Get("Cache-Control") != "max-age=86400, private" {
				t.Fatalf("status %d, Cache-Control %q", status, header.Get("Cache-Control"))
			}
			base := "https://login.microsoftonline.com"
			for member, want := range map[string]string{"issuer": tt.issuer, "token_endpoint": base + tt.token, "jwks_uri": base + tt.keys} {
				if got[member] != want {
					t.Errorf("%s = %v, want %s", member, got[member], want)
				}
			}
			if region, _ := got["tenant_region_scope"].(string); region != tt.rtr {
				t.Errorf("tenant_region_scope = %q, want %q", region, tt.rtr)
			}
			for _, member := range []string{"authorization_endpoint", "device_authorization_endpoint", "end_session_endpoint", "cloud_instance_name", "msgraph_host"} {
				if s, _ := got[member].(string); s == "" {
					t.Errorf("%s is missing", member)
				}
			}
		})
	}
	var e struct {
		Error string `json:"error"`
		Codes []int  `json:"error_codes"`
	}
	for _, path := range []string{v1, v2} {
		if status, _ := d.get(t, http.MethodGet, "/11111111-2222-3333-4444-555555555555"+path, azure.HostLogin, &e); status != 400 || e.Error != "invalid_tenant" || e.Codes[0] != 90002 {
			t.Errorf("unknown tenant: status %d, %+v", status, e)
		}
	}
	if status, header := d.get(t, http.MethodPut, "/common"+v2, azure.HostLogin, &e); status != 405 || header.Get("Allow") != "GET, HEAD" {
		t.Errorf("PUT: status %d, Allow %q", status, header.Get("Allow"))
	}
	if status, _ := d.get(t, http.MethodHead, "/common"+v2, azure.HostLogin, nil); status != 200 {
		t.Errorf("HEAD: status %d", status)
	}
}

// TestPublishedKeysVerifyTokens is what every relying party does.
func TestPublishedKeysVerifyTokens(t *testing.T) {
	d := newDoor(t)
	if err := d.server.RollKeys(); err != nil {
		t.Fatal(err)
	}
	tok, err := d.server.ManagedIdentityToken(t.Context(), d.demo.ID, azure.ResourceVault)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := oidc.Parse(tok.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	if x5t, _ := parsed.Header.String("x5t"); x5t != parsed.KeyID() {
		t.Errorf("x5t = %q, kid = %q", x5t, parsed.KeyID())
	}
	for path, issuer := range map[string]string{
		"/" + d.tenant.ID + "/discovery/keys":      "",
		"/" + d.tenant.ID + "/discovery/v2.0/keys": "https://login.microsoftonline.com/" + d.tenant.ID + "/v2.0",
		"/common/discovery/v2.0/keys":              "https://login.microsoftonline.com/{tenantid}/v2.0",
	} {
		var set oidc.KeySet
		if status, _ := d.get(t, http.MethodGet, path, azure.HostLogin, &set); status != 200 || len(set.Keys) != 2 {
			t.Fatalf("%s: status %d, %d keys, want 2", path, status, len(set.Keys))
		}
		i := slices.IndexFunc(set.Keys, func(k oidc.Key) bool { return k.ID == parsed.KeyID() })
		if i < 0 {
			t.Fatalf("%s does not have the key", path)
		}
		k := set.Keys[i]
		if k.X5T != k.ID || len(k.X5C) != 1 || k.Issuer != issuer || k.Algorithm != "" {
			t.Errorf("%s: key = %+v", path, k)
		}
		pub, err := k.RSA()
		if err != nil {
			t.Fatal(err)
		}
		if err := parsed.Verify(oidc.RS256, pub); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

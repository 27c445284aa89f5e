package login

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/entra"
)

// A door is a fixture behind HTTP, with an issuer that the identity demo and
// the application mic trust, and mic's secret.
type door struct {
	*fixture
	http   *httptest.Server
	issuer *issuer
	demo   directory.ServicePrincipal
	secret string
}

func newDoor(t testing.TB) *door {
	t.Helper()
	d := &door{fixture: newFixture(t), issuer: newIssuer(t)}
	d.config.Issuers = d.issuer.server.Client()
	d.restart()
	d.http = httptest.NewServer(d.server.Handler())
	t.Cleanup(d.http.Close)
	d.demo = d.identity("demo")
	d.update(func(tx *state.Tx) (err error) {
		fc := directory.FederatedCredential{Name: "demo", Issuer: d.issuer.url, Subject: subject, Audiences: []string{azure.AudienceExchange}}
		for _, parent := range []string{d.demo.ID, d.micApp.ObjectID} {
			if _, err := directory.PutFederatedCredential(tx, parent, fc); err != nil {
				return err
			}
		}
		d.secret, err = directory.AddPassword(tx, d.micApp.ObjectID, "secret", d.clock.Now().Add(100*24*time.Hour))
		return err
	})
	return d
}

// form is a good v2 request of mic by secret, with changes; "" removes.
func (d *door) form(change map[string]string) url.Values {
	v := url.Values{"grant_type": {"client_credentials"}, "client_id": {d.mic.AppID}, "client_secret": {d.secret}, "scope": {"https://vault.azure.net/.default"}}
	for k, s := range change {
		if v.Set(k, s); s == "" {
			v.Del(k)
		}
	}
	return v
}

// federated is a good v2 request of the identity demo.
func (d *door) federated(assertion string) url.Values {
	return d.form(map[string]string{
		"client_id": d.demo.AppID, "client_secret": "", "client_assertion": assertion, "client_assertion_type": entra.AssertionTypeJWT,
	})
}

// A reply is either answer of the token endpoint.
type reply struct {
	status int
	header http.Header
	raw    string
	entra.ErrorBody
	token map[string]any
}

func (d *door) post(path string, form url.Values) reply {
	d.t.Helper()
	return d.send(http.MethodPost, path, "application/x-www-form-urlencoded", form.Encode(), nil)
}

func (d *door) send(method, path, contentType, body string, header http.Header) reply {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, d.http.URL+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := d.http.Client().Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	r := reply{status: resp.StatusCode, header: resp.Header, raw: string(raw), token: map[string]any{}}
	dst := any(&r.ErrorBody)
	if r.status == http.StatusOK {
		dst = &r.token
	}
	if err := json.Unmarshal(raw, dst); err != nil {
		d.t.Fatalf("status %d, body %q: %v", r.status, raw, err)
	}
	return r
}

func (d *door) v2() string { return "/" + d.tenant.ID + "/oauth2/v2.0/token" }
func (d *door) v1() string { return "/" + d.tenant.ID + "/oauth2/token?api-version=1.0" }

// wantError asserts a refusal and that neither it nor the log has a secret.
func (d *door) wantError(t *testing.T, r reply, status, code int, name, prefix string) {
	t.Helper()
	if r.status != status || len(r.Codes) != 1 || r.Codes[0] != code || r.Error != name {
		t.Fatalf("status %d, error %q, codes %v, want %d, %q, %d: %s", r.status, r.Error, r.Codes, status, name, code, r.raw)
	}
	if !strings.HasPrefix(r.Description, prefix) {
		t.Errorf("description %q\nwant prefix %q", r.Description, prefix)
	}
	end := " Trace ID: " + r.TraceID + " Correlation ID: " + r.CorrelationID + " Timestamp: 2026-03-04 05:06:07Z"
	if !strings.HasSuffix(r.Description, end) || r.Timestamp != "2026-03-04 05:06:07Z" || uuid.Validate(r.TraceID) != nil {
		t.Errorf("description %q\nwant suffix %q", r.Description, end)
	}
	if got := r.header.Get("x-ms-request-id"); got != r.TraceID {
		t.Errorf("x-ms-request-id = %q, want the trace id", got)
	}
	if log := d.log.String(); strings.Contains(log, d.secret) || strings.Contains(r.raw, d.secret) {
		t.Error("the secret is in the log or in the answer")
	}
}

func TestTokenRequests(t *testing.T) {
	d := newDoor(t)
	good := d.issuer.token(nil, d.issuer.claims(d.clock.Now(), nil))
	for name, tt := range map[string]struct {
		path     string
		form     url.Values
		header   http.Header
		client   directory.ServicePrincipal
		audience string
		lifetime float64
		proof    string
	}{
		"a secret": {d.v2(), d.form(nil), nil, d.mic, azure.ResourceVault, 3599, "1"},
		"the scopes of OpenID Connect are ignored":   {d.v2(), d.form(map[string]string{"scope": "https://vault.azure.net/.default openid offline_access profile"}), nil, d.mic, azure.ResourceVault, 3599, "1"},
		"a double slash keeps the slash":             {d.v2(), d.form(map[string]string{"scope": "https://management.core.windows.net//.default"}), nil, d.mic, "https://management.core.windows.net/", 3599, "1"},
		"a scope can be a GUID":                      {d.v2(), d.form(map[string]string{"scope": azure.AppAKSServer + "/.default"}), nil, d.mic, azure.AppAKSServer, 3599, "1"},
		"the tenant's domain":                        {"/" + d.tenant.Domain + "/oauth2/v2.0/token", d.form(nil), nil, d.mic, azure.ResourceVault, 3599, "1"},
		"paths in another case and with two slashes": {"//" + strings.ToUpper(d.tenant.ID) + "/OAuth2//V2.0/Token", d.form(nil), nil, d.mic, azure.ResourceVault, 3599, "1"},
		"unknown parameters are ignored":             {d.v2() + "?client-request-id=x", d.form(map[string]string{"claims": "{}", "client_info": "1"}), nil, d.mic, azure.ResourceVault, 3599, "1"},
		"HTTP Basic": {d.v2(), d.form(map[string]string{"client_id": "", "client_secret": ""}),
			http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(d.mic.AppID+":"+url.QueryEscape(d.secret)))}}, d.mic, azure.ResourceVault, 3599, "1"},
		"a federated managed identity has a day":          {d.v2(), d.federated(good), nil, d.demo, azure.ResourceVault, 86399, "2"},
		"a federated application has an hour":             {d.v2(), with(d.federated(good), "client_id", d.mic.AppID), nil, d.mic, azure.ResourceVault, 3599, "2"},
		"the audience may be text":                        {d.v2(), d.federated(d.issuer.token(nil, d.issuer.claims(d.clock.Now(), map[string]any{"aud": azure.AudienceExchange}))), nil, d.demo, azure.ResourceVault, 86399, "2"},
		"typ JWT is accepted":                             {d.v2(), d.federated(d.issuer.token(map[string]any{"typ": "JWT"}, d.issuer.claims(d.clock.Now(), nil))), nil, d.demo, azure.ResourceVault, 86399, "2"},
		"an assertion without nbf":                        {d.v2(), d.federated(d.issuer.token(nil, d.issuer.claims(d.clock.Now(), map[string]any{"nbf": nil}))), nil, d.demo, azure.ResourceVault, 86399, "2"},
		"an assertion that expired four minutes ago":      {d.v2(), d.federated(d.issuer.token(nil, d.issuer.claims(d.clock.Now(), map[string]any{"exp": d.clock.Now().Add(-4 * time.Minute).Unix()}))), nil, d.demo, azure.ResourceVault, 86399, "2"},
		"a federated request at the v1 endpoint":          {d.v1(), with(with(d.federated(good), "scope", ""), "resource", azure.ResourceGraph), nil, d.demo, azure.ResourceGraph, 86399, "2"},
		"v1 resources are taken verbatim":                 {d.v1(), with(with(d.form(nil), "scope", ""), "resource", "https://management.azure.com/"), nil, d.mic, "https://management.azure.com/", 3599, "1"},
		"an assertion may be used again until it expires": {d.v2(), d.federated(good), nil, d.demo, azure.ResourceVault, 86399, "2"},
	} {
		t.Run(name, func(t *testing.T) {
			d.in(t)
			r := d.send(http.MethodPost, tt.path, "application/x-www-form-urlencoded; charset=utf-8", tt.form.Encode(), tt.header)
			if r.status != http.StatusOK {
				t.Fatalf("status %d: %s", r.status, r.raw)
			}
			if cc := r.header.Get("Cache-Control"); cc != "no-store, no-cache" {
				t.Errorf("Cache-Control = %q", cc)
			}
			raw, _ := r.token["access_token"].(string)
			c, err := d.server.Verify(t.Context(), raw, tt.audience)
			if err != nil {
				t.Fatal(err)
			}
			if c.AppID != tt.client.AppID || c.ObjectID != tt.client.ID {
				t.Errorf("claims = %+v", c)
			}
			claims := decodeClaims(t, raw)
			if claims["appidacr"] != tt.proof || claims["idtyp"] != "app" || claims["exp"].(float64)-claims["iat"].(float64) != tt.lifetime+300 {
				t.Errorf("claims = %v", claims)
			}
			wantLifetime(t, r.token, tt.path, tt.lifetime)
			if log := d.log.String(); strings.Contains(log, raw) || strings.Contains(log, good) || strings.Contains(log, d.secret) {
				t.Error("a secret is in the log")
			}
		})
	}
	if n := d.issuer.fetches.Load(); n != 2 {
		t.Errorf("the issuer was asked %d times, want 2 (document and keys)", n)
	}
}

func wantLifetime(t *testing.T, token map[string]any, path string, lifetime float64) {
	t.Helper()
	if strings.Contains(path, "v1") || strings.Contains(path, "api-version=1.0") {
		for _, member := range []string{"expires_in", "ext_expires_in", "expires_on", "not_before", "resource"} {
			if _, ok := token[member].(string); !ok {
				t.Errorf("v1 %s is %T, want a string", member, token[member])
			}
		}
		return
	}
	if token["expires_in"] != lifetime || token["ext_expires_in"] != lifetime {
		t.Errorf("expires_in = %v, want %v", token["expires_in"], lifetime)
	}
	if _, long := token["refresh_in"]; long != (lifetime > 7200) {
		t.Errorf("refresh_in = %v", token["refresh_in"])
	}
	for _, member := range []string{"refresh_token", "id_token", "scope", "client_info", "expires_on"} {
		if v, there := token[member]; there {
			t.Errorf("%s = %v, want none", member, v)
		}
	}
}

func TestVersion2ResourcesGetVersion2Tokens(t *testing.T) {
	d := newDoor(t)
	var api directory.Application
	d.update(func(tx *state.Tx) (err error) {
		if api, _, err = directory.CreateApplication(tx, "api"); err != nil {
			return err
		}
		if err := directory.SetIdentifierURIs(tx, api.ObjectID, "api://billing"); err != nil {
			return err
		}
		return directory.SetTokenVersion(tx, api.ObjectID, 2)
	})
	for _, resource := range []string{"api://billing", api.AppID} {
		r := d.post(d.v2(), d.form(map[string]string{"scope": resource + "/.default"}))
		if r.status != http.StatusOK {
			t.Fatal(r.raw)
		}
		c := decodeClaims(t, r.token["access_token"].(string))
		if c["ver"] != "2.0" || c["aud"] != api.AppID || c["azp"] != d.mic.AppID || c["azpacr"] != "1" || c["appid"] != nil || c["iss"] != "https://login.microsoftonline.com/"+d.tenant.ID+"/v2.0" {
			t.Errorf("claims for %s = %v", resource, c)
		}
		if _, err := d.server.Verify(t.Context(), r.token["access_token"].(string), api.AppID); err != nil {
			t.Error(err)
		}
	}
}

func with(v url.Values, key, value string) url.Values {
	if value == "" {
		v.Del(key)
	} else {
		v.Set(key, value)
	}
	return v
}

func decodeClaims(t *testing.T, raw string) map[string]any {
	t.Helper()
	body, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(body, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// in lets helpers fail the subtest t until it ends.
func (d *door) in(t *testing.T) {
	outer := d.t
	d.t = t
	t.Cleanup(func() { d.t = outer })
}

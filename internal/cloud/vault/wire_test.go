package vault_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
)

// send makes a request by hand.
func (f *fixture) send(method, path, bearer, body string) (*http.Response, string) {
	f.T.Helper()
	r, err := http.NewRequestWithContext(f.T.Context(), method, "https://demo.vault.azure.net"+path, strings.NewReader(body))
	if err != nil {
		f.T.Fatal(err)
	}
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := f.Client.Do(r)
	if err != nil {
		f.T.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		f.T.Fatal(err)
	}
	return resp, string(raw)
}

func TestChallenge(t *testing.T) {
	f := newFixture(t)
	challenge := `Bearer authorization="https://login.windows.net/` + f.Tenant.ID + `", resource="https://vault.azure.net"`
	good := f.Token(f.officer, azure.ResourceVault)
	head, rest, _ := strings.Cut(good, ".")
	for name, tt := range map[string]struct{ method, path, bearer, body, want string }{
		"no token":                           {"GET", "/secrets/s?api-version=7.4", "", "", "AKV10000: Request is missing a Bearer or PoP token."},
		"no token, before the body is read":  {"PUT", "/secrets/s?api-version=7.4", "", "not json", "AKV10000"},
		"no token, before the path is":       {"GET", "/nothing", "", "", "AKV10000"},
		"a token for Resource Manager":       {"GET", "/secrets/s?api-version=7.4", f.Token(f.officer, azure.ResourceManagement), "", "AKV10022: Invalid audience"},
		"a token whose signature is another": {"GET", "/secrets/s?api-version=7.4", good[:len(good)-4] + "AAAA", "", "invalid"},
		"a token without signature":          {"GET", "/secrets/s?api-version=7.4", head + "." + strings.Split(rest, ".")[0] + ".", "", "invalid"},
		"no token at all":                    {"GET", "/secrets/s?api-version=7.4", "x", "", "invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := f.send(tt.method, tt.path, tt.bearer, tt.body)
			if resp.StatusCode != 401 || !strings.Contains(body, tt.want) || !strings.Contains(body, `"code":"Unauthorized"`) {
				t.Errorf("%d %s, want 401 with %q", resp.StatusCode, body, tt.want)
			}
			if got := resp.Header.Get("WWW-Authenticate"); got != challenge {
				t.Errorf("challenge\n%s, want\n%s", got, challenge)
			}
		})
	}
	f.Advance(2 * time.Hour)
	if resp, body := f.send("GET", "/secrets/s?api-version=7.4", good, ""); resp.StatusCode != 401 || !strings.Contains(body, "expired") {
		t.Errorf("expired: %d %s", resp.StatusCode, body)
	}
	if strings.Contains(f.Log.String(), good) {
		t.Error("the log has a token")
	}
}

func TestATokenOfAnotherTenantIsRefused(t *testing.T) {
	f, other := newFixture(t), cloudtest.New(t)
	resp, body := f.send("GET", "/secrets/s?api-version=7.4", other.Token(other.Owner(), azure.ResourceVault), "")
	want := "AKV10032: Invalid issuer. Expected one of https://sts.windows.net/" + f.Tenant.ID + "/, found https://sts.windows.net/" + other.Tenant.ID + "/."
	if resp.StatusCode != 401 || !strings.Contains(body, want) {
		t.Errorf("%d %s, want %s", resp.StatusCode, body, want)
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	f := newFixture(t)
	bearer := f.Token(f.officer, azure.ResourceVault)
	const v = "?api-version=7.4"
	if resp, body := f.send("PUT", "/secrets/s"+v, bearer, `{"value":"x","attributes":{"nbf":4000000000,"exp":4000000001}}`); resp.StatusCode != 200 {
		t.Fatal(body)
	}
	for name, tt := range map[string]struct {
		method, path, body string
		want               int
		text               string
	}{
		"a secret before nbf is readable":      {"GET", "/secrets/s/" + v, "", 200, `"nbf":4000000000`},
		"no api-version":                       {"GET", "/secrets/s", "", 400, "api-version"},
		"an underscore in a name":              {"GET", "/secrets/a_b" + v, "", 400, "invalid name"},
		"an escaped slash in a name":           {"GET", "/secrets/a%2fb" + v, "", 400, "invalid name"},
		"dot dot, escaped":                     {"GET", "/secrets/%2e%2e" + v, "", 400, "invalid name"},
		"a name of 128 letters":                {"GET", "/secrets/" + strings.Repeat("a", 128) + v, "", 400, "invalid name"},
		"a name of 127 letters":                {"GET", "/secrets/" + strings.Repeat("a", 127) + v, "", 404, "SecretNotFound"},
		"a version that is none":               {"GET", "/secrets/s/1" + v, "", 404, "SecretNotFound"},
		"a version that does not exist":        {"GET", "/secrets/s/" + strings.Repeat("0", 32) + v, "", 404, "SecretNotFound"},
		"no such secret":                       {"GET", "/secrets/none" + v, "", 404, "A secret with (name/id) none was not found in this key vault."},
		"keys are not served":                  {"GET", "/keys/k" + v, "", 404, "This vault knows"},
		"an empty segment":                     {"GET", "/secrets//s" + v, "", 404, "This vault knows"},
		"a method that does not fit":           {"POST", "/secrets/s" + v, "", 405, "POST"},
		"a body that is not JSON":              {"PUT", "/secrets/s" + v, "x", 400, "BadParameter"},
		"a value is needed":                    {"PUT", "/secrets/s" + v, "{}", 400, "'value' is required"},
		"a value of 25 KB fits":                {"PUT", "/secrets/big" + v, `{"value":"` + strings.Repeat("a", 25<<10) + `"}`, 200, "big"},
		"a value of 25 KB and one byte":        {"PUT", "/secrets/big" + v, `{"value":"` + strings.Repeat("a", 25<<10+1) + `"}`, 400, "too long"},
		"an empty value is one":                {"PUT", "/secrets/empty" + v, `{"value":""}`, 200, `"value":""`},
		"a body beyond all bounds":             {"PUT", "/secrets/s" + v, strings.Repeat(" ", 2<<20), 400, "larger than"},
		"sixteen tags":                         {"PUT", "/secrets/s" + v, `{"value":"x","tags":{` + strings.TrimSuffix(strings.Repeat(`"%d":"",`, 16), ",") + `}}`, 400, "tags"},
		"a content type of 256 letters":        {"PUT", "/secrets/s" + v, `{"value":"x","contentType":"` + strings.Repeat("a", 256) + `"}`, 400, "content type"},
		"exp before nbf":                       {"PUT", "/secrets/s" + v, `{"value":"x","attributes":{"nbf":2,"exp":1}}`, 400, "later than nbf"},
		"maxresults of 26":                     {"GET", "/secrets" + v + "&maxresults=26", "", 400, "maxresults"},
		"maxresults that is no number":         {"GET", "/secrets" + v + "&maxresults=x", "", 400, "maxresults"},
		"a skiptoken that is none":             {"GET", "/secrets" + v + "&$skiptoken=!", "", 400, "skiptoken"},
		"a version parameter that was escaped": {"GET", "/secrets?api%2Dversion=7.4", "", 200, "value"},
		"restore without a backup":             {"POST", "/secrets/restore" + v, "{}", 400, "'value' is required"},
		"restore of nonsense":                  {"POST", "/secrets/restore" + v, `{"value":"AAAA"}`, 400, "malformed"},
		"update of a secret that is not":       {"PATCH", "/secrets/none" + v, "{}", 404, "SecretNotFound"},
		"recovery of a secret that is alive":   {"POST", "/deletedsecrets/s/recover" + v, "", 404, "Deleted Secret not found: s"},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range 16 {
				tt.body = strings.Replace(tt.body, "%d", fmt.Sprint(i), 1)
			}
			resp, body := f.send(tt.method, tt.path, bearer, tt.body)
			if resp.StatusCode != tt.want || !strings.Contains(body, tt.text) {
				t.Errorf("%d %.300s, want %d with %q", resp.StatusCode, body, tt.want, tt.text)
			}
			for _, h := range []string{"x-ms-keyvault-region", "x-ms-request-id", "x-ms-keyvault-service-version", "x-ms-keyvault-network-info", "Strict-Transport-Security"} {
				if resp.Header.Get(h) == "" {
					t.Errorf("header %s is missing", h)
				}
			}
		})
	}
	if strings.Contains(f.Log.String(), `value\":`) {
		t.Error("the log has a body")
	}
}

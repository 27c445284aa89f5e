package nmi

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/imds"
)

// deviations are the reasons why an answer is not that of Pod Identity v1.
// docs/compatibility.md lists them for users.
var deviations = map[string]string{
	"json":      "an error is JSON as the metadata service's, with v1's words in error_description; v1's text/plain breaks SDKs that parse it",
	"why":       "the description says what is missing and where, in place of v1's words",
	"at once":   "a refusal that waiting cannot change comes at once; v1 answered after 80 s",
	"tolerant":  "the metadata service itself takes True",
	"ipv6":      "v1 could not serve a client over IPv6",
	"case":      "identifiers of Azure have no case; v1 took them so while waiting and not when selecting",
	"object id": "v1 ignored object_id and gave another identity's token",
	"no panic":  "v1 answered with the text of a panic",
	"new":       "v1 had no such bindings",
	"transient": "v1 turned every refusal of the upstream into 403, which SDKs do not retry",
	"forwarded": "the metadata service refuses what a proxy passes on, so that no proxy can be tricked into asking; nor can a browser, by a name that leads here",
	"ambiguous": "v1 chose one of several; another identity's token than was meant is worse than none",
	"method":    "the metadata service only takes GET",
	"path":      "a path that another parser may read as the token path goes nowhere, and only the metadata service's own paths are passed on (CVE-2022-23551)",
	"host":      "v1 believed every process in the host's network; now the caller is identified, and the drivers' address serves drivers only",
}

// setups make the states that the rows name.
var setups = map[string]func(*fixture){
	"":                          func(*fixture) {},
	"header optional":           func(f *fixture) { f.Rules.HeaderOptional = true },
	"unknown pod":               func(f *fixture) { f.node.pod = nil },
	"no label":                  func(f *fixture) { f.node.pod.Labels = nil },
	"no binding":                func(f *fixture) { f.node.world.Bindings = nil },
	"not assigned":              func(f *fixture) { f.node.world.Assigned = nil },
	"not assigned, retry after": func(f *fixture) { f.node.world.Assigned, f.RetryAfter = nil, 20*time.Second },
	"managed, no binding":       func(f *fixture) { f.node.world.Managed, f.node.world.Bindings = true, nil },
	"managed, not assigned":     func(f *fixture) { f.node.world.Managed, f.node.world.Assigned = true, nil },
	"forced, other namespace":   func(f *fixture) { f.node.world.ForceNamespaced, f.node.pod.Namespace = true, "elsewhere" },
	"closed":                    func(f *fixture) { f.spec().NotAfter = &metav1.Time{Time: now.Add(-time.Hour)} },
	"opens soon":                func(f *fixture) { f.spec().NotBefore = &metav1.Time{Time: now.Add(time.Minute)} },
	"on request":                func(f *fixture) { f.spec().Access = v1.AccessOnRequest },
	"too short": func(f *fixture) {
		f.spec().NotAfter, f.spec().MinimumRemaining = &metav1.Time{Time: now.Add(time.Minute)}, &metav1.Duration{Duration: time.Hour}
	},
	"bad identity": func(f *fixture) { f.node.identity().Spec.ResourceID = "vpl-id" },
	"upstream 400": func(f *fixture) {
		f.azure.err = &imds.Error{Status: 400, Code: imds.CodeInvalidRequest, Description: imds.DescriptionIdentityNotFound}
	},
	"upstream 429": func(f *fixture) {
		f.azure.err = &imds.Error{Status: 429, Code: "too_many", Description: "slow down", RetryAfter: 3 * time.Second}
	},
	"upstream 503": func(f *fixture) {
		f.azure.err = &imds.Error{Status: 503, Description: "no token could be had yet", RetryAfter: 2 * time.Second}
	},
	"upstream away": func(f *fixture) { f.azure.err = errors.New("dial tcp: secret detail") },
	"excepted": func(f *fixture) {
		e := &v1.AzurePodIdentityException{}
		e.Namespace, e.Spec.PodLabels = "default", map[string]string{v1.BindingLabel: "LITTLE-pod-binding"}
		f.node.exceptions = []*v1.AzurePodIdentityException{e}
	},
	"block instance": func(f *fixture) { f.BlockInstance = true },
	"stranger calls": func(f *fixture) { f.node.driver.ServiceAccount = "somebody" },
	"hidden process": func(f *fixture) {
		f.host.Processes = &process{err: errors.New("no process that can be seen holds the socket; the agent's pod needs hostPID: true")}
	},
}

func (f *fixture) spec() *v1.AzureIdentityBindingSpec { return &f.node.world.Bindings[0].Spec }

// A row is a request, our answer and that of Pod Identity v1.8.17.
type row struct {
	Name, On, Method, Target, Setup string
	Headers                         []string
	Status                          int
	Text                            string // of error_description, or of what was passed on; empty for a token
	RetryAfter                      string
	Reason                          string // that was recorded; empty for none or an issuance
	V1                              struct {
		Status int
		Body   string
	}
	Deviation string
}

func rows[T any](t *testing.T, file string) []T {
	t.Helper()
	data, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var all []T
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTheContractOfPodIdentityV1(t *testing.T) {
	used := map[string]bool{}
	for _, c := range rows[row](t, "contract.json") {
		used[c.Deviation] = true
		t.Run(c.Name, func(t *testing.T) {
			f := newFixture(t)
			setup, ok := setups[c.Setup]
			if !ok {
				t.Fatalf("no setup %q", c.Setup)
			}
			setup(f)
			base := f.url
			switch c.On {
			case "host":
				base = f.hostURL
			case "pods6":
				base = f.serve6(t)
			}
			method := c.Method
			if method == "" {
				method = http.MethodGet
			}
			res, body := f.ask(t, base, method, c.Target, c.Headers...)
			f.check(t, c, res, body)
		})
	}
	for d := range deviations {
		if !used[d] {
			t.Errorf("no row has the deviation %q", d)
		}
	}
}

func (f *fixture) check(t *testing.T, c row, res *http.Response, body string) {
	t.Helper()
	if res.StatusCode != c.Status || res.Header.Get("Retry-After") != c.RetryAfter {
		t.Errorf("got %d, Retry-After %q, want %d, %q: %s", res.StatusCode, res.Header.Get("Retry-After"), c.Status, c.RetryAfter, body)
	}
	description := ""
	switch {
	case c.Status != http.StatusOK:
		description = decode(t, body).Description
		if !strings.Contains(description, c.Text) || res.Header.Get("Content-Type") != "application/json; charset=utf-8" {
			t.Errorf("got %s %s, want %q", res.Header.Get("Content-Type"), body, c.Text)
		}
	case c.Text != "":
		if description = body; !strings.Contains(body, c.Text) {
			t.Errorf("got %s", body)
		}
	default:
		wholeToken(t, c.On == "host", body)
	}
	for _, secret := range []string{"secret detail", "e30."} {
		if c.Status != http.StatusOK && strings.Contains(body, secret) || strings.Contains(f.log.String(), secret) && secret == "e30." {
			t.Errorf("%q is told to the caller or logged", secret)
		}
	}
	if _, known := deviations[c.Deviation]; c.Deviation != "" && !known {
		t.Errorf("the deviation %q has no reason", c.Deviation)
	}
	if same := c.Status == c.V1.Status && strings.Contains(description, c.V1.Body); !same && c.Deviation == "" {
		t.Errorf("v1 answered %d %s: a deviation needs a reason", c.V1.Status, c.V1.Body)
	}
	d := f.recorded.all()
	switch {
	case c.Reason != "":
		if len(d) != 1 || d[0].Issued || d[0].Reason != c.Reason || d[0].Text == "" {
			t.Errorf("recorded %+v", d)
		}
	case c.Status == http.StatusOK && c.Text == "":
		if len(d) != 1 || !d[0].Issued || d[0].Resource != "https://vault.azure.net" || !d[0].Expires.Equal(now.Add(time.Hour)) {
			t.Errorf("recorded %+v", d)
		}
	default:
		if len(d) != 0 {
			t.Errorf("recorded %+v", d)
		}
	}
	if refused := strings.Contains(f.log.String(), "request refused"); refused != (c.Status != http.StatusOK) {
		t.Errorf("logged %s", f.log)
	}
}

// wholeToken checks that every member of v1's answer is there, as a string.
func wholeToken(t *testing.T, host bool, body string) {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal([]byte(body), &members); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	if host {
		if id, ok := members["clientid"].(string); !ok || id != "client" || len(members) != 2 {
			t.Errorf("got %s", body)
		}
		if members, _ = members["token"].(map[string]any); members == nil {
			t.Fatalf("no token: %s", body)
		}
	}
	for _, name := range []string{"access_token", "refresh_token", "expires_in", "expires_on", "not_before", "resource", "token_type"} {
		if _, ok := members[name].(string); !ok {
			t.Errorf("%s is %v in %s", name, members[name], body)
		}
	}
	if members["expires_on"] != "1700003600" || members["expires_in"] != "3600" || members["token_type"] != "Bearer" || members["resource"] != "https://vault.azure.net" {
		t.Errorf("got %s", body)
	}
}

// serve6 serves over IPv6.
func (f *fixture) serve6(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(f.Server)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

// The cases of v1's TestRouterPathPrefix, over a socket. Where v1 passed a
// request on although it is one for a token, it must be served or refused.
func TestTheRoutesOfPodIdentityV1(t *testing.T) {
	for _, c := range rows[struct{ Name, Target, V1 string }](t, "routes.json") {
		t.Run(c.Name, func(t *testing.T) {
			f := newFixture(t)
			url := f.url
			if c.V1 == "host" {
				f.url = f.hostURL
			}
			status, body := f.raw(t, "GET "+c.Target+"?resource=r HTTP/1.1", "podns: default", "podname: test-id-pod")
			f.url = url
			got := ""
			switch {
			case status == http.StatusOK && strings.Contains(body, "metadata service:") && strings.Contains(strings.ToLower(body), "/metadata/instance"):
				got = "instance"
			case status == http.StatusOK && strings.Contains(body, "metadata service:"):
				got = "default"
			case status == http.StatusOK && strings.Contains(body, `"clientid"`):
				got = "host"
			case status == http.StatusOK && strings.Contains(body, `"access_token"`):
				got = "token"
			case status == http.StatusBadRequest:
				got = "invalid"
			}
			want := c.V1
			if want == "default" && strings.Contains(strings.ToLower(c.Target), "oauth2") {
				want = "token" // deviation "path"
			}
			if got != want {
				t.Errorf("%s is %q (%d %s), want %q", c.Target, got, status, body, want)
			}
		})
	}
}

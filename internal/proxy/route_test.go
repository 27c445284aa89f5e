package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
)

func TestWhatIsAnsweredPassedOnOrRefused(t *testing.T) {
	f := newFixture(t)
	const (
		token   = "a token"
		passed  = "passed on"
		refused = "refused"
		ready   = "ok"
	)
	q := "?api-version=2018-02-01&resource=r"
	for target, want := range map[string]string{
		// as v1.6
		"/metadata/identity/oauth2/token" + q:     token,
		"/metadata/identity/oauth2/token/" + q:    token,
		"/METADATA/identity/oauth2/token" + q:     token,
		"/metadata/instance?api-version=1":        passed,
		"/metadata/instance/compute/name?a=b":     passed,
		"/metadata/versions":                      passed,
		"/metadata/":                              passed,
		"/latest/meta-data/":                      passed,
		"/":                                       passed,
		"/readyz":                                 ready,
		"/readyz/":                                ready,
		"/metadata/scheduledevents?api-version=1": passed,

		// v1.6 sent these to the node's own metadata service, which reads paths
		// in any case: the node's identity instead of the pod's.
		"/metadata/Identity/oauth2/token" + q:  token,
		"/metadata/identity/OAuth2/Token" + q:  token,
		"/metadata/identity/info":              refused,
		"/metadata/identity":                   refused,
		"/metadata/identity/oauth2/":           refused,
		"/metadata/%69dentity/oauth2/token":    refused,
		"/metadata//identity/oauth2/token":     refused,
		"//metadata/identity/oauth2/token":     refused,
		"/metadata/./identity/oauth2/token":    refused,
		"/metadata/x/../identity/oauth2/token": refused,
		"/metadata/instance/..%2fidentity/":    refused,
		`/metadata\identity\oauth2\token`:      refused,
		"/metadata/identity/oauth2/to%6ben":    refused,
		"/metadata/identity;a/oauth2/token":    refused,
		"/metadata/identity./oauth2/token":     refused,
		"/metadata/%2e%2e/metadata/identity":   refused,
		// and gave tokens for these
		"/metadata/identity/oauth2/tokenXYZ" + q:    refused,
		"/metadata/identity/oauth2/token/extra" + q: refused,
		"/readyzz": passed,
		// absolute form, as to a proxy
		"http://169.254.169.254/metadata/identity/oauth2/token" + q: token,
		"http://169.254.169.254/metadata/versions":                  passed,
		"http://example.com/metadata/%69dentity":                    refused,
		"*":                                                         refused,
	} {
		t.Run(target, func(t *testing.T) {
			status, body := raw(t, f.url, "GET "+target+" HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n")
			got := fmt.Sprintf("%d %s", status, body)
			switch {
			case strings.Contains(body, `"access_token"`) && status == 200:
				got = token
			case status == 200 && strings.HasPrefix(body, "GET /"):
				got = passed
			case status == 400:
				got = refused
			case status == 200:
				got = body
			}
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			select {
			case <-f.received:
				if want != passed {
					t.Error("it was passed on")
				}
			default:
				if want == passed {
					t.Error("it was not passed on")
				}
			}
		})
	}
}

// raw sends what no client would.
func raw(t *testing.T, base, head string) (status int, body string) {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, head+"Connection: close\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestTheContractOfTheMetadataService(t *testing.T) {
	f := newFixture(t)
	path := "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=r"
	for name, tt := range map[string]struct {
		head   string
		status int
		want   string
	}{
		"without the Metadata header":     {"GET " + path + " HTTP/1.1\r\nHost: h\r\n", 400, "Required metadata header not specified"},
		"with another Metadata header":    {"GET " + path + " HTTP/1.1\r\nHost: h\r\nMetadata: false\r\n", 400, "Required metadata header not specified"},
		"through a forwarding proxy":      {"GET " + path + " HTTP/1.1\r\nHost: h\r\nMetadata: true\r\nX-Forwarded-For: 1.2.3.4\r\n", 400, "X-Forwarded-For"},
		"another path, forwarded":         {"GET /metadata/instance HTTP/1.1\r\nHost: h\r\nMetadata: true\r\nX-Forwarded-For: 1.2.3.4\r\n", 400, "X-Forwarded-For"},
		"without a resource":              {"GET /metadata/identity/oauth2/token HTTP/1.1\r\nHost: h\r\nMetadata: true\r\n", 400, "'resource' is missing"},
		"with POST":                       {"POST " + path + " HTTP/1.1\r\nHost: h\r\nMetadata: true\r\nContent-Length: 0\r\n", 405, "only GET"},
		"with two names for one identity": {"GET " + path + "&client_id=a&object_id=b HTTP/1.1\r\nHost: h\r\nMetadata: true\r\n", 400, "only one of"},
		"for a page's own host":           {"GET " + path + " HTTP/1.1\r\nHost: page.example\r\nMetadata: true\r\n", 400, "the Host header is 'page.example': ask the metadata service by its address"},
		"another path, for such a host":   {"GET /metadata/instance HTTP/1.1\r\nHost: 169.254.169.254.example:80\r\nMetadata: true\r\n", 400, "the Host header is"},
		"as a tunnel":                     {"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: h\r\n", 400, "Invalid request"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := raw(t, f.url, tt.head)
			if status != tt.status || !strings.Contains(body, tt.want) {
				t.Errorf("got %d %s, want %d and %q", status, body, tt.status, tt.want)
			}
		})
	}
	if n := f.entra.asked(); n != 0 {
		t.Errorf("Entra was asked %d times", n)
	}
	if n := len(f.received); n != 0 {
		t.Errorf("%d requests were passed on", n)
	}
}

func TestOtherPathsArePassedOnWithoutWhatIsMeantForTheNextHopOnly(t *testing.T) {
	f := newFixture(t)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, f.url+"/metadata/attested/document?nonce=1", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Metadata": {"true"}, "X-Mine": {"1"}, "Connection": {"X-Mine, Upgrade, " + headerLoop}, "Upgrade": {"h2c"}, "Te": {"trailers"}, "Proxy-Authorization": {"Basic x"}}
	a := f.do(t, r)
	if a.status != 200 || a.body != "PUT /metadata/attested/document?nonce=1" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	got := <-f.received
	for _, name := range []string{"X-Mine", "Connection", "Upgrade", "Proxy-Authorization", "X-Forwarded-For"} {
		if v, ok := got.Header[name]; ok {
			t.Errorf("%s: %s was passed on", name, v)
		}
	}
	if got.Header.Get("Metadata") != "true" || got.Host != strings.TrimPrefix(f.node.URL, "http://") || got.Header.Get(headerLoop) == "" {
		t.Errorf("passed on to %s with %v", got.Host, got.Header)
	}
}

func TestARedirectIsTheCallersBusiness(t *testing.T) {
	f := newFixture(t)
	f.node.Config.Handler = http.RedirectHandler("/metadata/identity/oauth2/token?resource=r", http.StatusFound)
	if a := f.get(t, "/metadata/instance"); a.status != 302 || a.header.Get("Location") == "" {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestAMetadataServiceThatIsAway(t *testing.T) {
	f := newFixture(t)
	f.node.Close()
	if a := f.get(t, "/metadata/instance"); a.status != 502 || a.Description != "the metadata service did not answer" {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if a := f.token(t, ""); a.status != 200 {
		t.Errorf("tokens do not need it, and yet: %d %s", a.status, a.body)
	}
}

func TestARequestThatComesBackIsAnsweredOnce(t *testing.T) {
	f := newFixture(t)
	self, err := url.Parse(f.url)
	if err != nil {
		t.Fatal(err)
	}
	f.server.Upstream = self // what the redirect does if it spares another user
	a := f.get(t, "/metadata/instance")
	if a.status != 508 || a.Error != "loop_detected" || !strings.Contains(a.Description, fmt.Sprintf("%d; remove runAsUser", os.Getuid())) {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if n := strings.Count(f.log.String(), "request refused"); n != 1 {
		t.Errorf("%d refusals in the log", n)
	}
	if a := f.token(t, ""); a.status != 200 {
		t.Errorf("tokens: %d %s", a.status, a.body)
	}
	// Another proxy's mark is no loop of ours.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+"/metadata/instance", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(headerLoop, "of another process")
	if a := f.do(t, r); a.status != 508 {
		t.Errorf("it should have come back once: %d %s", a.status, a.body)
	}
}

func TestItIsReadyAsLongAsTheFederatedTokenCanBeRead(t *testing.T) {
	f := newFixture(t)
	if a := f.get(t, "/readyz"); a.status != 200 || a.body != "ok" {
		t.Errorf("got %d %s", a.status, a.body)
	}
	f.write(t, "")
	if a := f.get(t, "/readyz"); a.status != 503 || !strings.Contains(a.Description, "it is empty") {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if err := os.Remove(f.file); err != nil {
		t.Fatal(err)
	}
	if a := f.get(t, "/readyz"); a.status != 503 || !strings.Contains(a.Description, "no such file") {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

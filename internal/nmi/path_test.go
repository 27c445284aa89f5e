package nmi

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"testing"
)

// variants are ways to write the token path, as request lines.
func variants() []string {
	const plain = "/metadata/identity/oauth2/token"
	segments := strings.Split(plain[1:], "/")
	paths := map[string]bool{plain: true, "*": true, "": true, "metadata/identity/oauth2/token": true}
	add := func(p string) { paths[p], paths[p+"/"] = true, true }
	join := func(edit func([]string)) string {
		s := append([]string(nil), segments...)
		edit(s)
		return "/" + strings.Join(s, "/")
	}
	for i := range segments {
		for _, edit := range []func(string) string{
			strings.ToUpper, strings.ToTitle,
			func(s string) string { return strings.ToUpper(s[:1]) + s[1:] },
			func(s string) string { return fmt.Sprintf("%%%02x", s[0]) + s[1:] },         // one letter encoded
			func(s string) string { return fmt.Sprintf("%%25%02x", s[0]) + s[1:] },       // twice
			func(s string) string { return s[:1] + fmt.Sprintf("%%%02X", s[1]) + s[2:] }, // another
			func(s string) string { return s + ";x=y" },
			func(s string) string { return s + "%3bx" },
			func(s string) string { return s + "%00" },
			func(s string) string { return s + "%20" },
			func(s string) string { return s + "%09" },
			func(s string) string { return s + "." },
			func(s string) string { return "./" + s },
			func(s string) string { return "x/../" + s },
			func(s string) string { return "x/%2e%2e/" + s },
			func(s string) string { return "x/.%2e/" + s },
			func(s string) string { return "x/%252e%252e/" + s },
			func(s string) string { return "/" + s },
			func(s string) string { return "%2f" + s },
			func(s string) string { return "%5c" + s },
			func(s string) string { return `\` + s },
			func(s string) string { return "%c0%af" + s },                            // an overlong slash
			func(s string) string { return "%e2%81%84" + s },                         // U+2044
			func(s string) string { return strings.ReplaceAll(s, "k", "%e2%84%aa") }, // U+212A
			func(s string) string { return strings.ReplaceAll(s, "i", "%c4%b1") },    // dotless
		} {
			add(join(func(s []string) { s[i] = edit(s[i]) }))
		}
		for _, slash := range []string{"//", "///", `\`, `/\`, `\/`, "%2f", "%2F", "%5c", "%5C", "%252f", "%255c", "/./", "/%2e/", "/x/../", "/;/", "/;x/"} {
			if i > 0 {
				add("/" + strings.Join(segments[:i], "/") + slash + strings.Join(segments[i:], "/"))
			}
		}
	}
	add(`\metadata\identity\oauth2\token`)
	add("/metadata/instance/../identity/oauth2/token")
	add("/metadata/instance/%2e%2e/identity/oauth2/token")
	add("/metadata/instance//../identity/oauth2/token")
	add(`/metadata/instance/..\identity\oauth2\token`)
	add("/metadata/instance;/../identity/oauth2/token")
	add(plain + "/extra")
	add(plain + "/../token")
	add("/x/.." + plain)
	add("/" + strings.Repeat("a/../", 200) + plain[1:])
	add(plain + strings.Repeat("/", 4000))
	add("/metadata/" + strings.Repeat("x", 12000) + "/../identity/oauth2/token")
	for _, host := range []string{"http://169.254.169.254", "HTTP://169.254.169.254:80", "http://evil", "http://user@169.254.169.254", "https://169.254.169.254", "//169.254.169.254"} {
		add(host + plain)
		add(host + "/metadata//identity/oauth2/token")
		add(host + "/metadata/instance/../identity/oauth2/token")
		add(host + `/metadata\identity/oauth2/token`)
	}
	var lines []string
	for p := range paths {
		for _, q := range []string{"?resource=r", "%3fresource=r", "?resource=r#x", "#?resource=r"} {
			lines = append(lines, "GET "+p+q+" HTTP/1.1")
		}
		lines = append(lines, "GET "+p+"?resource=r HTTP/1.0", "POST "+p+"?resource=r HTTP/1.1", "HEAD "+p+"?resource=r HTTP/1.1")
	}
	return append(lines,
		"CONNECT 169.254.169.254:80 HTTP/1.1", "CONNECT /metadata/identity/oauth2/token HTTP/1.1", "CONNECT /metadata/instance HTTP/1.1",
		"OPTIONS * HTTP/1.1", "PRI * HTTP/2.0", "GET /metadata/identity/oauth2/token?resource=r", "GET\t/metadata/identity/oauth2/token?resource=r HTTP/1.1",
		"GET  /metadata/identity/oauth2/token?resource=r HTTP/1.1", "GET /metadata/identity/oauth2/token\x00?resource=r HTTP/1.1", "GET /metadata/identity /oauth2/token HTTP/1.1",
		"GET /metadata/identity/oauth2/token?resource=r HTTP/1.1 HTTP/1.1")
}

// A path that another parser might take for the token endpoint must never be
// passed on (CVE-2022-23551). The pod has nothing, so whatever is served says
// 404, and the metadata service would say 200.
func TestNoSpellingOfTheTokenPathReachesTheMetadataService(t *testing.T) {
	f := newFixture(t)
	f.node.pod.Labels = nil
	lines := variants()
	if len(lines) < 1500 {
		t.Fatalf("only %d variants", len(lines))
	}
	served := 0
	for _, line := range lines {
		status, body := f.raw(t, line)
		switch status {
		case 0, http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusRequestURITooLong, http.StatusRequestHeaderFieldsTooLarge, http.StatusHTTPVersionNotSupported:
		default:
			t.Errorf("%.120q: %d %.200s", line, status, body)
		}
		if strings.Contains(body, "does not have the label") {
			served++
		}
	}
	if len(f.reached()) != 0 {
		t.Errorf("the metadata service got %q", f.reached())
	}
	if served < 10 || len(f.azure.asked) != 0 {
		t.Errorf("%d variants were taken for the token path; asked %v", served, f.azure.asked)
	}
}

func TestOtherMetadataPathsReachTheMetadataServiceAsTheyAre(t *testing.T) {
	f := newFixture(t)
	for _, target := range []string{"/metadata/instance?api-version=2021-02-01", "/metadata/instance/compute/location?api-version=2021-02-01&format=text", "/metadata/versions", "/metadata/attested/document?api-version=2020-09-01&nonce=1%2f2"} {
		if status, body := f.raw(t, "GET "+target+" HTTP/1.1"); status != http.StatusOK || body != "metadata service: GET "+target+" host="+f.Upstream.Host {
			t.Errorf("%s: %d %s", target, status, body)
		}
	}
}

// After 101 the two ends speak what they like: a metadata service that took the
// upgrade would answer for the token path as well.
func TestNoChangeOfProtocolsReachesTheMetadataService(t *testing.T) {
	for _, protocol := range []string{"h2c", "websocket"} {
		t.Run(protocol, func(t *testing.T) {
			f := newFixture(t)
			upgrades := make(chan string, 1)
			f.Transport.(*http.Transport).DisableKeepAlives = true
			upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				upgrades <- r.Header.Get("Upgrade") + r.Header.Get("Http2-Settings")
				w.Header().Set("Connection", "Upgrade")
				w.Header().Set("Upgrade", protocol)
				w.WriteHeader(http.StatusSwitchingProtocols)
			}))
			defer upstream.Close()
			f.Upstream.Host = strings.TrimPrefix(upstream.URL, "http://")
			status, _ := f.raw(t, "GET /metadata/instance?api-version=2021-02-01 HTTP/1.1", "Connection: Upgrade, HTTP2-Settings", "Upgrade: "+protocol, "HTTP2-Settings: AAMAAABkAAQAAP__")
			if status != http.StatusBadGateway {
				t.Errorf("status %d", status)
			}
			if got := <-upgrades; got != "" {
				t.Errorf("the metadata service was asked to change to %q", got)
			}
		})
	}
}

// FuzzRouting sends paths as they are: what reaches the metadata service must
// not read as a path below /metadata/identity, however it is decoded.
func FuzzRouting(f *testing.F) {
	for _, line := range variants()[:200] {
		f.Add(strings.Fields(line)[1])
	}
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		n := newFakeNode()
		n.pod.Labels = nil
		reached := ""
		s := &Server{Logger: slog.New(slog.DiscardHandler), Node: n, Recorder: &memory{}, Tokens: &azure{}, Metadata: &azure{}, Upstream: &url.URL{Scheme: "http", Host: "upstream"}, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			reached = r.URL.RequestURI()
			return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Header: http.Header{}}, nil
		})}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL, r.RequestURI = u, target
		r.RemoteAddr = "10.0.0.1:1"
		r.Header.Set("Metadata", "true")
		s.ServeHTTP(httptest.NewRecorder(), r)
		p, _, _ := strings.Cut(reached, "?")
		for range 4 {
			if dec, err := url.PathUnescape(p); err == nil {
				p = dec
			}
			dots := strings.NewReplacer(`\`, "/", "./", "/") // Windows drops a name's last dots
			if strings.HasPrefix(path.Clean(strings.ToLower(dots.Replace(p)))+"/", "/metadata/identity/") {
				t.Fatalf("%q reached the metadata service as %q", target, reached)
			}
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

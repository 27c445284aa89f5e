package imds_test

import (
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/lanyard-id/lanyard/internal/imds"
)

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		name, path string
		want       imds.Kind
	}{
		{"the token path", "/metadata/identity/oauth2/token", imds.TokenEndpoint},
		{"the token path with a slash, as JS sends it", "/metadata/identity/oauth2/token/", imds.TokenEndpoint},
		{"the token path in any case", "/Metadata/Identity/OAuth2/Token", imds.TokenEndpoint},
		{"instance metadata", "/metadata/instance", imds.Instance},
		{"instance metadata below", "/metadata/instance/compute/location", imds.Instance},
		{"instance metadata in capitals", "/METADATA/INSTANCE", imds.Instance},
		{"versions", "/metadata/versions", imds.Other},
		{"the root of metadata", "/metadata/", imds.Other},
		{"something else", "/machine", imds.Foreign},
		{"the root", "/", imds.Foreign},
		{"a word that only begins alike", "/metadata/instances", imds.Other},
		{"a backslash", `/metadata/identity\oauth2/token`, imds.Refused},
		{"an escaped backslash", "/metadata/identity%5Coauth2/token", imds.Refused},
		{"a leading backslash", `/metadata\identity/oauth2/token`, imds.Refused},
		{"an escaped letter", "/metadata/%69dentity/oauth2/token", imds.Refused},
		{"an escaped slash", "/metadata%2fidentity/oauth2/token", imds.Refused},
		{"escaped twice", "/metadata/identity%252foauth2/token", imds.Refused},
		{"doubled slashes", "/metadata//identity/oauth2/token", imds.Refused},
		{"doubled slashes at the start", "//metadata/identity/oauth2/token", imds.Refused},
		{"doubled slashes at the end", "/metadata/identity/oauth2/token//", imds.Refused},
		{"a dot segment", "/metadata/./identity/oauth2/token", imds.Refused},
		{"a parent segment", "/metadata/instance/../identity/oauth2/token", imds.Refused},
		{"an escaped parent segment", "/metadata/instance/%2e%2e/identity/oauth2/token", imds.Refused},
		{"a dot at the end of a segment", "/metadata/identity./oauth2/token", imds.Refused},
		{"a dot at the end of the path", "/metadata/instance/compute.", imds.Refused},
		{"a path parameter", "/metadata/identity;x/oauth2/token", imds.Refused},
		{"something behind the token path", "/metadata/identity/oauth2/token/extra", imds.Refused},
		{"something else below identity", "/metadata/identity/info", imds.Refused},
		{"the Kelvin sign for k", "/metadata/identity/oauth2/to\u212aen", imds.Refused},
		{"a null byte", "/metadata/identity/oauth2/token%00", imds.Refused},
		{"a tab", "/metadata/identity%09/oauth2/token", imds.Refused},
		{"options of the whole server", "*", imds.Refused},
		{"an absolute address", "http://169.254.169.254/metadata/identity/oauth2/token", imds.TokenEndpoint},
		{"an absolute address without a path", "http://169.254.169.254", imds.Refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, err := url.ParseRequestURI(c.path) // as net/http reads it
			if err != nil {
				t.Fatal(err)
			}
			if got := imds.Classify(u); got != c.want {
				t.Errorf("Classify(%q) = %d, want %d", c.path, got, c.want)
			}
		})
	}
}

// FuzzClassify decodes and cleans a path in every way a lenient server might;
// what then reads as a token path must not be passed on.
func FuzzClassify(f *testing.F) {
	for _, s := range []string{"/metadata/identity/oauth2/token", `/metadata\identity/oauth2/token`, "/metadata/%69dentity/oauth2/token", "/metadata/instance/..%2fidentity/oauth2/token", "/metadata/instance/%252e%252e/identity/oauth2/token/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.ParseRequestURI(raw)
		if err != nil {
			return
		}
		kind := imds.Classify(u)
		if kind == imds.Refused || kind == imds.TokenEndpoint {
			return
		}
		p := u.EscapedPath()
		for range 4 {
			if dec, err := url.PathUnescape(p); err == nil {
				p = dec
			}
			clean := path.Clean(strings.ToLower(strings.ReplaceAll(strings.ReplaceAll(p, `\`, "/"), "./", "/")))
			if strings.HasPrefix(clean+"/", "/metadata/identity/") {
				t.Fatalf("%q is kind %d but may be read as %q", raw, kind, clean)
			}
		}
	})
}

func TestIsTokenPath(t *testing.T) {
	for p, want := range map[string]bool{
		"/metadata/identity/oauth2/token":        true,
		"/metadata/identity/oauth2/token/":       true,
		"/METADATA/identity/oauth2/TOKEN":        true,
		"/metadata/identity/oauth2/token//":      false,
		"/metadata/identity/oauth2/to\u212aen":   false,
		"/metadata/identity/oauth2/tokens":       false,
		"":                                       false,
		"metadata/identity/oauth2/token":         false,
		"/metadata/identity/oauth2/token/extra/": false,
	} {
		if got := imds.IsTokenPath(p); got != want {
			t.Errorf("IsTokenPath(%q) = %v", p, got)
		}
	}
}

func TestHostsThatAPageCouldHaveAreRefused(t *testing.T) {
	for _, host := range []string{"", "169.254.169.254", "169.254.169.254:80", "127.0.0.1:8000", "[::1]", "[::1]:8000", "[fd00:ec2::254]", "localhost", "localhost:8000", "LOCALHOST.", "metadata", "metadata.azure.internal"} {
		if err := imds.CheckHost(host); err != nil {
			t.Errorf("%q: %v", host, err)
		}
	}
	for _, host := range []string{"page.example", "page.example:80", "page.example.", "169.254.169.254.page.example", "1.2.3", "internal.example", "x\x00.example", "[::1].example"} {
		if err := imds.CheckHost(host); err == nil {
			t.Errorf("%q is accepted", host)
		}
	}
}

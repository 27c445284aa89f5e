package estate

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
)

func TestAnIssuersPathMayHoldWhateverAURLMay(t *testing.T) {
	for _, path := range []string{"/{a}/", "/{}", "/{a...}", "/a//b", "/a/../b", "/a%20b/", "/.", ""} {
		t.Run(path, func(t *testing.T) {
			_, handler, err := (&publisher{}).serve("https://oidc.example.test" + path)
			if err != nil {
				t.Fatal(err)
			}
			s := httptest.NewServer(handler)
			defer s.Close()
			u, err := url.Parse("https://oidc.example.test" + path)
			if err != nil {
				t.Fatal(err)
			}
			base := u.EscapedPath()
			if len(base) > 0 && base[len(base)-1] == '/' {
				base = base[:len(base)-1]
			}
			for method, want := range map[string]int{http.MethodGet: http.StatusServiceUnavailable, http.MethodPost: http.StatusMethodNotAllowed} {
				r, err := http.NewRequestWithContext(t.Context(), method, s.URL+base+"/openid/v1/jwks", nil)
				if err != nil {
					t.Fatal(err)
				}
				res, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				if err := res.Body.Close(); err != nil || res.StatusCode != want {
					t.Errorf("%s: %d, %v; want %d", method, res.StatusCode, err, want)
				}
			}
		})
	}
	if _, _, err := (&publisher{}).serve("https://user@oidc.example.test/"); err == nil {
		t.Error("an issuer with a user in it is served")
	}
}

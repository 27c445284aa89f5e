package estate

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
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

func TestAnIssuersDocumentsMayBeThoseOfAFolder(t *testing.T) {
	folder := t.TempDir()
	_, handler, err := (&publisher{folder: folder}).serve("https://oidc.example.test/cluster/")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(handler)
	defer s.Close()
	get := func(path string) (int, string) {
		t.Helper()
		res, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	const keys = "/cluster/openid/v1/jwks"
	if status, _ := get(keys); status != http.StatusNotFound {
		t.Errorf("before anything is published: %d", status)
	}
	for name, content := range map[string]string{"openid/v1/jwks": "the keys", "sa.key": "secret"} {
		file := filepath.Join(folder, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if status, body := get(keys); status != http.StatusOK || body != "the keys" {
		t.Errorf("%d %s", status, body)
	}
	for _, path := range []string{"/cluster/sa.key", "/cluster/openid/v1/", "/cluster/openid/v1/jwks/../../../sa.key"} {
		if status, body := get(path); status == http.StatusOK {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

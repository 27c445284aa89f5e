package entra

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const projected = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl"

func TestAnAssertionFileIsReadForEachRequest(t *testing.T) {
	var got []TokenRequest
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q, err := ParseTokenRequest(r, V2)
		if err != nil {
			t.Error(err)
		}
		got = append(got, q)
		if err := WriteToken(w, V2, TokenResponse{AccessToken: "access", ExpiresIn: time.Hour}); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	client := &Client{Authority: server.URL, AllowHTTP: true}
	defer client.CloseIdleConnections()
	file := filepath.Join(t.TempDir(), "token")
	for i, token := range []string{projected, projected + "2"} {
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Token(t.Context(), Application{Tenant: "contoso.com", ClientID: "app"}, AssertionFile(file), "https://vault.azure.net"); err != nil {
			t.Fatal(err)
		}
		if q := got[i]; q.Assertion != token || q.AssertionType != AssertionTypeJWT || q.ClientID != "app" {
			t.Errorf("request %d carried %q of type %q for client %q", i, q.Assertion, q.AssertionType, q.ClientID)
		}
	}
}

func TestAFederatedTokenThatCannotBeUsedIsNotSent(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) AssertionFile {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return AssertionFile(file)
	}
	for name, tt := range map[string]struct {
		credential Credential
		want       string
	}{
		"no file is named":          {AssertionFile(""), "set AZURE_FEDERATED_TOKEN_FILE"},
		"the file is not there":     {AssertionFile(filepath.Join(dir, "none")), "no such file"},
		"the file is a directory":   {AssertionFile(dir), "is a directory"},
		"the file is empty":         {write("empty", "\n"), "it is empty"},
		"the file is no token":      {write("words", "not a token"), "not a signed JWT"},
		"the file is far too large": {write("large", strings.Repeat("a", maxAssertion+1)), "longer than 64 KiB"},
		"two lines":                 {Assertion(projected + "\n" + projected), "not a signed JWT"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := (&Client{}).Token(t.Context(), Application{Tenant: "contoso.com", ClientID: "app"}, tt.credential, "r")
			if !errors.Is(err, ErrAssertion) || !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want one that says %q", err, tt.want)
			}
		})
	}
}

func TestAnAssertionIsNeverShown(t *testing.T) {
	a := Assertion(projected)
	b, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{fmt.Sprintf("%v %s %q %+v %#v %x", a, a, a, a, a, a), a.LogValue().String(), string(b)} {
		if strings.Contains(shown, projected[:8]) {
			t.Errorf("%s shows the token", shown)
		}
	}
}

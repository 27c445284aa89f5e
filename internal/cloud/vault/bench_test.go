package vault_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/vault"
)

// BenchmarkGetSecret is the handler without a connection: the token's signature
// is verified and the role assignments are evaluated each time.
func BenchmarkGetSecret(b *testing.B) {
	f := newFixture(b)
	bearer := f.Token(f.officer, azure.ResourceVault)
	const path = "/secrets/password?api-version=7.4"
	if resp, body := f.send(http.MethodPut, path, bearer, `{"value":"the value"}`); resp.StatusCode != http.StatusOK {
		b.Fatal(body)
	}
	handler := (&vault.Server{DB: f.DB, Verify: f.Login.Verify, Now: f.Now, Logger: f.Logger()}).Handler()
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "https://demo.vault.azure.net"+path, nil)
		r.Header.Set("Authorization", "Bearer "+bearer)
		w := httptest.NewRecorder()
		if handler.ServeHTTP(w, r); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "the value") {
			b.Fatalf("%d %s", w.Code, w.Body)
		}
	}
}

package imds_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

// asked is the request that the Azure SDKs send for a user-assigned identity.
func asked() *http.Request {
	r := httptest.NewRequest(http.MethodGet, "http://169.254.169.254"+imds.TokenPath+
		"?api-version=2018-02-01&client_id=11111111-2222-3333-4444-555555555555&resource=https%3A%2F%2Fvault.azure.net", nil)
	r.Header.Set("Metadata", "true")
	return r
}

func BenchmarkClassify(b *testing.B) {
	r := asked()
	b.ReportAllocs()
	for b.Loop() {
		if imds.Classify(r.URL) != imds.TokenEndpoint {
			b.Fatal("not the token endpoint")
		}
	}
}

func BenchmarkParseTokenRequest(b *testing.B) {
	r := asked()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := imds.ParseTokenRequest(r); err != nil {
			b.Fatal(err)
		}
	}
}

// A counter is a response that keeps its headers and the number of its bytes.
type counter struct {
	header http.Header
	status int
	bytes  int
}

func (c *counter) Header() http.Header { return c.header }
func (c *counter) WriteHeader(s int)   { c.status = s }

func (c *counter) Write(p []byte) (int, error) {
	c.bytes += len(p)
	return len(p), nil
}

func BenchmarkWriteToken(b *testing.B) {
	now := time.Unix(1700000000, 0)
	// 1,500 bytes is about the length of a token of Entra.
	t := token.Token{AccessToken: strings.Repeat("x", 1500), ExpiresOn: now.Add(24 * time.Hour), NotBefore: now, Resource: "https://vault.azure.net", ClientID: "11111111-2222-3333-4444-555555555555"}
	w := &counter{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		w.bytes = 0
		imds.WriteToken(w, t, now)
		if w.status != http.StatusOK || w.bytes < 1500 {
			b.Fatalf("status %d, %d bytes", w.status, w.bytes)
		}
	}
}

package proxy

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"
)

// The cached token over a kept connection, and beside it what net/http itself
// takes for an answer of that size.
func BenchmarkCachedToken(b *testing.B) {
	f := newFixture(b)
	url := f.url + "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net"
	b.Run("proxy", func(b *testing.B) { load(b, url) })
	bare := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 512)) }))
	defer bare.Close()
	b.Run("bare server", func(b *testing.B) { load(b, bare.URL) })
}

func load(b *testing.B, url string) {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, nil)
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Metadata", "true")
	var took []time.Duration
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		res, err := transport.RoundTrip(r)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
			b.Fatal(res.Status, err)
		}
		res.Body.Close()
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
}

package login

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// unkept is a log whose lines are formatted, as slog.DiscardHandler's are not,
// and dropped.
type unkept struct{}

func (unkept) Write(line []byte) (int, error) { return len(line), nil }

// BenchmarkTokenEndpoint is the handler without a connection. The issuer's keys
// are fetched once, before the measurement.
func BenchmarkTokenEndpoint(b *testing.B) {
	d := newDoor(b)
	d.config.Logger = slog.New(slog.NewTextHandler(unkept{}, nil))
	d.restart()
	handler, url := d.server.Handler(), "https://login.microsoftonline.com"+d.v2()
	assertion := d.issuer.token(nil, d.issuer.claims(d.clock.Now(), nil))
	for _, tt := range []struct{ name, form string }{
		{"secret", d.form(nil).Encode()},
		{"federated", d.federated(assertion).Encode()},
	} {
		b.Run(tt.name, func(b *testing.B) {
			ask := func() {
				r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, url, strings.NewReader(tt.form))
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				w := httptest.NewRecorder()
				if handler.ServeHTTP(w, r); w.Code != http.StatusOK {
					b.Fatalf("%d %s", w.Code, w.Body)
				}
			}
			ask()
			fetched := d.issuer.fetches.Load()
			b.ReportAllocs()
			for b.Loop() {
				ask()
			}
			if n := d.issuer.fetches.Load(); n != fetched {
				b.Errorf("the issuer was asked %d times during the measurement", n-fetched)
			}
		})
	}
}

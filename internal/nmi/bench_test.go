package nmi

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/tools/record"

	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

// lines counts what is logged.
type lines struct{ atomic.Int64 }

func (l *lines) Write(line []byte) (int, error) {
	l.Add(1)
	return len(line), nil
}

// BenchmarkToken asks for a token over one kept connection, beside a handler
// that knows nothing and writes the same bytes: what lies between the two is
// the agent's own work, its audit line included. The upstream and the API
// server are in memory, and both times contain the client.
func BenchmarkToken(b *testing.B) {
	now := time.Unix(1700000000, 0)
	access := strings.Repeat("x", 1500) // about the length of a token of Entra
	audit := &lines{}
	agent := httptest.NewServer(&Server{
		Node: newFakeNode(),
		Tokens: token.Func(func(_ context.Context, r token.Request) (token.Token, error) {
			return token.Token{AccessToken: access, ExpiresOn: now.Add(24 * time.Hour), NotBefore: now, Resource: r.Resource, ClientID: "client"}, nil
		}),
		Recorder: &Events{Events: &record.FakeRecorder{}, Audit: slog.New(slog.NewJSONHandler(audit, nil))},
		Now:      func() time.Time { return now },
	})
	defer agent.Close()
	header, want := ask(b, agent)
	bare := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for _, name := range []string{"Content-Type", "X-Content-Type-Options", "Cache-Control"} {
			w.Header().Set(name, header.Get(name))
		}
		_, _ = w.Write(want)
	}))
	defer bare.Close()

	for _, s := range []struct {
		name   string
		server *httptest.Server
		audits int64 // lines a request
	}{{"bare", bare, 0}, {"nmi", agent, 1}} {
		b.Run(s.name, func(b *testing.B) {
			if h, got := ask(b, s.server); !bytes.Equal(got, want) || !slices.Equal(names(h), names(header)) {
				b.Fatalf("%v %s, want %v %s", h, got, header, want)
			}
			before := audit.Load()
			b.ReportAllocs()
			for b.Loop() {
				ask(b, s.server)
			}
			if n := audit.Load() - before; n != s.audits*int64(b.N) {
				b.Errorf("%d audit lines for %d requests", n, b.N)
			}
		})
	}
}

func names(h http.Header) []string {
	var all []string
	for name := range h {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// ask is what the Azure SDKs ask, and the answer read to its end.
func ask(b *testing.B, s *httptest.Server) (http.Header, []byte) {
	r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, s.URL+imds.TokenPath+"?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net", nil)
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Metadata", "true")
	resp, err := s.Client().Do(r)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Fatalf("%s %s %v", resp.Status, body, err)
	}
	return resp.Header, body
}

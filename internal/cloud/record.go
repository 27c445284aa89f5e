package cloud

import (
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/cloud/journal"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

// record logs every request: where, what, how it ended, and whose token it
// carried. Query strings are left out, as are headers and bodies: they are
// where secrets travel. A request that ends without an answer has status 0.
func (c *Cloud) record(next http.Handler, host, machine string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		ctx, note := journal.With(r.Context())
		note.Client = claimedClient(r)
		sw := &statusWriter{ResponseWriter: w}
		defer func() {
			e := journal.Entry{
				Time: start.UTC(), Host: clip(host), Method: clip(r.Method), Path: r.URL.Path, Status: sw.status,
				Milliseconds: float64(time.Since(start).Microseconds()) / 1000, Client: note.Client, Machine: machine, Fault: note.Fault,
			}
			c.journal.Append(e)
			c.logger.LogAttrs(ctx, slog.LevelInfo, "request", slog.String("host", e.Host), slog.String("method", e.Method),
				slog.String("path", shorten(e.Path, maxLoggedPath)), slog.Int("status", e.Status), slog.String("client", e.Client),
				slog.Duration("duration", time.Since(start)), slog.String("fault", e.Fault))
		}()
		next.ServeHTTP(sw, r.WithContext(ctx))
		if sw.status == 0 {
			sw.status = http.StatusOK
		}
	})
}

// maxLoggedPath has room for every ARM id that people write.
const maxLoggedPath = 1024

// claimedClient reads the client id of a request's bearer token, if there is
// one. It is not verified here: it counts only if the status says that the
// token was accepted.
func claimedClient(r *http.Request) string {
	raw, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return ""
	}
	t, err := oidc.Parse(raw)
	if err != nil {
		return ""
	}
	id, ok := t.Claims.String("appid")
	if !ok {
		id, _ = t.Claims.String("azp")
	}
	return clip(id)
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the real writer.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

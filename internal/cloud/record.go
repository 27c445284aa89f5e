package cloud

import (
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/oidc"
)

// maxLoggedPath has room for every ARM id that people write.
const maxLoggedPath = 1024

// record logs every request: where, what, how it ended, and whose token it
// carried. Query strings are left out, as are headers and bodies: they are
// where secrets travel.
func (c *Cloud) record(next http.Handler, host string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(sw, r)
		c.logger.LogAttrs(r.Context(), slog.LevelInfo, "request", slog.String("host", clip(host)), slog.String("method", clip(r.Method)),
			slog.String("path", shorten(r.URL.Path, maxLoggedPath)), slog.Int("status", sw.status), slog.String("client", claimedClient(r)),
			slog.Duration("duration", time.Since(start)))
	})
}

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
	wrote  bool
}

func (w *statusWriter) WriteHeader(status int) {
	if !w.wrote && status >= http.StatusOK {
		w.status, w.wrote = status, true
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	w.wrote = true
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the real writer.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

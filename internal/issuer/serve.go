package issuer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// cacheControl is that of kube-apiserver: an hour.
const cacheControl = "public, max-age=3600"

// A Server answers for the issuer: GET and HEAD of the two documents below the
// issuer's path, and nothing else. It answers from memory, so it goes on when
// the API server is away; Run keeps the memory fresh. Source must be set.
type Server struct {
	Source   Source
	Interval time.Duration // between two looks at Source; 0 means one minute
	Retry    time.Duration // after a look that failed; 0 means five seconds

	Wait   func(ctx context.Context, d time.Duration) error // nil means the real time
	Logger *slog.Logger                                     // nil means slog.Default

	served atomic.Pointer[served]
}

// served is what is answered: checked and encoded once.
type served struct {
	documents Documents
	base      string // path of the issuer without a slash at its end
	files     map[string]file
	since     time.Time
}

type file struct {
	data []byte
	kind string // media type
	etag string
}

// Documents are those that are served; false before the first.
func (s *Server) Documents() (Documents, bool) {
	if d := s.served.Load(); d != nil {
		return d.documents, true
	}
	return Documents{}, false
}

// Refresh looks at the source once. What the source has wrong changes nothing.
func (s *Server) Refresh(ctx context.Context) error {
	d, complete, err := s.Source.Documents(ctx)
	if err != nil {
		return err
	}
	if old, ok := s.Documents(); ok && !complete && old.Issuer == d.Issuer {
		d.Keys = Merge(d.Keys, old.Keys...) // an API server that does not answer may have them
		if len(d.Keys) > MaxKeys {
			d.Keys = d.Keys[:MaxKeys]
		}
	}
	if err := d.Validate(); err != nil {
		return fmt.Errorf("the documents are not served: %w", err)
	}
	next := &served{documents: d, since: time.Now(), files: map[string]file{}}
	u, err := url.Parse(d.Issuer)
	if err != nil {
		return err
	}
	next.base = strings.TrimSuffix(u.EscapedPath(), "/")
	configuration, err := d.ConfigurationJSON()
	if err != nil {
		return err
	}
	keys, err := d.KeysJSON()
	if err != nil {
		return err
	}
	next.files[ConfigurationPath] = newFile(configuration, "application/json")
	next.files[KeysPath] = newFile(keys, "application/jwk-set+json")
	s.served.Store(next)
	return nil
}

func newFile(data []byte, kind string) file {
	sum := sha256.Sum256(data)
	return file{data: data, kind: kind, etag: `"` + hex.EncodeToString(sum[:16]) + `"`}
}

// Run refreshes until ctx ends, which is no error.
func (s *Server) Run(ctx context.Context) error {
	wait := s.Wait
	if wait == nil {
		wait = sleep
	}
	for {
		pause := orDefault(s.Interval, time.Minute)
		if err := s.Refresh(ctx); err != nil && ctx.Err() == nil {
			_, old := s.Documents()
			s.logger().ErrorContext(ctx, "the issuer's documents were not read anew", "serving", old, "err", err)
			pause = orDefault(s.Retry, 5*time.Second)
		}
		if wait(ctx, pause) != nil {
			return nil
		}
	}
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// ServeHTTP answers for the two documents. /healthz is 200 once there is
// something to serve.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	d := s.served.Load()
	// The path as it was written: what needs decoding or cleaning is not ours.
	path := r.URL.EscapedPath()
	var f file
	known := path == "/healthz"
	if !known && d != nil {
		if rest, below := strings.CutPrefix(path, d.base+"/"); below {
			f, known = d.files[rest]
		}
	}
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD are allowed", http.StatusMethodNotAllowed)
	case d == nil:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "the issuer's documents were not read yet", http.StatusServiceUnavailable)
	case !known:
		http.NotFound(w, r)
	case path == "/healthz":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintln(w, "ok") // the client may be gone
	default:
		w.Header().Set("Content-Type", f.kind)
		w.Header().Set("Cache-Control", cacheControl)
		w.Header().Set("ETag", f.etag)
		http.ServeContent(w, r, "", d.since, bytes.NewReader(f.data))
	}
}

func (s *Server) logger() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}

// A Folder is a Source: documents that somebody has put into a directory.
type Folder struct{ Directory }

// Documents reads them.
func (f Folder) Documents(ctx context.Context) (Documents, bool, error) {
	p, err := f.Read(ctx)
	if err != nil {
		return Documents{}, false, err
	}
	if p.Configuration == nil || p.Keys == nil {
		return Documents{}, false, fmt.Errorf("%s lacks %s or %s: fill it with lanyard issuer publish", f, ConfigurationPath, KeysPath)
	}
	d, uri, err := ParseDocuments(p.Configuration, p.Keys)
	if err == nil && uri != KeysURL(d.Issuer) {
		err = fmt.Errorf("its jwks_uri is %q, and only %q can be served", uri, KeysURL(d.Issuer))
	}
	return d, true, err
}

// Files is a Source: PEM files and an issuer.
type Files struct {
	Issuer string
	Names  []string
}

// Documents reads the files anew.
func (f Files) Documents(context.Context) (Documents, bool, error) {
	if f.Issuer == "" {
		return Documents{}, false, errors.New("key files do not name their issuer: give it with --issuer")
	}
	keys, err := ReadKeys(f.Names...)
	return Documents{Issuer: f.Issuer, Keys: keys}, true, err
}

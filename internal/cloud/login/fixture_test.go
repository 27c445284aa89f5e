package login

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/entra"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const identityPrefix = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"

// A clock stands still until it is advanced.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// A fixture is a token service with a tenant and the application mic.
type fixture struct {
	t      testing.TB
	dir    string
	db     *state.DB
	server *Server
	config Config
	clock  *clock
	log    *syncBuffer
	tenant directory.Tenant
	mic    directory.ServicePrincipal
	micApp directory.Application
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir(), clock: &clock{now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}, log: &syncBuffer{}}
	f.config = Config{Now: f.clock.Now, Logger: slog.New(slog.NewTextHandler(f.log, nil))}
	f.open()
	t.Cleanup(func() { f.db.Close() })
	f.update(func(tx *state.Tx) (err error) {
		if f.tenant, err = directory.PutTenant(tx, directory.Tenant{DisplayName: "Contoso"}); err != nil {
			return err
		}
		f.micApp, f.mic, err = directory.CreateApplication(tx, "mic")
		return err
	})
	return f
}

func (f *fixture) open() {
	f.t.Helper()
	db, err := state.Open(filepath.Join(f.dir, "state.db"))
	if err != nil {
		f.t.Fatal(err)
	}
	f.db = db
	f.config.DB = db
	if f.server, err = New(f.config); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) restart() {
	f.t.Helper()
	if err := f.db.Close(); err != nil {
		f.t.Fatal(err)
	}
	f.open()
}

func (f *fixture) update(fn func(*state.Tx) error) {
	f.t.Helper()
	if err := f.db.Update(fn); err != nil {
		f.t.Fatal(err)
	}
	if err := f.db.View(directory.Check); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) identity(name string) (sp directory.ServicePrincipal) {
	f.t.Helper()
	f.update(func(tx *state.Tx) (err error) {
		sp, err = directory.CreateManagedIdentity(tx, identityPrefix+name)
		return err
	})
	return sp
}

func errorCode(err error) int {
	var e *entra.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

func segment(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// flip changes the first character of a segment.
func flip(s string) string {
	if s[0] == 'A' {
		return "B" + s[1:]
	}
	return "A" + s[1:]
}

// hs256 is the classic confusion: the public key, which everybody has, is
// used as the secret of an HMAC.
func hs256(t testing.TB, kid string, public, claims any) string {
	t.Helper()
	secret, err := json.Marshal(public)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed := segment(`{"alg":"HS256","typ":"JWT","kid":"`+kid+`"}`) + "." + segment(string(body))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(signed))
	return signed + "." + segment(string(mac.Sum(nil)))
}

type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

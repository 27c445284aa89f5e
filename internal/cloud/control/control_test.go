package control

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Clock
		start := time.Now()
		at := func(name string, want time.Duration) {
			t.Helper()
			if got := c.Now().Sub(start); got != want {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
		pass := func(d time.Duration) {
			timer := time.NewTimer(d)
			<-timer.C
		}
		at("it begins with the real time", 0)
		c.Shift(time.Hour)
		at("shifted", time.Hour)
		c.Shift(-90 * time.Minute)
		at("shifts add up", -30*time.Minute)
		c.Freeze(true)
		pass(time.Minute)
		c.Freeze(true)
		at("it stands still", -30*time.Minute)
		c.Shift(time.Second)
		at("it can be shifted while it stands", -30*time.Minute+time.Second)
		if s := c.State(); !s.Frozen || time.Duration(s.Offset) != -31*time.Minute+time.Second {
			t.Errorf("state %+v", s)
		}
		c.Freeze(false)
		at("it goes on from where it stood", -30*time.Minute+time.Second)
		pass(time.Minute)
		at("and goes", -29*time.Minute+time.Second)
		c.Reset()
		at("the real time again", 2*time.Minute)
	})
}

// open opens a door whose directory has a name that is longer than a socket's address can be.
func open(t *testing.T) (*Client, *Server) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open("")
	if err != nil {
		t.Fatal(err)
	}
	var settings Settings
	s := &Server{Faults: &fault.Set{}, Clock: &Clock{}, Journal: j, Settings: func() Settings { return settings }, SetSettings: func(v Settings) { settings = v }}
	l, err := Listen(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	h := &http.Server{Handler: s.Handler()}
	var wg sync.WaitGroup
	wg.Go(func() { _ = h.Serve(l) })
	t.Cleanup(func() { _ = h.Close(); wg.Wait() })
	return &Client{StateDir: dir}, s
}

func TestTheDoor(t *testing.T) {
	c, s := open(t)
	ctx := t.Context()
	if info, err := os.Stat(filepath.Join(c.StateDir, socketName)); err != nil || info.Mode().Perm() != 0o600 || info.Mode()&fs.ModeSocket == 0 {
		t.Fatalf("%v, %v", info, err)
	}
	added, err := c.AddFault(ctx, fault.Rule{Host: "h", Status: 503})
	if err != nil {
		t.Fatal(err)
	}
	rules, err := c.Faults(ctx)
	if diff := cmp.Diff([]fault.Rule{added}, rules); err != nil || diff != "" || len(s.Faults.List()) != 1 {
		t.Errorf("%v %s", err, diff)
	}
	if _, err := c.AddFault(ctx, fault.Rule{Status: 1}); err == nil || !strings.Contains(err.Error(), "400 to 599") {
		t.Errorf("a bad rule: %v", err)
	}
	if n, err := c.ClearFaults(ctx, added.ID); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := c.ClearFaults(ctx); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	stop := true
	if state, err := c.SetClock(ctx, false, &stop, fault.Duration(time.Hour)); err != nil || !state.Frozen || time.Until(s.Clock.Now()) < 59*time.Minute {
		t.Errorf("%+v, %v", state, err)
	}
	if state, err := c.SetClock(ctx, true, nil, 0); err != nil || state.Frozen || state.Offset != 0 {
		t.Errorf("%+v, %v", state, err)
	}
	if state, err := c.Clock(ctx); err != nil || time.Since(state.Now).Abs() > time.Minute {
		t.Errorf("%+v, %v", state, err)
	}
	want := Realistic()
	if err := c.SetSettings(ctx, want); err != nil {
		t.Error(err)
	}
	if got, err := c.Settings(ctx); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if err := c.SetSettings(ctx, Settings{IdentitiesPerPatch: -1}); err == nil {
		t.Error("a negative setting")
	}
}

func TestTheLogThroughTheDoor(t *testing.T) {
	c, s := open(t)
	for _, p := range []string{"/a", "/b", "/c"} {
		s.Journal.Append(journal.Entry{Path: p})
	}
	var got []string
	if err := c.Log(t.Context(), 2, false, func(e journal.Entry) error { got = append(got, e.Path); return nil }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/b", "/c"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	enough := errors.New("enough")
	err := c.Log(t.Context(), 1, true, func(e journal.Entry) error {
		if e.Path == "/c" {
			s.Journal.Append(journal.Entry{Path: "/d"})
			return nil
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Errorf("followed: %v", err)
	}
}

func TestNobodyAtHome(t *testing.T) {
	dir := t.TempDir()
	if _, err := (&Client{StateDir: dir}).Faults(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("an empty directory: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, socketName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (&Client{StateDir: dir}).Faults(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a file: %v", err)
	}
	l, err := Listen(t.Context(), dir) // what a process that was killed has left is no obstacle
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

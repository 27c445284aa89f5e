package rotation_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/issuer"
	"github.com/lanyard-id/lanyard/internal/issuer/rotation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world is API servers that read their files when they start, an issuer's URL,
// and time.
type world struct {
	t       *testing.T
	dir     string
	servers []issuer.APIServer
	public  []string
	now     time.Time

	legacy   []string
	budget   int // of things that happen before the process is killed; 0 means no end
	restarts []rotation.Step
	told     []string
	breaches []string // moments in which a token would have been refused
}

var errKilled = errors.New("killed")

func newWorld(t *testing.T, servers int) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), now: time.Unix(1800000000, 0), servers: make([]issuer.APIServer, servers)}
	must(t, os.Chmod(w.dir, 0o700))
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must(t, err)
	w.write("sa.key", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	w.write("sa.pub", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	for i := range w.servers {
		w.servers[i] = issuer.APIServer{URL: fmt.Sprintf("https://10.0.0.%d:6443", i+1), Issuer: "https://oidc.example/", Lifetime: 24 * time.Hour}
		w.restart(i)
	}
	w.public = issuer.KeyIDs(w.servers[0].Keys)
	return w
}

func (w *world) write(name, content string) {
	w.t.Helper()
	must(w.t, os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o600))
}

// restart lets an API server read its files, as it would.
func (w *world) restart(i int) {
	w.t.Helper()
	private, err := issuer.ReadKeys(filepath.Join(w.dir, "sa.key"))
	must(w.t, err)
	w.servers[i].Signer = private[0].ID
	w.servers[i].Keys, err = issuer.ReadKeys(filepath.Join(w.dir, "sa.pub"))
	must(w.t, err)
	w.look()
}

// look notes when a fresh token would be refused.
func (w *world) look() {
	for _, s := range w.servers {
		if s.Signer == "" {
			continue
		}
		if w.public != nil && !slices.Contains(w.public, s.Signer) {
			w.breaches = append(w.breaches, "Entra does not know the signer of "+s.URL)
		}
		for _, o := range w.servers {
			if o.Signer != "" && !o.Accepts(s.Signer) {
				w.breaches = append(w.breaches, o.URL+" refuses tokens of "+s.URL)
			}
		}
	}
}

func (w *world) event() error {
	if w.budget == 1 {
		return errKilled
	}
	if w.budget > 1 {
		w.budget--
	}
	return nil
}

func (w *world) Observe(context.Context) ([]issuer.APIServer, error) {
	if err := w.event(); err != nil {
		panic(err)
	}
	return slices.Clone(w.servers), nil
}

func (w *world) LegacyTokens(context.Context, []string) ([]string, error) { return w.legacy, nil }

func (w *world) rotation() *rotation.Rotation {
	w.t.Helper()
	d, err := rotation.OpenKeyDir(w.dir)
	must(w.t, err)
	kill := func() {
		if err := w.event(); err != nil {
			panic(err)
		}
	}
	return &rotation.Rotation{
		Dir: d, Servers: w,
		Public: func(context.Context, string) ([]string, error) { kill(); return w.public, nil },
		Publish: func(_ context.Context, remove string) error {
			kill()
			var all []string
			for _, s := range w.servers {
				for _, id := range issuer.KeyIDs(s.Keys) {
					if !slices.Contains(all, id) {
						all = append(all, id)
					}
				}
			}
			for _, id := range w.public {
				if !slices.Contains(all, id) && id != remove {
					return &issuer.Guard{Reason: "a key would go: " + id}
				}
			}
			w.public = all
			w.look()
			kill()
			return nil
		},
		Restart: func(_ context.Context, step rotation.Step, _ []string) error {
			w.restarts = append(w.restarts, step)
			for i := range w.servers {
				kill()
				w.restart(i)
			}
			kill()
			return nil
		},
		Now:   func() time.Time { return w.now },
		Sleep: func(_ context.Context, d time.Duration) error { kill(); w.now = w.now.Add(d); return nil },
		Tell:  func(format string, args ...any) { w.told = append(w.told, fmt.Sprintf(format, args...)) },
		Poll:  time.Hour,
	}
}

// process runs the rotation until it ends or is killed.
func (w *world) process(do func(*rotation.Rotation) error) (err error) {
	w.t.Helper()
	r := w.rotation()
	defer func() {
		must(w.t, r.Dir.Close())
		if p := recover(); p != nil {
			err = p.(error)
		}
	}()
	return do(r)
}

func run(r *rotation.Rotation) error { return r.Run(context.Background()) }

func TestARotationGoesOnAfterAKillAtAnyMoment(t *testing.T) {
	// Every number of events that a process may live for, again and again until
	// the end.
	for life := 2; life < 30; life += 1 + life/10 {
		w := newWorld(t, 3)
		old, began := w.servers[0].Signer, w.now
		var err error
		for n := 0; ; n++ {
			if n == 400 {
				t.Fatalf("life %d: it never ends: %v, %v", life, err, w.told[max(0, len(w.told)-3):])
			}
			w.budget = life + n/20 // a process that gets nowhere lives longer one day
			if err = w.process(run); err == nil {
				break
			}
			if !errors.Is(err, errKilled) {
				t.Fatalf("life %d: %v", life, err)
			}
		}
		w.budget = 0
		if len(w.breaches) > 0 {
			t.Fatalf("life %d: tokens were refused: %v", life, w.breaches)
		}
		s, err := rotation.ReadState(w.dir)
		must(t, err)
		if s.Step != rotation.Done || s.Old != old || !slices.Equal(w.public, []string{s.New}) || w.now.Sub(began) < 48*time.Hour {
			t.Errorf("life %d: %+v, public %v after %s", life, s, w.public, w.now.Sub(began))
		}
		for _, x := range w.servers {
			if x.Signer != s.New || x.Accepts(old) {
				t.Errorf("life %d: %+v", life, x)
			}
		}
	}
}

func TestARotationTakesNothingForGranted(t *testing.T) {
	reach := func(w *world, step rotation.Step) {
		t.Helper()
		err := w.process(func(r *rotation.Rotation) error {
			r.NoWait = true
			return r.Run(t.Context())
		})
		var waiting *rotation.Waiting
		if !errors.As(err, &waiting) || waiting.Step != step {
			t.Fatalf("%v, want to wait in step %s", err, step)
		}
	}
	t.Run("an unpublished key is published again before it signs", func(t *testing.T) {
		w := newWorld(t, 1)
		reach(w, rotation.Wait)
		w.public = w.public[:1]
		must(t, w.process(run))
		if len(w.breaches) > 0 || !slices.ContainsFunc(w.told, func(s string) bool { return strings.Contains(s, "publishing it again") }) {
			t.Errorf("%v, %v", w.breaches, w.told)
		}
	})
	t.Run("an API server that signs with the old key again starts the wait anew", func(t *testing.T) {
		w := newWorld(t, 2)
		reach(w, rotation.Wait)
		w.now = w.now.Add(24 * time.Hour)
		reach(w, rotation.Drain)
		s, err := rotation.ReadState(w.dir)
		must(t, err)
		w.now = w.now.Add(20 * time.Hour)
		w.servers[1].Signer = s.Old
		reach(w, rotation.Drain)
		w.servers[1].Signer = s.New
		w.now = w.now.Add(20 * time.Hour)
		reach(w, rotation.Drain)
		w.now = w.now.Add(4 * time.Hour)
		must(t, w.process(run))
	})
	t.Run("who waits for less than tokens live is told whose end that is", func(t *testing.T) {
		for _, c := range []struct {
			lifetime time.Duration
			warned   bool
		}{{0, false}, {24 * time.Hour, false}, {time.Hour, true}} {
			w := newWorld(t, 1)
			must(t, w.process(func(r *rotation.Rotation) error {
				r.Lifetime = c.lifetime
				return r.Run(t.Context())
			}))
			if got := slices.ContainsFunc(w.told, func(s string) bool { return strings.Contains(s, "kubectl rollout restart") }); got != c.warned {
				t.Errorf("%s: warned %t: %q", c.lifetime, got, w.told)
			}
		}
	})
	t.Run("an API server that does not accept the key holds it up", func(t *testing.T) {
		w := newWorld(t, 3)
		err := w.process(func(r *rotation.Rotation) error {
			r.NoWait = true
			r.Restart = func(context.Context, rotation.Step, []string) error { w.restart(0); w.restart(1); return nil }
			return r.Run(t.Context())
		})
		if err == nil || !strings.Contains(err.Error(), "step accept") || !strings.Contains(err.Error(), w.servers[2].URL) {
			t.Errorf("%v", err)
		}
	})
	t.Run("a person is told what to do, and it is seen when it was done", func(t *testing.T) {
		w := newWorld(t, 1)
		must(t, w.process(func(r *rotation.Rotation) error {
			r.Restart = nil
			tell := r.Tell
			r.Tell = func(format string, args ...any) {
				tell(format, args...)
				if strings.Contains(w.told[len(w.told)-1], "restart kube-apiserver") {
					w.restart(0)
				}
			}
			return r.Run(t.Context())
		}))
	})
	t.Run("another directory's keys are not touched", func(t *testing.T) {
		w := newWorld(t, 1)
		w.servers[0].Signer = "another"
		before, err := os.ReadDir(w.dir)
		must(t, err)
		if err := w.process(run); err == nil || !strings.Contains(err.Error(), "not the directory of its keys") {
			t.Errorf("%v", err)
		}
		after, err := os.ReadDir(w.dir)
		must(t, err)
		if len(after) != len(before) {
			t.Errorf("%v", after)
		}
	})
	t.Run("Secrets with tokens of the old key stop the removal", func(t *testing.T) {
		w := newWorld(t, 1)
		w.legacy = []string{"ns/forever"}
		err := w.process(run)
		if err == nil || !strings.Contains(err.Error(), "ns/forever") || !w.servers[0].Accepts(w.public[0]) {
			t.Fatalf("%v", err)
		}
		must(t, w.process(func(r *rotation.Rotation) error {
			r.IgnoreLegacyTokens = true
			return r.Run(t.Context())
		}))
	})
	t.Run("after the switch there is no way back", func(t *testing.T) {
		w := newWorld(t, 1)
		reach(w, rotation.Wait)
		w.now = w.now.Add(24 * time.Hour)
		reach(w, rotation.Drain)
		err := w.process(func(r *rotation.Rotation) error { return r.Abort(t.Context()) })
		if err == nil || !strings.Contains(err.Error(), "signs already") {
			t.Errorf("%v", err)
		}
		must(t, w.process(run))
	})
	t.Run("a signing key that somebody puts back is switched again, not aborted", func(t *testing.T) {
		w := newWorld(t, 2)
		before, err := os.ReadFile(filepath.Join(w.dir, "sa.key"))
		must(t, err)
		reach(w, rotation.Wait)
		w.now = w.now.Add(24 * time.Hour)
		reach(w, rotation.Drain)
		w.write("sa.key", string(before))
		w.restart(0)
		w.restart(1)
		if err := w.process(func(r *rotation.Rotation) error { return r.Abort(t.Context()) }); err == nil || !strings.Contains(err.Error(), "tokens of it are in use") {
			t.Errorf("%v", err)
		}
		must(t, w.process(run))
		s, err := rotation.ReadState(w.dir)
		must(t, err)
		if s.Step != rotation.Done || w.servers[0].Signer != s.New || len(w.breaches) > 0 {
			t.Errorf("%+v, %v", s, w.breaches)
		}
	})
	t.Run("a first step that was interrupted is taken back whole", func(t *testing.T) {
		w := newWorld(t, 1)
		err := w.process(func(r *rotation.Rotation) error {
			r.Tell = func(format string, args ...any) {
				if strings.HasPrefix(fmt.Sprintf(format, args...), "add is done") {
					panic(errKilled)
				}
			}
			return r.Run(t.Context())
		})
		if !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		must(t, w.process(func(r *rotation.Rotation) error { return r.Abort(t.Context()) }))
		if keys, err := issuer.ReadKeys(filepath.Join(w.dir, "sa.pub")); err != nil || len(keys) != 1 || keys[0].ID != w.servers[0].Signer {
			t.Errorf("%v, %v", issuer.KeyIDs(keys), err)
		}
	})
	t.Run("API servers of another user can read the files afterwards", func(t *testing.T) {
		w := newWorld(t, 1)
		group := os.Getegid()
		if os.Geteuid() == 0 {
			group = 4711
		}
		for name, mode := range map[string]os.FileMode{"sa.key": 0o640, "sa.pub": 0o644} {
			must(t, os.Chown(filepath.Join(w.dir, name), os.Geteuid(), group))
			must(t, os.Chmod(filepath.Join(w.dir, name), mode))
		}
		must(t, w.process(run))
		for name, mode := range map[string]os.FileMode{"sa.key": 0o640, "sa.pub": 0o644} {
			info, err := os.Stat(filepath.Join(w.dir, name))
			must(t, err)
			if got := int(info.Sys().(*syscall.Stat_t).Gid); info.Mode().Perm() != mode || got != group {
				t.Errorf("%s is %s of group %d, want %s of %d", name, info.Mode(), got, mode, group)
			}
		}
	})
	t.Run("keys of others in the bundle stay", func(t *testing.T) {
		w := newWorld(t, 1)
		other := newWorld(t, 1)
		mine, err := os.ReadFile(filepath.Join(w.dir, "sa.pub"))
		must(t, err)
		theirs, err := os.ReadFile(filepath.Join(other.dir, "sa.pub"))
		must(t, err)
		w.write("sa.pub", string(mine)+string(theirs))
		w.restart(0)
		w.public = issuer.KeyIDs(w.servers[0].Keys)
		must(t, w.process(run))
		if !w.servers[0].Accepts(other.servers[0].Signer) || len(w.servers[0].Keys) != 2 {
			t.Errorf("%v", issuer.KeyIDs(w.servers[0].Keys))
		}
	})
}

func TestKeyDirectoriesThatOthersCouldChangeAreRefused(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	must(t, os.WriteFile(victim, []byte("untouched"), 0o600))
	for name, tt := range map[string]struct {
		damage func(w *world) error
		want   string
	}{
		"a directory for everybody":    {func(w *world) error { return os.Chmod(w.dir, 0o777) }, "others may write"},
		"a key that others may read":   {func(w *world) error { return os.Chmod(filepath.Join(w.dir, "sa.key"), 0o644) }, "others may read"},
		"a key that is a link":         {func(w *world) error { return relink(w, "sa.key", victim) }, "not a regular file"},
		"a bundle that is a link":      {func(w *world) error { return relink(w, "sa.pub", victim) }, "not a regular file"},
		"a next key that is a link":    {func(w *world) error { return os.Symlink(victim, filepath.Join(w.dir, "sa.next.key")) }, "not a regular file"},
		"a state that is a link":       {func(w *world) error { return os.Symlink(victim, filepath.Join(w.dir, "sa.rotation.json")) }, "not a regular file"},
		"a next key that is no key":    {func(w *world) error { w.write("sa.next.key", "secret"); return nil }, "no private key"},
		"a state that is none":         {func(w *world) error { w.write("sa.rotation.json", "{}"); return nil }, "another version"},
		"a pipe in place of the state": {func(w *world) error { return os.Mkdir(filepath.Join(w.dir, "sa.rotation.json"), 0o700) }, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			must(t, tt.damage(w))
			d, err := rotation.OpenKeyDir(w.dir)
			if err == nil {
				must(t, d.Close())
				err = w.process(run)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if content, err := os.ReadFile(victim); err != nil || string(content) != "untouched" {
				t.Error("a file outside was changed")
			}
		})
	}
	t.Run("one at a time", func(t *testing.T) {
		w := newWorld(t, 1)
		d, err := rotation.OpenKeyDir(w.dir)
		must(t, err)
		if _, err := rotation.OpenKeyDir(w.dir); err == nil || !strings.Contains(err.Error(), "another process") {
			t.Errorf("%v", err)
		}
		must(t, d.Close())
	})
}

func relink(w *world, name, to string) error {
	return errors.Join(os.Remove(filepath.Join(w.dir, name)), os.Symlink(to, filepath.Join(w.dir, name)))
}

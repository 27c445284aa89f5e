package issuer

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A shelf is a target that remembers the order of writes.
type shelf struct {
	p       Published
	written []string
	fail    error
}

func (s *shelf) String() string                          { return "the shelf" }
func (s *shelf) Read(context.Context) (Published, error) { return s.p, nil }
func (s *shelf) Write(_ context.Context, path string, data []byte, _ string) error {
	if s.fail != nil {
		return s.fail
	}
	s.written = append(s.written, path)
	if path == KeysPath {
		s.p.Keys = data
	} else {
		s.p.Configuration = data
	}
	return nil
}

func (s *shelf) keys(t *testing.T) []string {
	t.Helper()
	keys, err := ParseKeys(s.p.Keys)
	if err != nil {
		t.Fatal(err)
	}
	return KeyIDs(keys)
}

func TestWhatIsPublishedIsReplacedCarefully(t *testing.T) {
	const us = "https://a.example/"
	a, b, c := newKey(), newKey(), newKey()
	was := func(issuer string, keys ...Key) Published {
		d := Documents{issuer, keys}
		return Published{Configuration: must(d.ConfigurationJSON()), Keys: must(d.KeysJSON())}
	}
	forged := a
	forged.Public = b.Public
	for name, tt := range map[string]struct {
		was  Published
		keys []Key
		may  Permission
		want []string // written, in this order; nil means refused
		say  string
	}{
		"nothing is there: keys come first":    {Published{}, []Key{a}, Permission{}, []string{KeysPath, ConfigurationPath}, ""},
		"it is there already":                  {was(us, a), []Key{a}, Permission{}, []string{}, ""},
		"a key more":                           {was(us, a), []Key{a, b}, Permission{}, []string{KeysPath}, ""},
		"a key would go":                       {was(us, a, b), []Key{b}, Permission{}, nil, "--remove-keys"},
		"a key goes":                           {was(us, a, b), []Key{b}, Permission{Remove: []string{a.ID}}, []string{KeysPath}, ""},
		"a key that nobody named would go":     {was(us, a, b, c), []Key{b}, Permission{Remove: []string{a.ID}}, nil, c.ID},
		"all keys differ":                      {was(us, a), []Key{b, c}, Permission{}, nil, "another cluster's"},
		"another key under the same id":        {was(us, forged), []Key{a}, Permission{}, nil, "another cluster's"},
		"another issuer":                       {was("https://b.example/", a), []Key{a}, Permission{}, nil, "https://b.example/"},
		"another issuer, by a slash":           {was("https://a.example", a), []Key{a}, Permission{}, nil, "--force"},
		"another issuer, by force":             {was("https://b.example/", b), []Key{a}, Permission{Force: true}, []string{KeysPath, ConfigurationPath}, ""},
		"what is there is something else":      {Published{Configuration: []byte("<html>"), Keys: []byte("{}")}, []Key{a}, Permission{}, nil, "not a discovery document"},
		"keys without a discovery document":    {Published{Keys: was(us, a).Keys}, []Key{a, b}, Permission{}, []string{KeysPath, ConfigurationPath}, ""},
		"keys that cannot be read":             {Published{Keys: []byte("no")}, []Key{a}, Permission{}, nil, "cannot be read"},
		"what Entra cannot use, even by force": {Published{}, nil, Permission{Force: true}, nil, "no key"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &shelf{p: tt.was, written: []string{}}
			changed, err := Publish(t.Context(), s, Documents{us, tt.keys}, tt.may)
			if tt.want == nil {
				if err == nil || !strings.Contains(err.Error(), tt.say) || len(s.written) > 0 {
					t.Errorf("%v, written %v; want a refusal with %q", err, s.written, tt.say)
				}
				return
			}
			if err != nil || !slices.Equal(s.written, tt.want) || changed != (len(tt.want) > 0) {
				t.Errorf("written %v, %t, %v; want %v", s.written, changed, err, tt.want)
			}
		})
	}
}

type cluster struct {
	d        Documents
	complete bool
	err      error
}

func (c *cluster) Documents(context.Context) (Documents, bool, error) { return c.d, c.complete, c.err }

// Two clusters may share an issuer while one replaces the other. A key that was
// removed and is there again is the other's: nobody takes it from then on.
func TestTwoClustersOfOneIssuerDoNotTakeEachOthersKeysForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		common, a, b := newKey(), newKey(), newKey()
		to := &shelf{}
		publisher := func(keys ...Key) *Publisher {
			return &Publisher{Source: &cluster{Documents{"https://a.example", keys}, true, nil}, Target: to, Interval: time.Minute, Keep: time.Hour, Logger: slog.New(slog.DiscardHandler)}
		}
		one, two := publisher(common, a), publisher(common, b)
		losses := 0
		for range 5 * 60 {
			for _, p := range []*Publisher{one, two} {
				if _, err := p.Once(t.Context()); err != nil {
					t.Fatal(err)
				}
				if len(to.keys(t)) < 3 {
					losses++
				}
			}
			must(0, sleep(t.Context(), time.Minute))
		}
		if losses > 3 { // at the start, and once for each
			t.Errorf("a key was away %d times", losses)
		}
	})
}

func TestAWatchKeepsKeysUntilTheirTokensHaveEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newKey(), newKey()
		from := &cluster{Documents{"https://a.example", []Key{a, b}}, true, nil}
		to := &shelf{}
		p := Publisher{Source: from, Target: to, Interval: time.Minute, Keep: time.Hour, Logger: slog.New(slog.DiscardHandler)}
		once := func(want ...Key) {
			t.Helper()
			if _, err := p.Once(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := to.keys(t); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(KeyIDs(want)))) {
				t.Errorf("published %v, want %v", got, KeyIDs(want))
			}
		}
		wait := func(d time.Duration) { must(0, sleep(t.Context(), d)) }
		once(a, b)
		from.d.Keys = []Key{b}
		once(a, b)
		wait(59 * time.Minute)
		once(a, b)
		from.complete = false // somebody who does not answer may still have it
		wait(2 * time.Minute)
		once(a, b)
		from.complete = true
		wait(59 * time.Minute)
		once(a, b)
		wait(2 * time.Minute)
		once(b)
		from.d.Keys = []Key{a, b} // it is back, and goes again: the time is counted anew
		once(a, b)
		from.d.Keys = []Key{b}
		once(a, b)
		// A cluster that is another one is never taken over by waiting.
		from.d.Keys = []Key{newKey()}
		for range 3 {
			if _, err := p.Once(t.Context()); err == nil {
				t.Fatal("another cluster's keys were published")
			}
			wait(2 * time.Hour)
		}
		from.err = errors.New("away")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
		if got := to.keys(t); len(got) != 2 {
			t.Errorf("published %v", got)
		}
	})
}

func TestADirectoryIsWrittenWholeAndNeverLeft(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := Documents{"https://a.example", []Key{newKey()}}
	t.Run("files are for everybody, whatever was there", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "new")
		if _, err := Publish(t.Context(), Directory{dir}, d, Permission{}); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{ConfigurationPath, KeysPath} {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil || info.Mode().Perm() != 0o644 {
				t.Errorf("%s: %v, %v", name, info, err)
			}
			entries := must(os.ReadDir(filepath.Dir(filepath.Join(dir, name))))
			if len(entries) != 1 {
				t.Errorf("left over: %v", entries)
			}
		}
	})
	for name, link := range map[string]string{"the file is a link": KeysPath, "the folder is a link": "openid"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			at := filepath.Join(dir, link)
			if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
				t.Fatal(err)
			}
			target := outside
			if link == "openid" {
				target = filepath.Dir(outside)
			}
			if err := os.Symlink(target, at); err != nil {
				t.Fatal(err)
			}
			_, _ = Publish(t.Context(), Directory{dir}, d, Permission{Force: true}) // replaced or refused: both are well
			if got := string(must(os.ReadFile(outside))); got != "untouched" {
				t.Error("a file outside was changed")
			}
			if entries := must(os.ReadDir(filepath.Dir(outside))); len(entries) != 1 {
				t.Errorf("written outside: %v", entries)
			}
		})
	}
	t.Run("a pipe does not hold it up", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, KeysPath), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := (Directory{dir}).Read(t.Context()); err == nil || !strings.Contains(err.Error(), "not a file") {
			t.Errorf("%v", err)
		}
	})
}

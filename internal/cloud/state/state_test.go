package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type thing struct {
	Name  string
	Count int
}

func open(t *testing.T, path string) *DB {
	t.Helper()
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func temp(t *testing.T) *DB {
	t.Helper()
	db := open(t, filepath.Join(t.TempDir(), "state.db"))
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestValuesSurviveARestartWithMode0600(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db := open(t, path)
	err := db.Update(func(tx *Tx) error { return Put(tx, "things", "a", thing{"a", 1}) })
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	db = open(t, path)
	defer db.Close()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := fi.Mode().Perm(); got != 0o600 {
		t.Errorf("mode = %o, want 600", got)
	}
	err = db.View(func(tx *Tx) error {
		v, ok, err := Get[thing](tx, "things", "a")
		if err != nil || !ok || v != (thing{"a", 1}) {
			t.Errorf("Get = %v, %v, %v", v, ok, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSecondOpenSaysThatTheFileIsInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db := open(t, path)
	defer db.Close()
	if _, err := Open(path); !errors.Is(err, ErrInUse) {
		t.Fatalf("second Open: %v, want ErrInUse", err)
	}
}

func TestOpenRefusesAFileThatIsNoState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if db, err := Open(path); err == nil {
		db.Close()
		t.Fatal("opened a file of zeros")
	}
}

func TestAFailedUpdateLeavesNothing(t *testing.T) {
	db := temp(t)
	boom := errors.New("boom")
	err := db.Update(func(tx *Tx) error {
		if err := Put(tx, "things", "a", thing{"a", 1}); err != nil {
			return err
		}
		return boom
	})
	if err != boom {
		t.Fatalf("Update = %v, want the function's own error", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic did not pass through")
			}
		}()
		_ = db.Update(func(tx *Tx) error {
			if err := Put(tx, "things", "b", thing{"b", 1}); err != nil {
				return err
			}
			panic("boom")
		})
	}()
	err = db.View(func(tx *Tx) error {
		keys, err := Keys(tx, "things", "")
		if len(keys) != 0 {
			t.Errorf("keys = %v, want none", keys)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestListIsOrderedAndKeepsToItsPrefix(t *testing.T) {
	db := temp(t)
	err := db.Update(func(tx *Tx) error {
		for _, k := range []string{"b/2", "a/9", "b/1", "b", "c/1", "b/3"} {
			if err := Put(tx, "things", k, thing{Name: k}); err != nil {
				return err
			}
		}
		return Delete(tx, "things", "b/3")
	})
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(tx *Tx) error {
		for _, tt := range []struct {
			bucket, prefix string
			want           []string
		}{
			{"things", "b/", []string{"b/1", "b/2"}},
			{"things", "", []string{"a/9", "b", "b/1", "b/2", "c/1"}},
			{"things", "z", nil},
			{"nothing", "", nil},
		} {
			vs, err := List[thing](tx, tt.bucket, tt.prefix)
			if err != nil {
				return err
			}
			var got []string
			for _, v := range vs {
				got = append(got, v.Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("List(%s, %q): %s", tt.bucket, tt.prefix, diff)
			}
			keys, err := Keys(tx, tt.bucket, tt.prefix)
			if err != nil {
				return err
			}
			if diff := cmp.Diff(tt.want, keys); diff != "" {
				t.Errorf("Keys(%s, %q): %s", tt.bucket, tt.prefix, diff)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBadUseIsAnError(t *testing.T) {
	db := temp(t)
	if err := db.View(func(tx *Tx) error { return Put(tx, "things", "a", thing{}) }); err == nil {
		t.Error("Put in a View succeeded")
	}
	if err := db.Update(func(tx *Tx) error { return Put(tx, "things", "", thing{}) }); err == nil {
		t.Error("Put with an empty key succeeded")
	}
	if err := db.Update(func(tx *Tx) error { return Put(tx, "things", "a", func() {}) }); err == nil {
		t.Error("Put of a function succeeded")
	}
	if err := db.Update(func(tx *Tx) error { return Put(tx, "things", "a", "text") }); err != nil {
		t.Fatal(err)
	}
	err := db.View(func(tx *Tx) error {
		if _, _, err := Get[thing](tx, "things", "a"); err == nil {
			t.Error("Get of a string as a thing succeeded")
		}
		if _, err := List[thing](tx, "things", ""); err == nil {
			t.Error("List of a string as a thing succeeded")
		}
		return Delete(tx, "nothing", "a")
	})
	if err != nil {
		t.Errorf("Delete in a missing bucket: %v", err)
	}
}

func TestConcurrentUpdatesLoseNothingAndViewsSeeWholeChanges(t *testing.T) {
	db := temp(t)
	const writers, rounds = 8, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for range rounds {
				err := db.Update(func(tx *Tx) error {
					total, _, err := Get[int](tx, "counters", "total")
					if err != nil {
						return err
					}
					key := fmt.Sprintf("writer/%d", w)
					own, _, err := Get[int](tx, "counters", key)
					if err != nil {
						return err
					}
					if err := Put(tx, "counters", key, own+1); err != nil {
						return err
					}
					return Put(tx, "counters", "total", total+1)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range rounds {
				err := db.View(func(tx *Tx) error {
					total, _, err := Get[int](tx, "counters", "total")
					if err != nil {
						return err
					}
					parts, err := List[int](tx, "counters", "writer/")
					sum := 0
					for _, p := range parts {
						sum += p
					}
					if sum != total {
						t.Errorf("sum of parts = %d, total = %d", sum, total)
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	err := db.View(func(tx *Tx) error {
		total, _, err := Get[int](tx, "counters", "total")
		if total != writers*rounds {
			t.Errorf("total = %d, want %d", total, writers*rounds)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

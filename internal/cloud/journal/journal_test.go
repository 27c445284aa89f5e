package journal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func paths(entries []Entry) (p []string) {
	for _, e := range entries {
		p = append(p, e.Path)
	}
	return p
}

func TestTheRingKeepsTheLastEntries(t *testing.T) {
	j, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	for i := range keep + 3 {
		j.Append(Entry{Path: "/" + strconv.Itoa(i)})
	}
	if all := j.Tail(-1); len(all) != keep || all[0].Path != "/3" {
		t.Errorf("%d entries from %s on", len(all), all[0].Path)
	}
	if diff := cmp.Diff([]string{"/" + strconv.Itoa(keep+1), "/" + strconv.Itoa(keep+2)}, paths(j.Tail(2))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := j.Tail(0); len(got) != 0 {
		t.Errorf("tail 0: %v", got)
	}
}

func TestFollow(t *testing.T) {
	j, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	j.Append(Entry{Path: "/a"})
	j.Append(Entry{Path: "/b"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	came := make(chan string, 10)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := j.Follow(ctx, 1, func(e []Entry) error {
			for _, p := range paths(e) {
				came <- p
			}
			return nil
		}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	if p := <-came; p != "/b" {
		t.Errorf("first %s", p)
	}
	j.Append(Entry{Path: "/c"})
	if p := <-came; p != "/c" {
		t.Errorf("then %s", p)
	}
	cancel()
	wg.Wait()
}

func TestWhatCanOnlyBeATokenIsHidden(t *testing.T) {
	for in, want := range map[string]string{
		"/subscriptions/s/resourceGroups/g":          "/subscriptions/s/resourceGroups/g",
		"/x/eyJhbGciOiJSUzI1NiJ9.eyJh.c2ln":          "/x/(hidden)",
		"/secrets/" + strings.Repeat("s", 300) + "/": "/secrets/(hidden)/",
	} {
		j, err := Open("")
		if err != nil {
			t.Fatal(err)
		}
		j.Append(Entry{Path: in})
		if got := j.Tail(1)[0].Path; got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "requests.log")
	for i := range 2 { // a second one appends
		j, err := Open(file)
		if err != nil {
			t.Fatal(err)
		}
		j.size += int64(maxFile * i) // the second round begins a new file
		j.Append(Entry{Host: "h", Method: "GET", Path: "/" + strconv.Itoa(i), Status: 200})
		j.Append(Entry{Path: "/last"})
		if err := errors.Join(j.Close(), j.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string][]string{file + ".1": {"/0", "/last"}, file: {"/1", "/last"}} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		var entries []Entry
		for lines := bufio.NewScanner(f); lines.Scan(); {
			var e Entry
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Fatal(err)
			}
			entries = append(entries, e)
		}
		if diff := cmp.Diff(want, paths(entries)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}

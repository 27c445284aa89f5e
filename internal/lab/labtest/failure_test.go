package labtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"
)

// A fakeT records what a test would see that uses the package wrongly.
type fakeT struct {
	testing.TB
	failure string
}

func (f *fakeT) Helper() {}
func (f *fakeT) Fatalf(format string, args ...any) {
	f.failure = strings.TrimSpace(fmt.Sprintf(format, args...))
	panic(f)
}

func failure(f func(t testing.TB)) (message string) {
	fake := &fakeT{}
	defer func() {
		if r := recover(); r != nil && r != fake {
			panic(r)
		}
		message = fake.failure
	}()
	f(fake)
	return ""
}

func TestClusterFailsWithWhatToDo(t *testing.T) {
	executable := func(t *testing.T, script string) string {
		t.Helper()
		file := filepath.Join(t.TempDir(), "kube")
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for name, test := range map[string]struct {
		program func(t *testing.T) string
		cluster *Cluster
		want    []string
	}{
		"a named program is missing": {
			program: func(*testing.T) string { return "/nonexistent/kube" },
			want:    []string{"/nonexistent/kube does not exist", "LANYARD_KUBE"},
		},
		"a named program is a directory": {
			program: func(t *testing.T) string { return t.TempDir() },
			want:    []string{"is not a program"},
		},
		"the server ends at once: its words are shown": {
			program: func(t *testing.T) string { return executable(t, "echo no luck today >&2; exit 7") },
			want:    []string{"ended with status 7", "no luck today"},
		},
		"the configuration fails": {
			program: func(t *testing.T) string { return executable(t, "exit 0") },
			cluster: &Cluster{Configure: func(string) ([]string, error) { return nil, errors.New("no disk") }},
			want:    []string{"configuring: no disk"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			t.Setenv("LANYARD_KUBE", test.program(t))
			cluster := cmp.Or(test.cluster, &Cluster{})
			got := failure(func(t testing.TB) { cluster.Config(t) })
			for _, want := range test.want {
				if !strings.Contains(got, want) {
					t.Errorf("failure %q, want it to contain %q", got, want)
				}
			}
			if again := failure(func(t testing.TB) { cluster.Config(t) }); again != got {
				t.Errorf("the next test sees %q, the first saw %q", again, got)
			}
			if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestMissingProgramNamesTheMakeTarget(t *testing.T) {
	t.Setenv("LANYARD_KUBE", "")
	root := t.TempDir()
	deep := filepath.Join(root, "internal", "deep")
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "go.mod"), []byte(module+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A nested module on the way up is not the root.
	if err := os.WriteFile(filepath.Join(root, "internal", "go.mod"), []byte(module+"/internal\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(deep)
	if _, err := findProgram(); err == nil || !strings.Contains(err.Error(), `run "make bin/kube" in `+root) {
		t.Errorf("error %v", err)
	}
	t.Chdir(t.TempDir())
	if _, err := findProgram(); err == nil || !strings.Contains(err.Error(), "LANYARD_KUBE") {
		t.Errorf("outside of the repository: error %v", err)
	}
}

func TestCRDsThatCannotBeAppliedAreRefused(t *testing.T) {
	for name, test := range map[string]struct{ file, want string }{
		"a misspelt field": {"apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nspec: {gruop: x}\n", "gruop"},
		"broken YAML":      {"kind: [", "crd.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readCRDs(fstest.MapFS{"crd.yaml": {Data: []byte(test.file)}})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want it to name %q", err, test.want)
			}
		})
	}
	if err := applyCRDs(t.Context(), nil, fstest.MapFS{}); err == nil || !strings.Contains(err.Error(), "no CustomResourceDefinition") {
		t.Errorf("an empty directory: error %v", err)
	}
}

func TestEventuallyWaitsAndReportsTheLastError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		Eventually(t, t.Context(), func() error {
			if calls++; calls < 5 {
				return errors.New("not yet")
			}
			return nil
		})
		if calls != 5 {
			t.Errorf("%d calls, want 5", calls)
		}

		started := time.Now()
		got := failure(func(f testing.TB) {
			Eventually(f, t.Context(), func() error { return errors.New("still dark") })
		})
		if took := time.Since(started); !strings.Contains(got, "still dark") || took != eventuallyLimit {
			t.Errorf("failure %q after %s", got, took)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		started = time.Now()
		failure(func(f testing.TB) { Eventually(f, ctx, func() error { return errors.New("never") }) })
		if took := time.Since(started); took != time.Second {
			t.Errorf("waited %s although the context ended after 1s", took)
		}
	})
}

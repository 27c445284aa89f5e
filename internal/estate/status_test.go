package estate

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() && path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func write(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte("mine"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOnlyWhatAnEstateMadeIsRemoved(t *testing.T) {
	for name, tt := range map[string]struct{ before, after []string }{
		"from a directory of its own":           {nil, nil},
		"beside a program of somebody else's":   {[]string{"bin/tool"}, []string{"bin", "bin/tool"}},
		"beside other files of somebody else's": {[]string{"main.go"}, []string{"main.go"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, tt.before...)
			for range 2 { // a killed one left everything where it was
				tools, err := linkKubectl(dir, "/opt/lanyard")
				if err != nil {
					t.Fatal(err)
				}
				if to, err := os.Readlink(filepath.Join(tools, "kubectl")); to != "/opt/lanyard/kube" || err != nil {
					t.Errorf("kubectl is %q, %v", to, err)
				}
				if _, err := writeAuditPolicy(dir); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if err := removeOwn(dir); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(tt.after, files(t, dir)); diff != "" {
				t.Errorf("left (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFilesOfOthersAreNeitherReplacedNorRemoved(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "bin/kubectl", "audit-policy.yaml")
	want := files(t, dir)
	if _, err := linkKubectl(dir, "/opt/lanyard"); err == nil || !strings.Contains(err.Error(), "choose another state directory") {
		t.Errorf("kubectl: %v", err)
	}
	if _, err := writeAuditPolicy(dir); err == nil || !strings.Contains(err.Error(), "choose another state directory") {
		t.Errorf("audit policy: %v", err)
	}
	if err := removeOwn(dir); err == nil {
		t.Error("a kubectl that is no link was removed in silence")
	}
	if diff := cmp.Diff(want, files(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for _, name := range []string{"bin/kubectl", "audit-policy.yaml"} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); string(text) != "mine" || err != nil {
			t.Errorf("%s holds %q, %v", name, text, err)
		}
	}
}

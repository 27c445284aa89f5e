package charts_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/deploy/charts"
)

func TestGeneratedFilesAreWhatTheirGeneratorWrites(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		copies, err := charts.Copies(s.chart)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range copies {
			same(t, filepath.Join(s.chart, name), want)
		}
		for _, dir := range []string{"crds", "files", filepath.Join("files", "crds")} {
			files, err := filepath.Glob(filepath.Join(s.chart, dir, "*.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range files {
				if _, ok := copies[strings.TrimPrefix(filepath.ToSlash(name), s.chart+"/")]; !ok {
					t.Errorf("%s is no copy of a file of deploy: run make generate", name)
				}
			}
		}
		manifests, err := charts.Plain(t.Context(), s.load(t))
		if err != nil {
			t.Fatal(err)
		}
		for file, want := range manifests {
			same(t, charts.PlainPath(file), want)
		}
		readme := read(t, filepath.Join(s.chart, "README.md"))
		want, err := charts.Readme(readme, read(t, filepath.Join(s.chart, "values.yaml")))
		if err != nil {
			t.Fatal(err)
		}
		same(t, filepath.Join(s.chart, "README.md"), want)
	})
}

func same(t *testing.T, name string, want []byte) {
	t.Helper()
	if diff := cmp.Diff(string(want), string(read(t, name))); diff != "" {
		t.Errorf("%s is stale: run make generate (-want +got)\n%s", name, diff)
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestAValueWithoutCommentIsRefused(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"a value":            {"# about a\na: 1\nb: 2\n", "b has no comment"},
		"a value in a group": {"g:\n  # about a\n  a: 1\n  b: 2\n", "g.b has no comment"},
		"an empty group":     {"g: {}\n", "g has no comment"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := charts.Values([]byte(test.text)); err == nil || !contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

package charts_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/diff"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	release "helm.sh/helm/v4/pkg/release/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lanyard-id/lanyard/deploy/charts"
)

var update = flag.Bool("update", false, "rewrite the golden files of testdata")

// A subject is a chart and what is expected of it.
type subject struct {
	chart     string
	namespace string            // of the goldens' release
	must      string            // values that every release sets
	programs  map[string]string // by the name of the container that runs it
	old       string            // defaults of the chart that this one takes the place of

	effects  map[string]effect // by the name of a value
	parts    map[string]presence
	mistakes map[string]mistake
	notes    map[string]notes
}

// An effect is what a value does to the rendered text: lines that appear. No
// lines means that it is accepted without effect.
type effect struct {
	values string
	lines  []string
}

// A presence says which objects ("Kind name") are there and which are not.
type presence struct {
	values          string
	present, absent []string
}

// A mistake is values that are refused, and what the error says.
type mistake struct{ values, want string }

// A notes says what the notes after an installation say and do not say.
type notes struct {
	values       string
	want, absent []string
}

func subjects() []subject { return []subject{podIdentity, workloadIdentity} }

// each runs a test for every chart.
func each(t *testing.T, test func(*testing.T, subject)) {
	for _, s := range subjects() {
		t.Run(s.chart, func(t *testing.T) { test(t, s) })
	}
}

func (s subject) load(t testing.TB) *chart.Chart {
	t.Helper()
	c, err := charts.Load(s.chart)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// values reads values in the form of a values file, and adds those that every
// release sets.
func (s subject) values(t testing.TB, text string) map[string]any {
	t.Helper()
	v := values(t, text)
	for name, value := range values(t, s.must) {
		if _, set := v[name]; !set {
			v[name] = value
		}
	}
	return v
}

// render renders a release; its values are complete.
func (s subject) render(t testing.TB, r charts.Release) *release.Release {
	t.Helper()
	rendered, err := charts.Render(t.Context(), s.load(t), r)
	if err != nil {
		t.Fatal(err)
	}
	return rendered
}

// with renders a release with the values of a text.
func (s subject) with(t testing.TB, text string) *release.Release {
	t.Helper()
	return s.withIn(t, "", text)
}

func (s subject) withIn(t testing.TB, namespace, text string) *release.Release {
	t.Helper()
	return s.render(t, charts.Release{Namespace: namespace, Values: s.values(t, text)})
}

// valuesFiles are the files of testdata that have values, by their path.
func (s subject) valuesFiles(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", s.chart, "*.values.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d values files, %v", len(files), err)
	}
	return files
}

func contains(s, part string) bool { return strings.Contains(s, part) }

// values reads values in the form of a values file.
func values(t testing.TB, text string) map[string]any {
	t.Helper()
	v, err := common.ReadValues([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if v == nil {
		v = map[string]any{}
	}
	return v
}

// everything is the whole release as text, hooks included.
func everything(r *release.Release) string {
	var b strings.Builder
	b.WriteString(r.Manifest)
	for _, h := range r.Hooks {
		fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", h.Path, h.Manifest)
	}
	return b.String()
}

func TestTheChartIsClean(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		for _, f := range s.valuesFiles(t) {
			lint := action.NewLint()
			lint.Strict = true
			result := lint.Run([]string{s.chart}, s.values(t, string(read(t, f))))
			for _, m := range result.Messages {
				if !contains(m.Error(), "icon is recommended") {
					t.Errorf("%s: %s", f, m)
				}
			}
		}
	})
}

// The goldens: the default in full, every other values file as what it changes.
func TestRenderedObjects(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		base := everything(s.render(t, charts.Release{Namespace: s.namespace, Values: s.values(t, "")}))
		golden(t, filepath.Join("testdata", s.chart, "default.golden"), base)
		for _, f := range s.valuesFiles(t) {
			t.Run(filepath.Base(f), func(t *testing.T) {
				r := s.render(t, charts.Release{Namespace: s.namespace, Values: s.values(t, string(read(t, f)))})
				changed := diff.Diff("default", []byte(base), filepath.Base(f), []byte(everything(r)))
				golden(t, strings.TrimSuffix(f, ".values.yaml")+".diff", string(changed))
			})
		}
	})
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	got = strings.ReplaceAll(got, " \n", "\n")
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if d := diff.Diff(name, read(t, name), "now", []byte(got)); len(d) > 0 {
		t.Errorf("go test -run %s -update rewrites it, if this is meant:\n%s", t.Name(), d)
	}
}

func TestEveryValueHasItsEffect(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		list, err := charts.Values(read(t, filepath.Join(s.chart, "values.yaml")))
		if err != nil {
			t.Fatal(err)
		}
		base := lines(everything(s.with(t, "")))
		known := map[string]bool{}
		for _, v := range list {
			known[v.Name] = true
			effect, ok := s.effects[v.Name]
			if !ok {
				t.Errorf("no effect of the value %s is stated here", v.Name)
				continue
			}
			t.Run(v.Name, func(t *testing.T) { s.hasEffect(t, base, v, effect) })
		}
		for _, name := range slices.Sorted(maps.Keys(s.effects)) {
			if !known[name] {
				t.Errorf("values.yaml has no %s", name)
			}
		}
	})
}

func (s subject) hasEffect(t *testing.T, base []string, v charts.Value, e effect) {
	got := lines(everything(s.with(t, e.values)))
	if len(e.lines) == 0 {
		if d := cmp.Diff(base, got); d != "" {
			t.Errorf("it has an effect:\n%s", d)
		}
		if !contains(v.About, "Without effect") && !strings.HasSuffix(e.values, "true}") && !strings.HasSuffix(e.values, ": true") {
			t.Errorf("it has none, and its comment %q does not say so", v.About)
		}
	}
	for _, l := range e.lines {
		if !slices.Contains(got, l) || count(base, l) >= count(got, l) {
			t.Errorf("the line %q is not added", l)
		}
	}
}

func lines(text string) []string {
	var list []string
	for l := range strings.Lines(text) {
		l, _, _ = strings.Cut(l, " #")
		list = append(list, strings.TrimSpace(l))
	}
	return list
}

func count(list []string, line string) (n int) {
	for _, l := range list {
		if l == line {
			n++
		}
	}
	return n
}

func TestWhatIsLeftOut(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		for name, test := range s.parts {
			t.Run(name, func(t *testing.T) {
				have := map[string]bool{}
				for _, o := range objects(t, s.with(t, test.values)) {
					have[o.GetKind()+" "+o.GetName()] = true
				}
				for _, want := range test.present {
					if !have[want] {
						t.Errorf("there is no %s in %v", want, slices.Sorted(maps.Keys(have)))
					}
				}
				for _, not := range test.absent {
					if have[not] {
						t.Errorf("there is a %s", not)
					}
				}
			})
		}
	})
}

func objects(t testing.TB, r *release.Release) []*unstructured.Unstructured {
	t.Helper()
	list, err := charts.Objects(everything(r))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestMistakesAreToldInWordsThatHelp(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		for name, test := range s.mistakes {
			t.Run(name, func(t *testing.T) {
				_, err := charts.Render(t.Context(), s.load(t), charts.Release{Values: s.values(t, test.values)})
				if err == nil || !contains(err.Error(), test.want) {
					t.Errorf("error %v, want %q", err, test.want)
				}
			})
		}
	})
}

// Values of the old chart that --reuse-values puts in the place of this one's:
// the message must come before any template stumbles over what is missing.
func TestReusedDefaultsOfTheOldChartAreNamed(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		c := s.load(t)
		c.Values = values(t, s.old)
		_, err := charts.Render(t.Context(), c, charts.Release{Upgrade: true, Values: s.values(t, "")})
		if err == nil || !contains(err.Error(), "--reset-then-reuse-values") {
			t.Errorf("error %v", err)
		}
	})
}

// Values that users of the old chart set stay what they are: all of its names
// are known.
func TestEveryValueOfTheOldChartIsAccepted(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		vals := s.values(t, s.old)
		for _, name := range []string{"image", "mic", "nmi"} { // of the old images
			delete(vals, name)
		}
		if _, err := charts.Render(t.Context(), s.load(t), charts.Release{Values: vals}); err != nil {
			t.Error(err)
		}
	})
}

func TestNotesSayWhatToDoNext(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		for name, test := range s.notes {
			t.Run(name, func(t *testing.T) {
				text := s.with(t, test.values).Info.Notes
				for _, w := range test.want {
					if !contains(text, w) {
						t.Errorf("no %q in\n%s", w, text)
					}
				}
				for _, a := range test.absent {
					if contains(text, a) {
						t.Errorf("%q in\n%s", a, text)
					}
				}
				if bytes.ContainsAny([]byte(text), "\t") {
					t.Error("a tab in the notes")
				}
			})
		}
	})
}

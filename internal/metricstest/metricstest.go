// Package metricstest compares a component's metrics with the list in
// docs/operations.md, in both directions:
//
//	names := &metricstest.Names{}
//	names.MustRegister(component.NewMetrics())
//	metricstest.Documented(t, names, "lanyard_component_")
package metricstest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Names is a registry that only learns what the metrics are called: also those
// that have no observation, which Gather leaves out. The zero Names is ready.
type Names struct{ all []string }

var name = regexp.MustCompile(`^Desc\{fqName: "([^"]+)"`)

// Register implements prometheus.Registerer.
func (n *Names) Register(c prometheus.Collector) error {
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		c.Describe(descs)
	}()
	var err error
	for d := range descs {
		// A Desc tells its name only so.
		if m := name.FindStringSubmatch(d.String()); m != nil {
			n.all = append(n.all, m[1])
		} else {
			err = fmt.Errorf("no name in %s", d)
		}
	}
	return err
}

// MustRegister implements prometheus.Registerer.
func (n *Names) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := n.Register(c); err != nil {
			panic(err)
		}
	}
}

// Unregister implements prometheus.Registerer. It does nothing.
func (n *Names) Unregister(prometheus.Collector) bool { return false }

// Documented fails the test for each metric that docs/operations.md does not
// list, and for each that it lists with one of the prefixes and that does not
// exist.
func Documented(t testing.TB, n *Names, prefixes ...string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root(t), "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range compare(string(text), n.all, prefixes) {
		t.Errorf("docs/operations.md %s", problem)
	}
}

var listed = regexp.MustCompile("`([a-z][a-z0-9_]+)`")

func compare(text string, names, prefixes []string) []string {
	var problems []string
	if len(names) == 0 {
		return []string{"is compared with no metrics at all"}
	}
	_, table, found := strings.Cut(text, "\n### Metrics\n")
	if !found {
		return []string{"has no section Metrics"}
	}
	table, _, _ = strings.Cut(table, "\n#")
	var have []string
	for _, m := range listed.FindAllStringSubmatch(table, -1) {
		have = append(have, m[1])
	}
	for _, n := range names {
		if !slices.Contains(have, n) {
			problems = append(problems, "does not list "+n)
		}
	}
	for _, h := range have {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(h, p) }) && !slices.Contains(names, h) {
			problems = append(problems, "lists "+h+", which does not exist")
		}
	}
	return problems
}

// root is the directory of the module.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	t.Fatal("no go.mod above the test: ", err)
	return ""
}

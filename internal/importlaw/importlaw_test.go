// Package importlaw keeps the arrows between this repository's packages. It
// has no code of its own: one test parses every import in-process, so that the
// test cache notices a changed file.
//
//	cmd -> demo -> estate -> lab -> (components | cloud) -> protocols -> rules -> api
package importlaw

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/lanyard-id/lanyard/"

// layers, from the bottom up: a package imports only its own layer's
// subordinates, never a layer above it.
var layers = []struct {
	name     string
	packages []string // path prefixes below the module
}{
	{"api", []string{"api", "deploy"}},
	{"rules", []string{"internal/azure", "internal/azrbac", "internal/schedule", "internal/binding"}},
	{"protocols", []string{"internal/imds", "internal/oidc", "internal/token", "internal/entra", "internal/credential", "internal/redirect", "internal/sandbox", "internal/arm", "internal/graph", "internal/federated", "internal/metricstest"}},
	{"components", []string{"internal/access", "internal/mic", "internal/nmi", "internal/proxy", "internal/webhook", "internal/serviceaccount", "internal/migrate", "internal/issuer", "internal/federation"}},
	{"cloud", []string{"internal/cloud"}},
	{"lab", []string{"internal/lab"}},
	{"estate", []string{"internal/estate"}},
	{"story", []string{"internal/demo", "internal/bench"}},
	{"cmd", []string{"cmd"}},
}

// laws are what the layers alone do not say. Each has its reason.
var laws = []struct {
	reason string
	from   []string // path prefixes below the module; "" is everything
	except []string // prefixes the law does not bind
	never  []string // import path prefixes
	tests  bool     // whether test files are bound too
}{
	{
		reason: "components never import each other: what two of them need is a rule or a protocol",
		from:   []string{"internal/mic"}, never: []string{module + "internal/nmi", module + "internal/webhook"},
	},
	{
		reason: "components never import each other: what two of them need is a rule or a protocol",
		from:   []string{"internal/nmi"}, never: []string{module + "internal/mic", module + "internal/webhook"},
	},
	{
		reason: "components never import each other: what two of them need is a rule or a protocol",
		from:   []string{"internal/webhook"}, never: []string{module + "internal/mic", module + "internal/nmi"},
	},
	{
		reason: "components never import each other: what two of them need is a rule or a protocol",
		from:   []string{"internal/access"}, never: []string{module + "internal/mic", module + "internal/nmi", module + "internal/webhook"},
	},
	{
		reason: "components never import each other: what two of them need is a rule or a protocol",
		from:   []string{"internal/serviceaccount"}, never: []string{module + "internal/access", module + "internal/mic", module + "internal/nmi", module + "internal/webhook"},
	},
	{
		reason: "components never import each other: what two of them need is a rule or a protocol",
		from:   []string{"internal/migrate"}, never: []string{module + "internal/access", module + "internal/mic", module + "internal/nmi", module + "internal/webhook", module + "internal/serviceaccount"},
	},
	{
		reason: "planning a migration is a function of values: no cluster, no Azure, no files",
		from:   []string{"internal/migrate"}, except: []string{"internal/migrate/move"},
		never: []string{"net/http", "os", "os/exec", "log", "log/slog", "k8s.io/client-go", "sigs.k8s.io/controller-runtime"},
	},
	{
		reason: "the sidecar runs in every pod that asks for it: no Kubernetes and no SDK in it",
		from:   []string{"internal/proxy", "internal/redirect/pod", "cmd/proxy"}, never: []string{"k8s.io/", "sigs.k8s.io/", "github.com/Azure/"},
	},
	{
		reason: "components never import each other: what two of them need is a rule or a protocol",
		from:   []string{"internal/proxy"}, never: []string{module + "internal/access", module + "internal/mic", module + "internal/nmi", module + "internal/webhook"},
	},
	{
		reason: "components never import each other: what two of them need is a rule or a protocol",
		from:   []string{"internal/federation"}, never: []string{module + "internal/access", module + "internal/mic", module + "internal/nmi", module + "internal/webhook", module + "internal/proxy", module + "internal/serviceaccount", module + "internal/migrate", module + "internal/issuer"},
	},
	{
		reason: "policy and plan are functions of values: no cluster, no Azure",
		from:   []string{"internal/federation/policy", "internal/federation/plan"},
		never:  []string{"net/http", "os", "os/exec", "log", "log/slog", "k8s.io/client-go", "sigs.k8s.io/controller-runtime"},
	},
	{
		reason: "components never import each other: what two of them need is a rule or a protocol",
		from:   []string{"internal/issuer"}, never: []string{module + "internal/access", module + "internal/mic", module + "internal/nmi", module + "internal/webhook", module + "internal/proxy", module + "internal/serviceaccount", module + "internal/migrate", module + "internal/federation"},
	},
	{
		reason: "the product meets the cloud only over HTTP: tests may start one",
		from:   []string{"internal/federation", "cmd/federation", "internal/migrate", "internal/issuer", "cmd/lanyard/issuer", "internal/arm", "internal/graph", "internal/federated", "internal/serviceaccount"}, never: []string{module + "internal/cloud"},
	},
	{
		reason: "the product meets the cloud only over HTTP, so that the same binary runs against Azure",
		from:   []string{"internal/mic", "internal/nmi", "internal/webhook", "cmd/mic", "cmd/nmi", "cmd/webhook", "cmd/workload"},
		never:  []string{module + "internal/cloud"}, tests: true,
	},
	{
		reason: "Kubernetes clients stay in controllers and the lab: rules, protocols and the cloud must stay small and run without a cluster",
		from:   []string{""},
		except: []string{"internal/access", "internal/federation", "internal/issuer", "internal/serviceaccount", "internal/migrate/move", "internal/mic", "internal/nmi", "internal/webhook", "internal/lab", "internal/estate", "internal/demo", "internal/bench", "cmd", "api/aadpodidentity"},
		never:  []string{"k8s.io/client-go", "sigs.k8s.io/controller-runtime"},
	},
	{
		reason: "a node agent runs on every node: these link the types of every API group, a third of its memory",
		from:   []string{"internal/nmi", "cmd/nmi"}, never: []string{"sigs.k8s.io/controller-runtime", "k8s.io/client-go/kubernetes", "k8s.io/client-go/discovery"},
	},
	{
		reason: "the local cloud is a cloud, not a cluster: it knows nothing of Kubernetes types",
		from:   []string{"internal/cloud"}, never: []string{"k8s.io/", "sigs.k8s.io/"}, tests: true,
	},
	{
		reason: "a lab is a cluster: the cloud beside it is the estate's business",
		from:   []string{"internal/lab"}, never: []string{module + "internal/cloud"}, tests: true,
	},
	{
		reason: "what a pod becomes, and what it lacks, is a function of values: no HTTP, no log, no environment, no client",
		from:   []string{"internal/webhook/mutation", "internal/webhook/doctor/diagnosis"},
		never:  []string{"net/http", "log", "log/slog", "os", "k8s.io/client-go", "sigs.k8s.io/controller-runtime"},
	},
	{
		reason: "rules are functions of values: no HTTP, no log, no environment",
		from:   []string{"internal/azure", "internal/azrbac", "internal/schedule", "internal/binding"},
		never:  []string{"net/http", "log", "log/slog", "os", "os/exec", "database/"},
	},
	{
		reason: "the tests use the standard library and go-cmp: one way to assert",
		from:   []string{""}, never: []string{"github.com/stretchr/testify", "github.com/onsi/", "github.com/golang/mock", "go.uber.org/mock"}, tests: true,
	},
}

func TestImportsFollowTheArrows(t *testing.T) {
	for _, f := range goFiles(t) {
		pkg := path.Dir(f.name)
		for _, imp := range f.imports {
			if !strings.HasPrefix(imp, module) || f.test {
				continue
			}
			from, to := layerOf(pkg), layerOf(strings.TrimPrefix(imp, module))
			if from < 0 || to < 0 {
				t.Errorf("%s: %s imports %s: give both packages a layer in importlaw", f.name, pkg, imp)
				continue
			}
			if to > from {
				t.Errorf("%s imports %s: %s is above %s", f.name, imp, layers[to].name, layers[from].name)
			}
		}
	}
}

func TestImportsKeepTheLaws(t *testing.T) {
	for _, f := range goFiles(t) {
		for _, law := range laws {
			if f.test && !law.tests || !under(f.name, law.from) || under(f.name, law.except) {
				continue
			}
			for _, imp := range f.imports {
				if hasPath(imp, law.never) {
					t.Errorf("%s imports %s: %s", f.name, imp, law.reason)
				}
			}
		}
	}
}

func TestEveryPackageIsDocumented(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range goFiles(t) {
		dir := path.Dir(f.name)
		documented[dir] = documented[dir] || f.doc
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no file has a package comment", dir)
		}
	}
}

type goFile struct {
	name    string // slash path from the repository's root
	imports []string
	test    bool
	doc     bool
}

// goFiles parses every Go file of the root module.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var files []goFile
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if d.IsDir() {
			if name != "." && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"bin", "testdata", "node_modules"}, d.Name())) {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(p, "go.mod")); name != "." && err == nil {
				return fs.SkipDir // a module of its own
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		f := goFile{name: name, test: strings.HasSuffix(name, "_test.go"), doc: parsed.Doc != nil}
		for _, spec := range parsed.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, imp)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found only %d Go files below %s: the walk is broken", len(files), root)
	}
	return files
}

func layerOf(pkg string) int {
	return slices.IndexFunc(layers, func(l struct {
		name     string
		packages []string
	}) bool {
		return under(pkg, l.packages)
	})
}

// under reports whether name is one of the prefixes or lies below one.
func under(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if p == "" || name == p || strings.HasPrefix(name, p+"/") {
			return true
		}
	}
	return false
}

// hasPath reports whether imp is one of paths or lies below one.
func hasPath(imp string, paths []string) bool {
	for _, p := range paths {
		if imp == strings.TrimSuffix(p, "/") || strings.HasPrefix(imp, strings.TrimSuffix(p, "/")+"/") {
			return true
		}
	}
	return false
}

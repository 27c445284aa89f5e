// Package deploy carries the manifests that install Lanyard on a cluster, so
// that every program installs the files of the version it was built from.
//
//	crds/*.yaml       the CustomResourceDefinitions
//	manifests/*.yaml  one file per component; ${NAME} is filled by Fill
package deploy

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// FS holds the files under their paths in this directory.
//
//go:embed crds manifests
var FS embed.FS

// A Part is what has CustomResourceDefinitions of its own.
type Part string

// The parts: what the chart aad-pod-identity installs, and the controller that
// makes federated credentials.
const (
	PodIdentity Part = "pod identity"
	Federation  Part = "federation"
)

// CRDNames lists the files of the CustomResourceDefinitions of a part.
func CRDNames(part Part) ([]string, error) {
	names, err := fs.Glob(FS, "crds/*.yaml")
	if err != nil {
		return nil, fmt.Errorf("listing the embedded CRDs: %w", err)
	}
	slices.Sort(names)
	return slices.DeleteFunc(names, func(name string) bool {
		return strings.HasPrefix(name, "crds/lanyard.id_federat") != (part == Federation)
	}), nil
}

// CRDs returns the CustomResourceDefinitions of the parts as YAML, one file
// each; of all parts if none is named.
func CRDs(parts ...Part) ([][]byte, error) {
	if len(parts) == 0 {
		parts = []Part{PodIdentity, Federation}
	}
	var names []string
	for _, part := range parts {
		more, err := CRDNames(part)
		if err != nil {
			return nil, err
		}
		names = append(names, more...)
	}
	docs := make([][]byte, 0, len(names))
	for _, name := range names {
		doc, err := fs.ReadFile(FS, name)
		if err != nil {
			return nil, fmt.Errorf("reading the embedded CRD: %w", err)
		}
		docs = append(docs, doc)
	}
	return docs, nil
}

// Manifests returns the named manifests ("webhook" is manifests/webhook.yaml),
// each a YAML stream of one or more documents, in the order of the names.
func Manifests(names ...string) ([][]byte, error) {
	docs := make([][]byte, 0, len(names))
	for _, name := range names {
		doc, err := fs.ReadFile(FS, "manifests/"+name+".yaml")
		if err != nil {
			return nil, fmt.Errorf("no manifest %q is embedded; there are: %s", name, strings.Join(manifestNames(), ", "))
		}
		docs = append(docs, doc)
	}
	return docs, nil
}

func manifestNames() []string {
	files, err := fs.Glob(FS, "manifests/*.yaml")
	if err != nil { // only for a malformed pattern
		return nil
	}
	names := make([]string, 0, len(files))
	for _, f := range files {
		names = append(names, strings.TrimSuffix(path.Base(f), ".yaml"))
	}
	slices.Sort(names)
	return names
}

// Fill replaces each ${NAME} and ${NAME:-default} in the manifest, outside of
// comments, by values[NAME], written as a quoted YAML string. A placeholder
// with neither value nor default is an error; a value that the manifest does
// not ask for is not. envsubst does the same, but does not quote.
func Fill(manifest []byte, values map[string]string) ([]byte, error) {
	placeholder := regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)(:-[^}]*)?\}`)
	var missing []string
	lines := strings.SplitAfter(string(manifest), "\n")
	for i, line := range lines {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		lines[i] = placeholder.ReplaceAllStringFunc(line, func(m string) string {
			name, otherwise, hasDefault := strings.Cut(m[2:len(m)-1], ":-")
			v, ok := values[name]
			if hasDefault && v == "" {
				v, ok = otherwise, true
			}
			if !ok {
				missing = append(missing, name)
				return m
			}
			return yamlString(v)
		})
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, fmt.Errorf("filling the manifest: no value for %s", strings.Join(missing, ", "))
	}
	return []byte(strings.Join(lines, "")), nil
}

// yamlString quotes s in YAML's single-quoted style, in which only the quote
// itself has a meaning. Line breaks would be folded, so they become spaces.
func yamlString(s string) string {
	s = strings.NewReplacer("'", "''", "\n", " ", "\r", " ").Replace(s)
	return "'" + s + "'"
}

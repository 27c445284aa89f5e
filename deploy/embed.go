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

// CRDs returns the CustomResourceDefinitions as YAML, one file each, in the
// order of their file names.
func CRDs() ([][]byte, error) {
	names, err := fs.Glob(FS, "crds/*.yaml")
	if err != nil {
		return nil, fmt.Errorf("listing the embedded CRDs: %w", err)
	}
	slices.Sort(names)
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

// Fill replaces each ${NAME} in the manifest, outside of comments, by
// values[NAME], written as a quoted YAML string. A placeholder without a value
// is an error; a value that the manifest does not ask for is not.
func Fill(manifest []byte, values map[string]string) ([]byte, error) {
	placeholder := regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)
	var missing []string
	lines := strings.SplitAfter(string(manifest), "\n")
	for i, line := range lines {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		lines[i] = placeholder.ReplaceAllStringFunc(line, func(m string) string {
			name := m[2 : len(m)-1]
			v, ok := values[name]
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

package charts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Value is one value of a chart.
type Value struct {
	Name    string // with dots
	Default string // as JSON
	About   string
}

// Values lists the values of a values.yaml in its order, each with the comment
// above it. A mapping with a comment is one value; without, it is a group. A
// value without a comment is an error.
func Values(text []byte) ([]Value, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("reading values.yaml: %w", err)
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	return values("", doc.Content[0])
}

func values(prefix string, mapping *yaml.Node) ([]Value, error) {
	var list []Value
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		name := prefix + key.Value
		about := comment(key.HeadComment)
		if about == "" {
			if value.Kind != yaml.MappingNode || len(value.Content) == 0 {
				return nil, fmt.Errorf("values.yaml, line %d: %s has no comment that says what it does", key.Line, name)
			}
			more, err := values(name+".", value)
			if err != nil {
				return nil, err
			}
			list = append(list, more...)
			continue
		}
		var v any
		if err := value.Decode(&v); err != nil {
			return nil, fmt.Errorf("values.yaml, line %d: %w", key.Line, err)
		}
		text, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("values.yaml, line %d: %w", key.Line, err)
		}
		list = append(list, Value{Name: name, Default: string(text), About: about})
	}
	return list, nil
}

func comment(head string) string {
	// The file's own heading is a comment block of its own.
	if i := strings.LastIndex(head, "\n\n"); i >= 0 {
		head = head[i+2:]
	}
	var lines []string
	for line := range strings.SplitSeq(head, "\n") {
		lines = append(lines, strings.TrimSpace(strings.TrimPrefix(line, "#")))
	}
	return strings.TrimSpace(strings.Join(lines, " "))
}

const (
	tableStart = "<!-- values: generated from values.yaml (make generate) -->\n"
	tableEnd   = "<!-- end of values -->\n"
)

// Readme returns the README of a chart with its table of values renewed.
func Readme(readme, valuesYAML []byte) ([]byte, error) {
	list, err := Values(valuesYAML)
	if err != nil {
		return nil, err
	}
	before, rest, found := bytes.Cut(readme, []byte(tableStart))
	_, after, foundEnd := bytes.Cut(rest, []byte(tableEnd))
	if !found || !foundEnd {
		return nil, fmt.Errorf("README.md has no table: it lies between %q and %q", tableStart, tableEnd)
	}
	var b bytes.Buffer
	b.Write(before)
	b.WriteString(tableStart + "| Value | Default | What it does |\n|---|---|---|\n")
	for _, v := range list {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", v.Name, v.Default, strings.ReplaceAll(v.About, "|", `\|`))
	}
	b.WriteString(tableEnd)
	b.Write(after)
	return b.Bytes(), nil
}

package demo

import (
	"embed"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// manifests are those of mission document 001, as written there: placeholders
// in angle brackets, the capitalised field names of its time.
//
//go:embed manifests
var manifests embed.FS

// manifest reads one of them and fills its placeholders, which are given
// without their brackets. A placeholder without a value, or a value without a
// placeholder, is an error.
func manifest(name string, values map[string]string) (*unstructured.Unstructured, error) {
	text, err := manifests.ReadFile("manifests/" + name)
	if err != nil {
		return nil, err
	}
	filled := string(text)
	for placeholder, value := range values {
		bracketed := "<" + placeholder + ">"
		if !strings.Contains(filled, bracketed) {
			return nil, fmt.Errorf("manifest %s has no placeholder %s", name, bracketed)
		}
		filled = strings.ReplaceAll(filled, bracketed, value)
	}
	if i := strings.IndexByte(filled, '<'); i >= 0 {
		return nil, fmt.Errorf("manifest %s: nothing fills the placeholder at %.40q", name, filled[i:])
	}
	object, err := yaml.YAMLToJSON([]byte(filled))
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name, err)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(object); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name, err)
	}
	return u, nil
}

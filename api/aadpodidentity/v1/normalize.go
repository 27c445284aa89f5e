package v1

import (
	"encoding/json"
	"fmt"
	"reflect"
	"sort"

	"k8s.io/apimachinery/pkg/runtime"
)

// NormalizedAnnotation records, as a JSON object of path and value, what
// Normalize moved from an old spelling. A value that came from the old spelling
// follows the old spelling when a manifest that still uses it is applied again
// with another value; a value that somebody wrote in the new spelling does not.
const NormalizedAnnotation = "aadpodidentity.k8s.io/normalized"

// A Conflict is a field that was given in two spellings with different values.
type Conflict struct {
	Kept    string // the spelling whose value stays
	Dropped string // the spelling whose value is lost
}

func (c Conflict) String() string {
	return fmt.Sprintf("spec.%s and spec.%s differ: %s stays; remove %s from the manifest", c.Kept, c.Dropped, c.Kept, c.Dropped)
}

// A spelling is a field and the names it had before release 1.6, the most
// trusted first.
type spelling struct {
	name string
	old  []string
}

// spellings lists the fields of spec that Normalize moves.
func spellings(kind string) []spelling {
	switch kind {
	case KindAzureIdentity:
		return []spelling{
			{"type", []string{"Type"}},
			{"resourceID", []string{"ResourceID", "resourceId", "resourceid"}},
			{"clientID", []string{"ClientID", "clientId", "clientid"}},
			{"clientPassword", []string{"ClientPassword", "clientpassword"}},
			{"tenantID", []string{"TenantID", "tenantId", "tenantid"}},
			{"adResourceID", []string{"ADResourceID", "adresourceid"}},
			{"adEndpoint", []string{"ADEndpoint", "adendpoint"}},
		}
	case KindAzureIdentityBinding:
		return []spelling{
			{"azureIdentity", []string{"AzureIdentity", "azureidentity"}},
			{"selector", []string{"Selector"}},
		}
	case KindAzurePodIdentityException:
		return []spelling{
			{"podLabels", []string{"PodLabels", "podlabels"}},
		}
	default:
		return nil
	}
}

// Normalize returns obj, a decoded JSON object of the given kind, with the
// values of old spellings moved to the fields of today, whether that changed
// anything, and the conflicts in which a value was dropped. Everything else,
// known or not, stays as it is; obj itself is not modified. Normalizing what
// was normalized changes nothing.
func Normalize(kind string, obj map[string]any) (out map[string]any, changed bool, conflicts []Conflict) {
	fields := spellings(kind)
	if spec, ok := obj["spec"].(map[string]any); !ok || len(fields) == 0 || !hasOld(spec, fields) {
		return obj, false, nil
	}
	out = runtime.DeepCopyJSON(obj)
	spec := out["spec"].(map[string]any)
	moved := recorded(out)
	n := normalizer{moved: moved}
	for _, f := range fields {
		if f.name == "clientPassword" {
			for _, name := range append([]string{f.name}, f.old...) {
				n.moveInner(spec, name, name == f.name)
			}
		}
		n.move(spec, "", f)
	}
	if n.recorded {
		record(out, moved)
	}
	return out, true, n.conflicts
}

func reference() []spelling {
	return []spelling{{"name", []string{"Name"}}, {"namespace", []string{"Namespace"}}}
}

func hasOld(spec map[string]any, fields []spelling) bool {
	for _, f := range fields {
		for _, old := range f.old {
			if _, ok := spec[old]; ok {
				return true
			}
		}
		if ref, ok := spec[f.name].(map[string]any); ok && f.name == "clientPassword" && hasOld(ref, reference()) {
			return true
		}
	}
	return false
}

type normalizer struct {
	moved     map[string]any // by path: the value that came from an old spelling
	recorded  bool           // moved was changed
	conflicts []Conflict
}

// moveInner brings the names inside a Secret reference up to date. Only those of
// the reference that stays are worth recording.
func (n *normalizer) moveInner(spec map[string]any, name string, stays bool) {
	ref, ok := spec[name].(map[string]any)
	if !ok {
		return
	}
	inner := normalizer{moved: map[string]any{}}
	if stays {
		inner.moved = n.moved
	}
	for _, f := range reference() {
		inner.move(ref, name+".", f)
	}
	n.conflicts = append(n.conflicts, inner.conflicts...)
	n.recorded = n.recorded || stays && inner.recorded
}

// move brings one field of the object in to its name of today. The prefix is
// the path of in below spec.
func (n *normalizer) move(in map[string]any, prefix string, f spelling) {
	var value any
	from := ""
	for _, old := range f.old {
		v, ok := in[old]
		if !ok {
			continue
		}
		delete(in, old)
		switch {
		case empty(v):
		case from == "":
			value, from = v, old
		case !reflect.DeepEqual(v, value):
			n.conflicts = append(n.conflicts, Conflict{Kept: prefix + from, Dropped: prefix + old})
		}
	}
	if from == "" {
		return
	}
	path := prefix + f.name
	current, ok := in[f.name]
	last, known := n.moved[path]
	switch {
	case ok && reflect.DeepEqual(current, value):
	case !ok, empty(current), known && reflect.DeepEqual(last, current):
		in[f.name] = value
		n.moved[path], n.recorded = value, true
	default:
		n.conflicts = append(n.conflicts, Conflict{Kept: path, Dropped: prefix + from})
	}
}

func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case map[string]any:
		return len(v) == 0
	default:
		return false
	}
}

// recorded reads the annotation; one that cannot be read counts as empty.
func recorded(obj map[string]any) map[string]any {
	moved := map[string]any{}
	meta, _ := obj["metadata"].(map[string]any)
	annotations, _ := meta["annotations"].(map[string]any)
	text, _ := annotations[NormalizedAnnotation].(string)
	if json.Unmarshal([]byte(text), &moved) != nil || moved == nil {
		return map[string]any{}
	}
	for path, v := range moved {
		// The API machinery holds whole numbers as int64, encoding/json as float64.
		if f, ok := v.(float64); ok && f == float64(int64(f)) {
			moved[path] = int64(f)
		}
	}
	return moved
}

func record(obj map[string]any, moved map[string]any) {
	text, err := json.Marshal(moved)
	if err != nil {
		return // decoded JSON always encodes
	}
	meta, ok := obj["metadata"].(map[string]any)
	if !ok {
		meta = map[string]any{}
		obj["metadata"] = meta
	}
	annotations, ok := meta["annotations"].(map[string]any)
	if !ok {
		annotations = map[string]any{}
		meta["annotations"] = annotations
	}
	annotations[NormalizedAnnotation] = string(text)
}

// OldSpellings lists the old names of the fields of a kind's spec, sorted.
func OldSpellings(kind string) []string {
	var names []string
	for _, f := range spellings(kind) {
		names = append(names, f.old...)
	}
	sort.Strings(names)
	return names
}

package mutation

import "strconv"

// An Operation is one step of a JSON patch (RFC 6902).
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"` // none for "remove"
}

// list is a list of named objects in the raw pod.
type list struct {
	path    string
	present bool // false: the member is absent or null
	items   []map[string]any
}

// index returns the position of the first item with that name, or -1.
func (l list) index(name string) int {
	for i, o := range l.items {
		if o["name"] == name {
			return i
		}
	}
	return -1
}

// at is the JSON pointer of item i.
func (l list) at(i int) string { return l.path + "/" + strconv.Itoa(i) }

// add returns the operations that append items to the list.
func (l list) add(items ...any) []Operation {
	if len(items) == 0 {
		return nil
	}
	if !l.present {
		return []Operation{{Op: "add", Path: l.path, Value: items}}
	}
	ops := make([]Operation, 0, len(items))
	for _, item := range items {
		ops = append(ops, Operation{Op: "add", Path: l.path + "/-", Value: item})
	}
	return ops
}

// prepend returns the operations that put items before the list's. They move
// what was there, so they come after all that address it by position.
func (l list) prepend(items ...any) []Operation {
	if len(items) == 0 || !l.present {
		return l.add(items...)
	}
	ops := make([]Operation, 0, len(items))
	for i := range items {
		ops = append(ops, Operation{Op: "add", Path: l.path + "/0", Value: items[len(items)-1-i]})
	}
	return ops
}

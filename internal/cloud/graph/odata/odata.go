// Package odata is the part of OData's query options that clients of Microsoft Graph send: $filter, $orderby and
// $select, on objects in memory.
//
//	all -> Filter -> Order -> (a page) -> Choose
//
// Source: https://learn.microsoft.com/graph/query-parameters
package odata

import (
	"fmt"
	"slices"
	"strings"
)

// An Object is what goes over the wire: the members of a directory object by name.
type Object map[string]any

// Order sorts by one property of text.
func Order(all []Object, by string) error {
	if by == "" {
		return nil
	}
	name, direction, _ := strings.Cut(strings.TrimSpace(by), " ")
	if name != "displayName" && name != "name" || direction != "" && direction != "asc" && direction != "desc" {
		return fmt.Errorf("sorting by '%.100s' is not supported; use displayName", by)
	}
	slices.SortStableFunc(all, func(a, b Object) int {
		x, _ := a[name].(string)
		y, _ := b[name].(string)
		if direction == "desc" {
			x, y = y, x
		}
		return strings.Compare(strings.ToLower(x), strings.ToLower(y))
	})
	return nil
}

// Choose keeps the members that $select names.
func Choose(o Object, names string) (Object, error) {
	if names == "" {
		return o, nil
	}
	out := Object{}
	for name := range strings.SplitSeq(names, ",") {
		name = strings.TrimSpace(name)
		v, ok := o[name]
		if !ok {
			return nil, fmt.Errorf("could not find a property named '%.100s'", name)
		}
		out[name] = v
	}
	if kind, ok := o["@odata.type"]; ok {
		out["@odata.type"] = kind
	}
	return out, nil
}

package graph

import (
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// An object is what goes over the wire: the members of a directory object by name.
type object map[string]any

const (
	defaultPage = 100
	maxPage     = 999
)

// list answers with the objects that the query asks for: $filter, $select, $top, $skiptoken, $count, $orderby. path is
// that of the collection, for the context.
func (c *call) list(path string, all []object) (answer, error) {
	if err := c.options("$filter", "$select", "$top", "$skiptoken", "$count", "$orderby"); err != nil {
		return answer{}, err
	}
	matches, err := filter(all, c.query.Get("$filter"))
	if err != nil {
		return answer{}, err
	}
	if err := order(matches, c.query.Get("$orderby")); err != nil {
		return answer{}, err
	}
	body := object{"@odata.context": c.base + "/$metadata#" + path}
	if strings.EqualFold(c.query.Get("$count"), "true") {
		body["@odata.count"] = len(matches)
	}
	page, next, err := c.page(matches)
	if err != nil {
		return answer{}, err
	}
	if next != "" {
		q := maps.Clone(c.query)
		q.Set("$skiptoken", next)
		body["@odata.nextLink"] = c.base + "/" + path + "?" + encode(q)
	}
	value := []object{}
	for _, o := range page {
		o, err := choose(o, c.query.Get("$select"))
		if err != nil {
			return answer{}, err
		}
		value = append(value, o)
	}
	body["value"] = value
	return answer{status: http.StatusOK, body: body}, nil
}

// one answers with one object.
func (c *call) one(status int, path string, o object) (answer, error) {
	if err := c.options("$select"); err != nil {
		return answer{}, err
	}
	o, err := choose(o, c.query.Get("$select"))
	if err != nil {
		return answer{}, err
	}
	o["@odata.context"] = c.base + "/$metadata#" + path + "/$entity"
	a := answer{status: status, body: o}
	if id, ok := o["id"].(string); ok && status == http.StatusCreated {
		a.location = c.base + "/" + path + "/" + id
	}
	return a, nil
}

// options refuses what is not served: an option that is ignored shows more than was asked for.
func (c *call) options(known ...string) error {
	for name := range c.query {
		if strings.HasPrefix(name, "$") && !slices.Contains(known, name) {
			return fault(http.StatusBadRequest, "Request_UnsupportedQuery", "The query option '%.100s' is not supported here; supported are %s.", name, strings.Join(known, ", "))
		}
	}
	return nil
}

// page cuts out the page of the query. The token says where the next one starts.
func (c *call) page(all []object) (page []object, next string, err error) {
	size := defaultPage
	if top := c.query.Get("$top"); top != "" {
		if size, err = strconv.Atoi(top); err != nil || size < 1 || size > maxPage {
			return nil, "", badRequest("Invalid page size specified: '%.20s'. Must be between 1 and %d inclusive.", top, maxPage)
		}
	}
	start := 0
	if token := c.query.Get("$skiptoken"); token != "" {
		raw, err := base64.RawURLEncoding.DecodeString(token)
		after := string(raw)
		i := slices.IndexFunc(all, func(o object) bool { return o["id"] == after })
		if err != nil || i < 0 {
			return nil, "", badRequest("Specified page token value has expired and can no longer be included in your request.")
		}
		start = i + 1
	}
	end := min(start+size, len(all))
	if end < len(all) {
		last, _ := all[end-1]["id"].(string)
		next = base64.RawURLEncoding.EncodeToString([]byte(last))
	}
	return all[start:end], next, nil
}

// order sorts by one property of text.
func order(all []object, by string) error {
	if by == "" {
		return nil
	}
	name, direction, _ := strings.Cut(strings.TrimSpace(by), " ")
	if name != "displayName" && name != "name" || direction != "" && direction != "asc" && direction != "desc" {
		return fault(http.StatusBadRequest, "Request_UnsupportedQuery", "Sorting by '%.100s' is not supported; use displayName.", by)
	}
	slices.SortStableFunc(all, func(a, b object) int {
		x, _ := a[name].(string)
		y, _ := b[name].(string)
		if direction == "desc" {
			x, y = y, x
		}
		return strings.Compare(strings.ToLower(x), strings.ToLower(y))
	})
	return nil
}

// choose keeps the members that $select names.
func choose(o object, names string) (object, error) {
	if names == "" {
		return o, nil
	}
	out := object{}
	for name := range strings.SplitSeq(names, ",") {
		name = strings.TrimSpace(name)
		v, ok := o[name]
		if !ok {
			return nil, badRequest("Parsing OData Select and Expand failed: Could not find a property named '%.100s'.", name)
		}
		out[name] = v
	}
	if kind, ok := o["@odata.type"]; ok {
		out["@odata.type"] = kind
	}
	return out, nil
}

// encode writes a query as clients do: the dollar of an option stays.
func encode(q url.Values) string { return strings.ReplaceAll(q.Encode(), "%24", "$") }

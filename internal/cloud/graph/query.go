package graph

import (
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/lanyard-id/lanyard/internal/cloud/graph/odata"
)

// An object is a directory object as it goes over the wire.
type object = odata.Object

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
	matches, err := odata.Filter(all, c.query.Get("$filter"))
	if err != nil {
		return answer{}, badRequest("Invalid filter clause: %.200v.", err)
	}
	if err := odata.Order(matches, c.query.Get("$orderby")); err != nil {
		return answer{}, fault(http.StatusBadRequest, "Request_UnsupportedQuery", "%v.", err)
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
		o, err := c.choose(o)
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
	o, err := c.choose(o)
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

// choose keeps the members that $select names.
func (c *call) choose(o object) (object, error) {
	chosen, err := odata.Choose(o, c.query.Get("$select"))
	if err != nil {
		return nil, badRequest("Parsing OData Select and Expand failed: %v.", err)
	}
	return chosen, nil
}

// encode writes a query as clients do: the dollar of an option stays.
func encode(q url.Values) string { return strings.ReplaceAll(q.Encode(), "%24", "$") }

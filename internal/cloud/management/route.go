package management

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// A target is what a path names: one resource, or the collection of the resources of a type in a scope.
type target struct {
	typ        *resourceType
	id         azure.ResourceID // of the resource, or the scope of the collection
	collection bool
	action     string // the RBAC action that the request needs
}

// cleanPath decodes a path segment by segment, so that an escaped slash cannot become a separator, and refuses what
// could name two things. It takes a second slash at the start (SDKs write "/" + scope) and one at the end.
func cleanPath(escaped string) (string, error) {
	invalid := func(reason string) error {
		return fault(http.StatusBadRequest, "InvalidRequestUri", "The request URI is invalid: %s.", reason)
	}
	segments := strings.Split(strings.TrimSuffix(strings.TrimLeft(escaped, "/"), "/"), "/")
	for i, s := range segments {
		d, err := url.PathUnescape(s)
		switch {
		case err != nil:
			return "", invalid("a segment is not properly escaped")
		case d == "" && len(segments) > 1:
			return "", invalid("it has an empty segment")
		case d == "." || d == "..":
			return "", invalid("it has a '.' or '..' segment")
		case strings.ContainsAny(d, `/\%?#<>&"*`):
			return "", invalid("a segment contains a separator, a percent sign or one of <>&\"*")
		}
		for _, r := range d {
			if r < ' ' || r == 0x7f || r == 0xfffd {
				return "", invalid("a segment contains a control character")
			}
		}
		segments[i] = d
	}
	return "/" + strings.Join(segments, "/"), nil
}

// route finds the entry of the table and the handler for a clean path.
func (tab table) route(method, path string) (target, handler, error) {
	t, post, err := tab.locate(method, path)
	if err != nil {
		return target{}, nil, err
	}
	h, verb := t.typ.handler(method, t.collection, post)
	if h == nil {
		return target{}, nil, notAllowed(method)
	}
	if t.action == "" {
		t.action = t.typ.actionName() + "/" + verb
	}
	return t, h, nil
}

// locate finds what a path names; post is the last segment of a POST to a resource.
func (tab table) locate(method, path string) (t target, post string, err error) {
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if t, ok := tab.plain(segments); ok {
		return t, "", nil
	}
	if id, err := azure.ParseResourceID(path); err == nil {
		typ, err := tab.lookup(id, false)
		return target{typ: typ, id: id}, "", err
	}
	// A path that lacks a last name is a collection, or with POST an action on the resource before it.
	id, err := azure.ParseResourceID(path + "/-")
	if err != nil || len(id.Types) == 0 {
		return target{}, "", fault(http.StatusNotFound, "InvalidResourceUri", "No resource or collection has the path '%.300s'.", path)
	}
	if method == http.MethodPost && len(id.Types) > 1 {
		post, id = id.Types[len(id.Types)-1], id.Parent()
		typ, err := tab.lookup(id, false)
		return target{typ: typ, id: id}, post, err
	}
	typ, err := tab.lookup(id, true)
	return target{typ: typ, id: id.Parent(), collection: true}, "", err
}

// plain knows the paths of Microsoft.Resources, which have no "providers" in front.
func (tab table) plain(segments []string) (target, bool) {
	folded := make([]string, len(segments))
	for i, s := range segments {
		folded[i] = azure.Fold(s)
	}
	list := func(typ string, scope azure.ResourceID) (target, bool) {
		return target{typ: tab.find(typ), id: scope, collection: true}, true
	}
	switch {
	case len(segments) == 1 && folded[0] == "tenants":
		return list(typeTenants, azure.ResourceID{})
	case len(segments) == 1 && folded[0] == "subscriptions":
		return list(azure.TypeSubscription, azure.ResourceID{})
	case folded[0] == "providers" && len(segments) <= 2:
		return tab.namespaces(azure.ResourceID{}, segments[1:])
	case folded[0] != "subscriptions" || len(segments) < 3:
		return target{}, false
	}
	sub := azure.Subscription(segments[1])
	switch {
	case folded[2] == "providers" && (len(segments) <= 4 || len(segments) == 5 && folded[4] == "register"):
		return tab.namespaces(sub, segments[3:])
	case len(segments) == 3 && folded[2] == "locations":
		return list(typeLocations, sub)
	case len(segments) == 3 && folded[2] == "resources":
		return list(typeResources, sub)
	case len(segments) == 3 && folded[2] == "resourcegroups":
		return list(azure.TypeResourceGroup, sub)
	case len(segments) == 5 && folded[2] == "resourcegroups" && folded[4] == "resources":
		return list(typeResources, azure.Group(segments[1], segments[3]))
	}
	return target{}, false
}

// namespaces is /providers, /providers/NS and /providers/NS/register. The namespace travels in the id's Provider.
func (tab table) namespaces(scope azure.ResourceID, rest []string) (target, bool) {
	t := target{typ: tab.find(typeProviders), id: scope, collection: len(rest) == 0}
	if len(rest) > 0 {
		t.id.Provider = rest[0]
	}
	return t, true
}

// lookup finds the table's entry for a resource or (with a placeholder for the name) a collection, and refuses types in
// places where they do not exist.
func (tab table) lookup(id azure.ResourceID, collection bool) (*resourceType, error) {
	if id.IsRoot() {
		return nil, fault(http.StatusNotFound, "InvalidResourceUri", "No resource has the path '/'.")
	}
	typ := tab.find(id.Type())
	if typ == nil {
		if known := tab.typesOf(id.Provider); len(known) > 0 {
			return nil, fault(http.StatusNotFound, "InvalidResourceType", "The resource type '%s' could not be found in the namespace '%s'. This cloud knows: %s.", strings.Join(id.Types, "/"), id.Provider, strings.Join(known, ", "))
		}
		return nil, fault(http.StatusNotFound, "InvalidResourceNamespace", "The resource namespace '%s' is invalid. This cloud knows: %s.", id.Provider, strings.Join(tab.namespaceNames(), ", "))
	}
	if !typ.place.allows(id, collection) {
		return nil, fault(http.StatusNotFound, "InvalidResourceUri", "A resource of type '%s' cannot be at '%s'; its place is %s.", typ.name, id.Parent(), typ.place)
	}
	return typ, nil
}

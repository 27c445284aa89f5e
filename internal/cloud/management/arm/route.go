package arm

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// Types of Microsoft.Resources that have no place in a resource id.
const (
	TypeTenants   = "Microsoft.Resources/tenants"
	TypeLocations = "Microsoft.Resources/subscriptions/locations"
	TypeResources = "Microsoft.Resources/subscriptions/resources"
	TypeProviders = "Microsoft.Resources/subscriptions/providers"
)

// A Target is what a path names: one resource, or the collection of the resources of a type in a scope.
type Target struct {
	Type       *Type
	ID         azure.ResourceID // of the resource, or the scope of the collection
	Collection bool
	Action     string // the RBAC action that the request needs
}

// CleanPath decodes a path segment by segment, so that an escaped slash cannot become a separator, and refuses what
// could name two things. It takes a second slash at the start (SDKs write "/" + scope) and one at the end.
func CleanPath(escaped string) (string, error) {
	invalid := func(reason string) error {
		return Fault(http.StatusBadRequest, "InvalidRequestUri", "The request URI is invalid: %s.", reason)
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

// Route finds the entry of the table and the handler for a clean path.
func (tab Table) Route(method, path string) (Target, Handler, error) {
	t, post, err := tab.locate(method, path)
	if err != nil {
		return Target{}, nil, err
	}
	h, verb := t.Type.handler(method, t.Collection, post)
	if h == nil {
		return Target{}, nil, NotAllowed(method)
	}
	if t.Action == "" {
		t.Action = t.Type.ActionName() + "/" + verb
	}
	return t, h, nil
}

// locate finds what a path names; post is the last segment of a POST to a resource.
func (tab Table) locate(method, path string) (t Target, post string, err error) {
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if t, ok := tab.plain(segments); ok {
		return t, "", nil
	}
	if id, err := azure.ParseResourceID(path); err == nil {
		typ, err := tab.Lookup(id, false)
		return Target{Type: typ, ID: id}, "", err
	}
	// A path that lacks a last name is a collection, or with POST an action on the resource before it.
	id, err := azure.ParseResourceID(path + "/-")
	if err != nil || len(id.Types) == 0 {
		return Target{}, "", Fault(http.StatusNotFound, "InvalidResourceUri", "No resource or collection has the path '%.300s'.", path)
	}
	if method == http.MethodPost && len(id.Types) > 1 {
		post, id = id.Types[len(id.Types)-1], id.Parent()
		typ, err := tab.Lookup(id, false)
		return Target{Type: typ, ID: id}, post, err
	}
	typ, err := tab.Lookup(id, true)
	return Target{Type: typ, ID: id.Parent(), Collection: true}, "", err
}

// plain knows the paths of Microsoft.Resources, which have no "providers" in front.
func (tab Table) plain(segments []string) (Target, bool) {
	folded := make([]string, len(segments))
	for i, s := range segments {
		folded[i] = azure.Fold(s)
	}
	list := func(typ string, scope azure.ResourceID) (Target, bool) {
		return Target{Type: tab.Find(typ), ID: scope, Collection: true}, true
	}
	switch {
	case len(segments) == 1 && folded[0] == "tenants":
		return list(TypeTenants, azure.ResourceID{})
	case len(segments) == 1 && folded[0] == "subscriptions":
		return list(azure.TypeSubscription, azure.ResourceID{})
	case folded[0] == "providers" && len(segments) <= 2:
		return tab.namespaces(azure.ResourceID{}, segments[1:])
	case folded[0] != "subscriptions" || len(segments) < 3:
		return Target{}, false
	}
	sub := azure.Subscription(segments[1])
	switch {
	case folded[2] == "providers" && (len(segments) <= 4 || len(segments) == 5 && folded[4] == "register"):
		return tab.namespaces(sub, segments[3:])
	case len(segments) == 3 && folded[2] == "locations":
		return list(TypeLocations, sub)
	case len(segments) == 3 && folded[2] == "resources":
		return list(TypeResources, sub)
	case len(segments) == 3 && folded[2] == "resourcegroups":
		return list(azure.TypeResourceGroup, sub)
	case len(segments) == 5 && folded[2] == "resourcegroups" && folded[4] == "resources":
		return list(TypeResources, azure.Group(segments[1], segments[3]))
	}
	return Target{}, false
}

// namespaces is /providers, /providers/NS and /providers/NS/register. The namespace travels in the id's Provider.
func (tab Table) namespaces(scope azure.ResourceID, rest []string) (Target, bool) {
	t := Target{Type: tab.Find(TypeProviders), ID: scope, Collection: len(rest) == 0}
	if len(rest) > 0 {
		t.ID.Provider = rest[0]
	}
	return t, true
}

// Lookup finds the table's entry for a resource or (with a placeholder for the name) a collection, and refuses types in
// places where they do not exist.
func (tab Table) Lookup(id azure.ResourceID, collection bool) (*Type, error) {
	if id.IsRoot() {
		return nil, Fault(http.StatusNotFound, "InvalidResourceUri", "No resource has the path '/'.")
	}
	typ := tab.Find(id.Type())
	if typ == nil {
		if known := tab.typesOf(id.Provider); len(known) > 0 {
			return nil, Fault(http.StatusNotFound, "InvalidResourceType", "The resource type '%s' could not be found in the namespace '%s'. This cloud knows: %s.", strings.Join(id.Types, "/"), id.Provider, strings.Join(known, ", "))
		}
		return nil, Fault(http.StatusNotFound, "InvalidResourceNamespace", "The resource namespace '%s' is invalid. This cloud knows: %s.", id.Provider, strings.Join(tab.Namespaces(), ", "))
	}
	if !typ.Place.allows(id, collection) {
		return nil, Fault(http.StatusNotFound, "InvalidResourceUri", "A resource of type '%s' cannot be at '%s'; its place is %s.", typ.Name, id.Parent(), typ.Place)
	}
	return typ, nil
}

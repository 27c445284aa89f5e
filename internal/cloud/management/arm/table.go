package arm

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/management/budget"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// A Type is one resource type: what requests can be made about it. A nil handler means 405.
type Type struct {
	Name    string // full type
	Actions string // what RBAC calls it; "" means Name
	Place   Place

	// Open leaves out the check before a read: the handler shows what the caller may see. Writes are always checked.
	Open bool

	Get, Put, Patch, Delete, List Handler
	Post                          map[string]Handler // by lower-case name of the action; "" is a POST to the collection

	// Render makes the wire form of a tracked resource; nil for types that are not tracked.
	Render func(*Call, Resource) (any, error)
	// Remove undoes what the resource has made elsewhere, before it is deleted; nil means nothing.
	Remove func(*state.Tx, Resource) error
	// Exclusive names what a write occupies, and the refusal of another write to the same meanwhile; nil means that
	// writes wait for each other.
	Exclusive func(*Call) (key string, refusal *Error)
	// WriteTime is how long a write occupies what Exclusive names, at least; nil means no longer than it takes.
	WriteTime func() time.Duration

	// Rate is how many requests a second the provider takes with this method, and about which resource they are
	// counted. nil means that nobody counts.
	Rate func(c *Call) (rate budget.Rate, resource azure.ResourceID)

	Versions []string // api versions to tell clients that ask; any is accepted
}

// A Place says where resources of a type can be.
type Place int

// The places.
const (
	InGroup        Place = iota // in a resource group; collections in a subscription too
	InSubscription              // directly in a subscription
	Anywhere                    // an extension of any scope
	Plain                       // a path of Microsoft.Resources
)

// String says it for people.
func (p Place) String() string {
	switch p {
	case InGroup:
		return "in a resource group (/subscriptions/{id}/resourceGroups/{name}/providers/…)"
	case InSubscription:
		return "in a subscription (/subscriptions/{id}/providers/…)"
	case Anywhere:
		return "any scope"
	}
	return "a path of its own"
}

func (p Place) allows(id azure.ResourceID, collection bool) bool {
	switch p {
	case InGroup:
		return id.Extends == nil && id.SubscriptionID != "" && (id.ResourceGroup != "" || collection && len(id.Types) == 1)
	case InSubscription:
		return id.Extends == nil && id.SubscriptionID != "" && id.ResourceGroup == ""
	case Anywhere:
		return true
	}
	return id.Provider == ""
}

// A Table lists all resource types.
type Table []*Type

// Tracked fills in the handlers that all tracked resources share, where t has none.
func Tracked(t Type) *Type {
	t.Get, t.List = (*Call).GetTracked, (*Call).ListTracked
	if t.Delete == nil {
		t.Delete = (*Call).DeleteTracked
	}
	return &t
}

// Find returns the type with a name, without case, or nil.
func (tab Table) Find(name string) *Type {
	for _, t := range tab {
		if strings.EqualFold(t.Name, name) {
			return t
		}
	}
	return nil
}

// typesOf lists the types of a namespace, without it.
func (tab Table) typesOf(namespace string) []string {
	var names []string
	for _, t := range tab {
		if ns, rest, _ := strings.Cut(t.Name, "/"); strings.EqualFold(ns, namespace) {
			names = append(names, rest)
		}
	}
	return names
}

// Namespaces lists the namespaces of all types.
func (tab Table) Namespaces() []string {
	var names []string
	for _, t := range tab {
		if ns, _, _ := strings.Cut(t.Name, "/"); !slices.Contains(names, ns) {
			names = append(names, ns)
		}
	}
	return names
}

// ActionName is what stands before the verb in an RBAC action.
func (t *Type) ActionName() string {
	if t.Actions != "" {
		return t.Actions
	}
	return t.Name
}

// handler picks the handler of a method and the verb that ends the RBAC action. post is the action of a POST.
func (t *Type) handler(method string, collection bool, post string) (Handler, string) {
	switch {
	case method == http.MethodPost:
		h := t.Post[azure.Fold(post)]
		if post == "" {
			return h, "read" // a question in the form of a POST
		}
		return h, post + "/action"
	case method == http.MethodGet && collection:
		return t.List, "read"
	case collection:
		return nil, ""
	case method == http.MethodGet:
		return t.Get, "read"
	case method == http.MethodPut:
		return t.Put, "write"
	case method == http.MethodPatch:
		return t.Patch, "write"
	case method == http.MethodDelete:
		return t.Delete, "delete"
	}
	return nil, ""
}

package management

import (
	"net/http"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// Types of Microsoft.Resources that have no place in a resource id.
const (
	typeTenants   = "Microsoft.Resources/tenants"
	typeLocations = "Microsoft.Resources/subscriptions/locations"
	typeResources = "Microsoft.Resources/subscriptions/resources"
	typeProviders = "Microsoft.Resources/subscriptions/providers"

	typeSystemIdentity = "Microsoft.ManagedIdentity/identities"
	typeVaultNames     = "Microsoft.KeyVault/checkNameAvailability"
)

// A resourceType is one line of the table. A nil handler means 405.
type resourceType struct {
	name    string // full type
	actions string // what RBAC calls it; "" means name
	place   place

	// open leaves out the check before a read: the handler shows what the caller may see. Writes are always checked.
	open bool

	get, put, patch, delete, list handler
	post                          map[string]handler // by lower-case name of the action

	// render makes the wire form of a tracked resource; nil for types that are not tracked.
	render func(*call, Resource) (any, error)
	// remove undoes what the resource has made elsewhere, before it is deleted; nil means nothing.
	remove func(*call, Resource) error

	versions []string // api versions to tell clients that ask; any is accepted
}

// A place says where resources of a type can be.
type place int

const (
	inGroup        place = iota // in a resource group; collections in a subscription too
	inSubscription              // directly in a subscription
	anywhere                    // an extension of any scope
	plain                       // a path of Microsoft.Resources
)

func (p place) String() string {
	switch p {
	case inGroup:
		return "in a resource group (/subscriptions/{id}/resourceGroups/{name}/providers/…)"
	case inSubscription:
		return "in a subscription (/subscriptions/{id}/providers/…)"
	case anywhere:
		return "any scope"
	}
	return "a path of its own"
}

func (p place) allows(id azure.ResourceID, collection bool) bool {
	switch p {
	case inGroup:
		return id.Extends == nil && id.SubscriptionID != "" && (id.ResourceGroup != "" || collection && len(id.Types) == 1)
	case inSubscription:
		return id.Extends == nil && id.SubscriptionID != "" && id.ResourceGroup == ""
	case anywhere:
		return true
	}
	return id.Provider == ""
}

type table []*resourceType

// types returns the table. It is built on first use, because its handlers refer to it.
func (s *Server) types() table {
	s.built.Do(func() { s.tab = newTable() })
	return s.tab
}

func newTable() table {
	resources := []string{"2022-09-01", "2021-04-01", "2020-06-01"}
	identity := []string{"2024-11-30", "2023-01-31", "2022-01-31-preview", "2018-11-30"}
	compute := []string{"2024-11-01", "2022-11-01", "2019-12-01"}
	authorization := []string{"2022-04-01", "2020-04-01-preview", "2018-01-01-preview"}
	vaults := []string{"2023-07-01", "2022-07-01", "2019-09-01"}
	return table{
		{name: typeTenants, place: plain, open: true, list: (*call).listTenants, versions: resources},
		{name: azure.TypeSubscription, place: plain, open: true, list: (*call).listSubscriptions, get: (*call).getSubscription, versions: resources},
		{name: typeLocations, place: plain, list: (*call).listLocations, versions: resources},
		{name: typeProviders, place: plain, open: true, list: (*call).listProviders, get: (*call).getProvider, versions: resources,
			post: map[string]handler{"": (*call).getProvider}}, // everything is registered already,
		{name: typeResources, place: plain, open: true, list: (*call).listResources, versions: resources},
		{name: azure.TypeResourceGroup, actions: "Microsoft.Resources/subscriptions/resourceGroups", place: plain, open: true, versions: resources,
			list: (*call).listGroups, get: (*call).getGroup, put: (*call).putGroup, patch: (*call).patchGroup, delete: (*call).deleteGroup},

		tracked(resourceType{name: azure.TypeManagedIdentity, versions: identity, render: (*call).renderIdentity, remove: (*call).removeIdentity,
			put: (*call).putIdentity, patch: (*call).patchTags}),
		{name: azure.TypeFederatedCredential, versions: identity,
			list: (*call).listFederated, get: (*call).getFederated, put: (*call).putFederated, delete: (*call).deleteFederated},
		{name: typeSystemIdentity, place: anywhere, versions: identity, get: (*call).getSystemIdentity},

		{name: azure.TypeRoleAssignment, place: anywhere, versions: authorization,
			list: (*call).listAssignments, get: (*call).getAssignment, put: (*call).putAssignment, delete: (*call).deleteAssignment},
		{name: azure.TypeRoleDefinition, place: anywhere, versions: authorization,
			list: (*call).listDefinitions, get: (*call).getDefinition, put: (*call).putDefinition, delete: (*call).deleteDefinition},

		tracked(resourceType{name: azure.TypeVirtualMachine, versions: compute, render: (*call).renderMachine, remove: (*call).removeMachine,
			put: (*call).putMachine, patch: (*call).patchMachine}),
		tracked(resourceType{name: azure.TypeVirtualMachineScaleSet, versions: compute, render: (*call).renderMachine, remove: (*call).removeMachine,
			put: (*call).putMachine, patch: (*call).patchMachine}),
		{name: azure.TypeScaleSetInstance, versions: compute, list: (*call).listInstances, get: (*call).getInstance},

		tracked(resourceType{name: azure.TypeVault, versions: vaults, render: (*call).renderVault, remove: (*call).removeVault,
			put: (*call).putVault, patch: (*call).patchVault}),
		{name: typeVaultNames, place: inSubscription, versions: vaults, post: map[string]handler{"": (*call).checkVaultName}},
	}
}

// tracked fills in the handlers that all tracked resources share.
func tracked(t resourceType) *resourceType {
	t.get, t.list, t.delete = (*call).getTracked, (*call).listTracked, (*call).deleteTracked
	return &t
}

func (tab table) find(name string) *resourceType {
	for _, t := range tab {
		if strings.EqualFold(t.name, name) {
			return t
		}
	}
	return nil
}

// typesOf lists the types of a namespace, without it.
func (tab table) typesOf(namespace string) []string {
	var names []string
	for _, t := range tab {
		if ns, rest, _ := strings.Cut(t.name, "/"); strings.EqualFold(ns, namespace) {
			names = append(names, rest)
		}
	}
	return names
}

func (tab table) namespaceNames() []string {
	var names []string
	for _, t := range tab {
		if ns, _, _ := strings.Cut(t.name, "/"); !slices.Contains(names, ns) {
			names = append(names, ns)
		}
	}
	return names
}

func (t *resourceType) actionName() string {
	if t.actions != "" {
		return t.actions
	}
	return t.name
}

// handler picks the handler of a method and the verb that ends the RBAC action. post is the action of a POST.
func (t *resourceType) handler(method string, collection bool, post string) (handler, string) {
	switch {
	case method == http.MethodPost:
		h := t.post[azure.Fold(post)]
		if post == "" {
			return h, "read" // a question in the form of a POST
		}
		return h, post + "/action"
	case method == http.MethodGet && collection:
		return t.list, "read"
	case collection:
		return nil, ""
	case method == http.MethodGet:
		return t.get, "read"
	case method == http.MethodPut:
		return t.put, "write"
	case method == http.MethodPatch:
		return t.patch, "write"
	case method == http.MethodDelete:
		return t.delete, "delete"
	}
	return nil, ""
}

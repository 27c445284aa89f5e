package arm

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// Buckets of the state that this package owns.
const (
	bucketSubscriptions = "subscriptions" // by subscription id -> Subscription
	bucketGroups        = "groups"        // by id.Key()        -> Group
	bucketResources     = "resources"     // by id.Key()        -> Resource
)

// An Identity is what a machine can act as.
type Identity struct {
	System bool                        `json:"system,omitempty"`
	User   map[string]AssignedIdentity `json:"user,omitempty"` // by folded id

	SystemPrincipalID string `json:"systemPrincipalId,omitempty"`
}

// An AssignedIdentity is a user-assigned identity on a machine. The ids are those of the incarnation that was assigned.
type AssignedIdentity struct {
	ID          string `json:"id"` // as the caller spelled it
	PrincipalID string `json:"principalId"`
	ClientID    string `json:"clientId"`
}

// An IdentityInput is the member "identity" of a PUT or PATCH. A null value takes an identity away.
type IdentityInput struct {
	Type string                      `json:"type"`
	User map[string]*json.RawMessage `json:"userAssignedIdentities"`
}

// A Subscription belongs to a tenant.
type Subscription struct {
	ID          string `json:"id"` // GUID, lower case
	TenantID    string `json:"tenantId"`
	DisplayName string `json:"displayName"`
}

// Validate refuses a subscription that cannot be.
func (s Subscription) Validate() error {
	if uuid.Validate(s.ID) != nil || len(s.ID) != 36 {
		return fmt.Errorf("subscription id %q is not a GUID", s.ID)
	}
	if s.DisplayName == "" {
		return fmt.Errorf("subscription %s needs a display name", s.ID)
	}
	return nil
}

// A Group is a resource group.
type Group struct {
	ID       string            `json:"id"`
	Location string            `json:"location"`
	Tags     map[string]string `json:"tags,omitempty"`
}

// A Resource is a tracked resource: it has a location, tags and a place in a resource group.
type Resource struct {
	ID         string            `json:"id"` // spelled as its creator did; the key is the folded form
	Location   string            `json:"location"`
	Tags       map[string]string `json:"tags,omitempty"`
	UniqueID   string            `json:"uniqueId"` // GUID of this incarnation: a namesake made later has another
	Created    time.Time         `json:"created"`
	Properties json.RawMessage   `json:"properties,omitempty"` // as the client wrote them, checked by the type's handler

	SKU      json.RawMessage `json:"sku,omitempty"`
	Zones    []string        `json:"zones,omitempty"`
	Identity *Identity       `json:"identity,omitempty"` // of a machine

	// State is the provisioning state; "" means Succeeded. Revision changes with each change that an ETag tells.
	State    string `json:"state,omitempty"`
	Revision uint64 `json:"revision,omitempty"`

	PrincipalID string `json:"principalId,omitempty"` // of a managed identity
}

// ResourceID parses the id.
func (r Resource) ResourceID() (azure.ResourceID, error) { return azure.ParseResourceID(r.ID) }

// Name is the last part of the id.
func (r Resource) Name() string { return r.ID[strings.LastIndexByte(r.ID, '/')+1:] }

// NewGUID makes a random id.
func NewGUID() string { return uuid.NewString() }

// FindSubscription finds a subscription by its id.
func FindSubscription(tx *state.Tx, id string) (Subscription, bool, error) {
	return state.Get[Subscription](tx, bucketSubscriptions, azure.Fold(id))
}

// Subscriptions lists all subscriptions.
func Subscriptions(tx *state.Tx) ([]Subscription, error) {
	return state.List[Subscription](tx, bucketSubscriptions, "")
}

// PutSubscription stores a subscription.
func PutSubscription(tx *state.Tx, s Subscription) error {
	return state.Put(tx, bucketSubscriptions, s.ID, s)
}

// FindGroup finds the resource group of an id.
func FindGroup(tx *state.Tx, id azure.ResourceID) (Group, bool, error) {
	return state.Get[Group](tx, bucketGroups, azure.Group(id.SubscriptionID, id.ResourceGroup).Key())
}

// Groups lists the resource groups of a subscription; an empty id lists all.
func Groups(tx *state.Tx, subscriptionID string) ([]Group, error) {
	prefix := ""
	if subscriptionID != "" {
		prefix = azure.Subscription(subscriptionID).Key() + "/"
	}
	return state.List[Group](tx, bucketGroups, prefix)
}

// PutGroup stores a resource group.
func PutGroup(tx *state.Tx, g Group) error { return state.Put(tx, bucketGroups, azure.Fold(g.ID), g) }

// DeleteGroup deletes a resource group, not what is in it.
func DeleteGroup(tx *state.Tx, g Group) error {
	return state.Delete(tx, bucketGroups, azure.Fold(g.ID))
}

// FindResource finds a tracked resource.
func FindResource(tx *state.Tx, id azure.ResourceID) (Resource, bool, error) {
	return state.Get[Resource](tx, bucketResources, id.Key())
}

// Resources lists the tracked resources in a subscription or group.
func Resources(tx *state.Tx, scope azure.ResourceID) ([]Resource, error) {
	return state.List[Resource](tx, bucketResources, scope.Key()+"/")
}

// PutResource stores a tracked resource.
func PutResource(tx *state.Tx, r Resource) error {
	return state.Put(tx, bucketResources, azure.Fold(r.ID), r)
}

func deleteResource(tx *state.Tx, r Resource) error {
	return state.Delete(tx, bucketResources, azure.Fold(r.ID))
}

// AllGroups returns all resource groups with the keys under which they are stored, for invariants.
func AllGroups(tx *state.Tx) ([]string, []Group, error) { return all[Group](tx, bucketGroups) }

// AllResources returns all tracked resources with their keys.
func AllResources(tx *state.Tx) ([]string, []Resource, error) {
	return all[Resource](tx, bucketResources)
}

func all[T any](tx *state.Tx, bucket string) ([]string, []T, error) {
	keys, err := state.Keys(tx, bucket, "")
	if err != nil {
		return nil, nil, err
	}
	values, err := state.List[T](tx, bucket, "")
	return keys, values, err
}

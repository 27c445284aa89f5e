package management

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
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
	bucketVaultNames    = "vaultNames"    // by folded name     -> id.Key() of the vault
	bucketAssignments   = "assignments"   // by GUID            -> Assignment
	bucketDefinitions   = "definitions"   // by GUID            -> azrbac.Definition (custom roles only)
)

// A Subscription belongs to a tenant.
type Subscription struct {
	ID          string `json:"id"` // GUID, lower case
	TenantID    string `json:"tenantId"`
	DisplayName string `json:"displayName"`
}

func (s Subscription) validate() error {
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

	PrincipalID string `json:"principalId,omitempty"` // of a managed identity
}

func (r Resource) id() (azure.ResourceID, error) { return azure.ParseResourceID(r.ID) }

func newGUID() string { return uuid.NewString() }

// find reads a tracked resource; the error is ResourceNotFound, or ResourceGroupNotFound if even that is missing.
func (c *call) find(id azure.ResourceID) (Resource, error) {
	r, ok, err := state.Get[Resource](c.tx, bucketResources, id.Key())
	if err != nil || ok {
		return r, err
	}
	if _, err := c.group(id); err != nil {
		return Resource{}, err
	}
	return Resource{}, resourceNotFound(id)
}

// group reads the resource group of an id; the error is ResourceGroupNotFound.
func (c *call) group(id azure.ResourceID) (Group, error) {
	g, ok, err := state.Get[Group](c.tx, bucketGroups, azure.Group(id.SubscriptionID, id.ResourceGroup).Key())
	if err == nil && !ok {
		err = groupNotFound(id.ResourceGroup)
	}
	return g, err
}

func (c *call) store(r Resource) error {
	return state.Put(c.tx, bucketResources, azure.Fold(r.ID), r)
}

// below lists the tracked resources in a subscription or group.
func (c *call) below(scope azure.ResourceID) ([]Resource, error) {
	return state.List[Resource](c.tx, bucketResources, scope.Key()+"/")
}

// An envelope is what all tracked resources have in common in a PUT or PATCH. Absent members stay nil.
type envelope struct {
	Location   *string            `json:"location"`
	Tags       *map[string]string `json:"tags"`
	Properties json.RawMessage    `json:"properties"`
	SKU        json.RawMessage    `json:"sku"`
	Zones      *[]string          `json:"zones"`
	Identity   *identityInput     `json:"identity"`
}

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{2,127}$`)

// begin reads the body of a PUT and returns what is stored, or a new resource if nothing is, with location and tags
// taken from the body.
func (c *call) begin() (r Resource, in envelope, created bool, err error) {
	if _, err := c.group(c.id); err != nil {
		return r, in, false, err
	}
	if err := c.decode(&in); err != nil {
		return r, in, false, err
	}
	location, err := c.location(in.Location)
	if err != nil {
		return r, in, false, err
	}
	r, exists, err := state.Get[Resource](c.tx, bucketResources, c.id.Key())
	if err != nil {
		return r, in, false, err
	}
	if exists && r.Location != location {
		return r, in, false, fault(http.StatusConflict, "InvalidResourceLocation", "The resource '%s' already exists in location '%s' in resource group '%s'. A resource with the same name cannot be created in location '%s'. Please select a new resource name.",
			c.id.Name(), r.Location, c.id.ResourceGroup, location)
	}
	if !exists {
		r = Resource{ID: c.canonical(), Location: location, UniqueID: newGUID(), Created: c.now}
	}
	r.Tags = nil
	if err := r.setTags(in.Tags); err != nil {
		return r, in, false, err
	}
	return r, in, !exists, nil
}

// canonical is the id of the resource in the request with the type spelled as the table does.
func (c *call) canonical() string {
	provider, rest, _ := strings.Cut(c.typ.name, "/")
	id := c.id
	id.Provider, id.Types = provider, strings.Split(rest, "/")
	if c.typ.name == azure.TypeManagedIdentity {
		return id.IdentityString()
	}
	return id.String()
}

func (r *Resource) setTags(tags *map[string]string) error {
	if tags == nil {
		return nil
	}
	if len(*tags) > 50 {
		return fault(http.StatusBadRequest, "InvalidTagCount", "The number of tags exceeds the maximum of 50.")
	}
	for k, v := range *tags {
		if k == "" || len(k) > 512 || len(v) > 256 || strings.ContainsAny(k, `<>%&\?/`) {
			return fault(http.StatusBadRequest, "InvalidTagNameCharacters", "The tag name or value of '%.100s' is invalid: names have 1 to 512 characters without <>%%&\\?/, values at most 256.", k)
		}
	}
	r.Tags = *tags
	return nil
}

// finish stores the resource and answers 201 or 200.
func (c *call) finish(r Resource, created bool) (answer, error) {
	if err := c.store(r); err != nil {
		return answer{}, err
	}
	body, err := c.typ.render(c, r)
	if err != nil {
		return answer{}, err
	}
	a := ok(body)
	if created {
		a.status = http.StatusCreated
	}
	return a, nil
}

func (c *call) getTracked() (answer, error) {
	r, err := c.find(c.id)
	if err != nil {
		return answer{}, err
	}
	body, err := c.typ.render(c, r)
	return ok(body), err
}

func (c *call) listTracked() (answer, error) {
	if c.id.ResourceGroup != "" {
		if _, err := c.group(c.id); err != nil {
			return answer{}, err
		}
	}
	all, err := c.below(c.id)
	if err != nil {
		return answer{}, err
	}
	items := []any{}
	for _, r := range all {
		if id, err := r.id(); err != nil || !id.Is(c.typ.name) {
			continue
		}
		item, err := c.typ.render(c, r)
		if err != nil {
			return answer{}, err
		}
		items = append(items, item)
	}
	return page(items), nil
}

// page is a list in one page.
func page[T any](items []T) answer {
	if items == nil {
		items = []T{}
	}
	return ok(struct {
		Value []T `json:"value"`
	}{items})
}

func (c *call) deleteTracked() (answer, error) {
	r, exists, err := state.Get[Resource](c.tx, bucketResources, c.id.Key())
	if err != nil {
		return answer{}, err
	}
	if !exists {
		if _, err := c.group(c.id); err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusNoContent}, nil
	}
	return answer{status: http.StatusOK}, c.discard(c.typ, r)
}

// discard deletes a tracked resource with everything that hangs on it.
func (c *call) discard(typ *resourceType, r Resource) error {
	if typ.remove != nil {
		if err := typ.remove(c, r); err != nil {
			return err
		}
	}
	if err := c.deleteAssignmentsBelow(azure.Fold(r.ID)); err != nil {
		return err
	}
	return state.Delete(c.tx, bucketResources, azure.Fold(r.ID))
}

// patchTags is PATCH for types of which only the tags can change.
func (c *call) patchTags() (answer, error) {
	r, err := c.find(c.id)
	if err != nil {
		return answer{}, err
	}
	var in envelope
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	if err := r.setTags(in.Tags); err != nil {
		return answer{}, err
	}
	return c.finish(r, false)
}

// wire is the form in which most tracked resources go over the wire.
type wire struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Type       string            `json:"type"`
	Location   string            `json:"location"`
	Tags       map[string]string `json:"tags"`
	SKU        json.RawMessage   `json:"sku,omitempty"`
	Zones      []string          `json:"zones,omitempty"`
	Identity   any               `json:"identity,omitempty"`
	Properties any               `json:"properties"`
}

func (r Resource) wire(typ string, properties any) wire {
	w := wire{ID: r.ID, Name: r.ID[strings.LastIndexByte(r.ID, '/')+1:], Type: typ, Location: r.Location, Tags: r.Tags, SKU: r.SKU, Zones: r.Zones, Properties: properties}
	if w.Tags == nil {
		w.Tags = map[string]string{}
	}
	return w
}

// merge applies an RFC 7396 merge patch to a JSON object; either may be empty.
func merge(target, patch json.RawMessage) (json.RawMessage, error) {
	var t, p any
	if len(target) > 0 {
		if err := json.Unmarshal(target, &t); err != nil {
			return nil, fmt.Errorf("stored properties: %w", err)
		}
	}
	if len(patch) == 0 {
		return target, nil
	}
	if err := json.Unmarshal(patch, &p); err != nil {
		return nil, invalidBody(err)
	}
	return json.Marshal(mergeValue(t, p))
}

func mergeValue(target, patch any) any {
	changes, isObject := patch.(map[string]any)
	if !isObject {
		return patch
	}
	out, isObject := target.(map[string]any)
	if !isObject {
		out = map[string]any{}
	}
	for k, v := range changes {
		if v == nil {
			delete(out, k)
			continue
		}
		out[k] = mergeValue(out[k], v)
	}
	return out
}

package arm

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// Find reads a tracked resource; the error is ResourceNotFound, or ResourceGroupNotFound if even that is missing.
func (c *Call) Find(id azure.ResourceID) (Resource, error) {
	r, ok, err := FindResource(c.Tx, id)
	if err != nil || ok {
		return r, err
	}
	if _, err := c.Group(id); err != nil {
		return Resource{}, err
	}
	return Resource{}, ResourceNotFound(id)
}

// Group reads the resource group of an id; the error is ResourceGroupNotFound.
func (c *Call) Group(id azure.ResourceID) (Group, error) {
	g, ok, err := FindGroup(c.Tx, id)
	if err == nil && !ok {
		err = GroupNotFound(id.ResourceGroup)
	}
	return g, err
}

// Store writes a tracked resource.
func (c *Call) Store(r Resource) error { return PutResource(c.Tx, r) }

// Below lists the tracked resources in a subscription or group.
func (c *Call) Below(scope azure.ResourceID) ([]Resource, error) {
	return Resources(c.Tx, scope)
}

// An Envelope is what all tracked resources have in common in a PUT or PATCH. Absent members stay nil.
type Envelope struct {
	Location   *string            `json:"location"`
	Tags       *map[string]string `json:"tags"`
	Properties json.RawMessage    `json:"properties"`
	SKU        json.RawMessage    `json:"sku"`
	Zones      *[]string          `json:"zones"`
	Identity   *IdentityInput     `json:"identity"`
}

// Begin reads the body of a PUT and returns what is stored, or a new resource if nothing is, with location and tags
// taken from the body.
func (c *Call) Begin() (r Resource, in Envelope, created bool, err error) {
	if _, err := c.Group(c.ID); err != nil {
		return r, in, false, err
	}
	if err := c.Decode(&in); err != nil {
		return r, in, false, err
	}
	location, err := c.Location(in.Location)
	if err != nil {
		return r, in, false, err
	}
	r, exists, err := FindResource(c.Tx, c.ID)
	if err != nil {
		return r, in, false, err
	}
	if exists && r.Location != location {
		return r, in, false, Fault(http.StatusConflict, "InvalidResourceLocation", "The resource '%s' already exists in location '%s' in resource group '%s'. A resource with the same name cannot be created in location '%s'. Please select a new resource name.",
			c.ID.Name(), r.Location, c.ID.ResourceGroup, location)
	}
	if !exists {
		r = Resource{ID: c.Canonical(), Location: location, UniqueID: NewGUID(), Created: c.Now}
	}
	r.Tags = nil
	if err := r.SetTags(in.Tags); err != nil {
		return r, in, false, err
	}
	return r, in, !exists, nil
}

// Canonical is the id of the resource in the request with the type spelled as the table does.
func (c *Call) Canonical() string {
	provider, rest, _ := strings.Cut(c.Type.Name, "/")
	id := c.ID
	id.Provider, id.Types = provider, strings.Split(rest, "/")
	if c.Type.Name == azure.TypeManagedIdentity {
		return id.IdentityString()
	}
	return id.String()
}

// SetTags replaces the tags unless tags is nil.
func (r *Resource) SetTags(tags *map[string]string) error {
	if tags == nil {
		return nil
	}
	if len(*tags) > 50 {
		return Fault(http.StatusBadRequest, "InvalidTagCount", "The number of tags exceeds the maximum of 50.")
	}
	for k, v := range *tags {
		if k == "" || len(k) > 512 || len(v) > 256 || strings.ContainsAny(k, `<>%&\?/`) {
			return Fault(http.StatusBadRequest, "InvalidTagNameCharacters", "The tag name or value of '%.100s' is invalid: names have 1 to 512 characters without <>%%&\\?/, values at most 256.", k)
		}
	}
	r.Tags = *tags
	return nil
}

// Finish stores the resource and answers 201 or 200.
func (c *Call) Finish(r Resource, created bool) (Answer, error) {
	r.Revision++
	if err := c.Store(r); err != nil {
		return Answer{}, err
	}
	body, err := c.Type.Render(c, r)
	if err != nil {
		return Answer{}, err
	}
	a := OK(body)
	if created {
		a.Status = http.StatusCreated
	}
	return a, nil
}

// GetTracked answers a GET.
func (c *Call) GetTracked() (Answer, error) {
	r, err := c.Find(c.ID)
	if err != nil {
		return Answer{}, err
	}
	body, err := c.Type.Render(c, r)
	return OK(body), err
}

// ListTracked answers a list in a group or a subscription.
func (c *Call) ListTracked() (Answer, error) {
	if c.ID.ResourceGroup != "" {
		if _, err := c.Group(c.ID); err != nil {
			return Answer{}, err
		}
	}
	all, err := c.Below(c.ID)
	if err != nil {
		return Answer{}, err
	}
	items := []any{}
	for _, r := range all {
		if id, err := r.ResourceID(); err != nil || !id.Is(c.Type.Name) {
			continue
		}
		item, err := c.Type.Render(c, r)
		if err != nil {
			return Answer{}, err
		}
		items = append(items, item)
	}
	return Page(items), nil
}

// DeleteTracked answers a DELETE.
func (c *Call) DeleteTracked() (Answer, error) {
	r, exists, err := FindResource(c.Tx, c.ID)
	if err != nil {
		return Answer{}, err
	}
	if !exists {
		if _, err := c.Group(c.ID); err != nil {
			return Answer{}, err
		}
		return Answer{Status: http.StatusNoContent}, nil
	}
	return Answer{Status: http.StatusOK}, Discard(c.Tx, c.Type, r)
}

// Discard deletes a tracked resource with everything that hangs on it.
func Discard(tx *state.Tx, typ *Type, r Resource) error {
	if typ.Remove != nil {
		if err := typ.Remove(tx, r); err != nil {
			return err
		}
	}
	if err := roles.DeleteBelow(tx, azure.Fold(r.ID)); err != nil {
		return err
	}
	return deleteResource(tx, r)
}

// PatchTags is PATCH for types of which only the tags can change.
func (c *Call) PatchTags() (Answer, error) {
	r, err := c.Find(c.ID)
	if err != nil {
		return Answer{}, err
	}
	var in Envelope
	if err := c.Decode(&in); err != nil {
		return Answer{}, err
	}
	if err := r.SetTags(in.Tags); err != nil {
		return Answer{}, err
	}
	return c.Finish(r, false)
}

// Wire is the form in which most tracked resources go over the wire.
type Wire struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Type       string            `json:"type"`
	Location   string            `json:"location"`
	ETag       string            `json:"etag,omitempty"`
	Tags       map[string]string `json:"tags"`
	SKU        json.RawMessage   `json:"sku,omitempty"`
	Zones      []string          `json:"zones,omitempty"`
	Identity   any               `json:"identity,omitempty"`
	Properties any               `json:"properties"`
}

// Wire makes the wire form of a resource of this type.
func (r Resource) Wire(typ string, properties any) Wire {
	w := Wire{ID: r.ID, Name: r.Name(), Type: typ, Location: r.Location, Tags: r.Tags, SKU: r.SKU, Zones: r.Zones, Properties: properties}
	if w.Tags == nil {
		w.Tags = map[string]string{}
	}
	return w
}

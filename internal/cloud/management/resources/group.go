package resources

import (
	"net/http"
	"regexp"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
)

// Names of resource groups: letters, digits and ._-() but no dot at the end.
// Source: https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
var validGroup = regexp.MustCompile(`^[\p{L}\p{N}._()-]{0,89}[\p{L}\p{N}_()-]$`)

type groupProperties struct {
	ProvisioningState string `json:"provisioningState"`
}

func groupWire(g arm.Group) arm.Wire {
	r := arm.Resource{ID: g.ID, Location: g.Location, Tags: g.Tags}
	return r.Wire(azure.TypeResourceGroup, groupProperties{"Succeeded"})
}

func getGroup(c *arm.Call) (arm.Answer, error) {
	if err := c.Require(c.Action, c.ID.String()); err != nil {
		return arm.Answer{}, err
	}
	g, err := c.Group(c.ID)
	return arm.OK(groupWire(g)), err
}

// listGroups lists the groups that the caller may read.
func listGroups(c *arm.Call) (arm.Answer, error) {
	all, err := arm.Groups(c.Tx, c.ID.SubscriptionID)
	if err != nil {
		return arm.Answer{}, err
	}
	rules, err := roles.Load(c.Tx)
	if err != nil {
		return arm.Answer{}, err
	}
	var items []arm.Wire
	for _, g := range all {
		if rules.Decide(c.Caller.ObjectID, c.Action, false, g.ID).Allowed {
			items = append(items, groupWire(g))
		}
	}
	return arm.Page(items), nil
}

func putGroup(c *arm.Call) (arm.Answer, error) {
	if !validGroup.MatchString(c.ID.ResourceGroup) {
		return arm.Answer{}, arm.Fault(http.StatusBadRequest, "InvalidResourceGroupName", "The resource group name '%s' is invalid: 1 to 90 letters, digits and ._-(), not ending with a dot.", c.ID.ResourceGroup)
	}
	var in arm.Envelope
	if err := c.Decode(&in); err != nil {
		return arm.Answer{}, err
	}
	location, err := c.Location(in.Location)
	if err != nil {
		return arm.Answer{}, err
	}
	g, exists, err := arm.FindGroup(c.Tx, c.ID)
	if err != nil {
		return arm.Answer{}, err
	}
	if exists && g.Location != location {
		return arm.Answer{}, arm.Fault(http.StatusConflict, "InvalidResourceGroupLocation", "Invalid resource group location '%s'. The Resource group already exists in location '%s'.", location, g.Location)
	}
	if !exists {
		g = arm.Group{ID: c.ID.String(), Location: location}
	}
	return saveGroup(c, g, in, !exists)
}

func patchGroup(c *arm.Call) (arm.Answer, error) {
	g, err := c.Group(c.ID)
	if err != nil {
		return arm.Answer{}, err
	}
	var in arm.Envelope
	if err := c.Decode(&in); err != nil {
		return arm.Answer{}, err
	}
	return saveGroup(c, g, in, false)
}

func saveGroup(c *arm.Call, g arm.Group, in arm.Envelope, created bool) (arm.Answer, error) {
	r := arm.Resource{Tags: g.Tags}
	if err := r.SetTags(in.Tags); err != nil {
		return arm.Answer{}, err
	}
	g.Tags = r.Tags
	a := arm.OK(groupWire(g))
	if created {
		a.Status = http.StatusCreated
	}
	return a, arm.PutGroup(c.Tx, g)
}

// deleteGroup deletes the group with all that is in it.
func deleteGroup(c *arm.Call) (arm.Answer, error) {
	g, err := c.Group(c.ID)
	if err != nil {
		return arm.Answer{}, err
	}
	resources, err := c.Below(c.ID)
	if err != nil {
		return arm.Answer{}, err
	}
	for _, r := range resources {
		id, err := r.ResourceID()
		if err != nil {
			return arm.Answer{}, err
		}
		if err := arm.Discard(c.Tx, c.Types.Find(id.Type()), r); err != nil {
			return arm.Answer{}, err
		}
	}
	if err := roles.DeleteBelow(c.Tx, c.ID.Key()); err != nil {
		return arm.Answer{}, err
	}
	return arm.Answer{Status: http.StatusOK}, arm.DeleteGroup(c.Tx, g)
}

// listResources lists tracked resources of all types, those that the caller may read.
func listResources(c *arm.Call) (arm.Answer, error) {
	if c.ID.ResourceGroup != "" {
		if _, err := c.Group(c.ID); err != nil {
			return arm.Answer{}, err
		}
	}
	filter, _ := arm.Parameter(c.Query, "$filter")
	terms, err := arm.ParseFilter(filter, "resourceType", "resourceGroup", "name", "location", "tagName", "tagValue")
	if err != nil {
		return arm.Answer{}, err
	}
	rules, err := roles.Load(c.Tx)
	if err != nil {
		return arm.Answer{}, err
	}
	all, err := c.Below(c.ID)
	if err != nil {
		return arm.Answer{}, err
	}
	items := []any{}
	for _, r := range all {
		id, err := r.ResourceID()
		if err != nil {
			return arm.Answer{}, err
		}
		typ := c.Types.Find(id.Type())
		if !selected(r, id, terms) || !rules.Decide(c.Caller.ObjectID, typ.ActionName()+"/read", false, r.ID).Allowed {
			continue
		}
		w := r.Wire(typ.Name, nil)
		items = append(items, struct {
			arm.Wire
			Properties *struct{} `json:"properties,omitempty"` // lists across types leave it out
		}{Wire: w})
	}
	return arm.Page(items), nil
}

func selected(r arm.Resource, id azure.ResourceID, terms []arm.Term) bool {
	var tagName string
	for _, t := range terms {
		switch t.Name {
		case "resourcetype":
			if !id.Is(t.Arg) {
				return false
			}
		case "resourcegroup":
			if !strings.EqualFold(id.ResourceGroup, t.Arg) {
				return false
			}
		case "name":
			if !strings.EqualFold(id.Name(), t.Arg) {
				return false
			}
		case "location":
			if r.Location != arm.NormalLocation(t.Arg) {
				return false
			}
		case "tagname":
			tagName = t.Arg
			if _, has := r.Tags[t.Arg]; !has {
				return false
			}
		case "tagvalue":
			if r.Tags[tagName] != t.Arg {
				return false
			}
		}
	}
	return true
}

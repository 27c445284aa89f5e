package management

import (
	"net/http"
	"regexp"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// Names of resource groups: letters, digits and ._-() but no dot at the end.
// Source: https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
var validGroup = regexp.MustCompile(`^[\p{L}\p{N}._()-]{0,89}[\p{L}\p{N}_()-]$`)

type groupProperties struct {
	ProvisioningState string `json:"provisioningState"`
}

func (g Group) wire() wire {
	r := Resource{ID: g.ID, Location: g.Location, Tags: g.Tags}
	return r.wire(azure.TypeResourceGroup, groupProperties{"Succeeded"})
}

func (c *call) getGroup() (answer, error) {
	if err := c.require(c.action, c.id.String()); err != nil {
		return answer{}, err
	}
	g, err := c.group(c.id)
	return ok(g.wire()), err
}

// listGroups lists the groups that the caller may read.
func (c *call) listGroups() (answer, error) {
	all, err := state.List[Group](c.tx, bucketGroups, c.id.Key()+"/")
	if err != nil {
		return answer{}, err
	}
	rules, err := loadRules(c.tx)
	if err != nil {
		return answer{}, err
	}
	var items []wire
	for _, g := range all {
		if rules.decide(c.caller.ObjectID, c.action, false, g.ID).Allowed {
			items = append(items, g.wire())
		}
	}
	return page(items), nil
}

func (c *call) putGroup() (answer, error) {
	if !validGroup.MatchString(c.id.ResourceGroup) {
		return answer{}, fault(http.StatusBadRequest, "InvalidResourceGroupName", "The resource group name '%s' is invalid: 1 to 90 letters, digits and ._-(), not ending with a dot.", c.id.ResourceGroup)
	}
	var in envelope
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	location, err := c.location(in.Location)
	if err != nil {
		return answer{}, err
	}
	g, exists, err := state.Get[Group](c.tx, bucketGroups, c.id.Key())
	if err != nil {
		return answer{}, err
	}
	if exists && g.Location != location {
		return answer{}, fault(http.StatusConflict, "InvalidResourceGroupLocation", "Invalid resource group location '%s'. The Resource group already exists in location '%s'.", location, g.Location)
	}
	if !exists {
		g = Group{ID: c.id.String(), Location: location}
	}
	return c.saveGroup(g, in, !exists)
}

func (c *call) patchGroup() (answer, error) {
	g, err := c.group(c.id)
	if err != nil {
		return answer{}, err
	}
	var in envelope
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	return c.saveGroup(g, in, false)
}

func (c *call) saveGroup(g Group, in envelope, created bool) (answer, error) {
	r := Resource{Tags: g.Tags}
	if err := r.setTags(in.Tags); err != nil {
		return answer{}, err
	}
	g.Tags = r.Tags
	a := ok(g.wire())
	if created {
		a.status = http.StatusCreated
	}
	return a, state.Put(c.tx, bucketGroups, c.id.Key(), g)
}

// deleteGroup deletes the group with all that is in it.
func (c *call) deleteGroup() (answer, error) {
	if _, err := c.group(c.id); err != nil {
		return answer{}, err
	}
	resources, err := c.below(c.id)
	if err != nil {
		return answer{}, err
	}
	for _, r := range resources {
		id, err := r.id()
		if err != nil {
			return answer{}, err
		}
		if err := c.discard(c.types().find(id.Type()), r); err != nil {
			return answer{}, err
		}
	}
	if err := c.deleteAssignmentsBelow(c.id.Key()); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK}, state.Delete(c.tx, bucketGroups, c.id.Key())
}

// listResources lists tracked resources of all types, those that the caller may read.
func (c *call) listResources() (answer, error) {
	if c.id.ResourceGroup != "" {
		if _, err := c.group(c.id); err != nil {
			return answer{}, err
		}
	}
	filter, _ := parameter(c.query, "$filter")
	terms, err := parseFilter(filter, "resourceType", "resourceGroup", "name", "location", "tagName", "tagValue")
	if err != nil {
		return answer{}, err
	}
	rules, err := loadRules(c.tx)
	if err != nil {
		return answer{}, err
	}
	all, err := c.below(c.id)
	if err != nil {
		return answer{}, err
	}
	items := []any{}
	for _, r := range all {
		id, err := r.id()
		if err != nil {
			return answer{}, err
		}
		typ := c.types().find(id.Type())
		if !selected(r, id, terms) || !rules.decide(c.caller.ObjectID, typ.actionName()+"/read", false, r.ID).Allowed {
			continue
		}
		w := r.wire(typ.name, nil)
		items = append(items, struct {
			wire
			Properties *struct{} `json:"properties,omitempty"` // lists across types leave it out
		}{wire: w})
	}
	return page(items), nil
}

func selected(r Resource, id azure.ResourceID, terms []term) bool {
	var tagName string
	for _, t := range terms {
		switch t.name {
		case "resourcetype":
			if !id.Is(t.arg) {
				return false
			}
		case "resourcegroup":
			if !strings.EqualFold(id.ResourceGroup, t.arg) {
				return false
			}
		case "name":
			if !strings.EqualFold(id.Name(), t.arg) {
				return false
			}
		case "location":
			if r.Location != normalLocation(t.arg) {
				return false
			}
		case "tagname":
			tagName = t.arg
			if _, has := r.Tags[t.arg]; !has {
				return false
			}
		case "tagvalue":
			if r.Tags[tagName] != t.arg {
				return false
			}
		}
	}
	return true
}

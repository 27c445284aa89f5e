package management

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

const actionAssign = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"

// maxInstances is how many instances a scale set may have here.
const maxInstances = 1000

// An identityInput is the member "identity" of a PUT or PATCH. A null value takes an identity away.
type identityInput struct {
	Type string                      `json:"type"`
	User map[string]*json.RawMessage `json:"userAssignedIdentities"`
}

// kinds reads a type such as "SystemAssigned, UserAssigned".
func (in identityInput) kinds() (system, user bool, err error) {
	if strings.EqualFold(in.Type, "None") {
		return false, false, nil
	}
	for part := range strings.SplitSeq(in.Type, ",") {
		switch strings.ToLower(strings.TrimSpace(part)) {
		case "systemassigned":
			system = true
		case "userassigned":
			user = true
		default:
			return false, false, fault(http.StatusBadRequest, "InvalidParameter", "The value '%.100s' of parameter 'identity.type' is invalid. Use 'SystemAssigned', 'UserAssigned', 'SystemAssigned, UserAssigned' or 'None'.", in.Type)
		}
	}
	return system, user, nil
}

// setIdentity changes the identity of a machine as asked: in a PATCH, identities that are not listed stay; in a PUT,
// they go. The caller must be allowed to assign each identity that it lists.
func (c *call) setIdentity(r *Resource, in identityInput, patch bool) error {
	system, user, err := in.kinds()
	if err != nil {
		return err
	}
	if !user && len(in.User) > 0 {
		return fault(http.StatusBadRequest, "InvalidParameter", "The identity type '%s' does not allow 'identity.userAssignedIdentities'.", in.Type)
	}
	next := Identity{System: system, User: map[string]AssignedIdentity{}}
	if r.Identity != nil {
		next.SystemPrincipalID = r.Identity.SystemPrincipalID
		if patch && user {
			maps.Copy(next.User, r.Identity.User)
		}
	}
	if err := c.assign(r.ID, in, next.User); err != nil {
		return err
	}
	if user && len(next.User) == 0 {
		return fault(http.StatusBadRequest, "InvalidParameter", "The identity type '%s' needs at least one entry in 'identity.userAssignedIdentities'. To take the last one away, set the type to 'SystemAssigned' or 'None'.", in.Type)
	}
	if err := c.setSystemIdentity(r.ID, &next); err != nil {
		return err
	}
	r.Identity = &next
	if !system && !user {
		r.Identity = nil
	}
	return nil
}

// assign adds and removes the listed identities in user, by folded id.
func (c *call) assign(machine string, in identityInput, user map[string]AssignedIdentity) error {
	rules, err := loadRules(c.tx)
	if err != nil {
		return err
	}
	for _, text := range slices.Sorted(maps.Keys(in.User)) {
		id, err := azure.ParseResourceID(text)
		if err != nil || !id.Is(azure.TypeManagedIdentity) {
			return fault(http.StatusBadRequest, "LinkedInvalidPropertyId", "Property id '%.300s' at path 'identity.userAssignedIdentities' is invalid. Expect fully qualified resource Id of a user-assigned identity that starts with '/subscriptions/{subscriptionId}'.", text)
		}
		if in.User[text] == nil {
			delete(user, id.Key())
			continue
		}
		if d := rules.decide(c.caller.ObjectID, actionAssign, false, id.String()); !d.Allowed {
			return linkedUnauthorized(c.caller.AppID, c.caller.ObjectID, c.action, c.id.String(), actionAssign, []string{text}, d)
		}
		r, found, err := state.Get[Resource](c.tx, bucketResources, id.Key())
		if err != nil {
			return err
		}
		if !found {
			return fault(http.StatusBadRequest, "FailedIdentityOperation", "Identity operation for resource '%s' failed with error 'Failed to perform resource identity operation. Status: 'BadRequest'. Response: '{\"error\":{\"code\":\"BadRequest\",\"message\":\"Resource '%s' was not found.\"}}''.", machine, text)
		}
		sp, _, err := directory.ServicePrincipalByID(c.tx, r.PrincipalID)
		if err != nil {
			return err
		}
		user[id.Key()] = AssignedIdentity{ID: text, PrincipalID: sp.ID, ClientID: sp.AppID}
	}
	return nil
}

// setSystemIdentity makes or deletes the principal of the machine itself.
func (c *call) setSystemIdentity(machine string, i *Identity) error {
	if i.System == (i.SystemPrincipalID != "") {
		return nil
	}
	if !i.System {
		_, err := directory.DeleteServicePrincipal(c.tx, i.SystemPrincipalID)
		i.SystemPrincipalID = ""
		return err
	}
	sp, err := directory.CreateManagedIdentity(c.tx, machine)
	i.SystemPrincipalID = sp.ID
	return err
}

// removeMachine deletes the principal of a system-assigned identity.
func (c *call) removeMachine(r Resource) error {
	if r.Identity == nil || r.Identity.SystemPrincipalID == "" {
		return nil
	}
	_, err := directory.DeleteServicePrincipal(c.tx, r.Identity.SystemPrincipalID)
	return err
}

func (c *call) putMachine() (answer, error) {
	if !validMachineName(c.id.Name()) {
		return answer{}, fault(http.StatusBadRequest, "InvalidParameter", "The name '%s' is invalid: 1 to 64 letters, digits, '-', '_' and '.', the first one a letter or digit.", c.id.Name())
	}
	r, in, created, err := c.begin()
	if err != nil {
		return answer{}, err
	}
	if len(in.Properties) > 0 {
		r.Properties = nil
		if r.Properties, err = merge(nil, in.Properties); err != nil {
			return answer{}, err
		}
	}
	return c.saveMachine(r, in, created)
}

func (c *call) patchMachine() (answer, error) {
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
	if r.Properties, err = merge(r.Properties, in.Properties); err != nil {
		return answer{}, err
	}
	return c.saveMachine(r, in, false)
}

func (c *call) saveMachine(r Resource, in envelope, created bool) (answer, error) {
	if len(in.SKU) > 0 {
		r.SKU = in.SKU
	}
	if in.Zones != nil {
		r.Zones = *in.Zones
	}
	if _, err := r.machineProperties(); err != nil {
		return answer{}, err
	}
	if n, err := r.capacity(); err != nil || n < 0 || n > maxInstances {
		return answer{}, fault(http.StatusBadRequest, "InvalidParameter", "The value of parameter 'sku.capacity' is invalid: it must be a number from 0 to %d.", maxInstances)
	}
	if in.Identity != nil {
		if err := c.setIdentity(&r, *in.Identity, c.method == http.MethodPatch); err != nil {
			return answer{}, err
		}
	}
	return c.finish(r, created)
}

func validMachineName(s string) bool {
	return len(s) > 0 && len(s) <= 64 && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789-_.") == "" && !strings.ContainsAny(s[:1], "-_.")
}

type machineSKU struct {
	Name     string `json:"name"`
	Capacity *int   `json:"capacity"`
}

func (r Resource) sku() (s machineSKU, err error) {
	if len(r.SKU) > 0 {
		err = json.Unmarshal(r.SKU, &s)
	}
	return s, err
}

// capacity is the number of instances of a scale set.
func (r Resource) capacity() (int, error) {
	s, err := r.sku()
	if err != nil || s.Capacity == nil {
		return 1, err
	}
	return *s.Capacity, nil
}

func (r Resource) machineProperties() (map[string]any, error) {
	p := map[string]any{}
	if len(r.Properties) > 0 {
		if err := json.Unmarshal(r.Properties, &p); err != nil || p == nil {
			return nil, fault(http.StatusBadRequest, "InvalidRequestContent", "The property 'properties' must be an object.")
		}
	}
	return p, nil
}

func (c *call) renderMachine(r Resource) (any, error) {
	p, err := r.machineProperties()
	if err != nil {
		return nil, err
	}
	p["provisioningState"] = "Succeeded"
	id := "uniqueId"
	if c.typ.name == azure.TypeVirtualMachine {
		id = "vmId"
	}
	p[id] = r.UniqueID
	w := r.wire(c.typ.name, p)
	if w.Identity, err = c.renderMachineIdentity(r.Identity); err != nil {
		return nil, err
	}
	return w, nil
}

func (c *call) renderMachineIdentity(i *Identity) (any, error) {
	if i == nil {
		return nil, nil
	}
	out := map[string]any{}
	var kinds []string
	if i.System {
		kinds = append(kinds, "SystemAssigned")
		sp, _, err := directory.ServicePrincipalByID(c.tx, i.SystemPrincipalID)
		if err != nil {
			return nil, err
		}
		out["principalId"], out["tenantId"] = sp.ID, sp.TenantID
	}
	if len(i.User) > 0 {
		kinds = append(kinds, "UserAssigned")
		user := map[string]any{}
		for _, a := range i.User {
			user[a.ID] = map[string]string{"principalId": a.PrincipalID, "clientId": a.ClientID}
		}
		out["userAssignedIdentities"] = user
	}
	out["type"] = strings.Join(kinds, ", ")
	return out, nil
}

func (c *call) listInstances() (answer, error) {
	r, err := c.find(c.id)
	if err != nil {
		return answer{}, err
	}
	n, err := r.capacity()
	if err != nil {
		return answer{}, err
	}
	var items []any
	for i := range n {
		items = append(items, r.instance(i))
	}
	return page(items), nil
}

func (c *call) getInstance() (answer, error) {
	r, err := c.find(c.id.Parent())
	if err != nil {
		return answer{}, err
	}
	n, err := r.capacity()
	if err != nil {
		return answer{}, err
	}
	i, err := strconv.Atoi(c.id.Name())
	if err != nil || i < 0 || i >= n || strconv.Itoa(i) != c.id.Name() {
		return answer{}, fault(http.StatusNotFound, "NotFound", "The instance '%s' of the virtual machine scale set '%s' does not exist.", c.id.Name(), c.id.Parent().Name())
	}
	return ok(r.instance(i)), nil
}

func (r Resource) instance(i int) any {
	name := r.ID[strings.LastIndexByte(r.ID, '/')+1:]
	return map[string]any{
		"id": r.ID + "/virtualMachines/" + strconv.Itoa(i), "name": fmt.Sprintf("%s_%d", name, i), "instanceId": strconv.Itoa(i),
		"type": azure.TypeScaleSetInstance, "location": r.Location, "tags": r.Tags,
		"properties": map[string]any{"provisioningState": "Succeeded", "latestModelApplied": true, "vmId": r.instanceID(strconv.Itoa(i))},
	}
}

// instanceID is the vmId of an instance: stable, and different in the next incarnation of the scale set.
func (r Resource) instanceID(instance string) string {
	space, err := uuid.Parse(r.UniqueID)
	if err != nil {
		space = uuid.NameSpaceURL
	}
	return uuid.NewSHA1(space, []byte(instance)).String()
}

func compareFolded(a, b string) int { return strings.Compare(azure.Fold(a), azure.Fold(b)) }

package compute

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
)

// maxInstances is how many instances a scale set may have here.
const maxInstances = 1000

func (p *provider) put(c *arm.Call) (arm.Answer, error) {
	if !validName(c.ID.Name()) {
		return arm.Answer{}, arm.Fault(http.StatusBadRequest, "InvalidParameter", "The name '%s' is invalid: 1 to 64 letters, digits, '-', '_' and '.', the first one a letter or digit.", c.ID.Name())
	}
	r, in, created, err := c.Begin()
	if err != nil {
		return arm.Answer{}, err
	}
	if len(in.Properties) > 0 {
		r.Properties = nil
		if r.Properties, err = arm.Merge(nil, in.Properties); err != nil {
			return arm.Answer{}, err
		}
	}
	return p.save(c, r, in, created)
}

func (p *provider) patch(c *arm.Call) (arm.Answer, error) {
	r, err := c.Find(c.ID)
	if err != nil {
		return arm.Answer{}, err
	}
	var in arm.Envelope
	if err := c.Decode(&in); err != nil {
		return arm.Answer{}, err
	}
	if err := r.SetTags(in.Tags); err != nil {
		return arm.Answer{}, err
	}
	if r.Properties, err = arm.Merge(r.Properties, in.Properties); err != nil {
		return arm.Answer{}, err
	}
	return p.save(c, r, in, false)
}

// save checks the rest of a change and makes it, now or as an operation.
func (p *provider) save(c *arm.Call, r arm.Resource, in arm.Envelope, created bool) (arm.Answer, error) {
	if err := precondition(c, r, !created); err != nil {
		return arm.Answer{}, err
	}
	if err := idle(c, r); err != nil {
		return arm.Answer{}, err
	}
	if len(in.SKU) > 0 {
		r.SKU = in.SKU
	}
	if in.Zones != nil {
		r.Zones = *in.Zones
	}
	if _, err := properties(r); err != nil {
		return arm.Answer{}, err
	}
	if n, err := capacityOf(r); err != nil || n < 0 || n > maxInstances {
		return arm.Answer{}, arm.Fault(http.StatusBadRequest, "InvalidParameter", "The value of parameter 'sku.capacity' is invalid: it must be a number from 0 to %d.", maxInstances)
	}
	if in.Identity != nil {
		var err error
		if r.Identity, err = p.plan(c, r, *in.Identity); err != nil {
			return arm.Answer{}, err
		}
	}
	r.State = ""
	if d := p.duration(c); d.Duration > 0 || d.Code != "" {
		return p.begin(c, r, created, d)
	}
	if err := commit(c.Tx, &r); err != nil {
		return arm.Answer{}, err
	}
	return c.Finish(r, created)
}

func (p *provider) delete(c *arm.Call) (arm.Answer, error) {
	r, exists, err := arm.FindResource(c.Tx, c.ID)
	d := p.duration(c)
	if err != nil || !exists || d.Duration == 0 && d.Code == "" {
		if err != nil {
			return arm.Answer{}, err
		}
		return c.DeleteTracked()
	}
	if err := precondition(c, r, true); err != nil {
		return arm.Answer{}, err
	}
	if err := cancel(c.Tx, r); err != nil {
		return arm.Answer{}, err
	}
	return p.beginDelete(c, r, d)
}

// etag tells one revision of one incarnation of a machine from all others.
func etag(r arm.Resource) string { return fmt.Sprintf(`"%.8s-%d"`, r.UniqueID, r.Revision) }

// precondition applies If-Match and If-None-Match (RFC 9110, section 13.1). r is what is stored, if anything is.
func precondition(c *arm.Call, r arm.Resource, exists bool) error {
	match, none := c.Header.Get("If-Match"), c.Header.Get("If-None-Match")
	if match != "" && (!exists || match != "*" && !hasTag(match, etag(r))) || none != "" && exists && (none == "*" || hasTag(none, etag(r))) {
		return arm.Fault(http.StatusPreconditionFailed, "PreconditionFailed", "The condition '%.100s' on resource '%s' is not met: its ETag is another one now. Read it again and retry.", match+none, c.ID.Name())
	}
	return nil
}

func hasTag(list, tag string) bool {
	for t := range strings.SplitSeq(list, ",") {
		if t = strings.TrimPrefix(strings.TrimSpace(t), "W/"); t == tag || `"`+t+`"` == tag {
			return true
		}
	}
	return false
}

func validName(s string) bool {
	return len(s) > 0 && len(s) <= 64 && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789-_.") == "" && !strings.ContainsAny(s[:1], "-_.")
}

type machineSKU struct {
	Name     string `json:"name"`
	Capacity *int   `json:"capacity"`
}

func skuOf(r arm.Resource) (s machineSKU, err error) {
	if len(r.SKU) > 0 {
		err = json.Unmarshal(r.SKU, &s)
	}
	return s, err
}

// capacityOf is the number of instances of a scale set.
func capacityOf(r arm.Resource) (int, error) {
	s, err := skuOf(r)
	if err != nil || s.Capacity == nil {
		return 1, err
	}
	return *s.Capacity, nil
}

func properties(r arm.Resource) (map[string]any, error) {
	p := map[string]any{}
	if len(r.Properties) > 0 {
		if err := json.Unmarshal(r.Properties, &p); err != nil || p == nil {
			return nil, arm.Fault(http.StatusBadRequest, "InvalidRequestContent", "The property 'properties' must be an object.")
		}
	}
	return p, nil
}

func render(c *arm.Call, r arm.Resource) (any, error) {
	op, busy, err := running(c.Tx, r)
	if err != nil {
		return nil, err
	}
	shown := r
	if busy && op.Next != nil { // Resource Manager shows the model; State says that the machine is not there yet
		shown = *op.Next
		shown.State, shown.Revision = r.State, r.Revision
	}
	p, err := properties(shown)
	if err != nil {
		return nil, err
	}
	p["provisioningState"] = "Succeeded"
	if shown.State != "" {
		p["provisioningState"] = shown.State
	}
	id := "uniqueId"
	if rid, err := r.ResourceID(); err == nil && rid.Is(azure.TypeVirtualMachine) {
		id = "vmId"
	}
	p[id] = r.UniqueID
	w := shown.Wire(c.Types.Find(typeOf(r)).Name, p)
	w.ETag = etag(shown)
	if w.Identity, err = renderIdentity(c.Tx, shown.Identity); err != nil {
		return nil, err
	}
	return w, nil
}

// typeOf is the type of a machine.
func typeOf(r arm.Resource) string {
	if id, err := r.ResourceID(); err == nil && id.Is(azure.TypeVirtualMachine) {
		return azure.TypeVirtualMachine
	}
	return azure.TypeVirtualMachineScaleSet
}

func listInstances(c *arm.Call) (arm.Answer, error) {
	r, err := c.Find(c.ID)
	if err != nil {
		return arm.Answer{}, err
	}
	n, err := capacityOf(r)
	if err != nil {
		return arm.Answer{}, err
	}
	var items []any
	for i := range n {
		items = append(items, instance(r, i))
	}
	return arm.Page(items), nil
}

func getInstance(c *arm.Call) (arm.Answer, error) {
	r, err := c.Find(c.ID.Parent())
	if err != nil {
		return arm.Answer{}, err
	}
	n, err := capacityOf(r)
	if err != nil {
		return arm.Answer{}, err
	}
	i, err := strconv.Atoi(c.ID.Name())
	if err != nil || i < 0 || i >= n || strconv.Itoa(i) != c.ID.Name() {
		return arm.Answer{}, arm.Fault(http.StatusNotFound, "NotFound", "The instance '%s' of the virtual machine scale set '%s' does not exist.", c.ID.Name(), c.ID.Parent().Name())
	}
	return arm.OK(instance(r, i)), nil
}

func instance(r arm.Resource, i int) any {
	name := r.Name()
	return map[string]any{
		"id": r.ID + "/virtualMachines/" + strconv.Itoa(i), "name": fmt.Sprintf("%s_%d", name, i), "instanceId": strconv.Itoa(i),
		"type": azure.TypeScaleSetInstance, "location": r.Location, "tags": r.Tags,
		"properties": map[string]any{"provisioningState": "Succeeded", "latestModelApplied": true, "vmId": instanceID(r, strconv.Itoa(i))},
	}
}

// instanceID is the vmId of an instance: stable, and different in the next incarnation of the scale set.
func instanceID(r arm.Resource, instance string) string {
	space, err := uuid.Parse(r.UniqueID)
	if err != nil {
		space = uuid.NameSpaceURL
	}
	return uuid.NewSHA1(space, []byte(instance)).String()
}

package compute

import (
	"cmp"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

const typeOperation = "Microsoft.Compute/locations/operations"

// Buckets of the state that this package owns.
const (
	bucketOperations = "computeOperations" // by GUID                  -> operation
	bucketRunning    = "computeRunning"    // by key of the machine's id -> GUID of the operation
)

// keepOperations is how long the end of an operation can be read.
const keepOperations = 24 * time.Hour

// The states of an operation.
const (
	inProgress = "InProgress"
	succeeded  = "Succeeded"
	failed     = "Failed"
	canceled   = "Canceled"
)

// An operation is a change to a machine that takes its time.
type operation struct {
	ID           string        `json:"id"` // GUID
	Subscription string        `json:"subscription"`
	Location     string        `json:"location"`
	Machine      string        `json:"machine"` // id
	Principal    string        `json:"principal"`
	Start        time.Time     `json:"start"`
	End          time.Time     `json:"end"`
	Status       string        `json:"status"`
	Next         *arm.Resource `json:"next,omitempty"` // the machine afterwards; nil for a deletion
	Code         string        `json:"code,omitempty"` // why it fails
	Message      string        `json:"message,omitempty"`
}

// running is the operation that is changing a machine now.
func running(tx *state.Tx, r arm.Resource) (operation, bool, error) {
	id, busy, err := state.Get[string](tx, bucketRunning, azure.Fold(r.ID))
	if err != nil || !busy {
		return operation{}, false, err
	}
	return state.Get[operation](tx, bucketOperations, id)
}

// idle refuses a change to a machine that is being changed.
func idle(c *arm.Call, r arm.Resource) error {
	op, busy, err := running(c.Tx, r)
	if err != nil || !busy {
		return err
	}
	e := arm.Fault(http.StatusConflict, "Conflict", "The request failed due to conflict with a concurrent request. To resolve it, please refer to https://aka.ms/activitylog to get more details on the conflicting requests.")
	e.Err = fmt.Errorf("operation %s on %s runs until %s", op.ID, r.ID, op.End.Format(time.RFC3339))
	return e
}

// begin starts a change: the machine stays as it is until it is due, but for its state.
func (p *provider) begin(c *arm.Call, next arm.Resource, created bool, d fault.Operation) (arm.Answer, error) {
	stored, _, err := arm.FindResource(c.Tx, c.ID)
	if err != nil {
		return arm.Answer{}, err
	}
	if created {
		stored = next
		stored.Identity = nil
	}
	stored.State = "Updating"
	if created {
		stored.State = "Creating"
	}
	op := p.start(c, stored, d)
	op.Next = &next
	if err := op.put(c.Tx); err != nil {
		return arm.Answer{}, err
	}
	a, err := c.Finish(stored, created)
	a.Header = p.headers(op, c.Now)
	return a, err
}

func (p *provider) beginDelete(c *arm.Call, r arm.Resource, d fault.Operation) (arm.Answer, error) {
	r.State = "Deleting"
	r.Revision++
	op := p.start(c, r, d)
	if err := op.put(c.Tx); err != nil {
		return arm.Answer{}, err
	}
	return arm.Answer{Status: http.StatusAccepted, Header: p.headers(op, c.Now)}, c.Store(r)
}

func (p *provider) start(c *arm.Call, r arm.Resource, d fault.Operation) operation {
	return operation{ID: arm.NewGUID(), Subscription: azure.Fold(c.ID.SubscriptionID), Location: r.Location, Machine: r.ID, Principal: c.Caller.ObjectID,
		Start: c.Now, End: c.Now.Add(time.Duration(d.Duration)), Status: inProgress, Code: d.Code, Message: d.Message}
}

// put stores an operation that begins, and forgets those that ended long ago.
func (o operation) put(tx *state.Tx) error {
	old, err := state.List[operation](tx, bucketOperations, "")
	if err != nil {
		return err
	}
	for _, x := range old {
		if x.Status != inProgress && o.Start.Sub(x.End) > keepOperations {
			if err := state.Delete(tx, bucketOperations, x.ID); err != nil {
				return err
			}
		}
	}
	if err := state.Put(tx, bucketRunning, azure.Fold(o.Machine), o.ID); err != nil {
		return err
	}
	return state.Put(tx, bucketOperations, o.ID, o)
}

// headers tell a client where to look and when.
func (p *provider) headers(o operation, now time.Time) http.Header {
	at := azure.ResourceManagement + "/subscriptions/" + o.Subscription + "/providers/Microsoft.Compute/locations/" + o.Location + "/operations/" + o.ID
	return http.Header{
		"Azure-Asyncoperation": {at + "?api-version=2024-11-01"},
		"Location":             {at + "?monitor=true&api-version=2024-11-01"},
		"Retry-After":          {p.retryAfter(o, now)},
	}
}

// retryAfter is in whole seconds, at least one, and no longer than the operation takes.
func (p *provider) retryAfter(o operation, now time.Time) string {
	wait := max(p.settings().RetryAfter, time.Second)
	wait = min(wait, max(o.End.Sub(now), time.Second))
	return strconv.Itoa(int(math.Ceil(wait.Seconds())))
}

// getOperation shows an operation to whoever began it or may read its machine. With monitor=true it is the address of
// Location: 202 until the end, then what the request would have answered.
func (p *provider) getOperation(c *arm.Call) (arm.Answer, error) {
	o, found, err := state.Get[operation](c.Tx, bucketOperations, azure.Fold(c.ID.Name()))
	if err != nil {
		return arm.Answer{}, err
	}
	if !found || o.Subscription != azure.Fold(c.ID.SubscriptionID) {
		return arm.Answer{}, operationNotFound(c.ID.Name())
	}
	id, err := azure.ParseResourceID(o.Machine)
	if err != nil {
		return arm.Answer{}, err
	}
	if o.Principal != c.Caller.ObjectID {
		d, err := roles.Authorize(c.Tx, c.Caller.ObjectID, id.Type()+"/read", false, id.String())
		if err != nil {
			return arm.Answer{}, err
		}
		if !d.Allowed { // nor may such a caller learn which operations exist
			return arm.Answer{}, operationNotFound(c.ID.Name())
		}
	}
	if monitor, _ := arm.Parameter(c.Query, "monitor"); monitor == "true" {
		return p.monitor(c, o, id)
	}
	a := arm.OK(o.wire(c.ID))
	if o.Status == inProgress {
		a.Header = http.Header{"Retry-After": {p.retryAfter(o, c.Now)}}
	}
	return a, nil
}

func (p *provider) monitor(c *arm.Call, o operation, id azure.ResourceID) (arm.Answer, error) {
	switch {
	case o.Status == inProgress:
		return arm.Answer{Status: http.StatusAccepted, Header: p.headers(o, c.Now)}, nil
	case o.Status != succeeded:
		return arm.Answer{}, arm.Fault(http.StatusConflict, o.Code, "%s", o.Message)
	case o.Next == nil:
		return arm.Answer{Status: http.StatusNoContent}, nil
	}
	r, err := c.Find(id)
	if err != nil {
		return arm.Answer{}, err
	}
	body, err := render(c, r)
	return arm.OK(body), err
}

func operationNotFound(name string) error {
	return arm.Fault(http.StatusNotFound, "NotFound", "The entity '%.100s' was not found: no such operation, or it ended more than a day ago.", name)
}

func (o operation) wire(id azure.ResourceID) any {
	type fault struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	w := struct {
		ID     string     `json:"id"`
		Name   string     `json:"name"`
		Status string     `json:"status"`
		Start  time.Time  `json:"startTime"`
		End    *time.Time `json:"endTime,omitempty"`
		Error  *fault     `json:"error,omitempty"`
	}{ID: id.String(), Name: o.ID, Status: o.Status, Start: o.Start}
	if o.Status != inProgress {
		w.End = &o.End
	}
	if o.Status == failed || o.Status == canceled {
		w.Error = &fault{o.Code, o.Message}
	}
	return w
}

// current lists the operations in progress, in the order in which they end.
func current(tx *state.Tx) ([]operation, error) {
	ids, err := state.List[string](tx, bucketRunning, "")
	if err != nil {
		return nil, err
	}
	var all []operation
	for _, id := range ids {
		o, found, err := state.Get[operation](tx, bucketOperations, id)
		if err != nil {
			return nil, err
		}
		if found {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b operation) int { return cmp.Or(a.End.Compare(b.End), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

func anyDue(tx *state.Tx, now time.Time) (bool, error) {
	all, err := current(tx)
	return len(all) > 0 && !now.Before(all[0].End), err
}

// settle makes the changes that are due.
func settle(tx *state.Tx, now time.Time) error {
	all, err := current(tx)
	if err != nil {
		return err
	}
	for _, o := range all {
		if now.Before(o.End) {
			break
		}
		if err := o.settle(tx); err != nil {
			return fmt.Errorf("ending operation %s: %w", o.ID, err)
		}
	}
	return nil
}

func (o operation) settle(tx *state.Tx) error {
	id, err := azure.ParseResourceID(o.Machine)
	if err != nil {
		return err
	}
	stored, found, err := arm.FindResource(tx, id)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("%s is gone", o.Machine)
	}
	if o.Code == "" && o.Next != nil {
		if o.Code, o.Message, err = missing(tx, stored, *o.Next); err != nil {
			return err
		}
	}
	if err := state.Delete(tx, bucketRunning, azure.Fold(o.Machine)); err != nil {
		return err
	}
	stored.Revision++
	switch {
	case o.Code != "":
		o.Status, stored.State = failed, "Failed"
		err = arm.PutResource(tx, stored)
	case o.Next == nil:
		o.Status = succeeded
		err = arm.Discard(tx, &arm.Type{Remove: remove}, stored)
	default:
		o.Status, o.Next.Revision = succeeded, stored.Revision
		if err = commit(tx, o.Next); err == nil {
			err = arm.PutResource(tx, *o.Next)
		}
	}
	if err != nil {
		return err
	}
	return state.Put(tx, bucketOperations, o.ID, o)
}

// missing finds an identity that was to be put on a machine and was deleted meanwhile.
func missing(tx *state.Tx, stored, next arm.Resource) (code, message string, err error) {
	if next.Identity == nil {
		return "", "", nil
	}
	for _, a := range sorted(next.Identity) {
		if stored.Identity != nil && stored.Identity.User[azure.Fold(a.ID)] == a {
			continue
		}
		_, found, err := directory.ServicePrincipalByID(tx, a.PrincipalID)
		if err != nil {
			return "", "", err
		}
		if !found {
			code, message = identityGone(next.ID, a.ID)
			return code, message, nil
		}
	}
	return "", "", nil
}

// cancel ends what is going on with a machine, because it is deleted.
func cancel(tx *state.Tx, r arm.Resource) error {
	o, busy, err := running(tx, r)
	if err != nil || !busy {
		return err
	}
	o.Status, o.Code, o.Message = canceled, "OperationPreempted", "Operation execution has been preempted by a more recent operation."
	if err := state.Delete(tx, bucketRunning, azure.Fold(r.ID)); err != nil {
		return err
	}
	return state.Put(tx, bucketOperations, o.ID, o)
}

// Check verifies that each machine that is being changed exists, with the operation that changes it.
func Check(tx *state.Tx) error {
	keys, err := state.Keys(tx, bucketRunning, "")
	if err != nil {
		return err
	}
	for _, key := range keys {
		id, err := azure.ParseResourceID(key)
		if err != nil {
			return err
		}
		r, found, err := arm.FindResource(tx, id)
		if err != nil {
			return err
		}
		o, busy, err := running(tx, r)
		if err != nil {
			return err
		}
		if !found || !busy || o.Status != inProgress || r.State == "" || azure.Fold(o.Machine) != key {
			return fmt.Errorf("machine %s is being changed by operation %q (%s), its state is %q, it exists: %t", key, o.ID, o.Status, r.State, found)
		}
	}
	return nil
}

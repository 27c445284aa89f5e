package machines

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/mic/arm"
	"github.com/lanyard-id/lanyard/internal/mic/assigned"
)

// maxAdded is how many identities one batch adds: what Azure takes in one
// request, and what the note of it may hold. The others are the next batch.
const maxAdded = 150

// A batch is what is to be done about one machine. The assignments in it belong
// to the cache and are never modified.
type batch struct {
	machine azure.ResourceID
	memory  *memory
	entries []*entry // by key of the identity
	pending bool     // something waits
	more    bool     // there is more than one batch may do
	unclear bool     // the machine may have what a claim is about, and no other note says so
}

// An entry is one identity on one machine, with the assignments that want it
// and those that let it go.
type entry struct {
	id       azure.ResourceID
	wanted   []*v1.AzureAssignedIdentity
	leaving  []*v1.AzureAssignedIdentity
	added    bool // mic put it there
	pinned   bool // it is never taken away
	held     bool // one of wanted has the finalizer
	left     bool // no assignment of it is left
	foreign  bool // nothing but an assignment says that it is the cluster's
	err      error
	deferred bool // err is of an earlier attempt, and it is too early for the next
	later    bool // its turn is the next batch
}

// batch groups assignments by identity, in a stable order.
func (c *Controller) batch(machine azure.ResourceID, m *memory, items []v1.AzureAssignedIdentity) *batch {
	b := &batch{machine: machine, memory: m}
	byKey := map[string]*entry{}
	claimed := map[string]bool{}
	here := make(map[types.UID]bool, len(items))
	for i := range items {
		here[items[i].UID] = true
		a := m.latest(&items[i])
		for _, text := range claims(a) {
			claimed[azure.Fold(text)] = true
		}
		ref := a.Spec.AzureIdentityRef
		if ref == nil {
			ref = &v1.AzureIdentity{}
		}
		id, err := binding.ManagedIdentity(ref)
		if err != nil && a.DeletionTimestamp.IsZero() {
			continue // never created by this controller
		}
		// One that names no identity (id is the root) has only to be let go.
		e := byKey[id.Key()]
		if e == nil {
			e = &entry{id: id}
			byKey[id.Key()] = e
			b.entries = append(b.entries, e)
		}
		if a.DeletionTimestamp.IsZero() {
			e.wanted = append(e.wanted, a)
		} else if holds(a) {
			e.leaving = append(e.leaving, a)
			b.pending = true
		}
		switch a.Annotations[assigned.AddedAnnotation] {
		case "true":
			e.added = true
		case "": // of Pod Identity v1, which put it there if it got that far
			e.added = e.added || a.Status.Status != v1.AssignedIDCreated
		}
		e.pinned = e.pinned || slices.ContainsFunc(c.ImmutableClientIDs, func(id string) bool {
			return azure.Fold(id) == azure.Fold(ref.Spec.ClientID)
		})
	}
	for key, p := range m.put {
		if byKey[key] == nil {
			byKey[key] = &entry{id: p.identity, added: true, pinned: p.pinned, left: true}
			b.entries = append(b.entries, byKey[key])
			b.pending = b.pending || !p.pinned
		}
	}
	slices.SortFunc(b.entries, func(a, b *entry) int { return cmp.Compare(a.id.Key(), b.id.Key()) })
	now := c.now()
	for _, e := range b.entries {
		key := e.id.Key()
		e.added = e.added || claimed[key]
		if r := m.refused[key]; r != nil && len(e.wanted) > 0 && now.Before(r.until) {
			e.err, e.deferred = r.err, true
		}
		b.pending = b.pending || e.added && !e.deferred && len(e.wanted) > 0 && !slices.ContainsFunc(e.wanted, holds) || slices.ContainsFunc(e.wanted, func(a *v1.AzureAssignedIdentity) bool {
			if e.deferred {
				return len(a.Status.Conditions) == 0 // it has not been told yet
			}
			return a.Status.Status != v1.AssignedIDAssigned || a.Annotations[assigned.AddedAnnotation] == "" || m.there != nil && !m.there[key]
		})
	}
	m.written.Range(func(uid, _ any) bool {
		if !here[uid.(types.UID)] {
			m.written.Delete(uid)
		}
		return true
	})
	for key := range m.refused {
		if byKey[key] == nil {
			delete(m.refused, key)
		}
	}
	for key := range m.backed {
		if byKey[key] == nil {
			delete(m.backed, key)
		}
	}
	return b
}

// holds reports whether an assignment stays until mic lets it go. Of those that
// want an identity on a machine one does, from before mic puts it there.
func holds(a *v1.AzureAssignedIdentity) bool {
	return controllerutil.ContainsFinalizer(a, v1.AssignedFinalizer)
}

// claims are the identities that an assignment notes as about to be added.
func claims(a *v1.AzureAssignedIdentity) []string {
	if text := a.Annotations[assigned.AddingAnnotation]; text != "" {
		return strings.Split(text, ",")
	}
	return nil
}

// apply compares with the cloud and changes what differs. What an identity is to
// blame for is noted on its entry; the error is of the machine.
func (c *Controller) apply(ctx context.Context, b *batch) error {
	m := b.memory
	if _, due := m.due(c.now(), c.Recheck); due {
		has, err := c.Cloud.Identities(ctx, b.machine)
		if arm.Gone(err) {
			for _, e := range b.entries {
				if len(e.wanted) > 0 {
					e.err, e.deferred = err, false
				}
			}
			return nil // nothing to change; what leaves has left
		}
		if err != nil {
			return err
		}
		m.there, m.checked = make(map[string]bool, len(has)), c.now()
		for _, id := range has {
			m.there[id.Key()] = true
		}
	}
	var add, remove []*entry
	for _, e := range b.entries {
		switch on := m.there[e.id.Key()]; {
		case e.deferred:
		case len(e.wanted) > 0 && !on && len(add) == maxAdded:
			e.later, b.more = true, true
		case len(e.wanted) > 0 && !on:
			add = append(add, e)
		case len(e.wanted) == 0 && (len(e.leaving) > 0 || e.left) && on && e.added && !e.pinned && !e.foreign:
			remove = append(remove, e)
		}
	}
	if err := c.claim(ctx, b, add); err != nil {
		return err
	}
	return c.change(ctx, b, add, remove)
}

// claim notes on one assignment that mic is about to put the identities there,
// and gives each identity an assignment that stays.
func (c *Controller) claim(ctx context.Context, b *batch, add []*entry) error {
	var fresh []string
	for _, e := range add {
		if !e.added {
			fresh = append(fresh, e.id.String())
		}
	}
	for _, e := range add {
		if e.held && (len(fresh) == 0 || e.added) {
			continue
		}
		i := max(0, slices.IndexFunc(e.wanted, holds))
		a := e.wanted[i]
		next := a.DeepCopy()
		controllerutil.AddFinalizer(next, v1.AssignedFinalizer)
		if !e.added {
			assigned.SetAnnotation(next, assigned.AddingAnnotation, strings.Join(append(claims(a), fresh...), ","))
			fresh = nil
		}
		if err := c.Client.Patch(ctx, next, client.MergeFromWithOptions(a, client.MergeFromWithOptimisticLock{})); err != nil {
			return fmt.Errorf("noting the intent on AzureAssignedIdentity %s/%s: %w", a.Namespace, a.Name, err)
		}
		b.memory.written.Store(next.UID, next)
		e.wanted[i], e.held = next, true
	}
	for _, e := range add {
		e.added = true
	}
	return nil
}

// change asks for everything at once. If the cloud blames identities, those go
// and the others are asked for again; if it does not say which, halves are tried
// until the ones to blame are alone. They never hold up the others.
func (c *Controller) change(ctx context.Context, b *batch, add, remove []*entry) error {
	if len(add)+len(remove) == 0 {
		return nil
	}
	err := c.Cloud.Update(ctx, b.machine, ids(add), ids(remove))
	switch all := slices.Concat(add, remove); {
	case err == nil:
		for _, e := range add {
			b.memory.there[e.id.Key()] = true
		}
		for _, e := range remove {
			delete(b.memory.there, e.id.Key())
			if e.left {
				c.logger().WarnContext(ctx, "every assignment of an identity vanished before the identity had left the machine: it is taken off", "machine", b.machine.String(), "identity", e.id.String())
			}
		}
		return nil
	case !arm.BlamesIdentity(err):
		for _, e := range all {
			e.err = err
		}
		return err
	case len(all) == 1:
		all[0].err = err
		return nil
	default:
		return c.split(ctx, b, add, remove, err)
	}
}

func (c *Controller) split(ctx context.Context, b *batch, add, remove []*entry, err error) error {
	if bad := arm.Blamed(err, ids(add)); len(bad) > 0 {
		for _, i := range bad {
			add[i].err = err
		}
		return c.change(ctx, b, slices.DeleteFunc(slices.Clone(add), func(e *entry) bool { return e.err != nil }), remove)
	}
	if len(remove) > 0 && len(add) > 0 {
		return errors.Join(c.change(ctx, b, nil, remove), c.change(ctx, b, add, nil))
	}
	return errors.Join(
		c.change(ctx, b, add[:len(add)/2], remove[:len(remove)/2]),
		c.change(ctx, b, add[len(add)/2:], remove[len(remove)/2:]))
}

func ids(entries []*entry) []azure.ResourceID {
	out := make([]azure.ResourceID, len(entries))
	for i, e := range entries {
		out[i] = e.id
	}
	return out
}

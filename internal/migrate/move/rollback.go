package move

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/internal/migrate"
)

// Edits say what a rollback does with what others have changed meanwhile.
type Edits int

// Edits.
const (
	RefuseEdits    Edits = iota // nothing is rolled back; the error shows the edits
	KeepEdits                   // only what migration changed is undone
	OverwriteEdits              // every object becomes what it was
)

// A Rollback says what to roll back.
type Rollback struct {
	Namespace string        // empty means all
	Workloads []migrate.Ref // empty means all that were migrated
	Edits     Edits
}

// Rollback makes workloads what they were, waits until their pods are, and then
// removes what was made for them alone. It can be run again after any
// interruption.
func (m *Mover) Rollback(ctx context.Context, b Rollback) error {
	records, err := m.Records(ctx, b.Namespace)
	if err != nil {
		return err
	}
	workloads, err := chosen(records, b.Workloads)
	if err != nil {
		return err
	}
	if len(records) == 0 {
		return errors.New("nothing was migrated here: there are no records")
	}
	// Whatever refuses comes before anything is changed.
	var all []error
	for _, r := range workloads {
		if _, err := m.target(ctx, r, b.Edits); err != nil {
			all = append(all, err)
		}
	}
	if err := errors.Join(all...); err != nil {
		return err
	}
	for _, r := range workloads {
		if err := m.restore(ctx, r, b.Edits); err != nil {
			return fmt.Errorf("%s: %w", r.Object, err)
		}
		if err := m.forget(ctx, r); err != nil {
			return err
		}
	}
	// An account's credentials go when nobody depends on it any more.
	if records, err = m.Records(ctx, b.Namespace); err != nil {
		return err
	}
	for _, r := range records {
		if account := r.account(); account == "" || slices.ContainsFunc(records, func(w *Record) bool {
			return w.isWorkload() && w.Namespace == r.Namespace && w.ServiceAccount == account
		}) {
			continue
		}
		if err := m.withdraw(ctx, r, b.Edits); err != nil {
			return fmt.Errorf("%s: %w", r.Object, err)
		}
		if err := m.forget(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// account is the service account that a record is for, empty for a workload's.
func (r *Record) account() string {
	switch {
	case r.isWorkload():
		return ""
	case r.Subject != "":
		return r.Subject
	case r.ServiceAccount != "":
		return r.ServiceAccount
	}
	return r.Object.Name
}

// target returns what a workload is to become: nil if it is that already.
func (m *Mover) target(ctx context.Context, r *Record, edits Edits) (*unstructured.Unstructured, error) {
	now, err := m.get(ctx, r.Object)
	if err != nil {
		return nil, err
	}
	if r.Before == nil {
		return nil, fmt.Errorf("the record of %s does not tell what it was", r.Object)
	}
	if now == nil {
		if r.Action == migrate.ActionRecreate || edits == OverwriteEdits {
			return r.Before, nil
		}
		if edits == KeepEdits {
			return nil, nil
		}
		return nil, fmt.Errorf("%s: %w: it is gone; --force makes it again, --keep-edits leaves it away", r.Object, ErrEdited)
	}
	now, before := asScaled(now, r.After), r.Before
	switch {
	case same(now, before):
		return nil, nil
	case same(now, r.After) || edits == OverwriteEdits:
		return before, nil
	case r.Object.Kind == "Job" && now.GetUID() == before.GetUID():
		return nil, nil // interrupted before it was deleted; a Job's template never changes
	case edits == KeepEdits:
		next, err := undo(now, r)
		if err != nil || same(next, now) {
			return nil, err
		}
		return next, nil
	}
	return nil, fmt.Errorf("%s: %w since it was migrated; --keep-edits undoes the migration only, --force makes it what it was\n%s", r.Object, ErrEdited, edited(r.After, now))
}

// edited shows what somebody has changed.
func edited(after, now *unstructured.Unstructured) string {
	text := func(o *unstructured.Unstructured) []byte {
		raw, err := yaml.Marshal(migrate.Canonical(o).Object)
		if err != nil {
			return nil
		}
		return raw
	}
	_, d, _ := strings.Cut(string(diff.Diff("migrated", text(after), "now", text(now))), "\n")
	return d
}

// asScaled returns o with the number of replicas that like has: scaling is not an
// edit of the workload, and often an autoscaler's.
func asScaled(o, like *unstructured.Unstructured) *unstructured.Unstructured {
	n, given, err := unstructured.NestedInt64(like.Object, "spec", "replicas")
	if _, has, _ := unstructured.NestedInt64(o.Object, "spec", "replicas"); err != nil || !given || !has {
		return o
	}
	o = o.DeepCopy()
	if err := unstructured.SetNestedField(o.Object, n, "spec", "replicas"); err != nil {
		return o
	}
	return o
}

// restore makes a workload what it was.
func (m *Mover) restore(ctx context.Context, r *Record, edits Edits) error {
	target, err := m.target(ctx, r, edits)
	if err != nil {
		return err
	}
	now, err := m.get(ctx, r.Object)
	if err != nil {
		return err
	}
	if target == nil {
		if now == nil {
			return nil
		}
		return m.rolledOut(ctx, r.Object, waitFor(now))
	}
	m.step("%s: back to what it was", r.Object)
	switch {
	case now == nil:
		now, err = m.create(ctx, target)
	case r.Object.Kind == "Job":
		if condition(now, "Complete") == "True" && edits != OverwriteEdits {
			m.step("  it has ended, and is left as it is: going back would do its work again (--force does)")
			return nil
		}
		now, err = m.recreate(ctx, target)
	default:
		next := target.DeepCopy()
		if n, ok, _ := unstructured.NestedInt64(now.Object, "spec", "replicas"); ok && !same(now, asScaled(now, r.After)) {
			if err := unstructured.SetNestedField(next.Object, n, "spec", "replicas"); err != nil {
				return err
			}
		}
		target = next
		now, err = m.update(ctx, now, next)
	}
	if err != nil {
		return err
	}
	if !same(now, target) {
		return fmt.Errorf("the API server did not take it as it was:\n%s", edited(target, now))
	}
	return m.rolledOut(ctx, r.Object, waitFor(now))
}

// waitFor says how a change of a workload reaches its pods.
func waitFor(o *unstructured.Unstructured) string {
	strategy, _, _ := unstructured.NestedString(o.Object, "spec", "updateStrategy", "type")
	switch {
	case strategy == "OnDelete":
		return migrate.ActionOnDelete
	case o.GetKind() == "CronJob":
		return migrate.ActionNextRun
	}
	return migrate.ActionRollout
}

// over returns target as the next version of the object that is there now: what
// the server manages stays.
func over(now, target *unstructured.Unstructured) *unstructured.Unstructured {
	next := migrate.Canonical(target)
	next.SetResourceVersion(now.GetResourceVersion())
	next.SetUID(now.GetUID())
	if status, ok := now.Object["status"]; ok {
		next.Object["status"] = status
	}
	managed := migrate.ServerManaged(now)
	if len(managed) > 0 {
		all := next.GetAnnotations()
		if all == nil {
			all = map[string]string{}
		}
		for k, v := range managed {
			all[k] = v
		}
		next.SetAnnotations(all)
	}
	return next
}

// withdraw removes what was made for a service account: credentials, the account
// itself or its annotations, its place in role bindings.
func (m *Mover) withdraw(ctx context.Context, r *Record, edits Edits) error {
	for _, c := range r.Credentials {
		if err := m.removeCredential(ctx, c); err != nil {
			return err
		}
	}
	now, err := m.get(ctx, r.Object)
	if err != nil || now == nil {
		return err
	}
	m.step("%s: back to what it was", r.Object)
	switch {
	case r.Subject != "":
		subjects, _, _ := unstructured.NestedSlice(now.Object, "subjects")
		left := slices.DeleteFunc(subjects, isSubject(r.Namespace, r.Subject))
		next := now.DeepCopy()
		next.Object["subjects"] = left
		_, err = m.update(ctx, now, next)
		return err
	case r.Before == nil: // it was made
		if !same(now, r.After) && edits == RefuseEdits {
			return fmt.Errorf("%w since migration made it; --force deletes it\n%s", ErrEdited, edited(r.After, now))
		}
		if edits == KeepEdits && !same(now, r.After) {
			return nil
		}
		uid := now.GetUID()
		err := m.resource(r.Object).Delete(ctx, r.Object.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting it: %w", err)
		}
		return nil
	case same(now, r.Before):
		return nil
	}
	target := r.Before
	if edits != OverwriteEdits { // an account is many people's: what others wrote stays
		if target, err = undo(now, r); err != nil {
			return err
		}
	}
	if same(now, target) {
		return nil
	}
	_, err = m.update(ctx, now, target)
	return err
}

// removeCredential removes a credential that migration made, if it is still that.
func (m *Mover) removeCredential(ctx context.Context, c migrate.NewCredential) error {
	if m.Writer == nil || m.Azure == nil {
		return fmt.Errorf("the federated credential %s of %s has to be removed, and nobody is signed in to Azure", c.Name, c.Parent)
	}
	all, err := m.Azure.List(ctx, c.Parent)
	if err != nil {
		return fmt.Errorf("looking for the federated credential %s of %s: %w", c.Name, c.Parent, err)
	}
	for _, have := range all {
		if have.Name != c.Name {
			continue
		}
		if !have.Same(c.Credential) {
			m.step("  the federated credential %s of %s is for something else now, and stays", c.Name, c.Parent)
			return nil
		}
		m.step("  federated credential %s of %s: removed", c.Name, c.Parent)
		if _, err := m.Writer.Delete(ctx, c.Parent, c.Name); err != nil {
			return fmt.Errorf("removing the federated credential %s of %s: %w", c.Name, c.Parent, explained(err))
		}
	}
	return nil
}

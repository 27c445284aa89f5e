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

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/migrate"
	"github.com/lanyard-id/lanyard/internal/migrate/move/record"
	"github.com/lanyard-id/lanyard/internal/migrate/move/survey"
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
	// Issuer of the cluster's tokens when it was migrated; empty means what the
	// API server says. No credential of another issuer is removed.
	Issuer string
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
		if err := m.records().Forget(ctx, r); err != nil {
			return err
		}
	}
	// An account's credentials go when nobody depends on it any more.
	if records, err = m.Records(ctx, b.Namespace); err != nil {
		return err
	}
	w := withdrawal{Rollback: b, pods: map[string][]*unstructured.Unstructured{}}
	for _, r := range records {
		if account := r.Account(); account == "" || slices.ContainsFunc(records, func(w *record.Record) bool {
			return w.IsWorkload() && w.Namespace == r.Namespace && w.ServiceAccount == account
		}) {
			continue
		}
		if needed, err := m.needed(ctx, r, &w); err != nil {
			return err
		} else if needed != "" {
			all = append(all, fmt.Errorf("%s stays, with its credentials: %s; run the same again when that has ended (--force takes them away at once)", r.Object, needed))
			continue
		}
		if err := m.withdraw(ctx, r, &w); err != nil {
			return fmt.Errorf("%s: %w", r.Object, err)
		}
		if err := m.records().Forget(ctx, r); err != nil {
			return err
		}
	}
	return errors.Join(all...)
}

// A withdrawal is the part of a rollback after the workloads.
type withdrawal struct {
	Rollback
	pods map[string][]*unstructured.Unstructured // by namespace; those that were there after the workloads had changed
}

// needed says which pods still get tokens by what migration made: those of a run
// of a CronJob, of an update strategy OnDelete, or of what others have made since.
func (m *Mover) needed(ctx context.Context, r *record.Record, w *withdrawal) (string, error) {
	if w.Edits == OverwriteEdits {
		return "", nil
	}
	pods, read := w.pods[r.Namespace]
	if !read {
		gvr, _ := migrate.ResourceOf("Pod")
		var err error
		if pods, err = survey.List(ctx, m.Objects, gvr, r.Namespace, "Pod"); err != nil {
			return "", err
		}
		w.pods[r.Namespace] = pods
	}
	made := r.Object.Kind == migrate.KindServiceAccount && r.Before == nil
	for _, p := range pods {
		t, ok := migrate.TemplateOf(p)
		phase, _, _ := unstructured.NestedString(p.Object, "status", "phase")
		switch {
		case !ok || t.ServiceAccount() != r.Account() || p.GetDeletionTimestamp() != nil || phase == "Succeeded" || phase == "Failed":
		case made || strings.EqualFold(t.Labels()[workloadidentity.LabelUse], "true"):
			return fmt.Sprintf("pod %s runs as service account %s", p.GetName(), r.Account()), nil
		}
	}
	return "", nil
}

// target returns what a workload is to become: nil if it is that already.
func (m *Mover) target(ctx context.Context, r *record.Record, edits Edits) (*unstructured.Unstructured, error) {
	now, err := m.get(ctx, r.Object)
	if err != nil {
		return nil, err
	}
	if r.Before == nil {
		return nil, fmt.Errorf("the record of %s does not tell what it was", r.Object)
	}
	if now == nil {
		if r.Remaking || edits == OverwriteEdits {
			return r.Before, nil
		}
		if r.Action == migrate.ActionRecreate || edits == KeepEdits {
			return nil, nil // a Job that has ended goes after its time: its work is done
		}
		return nil, fmt.Errorf("%s: %w: it is gone; --force makes it again, --keep-edits leaves it away", r.Object, ErrEdited)
	}
	now, before := asScaled(now, r.After), r.Before
	switch {
	case record.Same(now, before):
		return nil, nil
	case record.Same(now, r.After) || edits == OverwriteEdits:
		return before, nil
	case r.Object.Kind == "Job" && now.GetUID() == before.GetUID():
		return nil, nil // interrupted before it was deleted; a Job's template never changes
	case edits == KeepEdits:
		next, err := r.Undo(now)
		if err != nil || record.Same(next, now) {
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
func (m *Mover) restore(ctx context.Context, r *record.Record, edits Edits) error {
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
			m.step("%s: it is gone, and is not made again (--force does)", r.Object)
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
		r.Remaking = true
		if err := m.records().Write(ctx, r); err != nil {
			return err
		}
		now, err = m.recreate(ctx, target)
	default:
		next := target.DeepCopy()
		if n, ok, _ := unstructured.NestedInt64(now.Object, "spec", "replicas"); ok && !record.Same(now, asScaled(now, r.After)) {
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
	if !record.Same(now, target) {
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
func (m *Mover) withdraw(ctx context.Context, r *record.Record, w *withdrawal) error {
	edits := w.Edits
	for _, c := range r.Credentials {
		if err := m.removeCredential(ctx, c, w); err != nil {
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
		if !record.Same(now, r.After) && edits == RefuseEdits {
			return fmt.Errorf("%w since migration made it; --force deletes it\n%s", ErrEdited, edited(r.After, now))
		}
		if edits == KeepEdits && !record.Same(now, r.After) {
			return nil
		}
		uid := now.GetUID()
		err := m.resource(r.Object).Delete(ctx, r.Object.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting it: %w", err)
		}
		return nil
	case record.Same(now, r.Before):
		return nil
	}
	target := r.Before
	if edits != OverwriteEdits { // an account is many people's: what others wrote stays
		if target, err = r.Undo(now); err != nil {
			return err
		}
	}
	if record.Same(now, target) {
		return nil
	}
	_, err = m.update(ctx, now, target)
	return err
}

// removeCredential removes a credential that migration made, if it is still that.
// The record says so, and whoever may write Secrets in the namespace may write
// one: a credential of another cluster's account of that name is not touched.
func (m *Mover) removeCredential(ctx context.Context, c migrate.NewCredential, w *withdrawal) error {
	if m.Writer == nil || m.Azure == nil {
		return fmt.Errorf("the federated credential %s of %s has to be removed, and nobody is signed in to Azure", c.Name, c.Parent)
	}
	if w.Issuer == "" {
		var err error
		if w.Issuer, err = m.survey().Issuer(ctx); err != nil {
			return err
		}
	}
	if c.Issuer != w.Issuer {
		return fmt.Errorf("the federated credential %s of %s is for the issuer %s, and that of this cluster is %s: if the cluster was migrated with the former, give it with --issuer; if not, somebody made up this record", c.Name, c.Parent, c.Issuer, w.Issuer)
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

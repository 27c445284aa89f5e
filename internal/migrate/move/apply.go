package move

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/migrate"
	"github.com/lanyard-id/lanyard/internal/migrate/move/record"
)

// Apply carries out a plan and stops at the first failure. Both systems serve the
// workloads meanwhile.
func (m *Mover) Apply(ctx context.Context, p migrate.Plan) error {
	if len(p.Credentials) > 0 && p.Federation != migrate.FederationController && m.Writer == nil {
		return errors.New("federated credentials have to be made, and nobody is signed in to Azure")
	}
	for _, a := range p.Accounts {
		if err := m.prepare(ctx, p, a); err != nil {
			return err
		}
	}
	for _, a := range p.Accounts {
		if err := m.usable(ctx, p, a); err != nil {
			return err
		}
	}
	for _, w := range p.Workloads {
		if err := m.moveOne(ctx, p, w); err != nil {
			return fmt.Errorf("%s: %w", w.Workload, err)
		}
	}
	return nil
}

func changeOf(p migrate.Plan, r migrate.Ref) *migrate.Change {
	for i := range p.Changes {
		if p.Changes[i].Object == r {
			return &p.Changes[i]
		}
	}
	return nil
}

// prepare makes a service account and its credentials.
func (m *Mover) prepare(ctx context.Context, p migrate.Plan, a migrate.Account) error {
	ref := migrate.Ref{Kind: migrate.KindServiceAccount, Namespace: a.Namespace, Name: a.Name}
	change := changeOf(p, ref)
	r := &record.Record{Object: ref, Namespace: a.Namespace, Action: "update"}
	byController := p.Federation == migrate.FederationController
	var claims []*migrate.Change
	for _, c := range p.Credentials {
		if c.Namespace != a.Namespace || c.ServiceAccount != a.Name {
			continue
		}
		if !byController {
			r.Credentials = append(r.Credentials, c)
		} else if f := changeOf(p, migrate.RefOf(c.FederatedIdentity())); f != nil {
			claims = append(claims, f)
		}
	}
	switch {
	case change != nil:
		r.Before, r.After, r.Action = change.Before, change.After, change.Action
	case len(r.Credentials) > 0:
		now, err := m.get(ctx, ref)
		if err != nil {
			return err
		}
		r.Before, r.After = now, now
	}
	if r.After != nil {
		m.step("service account %s/%s: %s", a.Namespace, a.Name, r.Action)
		if err := m.records().Keep(ctx, r); err != nil {
			return err
		}
	}
	for _, c := range r.Credentials {
		if !slices.ContainsFunc(p.Credentials, func(now migrate.NewCredential) bool { return now == c }) {
			continue // of an earlier run
		}
		m.step("  federated credential %s of %s", c.Name, c.Parent)
		if err := m.Writer.Put(ctx, c.Parent, c.Credential); err != nil {
			return fmt.Errorf("making the federated credential %s of %s: %w", c.Name, c.Parent, explained(err))
		}
	}
	for _, f := range claims {
		if err := m.claim(ctx, a, f); err != nil {
			return err
		}
	}
	if change != nil {
		var err error
		if change.Before == nil {
			_, err = m.create(ctx, change.After)
		} else {
			_, err = m.update(ctx, change.Before, change.After)
		}
		if err != nil {
			return err
		}
	}
	for _, role := range a.Roles {
		if err := m.bind(ctx, a, role); err != nil {
			return err
		}
	}
	return nil
}

// explained says what to do about a refusal by Azure.
func explained(err error) error {
	var throttled *federated.Throttled
	switch {
	case errors.As(err, &throttled):
		return fmt.Errorf("%w: run the same again later", err)
	case errors.Is(err, federated.ErrTaken):
		return fmt.Errorf("%w: run the same again, and it is used", err)
	}
	return err
}

// claim makes a FederatedIdentity.
func (m *Mover) claim(ctx context.Context, a migrate.Account, f *migrate.Change) error {
	r := &record.Record{Object: f.Object, Namespace: a.Namespace, Action: f.Action, After: f.After, ServiceAccount: a.Name}
	m.step("  %s", f.Object)
	if err := m.records().Keep(ctx, r); err != nil {
		return err
	}
	_, err := m.create(ctx, f.After)
	return err
}

// bind adds a service account to a role binding.
func (m *Mover) bind(ctx context.Context, a migrate.Account, role migrate.Ref) error {
	o, err := m.get(ctx, role)
	if err != nil {
		return err
	}
	if o == nil {
		return fmt.Errorf("%s: %w: it is gone; run the same again", role, ErrEdited)
	}
	subjects, _, _ := unstructured.NestedSlice(o.Object, "subjects")
	if slices.ContainsFunc(subjects, isSubject(a.Namespace, a.Name)) {
		return nil
	}
	m.step("  %s", role)
	if err := m.records().Keep(ctx, &record.Record{Object: role, Namespace: a.Namespace, Action: "update", Subject: a.Name}); err != nil {
		return err
	}
	next := o.DeepCopy()
	next.Object["subjects"] = append(subjects, map[string]any{"kind": migrate.KindServiceAccount, "namespace": a.Namespace, "name": a.Name})
	_, err = m.update(ctx, o, next)
	return err
}

func isSubject(namespace, name string) func(any) bool {
	return func(s any) bool {
		m, _ := s.(map[string]any)
		return m["kind"] == migrate.KindServiceAccount && m["namespace"] == namespace && m["name"] == name
	}
}

// moveOne changes one workload and waits until its pods are new.
func (m *Mover) moveOne(ctx context.Context, p migrate.Plan, w migrate.Move) error {
	change := changeOf(p, w.Workload)
	if change == nil { // an earlier run may not have waited
		return m.rolledOut(ctx, w.Workload, w.Action)
	}
	if err := m.rehearse(ctx, p, w, change.After); err != nil {
		return err
	}
	r := &record.Record{
		Object: w.Workload, Namespace: w.Workload.Namespace, Action: change.Action, Before: change.Before, After: migrate.Canonical(change.After),
		Remaking: change.Action == migrate.ActionRecreate, ServiceAccount: w.ServiceAccount, Identities: w.Identities, Proxy: w.Proxy, Audience: p.Audience, Finished: p.Finish,
	}
	if err := m.records().Keep(ctx, r); err != nil {
		return err
	}
	m.step("%s: %s", w.Workload, w.Action)
	var got *unstructured.Unstructured
	var err error
	if change.Action == migrate.ActionRecreate {
		got, err = m.recreate(ctx, change.After)
	} else {
		got, err = m.update(ctx, change.Before, change.After)
	}
	if err != nil {
		return err
	}
	if r.Remaking || !record.Same(got, r.After) { // the API server or its admission has its own mind
		r.After, r.Remaking = migrate.Canonical(got), false
		if err := m.records().Write(ctx, r); err != nil {
			return err
		}
	}
	if err := m.rolledOut(ctx, w.Workload, w.Action); err != nil {
		return fmt.Errorf("%w; see its pods (kubectl describe), then run the same again to go on, or roll back with --workload %s/%s", err, strings.ToLower(w.Workload.Kind), w.Workload.Name)
	}
	return nil
}

// recreate deletes an object with what it owns, and makes it again.
func (m *Mover) recreate(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	ref := migrate.RefOf(o)
	now, err := m.get(ctx, ref)
	if err != nil {
		return nil, err
	}
	if now != nil {
		foreground, uid := metav1.DeletePropagationForeground, now.GetUID()
		err := m.resource(ref).Delete(ctx, ref.Name, metav1.DeleteOptions{PropagationPolicy: &foreground, Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("deleting %s: %w", ref, err)
		}
		if err := m.gone(ctx, ref, uid); err != nil {
			return nil, err
		}
	}
	return m.create(ctx, o)
}

// Resume makes again the Jobs that an interrupted run has deleted and not made. A
// plan that is made afterwards knows them. One that has ended and is gone is not
// made again: its work is done.
func (m *Mover) Resume(ctx context.Context, o migrate.Options) error {
	records, err := m.Records(ctx, o.Namespace)
	if err != nil {
		return err
	}
	for _, r := range records {
		if !r.Remaking {
			continue
		}
		now, err := m.get(ctx, r.Object)
		if err != nil {
			return err
		}
		if now != nil && now.GetDeletionTimestamp() != nil {
			if err := m.gone(ctx, r.Object, now.GetUID()); err != nil {
				return fmt.Errorf("%s: %w", r.Object, err)
			}
			now = nil
		}
		if now == nil {
			if !o.RecreateJobs || r.After == nil {
				return fmt.Errorf("%s: an earlier run was interrupted between deleting it and making it again: --recreate-jobs makes it again, rollback makes it what it was", r.Object)
			}
			m.step("%s: an earlier run was interrupted between deleting it and making it again", r.Object)
			if now, err = m.create(ctx, r.After); err != nil {
				return err
			}
			r.After = migrate.Canonical(now)
		}
		r.Remaking = false
		if err := m.records().Write(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// rehearse has the API server make one of the new pods, as a dry run, and looks
// whether the webhook gave it what it needs.
func (m *Mover) rehearse(ctx context.Context, p migrate.Plan, w migrate.Move, after *unstructured.Unstructured) error {
	pod, err := podOf(after)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeoutCause(ctx, 15*time.Second, errors.New("after 15 s"))
	defer cancel()
	err = again(limited, time.Second/4, func(ctx context.Context) (bool, error) { // the webhook may not have seen the service account yet
		gvr, _ := migrate.ResourceOf("Pod")
		made, err := m.Objects.Resource(gvr).Namespace(w.Workload.Namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: fieldManager})
		if err != nil {
			return !apierrors.IsInternalError(err) && !apierrors.IsServiceUnavailable(err) && ctx.Err() == nil, err
		}
		if lacks := unmutated(made, p.Audience, w.Proxy); lacks != "" {
			return false, fmt.Errorf("the webhook of workload identity did not change it (%s): is it installed, ready, and for this namespace?", lacks)
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("a trial with one of its new pods failed, and nothing was changed: %w", err)
	}
	return nil
}

// podOf is one of the pods that a workload makes.
func podOf(o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	t, ok := migrate.TemplateOf(o)
	if !ok {
		return nil, fmt.Errorf("%s has no pod template", migrate.RefOf(o))
	}
	pod := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Pod", "spec": runtime.DeepCopyJSONValue(t.Spec())}}
	pod.SetNamespace(o.GetNamespace())
	pod.SetGenerateName(strings.TrimRight(o.GetName()[:min(len(o.GetName()), 50)], "-.") + "-")
	labels := t.Labels()
	delete(labels, "batch.kubernetes.io/controller-uid")
	delete(labels, "controller-uid")
	pod.SetLabels(labels)
	pod.SetAnnotations(t.Annotations())
	claims, _, _ := unstructured.NestedSlice(o.Object, "spec", "volumeClaimTemplates")
	volumes, _, _ := unstructured.NestedSlice(pod.Object, "spec", "volumes")
	for _, c := range claims {
		c, _ := c.(map[string]any)
		name, _, _ := unstructured.NestedString(c, "metadata", "name")
		volumes = append(volumes, map[string]any{"name": name, "emptyDir": map[string]any{}})
	}
	if len(volumes) > 0 {
		if err := unstructured.SetNestedSlice(pod.Object, volumes, "spec", "volumes"); err != nil {
			return nil, err
		}
	}
	return pod, nil
}

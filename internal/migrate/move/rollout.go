package move

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/lanyard-id/lanyard/internal/migrate"
)

// errFailed ends a wait that waiting does not help.
var errFailed = errors.New("it failed")

// rolledOut waits until the pods of a workload are those of its template.
func (m *Mover) rolledOut(ctx context.Context, r migrate.Ref, action string) error {
	if action == migrate.ActionOnDelete || action == migrate.ActionNextRun {
		return nil
	}
	return m.until(ctx, r, func(o *unstructured.Unstructured) (string, error) {
		if o == nil {
			return "", fmt.Errorf("%w: %w, it is gone", errFailed, ErrEdited)
		}
		return unfinished(o)
	})
}

// gone waits until the object with a UID is not there any more.
func (m *Mover) gone(ctx context.Context, r migrate.Ref, uid types.UID) error {
	return m.until(ctx, r, func(o *unstructured.Unstructured) (string, error) {
		if o != nil && o.GetUID() == uid {
			return "its pods are still ending", nil
		}
		return "", nil
	})
}

// unfinished says what is missing until a workload's pods are those of its
// template; empty if nothing is.
func unfinished(o *unstructured.Unstructured) (string, error) {
	number := func(path ...string) int64 { n, _, _ := unstructured.NestedInt64(o.Object, path...); return n }
	status := func(field string) int64 { return number("status", field) }
	want, given, _ := unstructured.NestedInt64(o.Object, "spec", "replicas")
	if !given {
		want = 1
	}
	if status("observedGeneration") < o.GetGeneration() {
		switch o.GetKind() {
		case "Deployment", "StatefulSet", "DaemonSet":
			return "its controller has not seen the change yet", nil
		}
	}
	switch o.GetKind() {
	case "Deployment":
		if condition(o, "Progressing") == "False" {
			return "", fmt.Errorf("%w: the rollout makes no progress (progressDeadlineSeconds)", errFailed)
		}
		if n := status("updatedReplicas"); n < want {
			return fmt.Sprintf("%d of %d pods are new", n, want), nil
		}
		if old := status("replicas") - status("updatedReplicas"); old > 0 {
			return fmt.Sprintf("%d old pods are still there", old), nil
		}
		if n := status("availableReplicas"); n < want {
			return fmt.Sprintf("%d of %d pods are available", n, want), nil
		}
	case "StatefulSet":
		if kept := number("spec", "updateStrategy", "rollingUpdate", "partition"); kept > 0 {
			want = max(0, want-kept)
		}
		updated := status("updatedReplicas")
		current, _, _ := unstructured.NestedString(o.Object, "status", "currentRevision")
		next, _, _ := unstructured.NestedString(o.Object, "status", "updateRevision")
		if current == next {
			updated = max(updated, status("currentReplicas"))
		}
		if updated < want {
			return fmt.Sprintf("%d of %d pods are new", updated, want), nil
		}
		if n := status("readyReplicas"); n < want {
			return fmt.Sprintf("%d of %d pods are ready", n, want), nil
		}
	case "DaemonSet":
		want = status("desiredNumberScheduled")
		if n := status("updatedNumberScheduled"); n < want {
			return fmt.Sprintf("%d of %d pods are new", n, want), nil
		}
		if n := status("numberAvailable"); n < want {
			return fmt.Sprintf("%d of %d pods are available", n, want), nil
		}
	case "Job":
		suspended, _, _ := unstructured.NestedBool(o.Object, "spec", "suspend")
		switch {
		case condition(o, "Failed") == "True":
			return "", fmt.Errorf("%w: the Job failed", errFailed)
		case !suspended && status("active")+status("succeeded") == 0:
			return "no pod of it has started", nil
		}
	}
	return "", nil
}

func condition(o *unstructured.Unstructured, kind string) string {
	all, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range all {
		if c, _ := c.(map[string]any); c["type"] == kind {
			s, _ := c["status"].(string)
			return s
		}
	}
	return ""
}

// until watches an object, which is nil while there is none, until nothing is
// missing.
func (m *Mover) until(ctx context.Context, r migrate.Ref, check func(*unstructured.Unstructured) (missing string, err error)) error {
	ctx, cancel := m.limit(ctx)
	defer cancel()
	missing := ""
	for {
		o, err := m.get(ctx, r)
		if err != nil {
			return late(ctx, missing, err)
		}
		told := missing
		if missing, err = check(o); err != nil || missing == "" {
			return err
		}
		if missing != told {
			m.step("  %s", missing)
		}
		options := metav1.ListOptions{FieldSelector: "metadata.name=" + r.Name}
		if o != nil {
			options.ResourceVersion = o.GetResourceVersion()
		}
		w, err := m.resource(r).Watch(ctx, options)
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			continue
		}
		if err != nil {
			return late(ctx, missing, fmt.Errorf("watching %s: %w", r, err))
		}
		select {
		case <-ctx.Done():
		case e, open := <-w.ResultChan():
			if open && e.Type == watch.Error && !apierrors.IsResourceExpired(apierrors.FromObject(e.Object)) {
				err = fmt.Errorf("watching %s: %w", r, apierrors.FromObject(e.Object))
			}
		}
		w.Stop()
		if err != nil || ctx.Err() != nil {
			return late(ctx, missing, err)
		}
	}
}

// late tells what was missing when the time was over.
func late(ctx context.Context, missing string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%s: %w", missing, cause)
	}
	return err
}

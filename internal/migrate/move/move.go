// Package move carries out a migration from Pod Identity v1 to Workload Identity
// on a cluster and in Azure.
//
//	Read      the World that package migrate plans from
//	Apply     service accounts and credentials; an exchange that works; then one workload after the other
//	Verify    a token for each workload, by a real exchange, of the same identity as before
//	Rollback  every object as it was, and what was made removed
//
// Before an object is changed its record is written: a Secret beside it that holds
// the object as it was and as it is to be. Each step can be interrupted: Apply
// goes on where it was, and Rollback goes back from anywhere, on any machine.
package move

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/migrate"
	"github.com/lanyard-id/lanyard/internal/migrate/move/record"
	"github.com/lanyard-id/lanyard/internal/migrate/move/survey"
)

// A Writer makes and removes federated credentials. A *federated.Client is one.
type Writer interface {
	Put(ctx context.Context, p federated.Parent, c federated.Credential) error
	Delete(ctx context.Context, p federated.Parent, name string) (existed bool, err error)
}

// A Mover works on one cluster. Objects, Kube and Entra must be set.
type Mover struct {
	Objects dynamic.Interface
	Kube    kubernetes.Interface
	Azure   survey.Directory // nil: Azure is not asked
	Writer  Writer           // nil: no credential is made or removed
	Entra   survey.Exchanger

	Authority string        // of Entra; empty means the public cloud's
	Resource  string        // that tokens are asked for; empty means Resource Manager of the public cloud
	Audit     io.Reader     // nmi's log; nil means the logs of nmi's pods
	Timeout   time.Duration // for each wait; zero means five minutes

	Step func(format string, args ...any) // tells what is being done now; nil means silence
}

// New returns a Mover for the user that config authenticates; its Azure is to be
// set.
func New(config *rest.Config) (*Mover, error) {
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("preparing to talk to the API server: %w", err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("preparing to talk to the API server: %w", err)
	}
	return &Mover{Objects: objects, Kube: kube, Entra: &entra.Client{}}, nil
}

func (m *Mover) step(format string, args ...any) {
	if m.Step != nil {
		m.Step(format, args...)
	}
}

// limit gives ctx the end of one wait.
func (m *Mover) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	d := m.Timeout
	if d == 0 {
		d = 5 * time.Minute
	}
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("it took longer than %s", d))
}

// fieldManager is who has changed what, in managedFields.
const fieldManager = "lanyard-migrate"

func (m *Mover) resource(r migrate.Ref) dynamic.ResourceInterface {
	gvr, ok := migrate.ResourceOf(r.Kind)
	if !ok {
		return nil // no plan has such an object
	}
	if r.Namespace == "" {
		return m.Objects.Resource(gvr)
	}
	return m.Objects.Resource(gvr).Namespace(r.Namespace)
}

// get returns an object, or nil if there is none.
func (m *Mover) get(ctx context.Context, r migrate.Ref) (*unstructured.Unstructured, error) {
	resource := m.resource(r)
	if resource == nil {
		return nil, fmt.Errorf("%s is of a kind that is never migrated", r)
	}
	o, err := resource.Get(ctx, r.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", r, err)
	}
	return o, nil
}

func (m *Mover) records() record.Store { return record.Store{Kube: m.Kube, Manager: fieldManager} }

// Records returns the records of a namespace, or of all if it is empty.
func (m *Mover) Records(ctx context.Context, namespace string) ([]*record.Record, error) {
	return m.records().List(ctx, namespace)
}

func (m *Mover) survey() *survey.Survey {
	return &survey.Survey{Objects: m.Objects, Kube: m.Kube, Azure: m.Azure, Entra: m.Entra, Authority: m.Authority, Resource: m.resourceName(), Audit: m.Audit, Step: m.step}
}

// Read reads what a plan is made from. Bindings and identities are those of the
// whole cluster, because they reach across namespaces.
func (m *Mover) Read(ctx context.Context, o migrate.Options) (migrate.World, error) {
	return m.survey().Read(ctx, o)
}

// Workloads are the names, as KIND/NAME, of what has pods in a namespace and
// stands for itself.
func (m *Mover) Workloads(ctx context.Context, namespace string) ([]string, error) {
	return m.survey().Workloads(ctx, namespace)
}

// Issuer returns the issuer of the cluster's service-account tokens. One that
// Entra cannot reach is an error.
func (m *Mover) Issuer(ctx context.Context) (string, error) {
	issuer, err := m.survey().Issuer(ctx)
	if err == nil && (!strings.HasPrefix(issuer, "https://") || strings.Contains(issuer, "://kubernetes.default")) {
		err = fmt.Errorf("the cluster's issuer is %s, which Entra cannot reach: publish it first (lanyard issuer --help)", issuer)
	}
	return issuer, err
}

func (m *Mover) resourceName() string { return cmp.Or(m.Resource, "https://management.azure.com") }

// check the interfaces here rather than where they are used.
var (
	_ survey.Directory = (*federated.Client)(nil)
	_ Writer           = (*federated.Client)(nil)
	_ survey.Exchanger = (*entra.Client)(nil)
)

// ErrEdited is wrapped by errors that say that somebody else has changed an
// object meanwhile.
var ErrEdited = errors.New("somebody else has changed it")

// update writes the next version of an object that was read as basis. What the
// server and its controllers have changed since does not matter; what people have
// changed is an error.
func (m *Mover) update(ctx context.Context, basis, next *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	ref := migrate.RefOf(basis)
	for {
		out, err := m.resource(ref).Update(ctx, over(basis, next), metav1.UpdateOptions{FieldManager: fieldManager})
		if err == nil {
			return out, nil
		}
		if !apierrors.IsConflict(err) {
			return nil, fmt.Errorf("changing %s: %w", ref, err)
		}
		now, err := m.get(ctx, ref)
		if err != nil {
			return nil, err
		}
		if !record.Same(now, basis) {
			return nil, fmt.Errorf("changing %s: %w at this moment: run the same again", ref, ErrEdited)
		}
		basis = now
	}
}

// create makes an object as it was or is to be, without what the server gives it.
func (m *Mover) create(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	ref := migrate.RefOf(o)
	next := migrate.Canonical(o)
	if o.GetKind() == "Job" && hasTemplatesLabels(o) {
		next.SetLabels(nil)
	}
	out, err := m.resource(ref).Create(ctx, next, metav1.CreateOptions{FieldManager: fieldManager})
	if err != nil {
		return nil, fmt.Errorf("making %s: %w", ref, err)
	}
	return out, nil
}

// hasTemplatesLabels reports whether a Job has no labels but its template's: the
// API server gives them to a Job that comes without, with those that it adds.
func hasTemplatesLabels(o *unstructured.Unstructured) bool {
	c := migrate.Canonical(o)
	t, ok := migrate.TemplateOf(c)
	return ok && maps.Equal(c.GetLabels(), t.Labels()) && len(o.GetLabels()) > len(c.GetLabels())
}

// again calls f until it says that it is done or ctx ends; in between it waits,
// longer every time. The error is f's last one.
func again(ctx context.Context, first time.Duration, f func(context.Context) (done bool, err error)) error {
	delay := first
	var last error
	for {
		done, err := f(ctx)
		if done {
			return err
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		t := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		case <-t.C:
		}
		delay = min(2*delay, 10*time.Second)
	}
}

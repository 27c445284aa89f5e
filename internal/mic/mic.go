// Package mic is the managed identity controller of Pod Identity: it makes sure
// that the machine on which a pod runs has the identities that the pod may use.
//
//	pod, binding, identity, node ── watches ──> Pods (keyed by pod)
//	    binding.Of            which identities the pod may use
//	    AzureAssignedIdentity one per pod and identity, status Created
//	assignment, node ── watches ──> Machines (keyed by VM or scale set)
//	    Cloud.Identities      what the machine has
//	    Cloud.Update          what it lacks, and what nobody uses any more
//	    AzureAssignedIdentity status Assigned, or a condition that says why not
//	identity, binding, exception ── watches ──> Spellings
//	    v1.Normalize          fields in the spelling of old releases
//
// Each machine has its own place in the queue: a slow one delays no other. All
// state is in the cluster; after a restart nothing is lost. An identity that was
// on a machine before is never taken away, see annotationAdded.
package mic

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
)

// Component is the name under which events are recorded.
const Component = "aadpodidentity.k8s.io"

// Config is what a controller needs to run.
type Config struct {
	Kubernetes *rest.Config
	Cloud      Cloud

	// Assignee is the client id that Cloud acts as, for the commands that error
	// messages propose; empty if unknown.
	Assignee string
	// ForceNamespaced limits every binding to pods of its own namespace.
	ForceNamespaced bool
	// ImmutableClientIDs are identities that are never taken away from a
	// machine, whoever put them there. Case does not matter.
	ImmutableClientIDs []string
	// Recheck is how often a machine that should be in order is looked at
	// again; zero means never.
	Recheck time.Duration

	// LeaderElection makes replicas take turns through a Lease.
	LeaderElection          bool
	LeaderElectionNamespace string
	LeaderElectionName      string
	LeaseDuration           time.Duration // zero means 15 s

	HealthAddress  string // host:port of /healthz and /readyz; empty: not served
	MetricsAddress string // host:port of /metrics; empty: not served

	Logger *slog.Logger // nil means slog.Default
}

// Run runs the controllers until the context ends or the lease is lost.
func Run(ctx context.Context, c Config) error {
	logger := c.Logger
	if logger == nil {
		logger = slog.Default()
	}
	m, err := newManager(c, logger)
	if err != nil {
		return fmt.Errorf("making the manager: %w", err)
	}
	if err := setUp(ctx, m, c, logger); err != nil {
		return err
	}
	if err := m.Start(ctx); err != nil {
		return fmt.Errorf("running the controllers: %w", err)
	}
	return nil
}

func setUp(ctx context.Context, m manager.Manager, c Config, logger *slog.Logger) error {
	if err := addIndexes(ctx, m.GetFieldIndexer()); err != nil {
		return fmt.Errorf("indexing: %w", err)
	}
	recorder := m.GetEventRecorder(Component)
	pods := &Pods{Client: m.GetClient(), Live: m.GetAPIReader(), Events: recorder, ForceNamespaced: c.ForceNamespaced, Logger: logger}
	if err := pods.setUp(m); err != nil {
		return fmt.Errorf("setting up the pods' controller: %w", err)
	}
	machines := &Machines{Client: m.GetClient(), Cloud: c.Cloud, Events: recorder, Assignee: c.Assignee, ImmutableClientIDs: c.ImmutableClientIDs, Recheck: c.Recheck, Logger: logger}
	if err := machines.setUp(m); err != nil {
		return fmt.Errorf("setting up the machines' controller: %w", err)
	}
	spellings := &Spellings{Client: m.GetClient(), Live: m.GetAPIReader(), Events: recorder, Logger: logger}
	if err := spellings.setUp(m); err != nil {
		return fmt.Errorf("setting up the spellings' controller: %w", err)
	}
	if c.HealthAddress == "" {
		return nil
	}
	return m.Add(&Probes{Address: c.HealthAddress, Leads: m.Elected(), Cache: m.GetCache()})
}

// Scheme returns the types that the controllers speak.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := scheme.AddToScheme(s); err != nil {
		return nil, err
	}
	return s, v1.AddToScheme(s)
}

func newManager(c Config, logger *slog.Logger) (manager.Manager, error) {
	s, err := Scheme()
	if err != nil {
		return nil, err
	}
	labelled, err := labels.NewRequirement(v1.BindingLabel, selection.Exists, nil)
	if err != nil {
		return nil, err
	}
	lease := c.LeaseDuration
	if lease == 0 {
		lease = 15 * time.Second
	}
	renew, retry := lease/2, lease/4
	metrics := c.MetricsAddress
	if metrics == "" {
		metrics = "0" // controller-runtime's word for none
	}
	unique := true // two managers in one process are two controllers in tests only
	return manager.New(c.Kubernetes, manager.Options{
		Scheme: s,
		Logger: logr.FromSlogHandler(logger.Handler()),
		Cache: cache.Options{
			DefaultTransform: slim,
			ByObject: map[client.Object]cache.ByObject{
				// A pod that loses the label leaves the cache, which is seen as
				// its deletion.
				&corev1.Pod{}: {Label: labels.NewSelector().Add(*labelled), Transform: slimPod},
			},
		},
		Metrics:                       server.Options{BindAddress: metrics},
		HealthProbeBindAddress:        "0", // see Probes
		LeaderElection:                c.LeaderElection,
		LeaderElectionID:              c.LeaderElectionName,
		LeaderElectionNamespace:       c.LeaderElectionNamespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 &lease,
		RenewDeadline:                 &renew,
		RetryPeriod:                   &retry,
		Controller:                    config.Controller{SkipNameValidation: &unique},
	})
}

// slim drops what no controller reads before an object enters the cache, and
// reads old spellings.
func slim(obj any) (any, error) {
	if o, ok := obj.(client.Object); ok {
		o.SetManagedFields(nil)
		if a := o.GetAnnotations(); a[corev1.LastAppliedConfigAnnotation] != "" {
			delete(a, corev1.LastAppliedConfigAnnotation)
		}
	}
	switch o := obj.(type) {
	case *v1.AzureIdentity:
		o.Normalize()
	case *v1.AzureIdentityBinding:
		o.Normalize()
	case *corev1.Node:
		o.Status, o.Annotations = corev1.NodeStatus{}, nil
	}
	return obj, nil
}

func slimPod(obj any) (any, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	p.ManagedFields, p.Annotations = nil, nil
	p.Spec = corev1.PodSpec{NodeName: p.Spec.NodeName, ServiceAccountName: p.Spec.ServiceAccountName, HostNetwork: p.Spec.HostNetwork}
	p.Status = corev1.PodStatus{Phase: p.Status.Phase}
	return p, nil
}

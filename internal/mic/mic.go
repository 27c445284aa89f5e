// Package mic is the managed identity controller of Pod Identity: it makes sure
// that the machine on which a pod runs has the identities that the pod may use.
// This package puts the controllers together; each has a package and a key:
//
//	pods       a pod              one AzureAssignedIdentity per pod and identity that it may use
//	machines   a VM or scale set  has the identities that assignments want; status Assigned
//	report     a binding          conditions and events in users' words
//	requests   an AccessRequest   approved if a rule says so
//	spellings  an old manifest    fields in the spelling of old releases
//	taint      a node             is open for pods when nmi runs there
//
// All state is in the cluster; after a restart nothing is lost. One replica
// leads, by a Lease.
package mic

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/mic/assigned"
	"github.com/lanyard-id/lanyard/internal/mic/machines"
	"github.com/lanyard-id/lanyard/internal/mic/metrics"
	"github.com/lanyard-id/lanyard/internal/mic/pods"
	"github.com/lanyard-id/lanyard/internal/mic/report"
	"github.com/lanyard-id/lanyard/internal/mic/requests"
	"github.com/lanyard-id/lanyard/internal/mic/spellings"
	"github.com/lanyard-id/lanyard/internal/mic/taint"
)

// Component is the name under which events are recorded.
const Component = "aadpodidentity.k8s.io"

// defaultReportDelay gathers changes before a condition is written, so that a
// rollout of many pods costs few requests.
const defaultReportDelay = 2 * time.Second

// Config is what the controllers need to run. Kubernetes and Cloud must be set.
type Config struct {
	Kubernetes *rest.Config
	Cloud      machines.Cloud

	// Assignee returns the client id that Cloud acts as, for the commands that
	// messages propose; nil, or an empty one, if unknown.
	Assignee func() string
	// ForceNamespaced limits every binding to pods of its own namespace.
	ForceNamespaced bool
	// ImmutableClientIDs are identities that are never taken away from a
	// machine, whoever put them there. Case does not matter.
	ImmutableClientIDs []string
	// Recheck is how often a machine that should be in order is looked at
	// again; zero means never.
	Recheck time.Duration
	// WindowLead is how long before a binding opens its identity is put on the
	// machine, so that it is there at the first second.
	WindowLead time.Duration
	// ReportDelay gathers changes before conditions are written; zero means 2 s.
	ReportDelay time.Duration

	// StartupTaint is the key of the taint that goes from a node when nmi is ready
	// there; empty means that nodes are left alone. Agents says which pods are nmi's.
	StartupTaint string
	Agents       taint.Agents

	// Election makes replicas take turns; nil means that there is one replica.
	Election *Election

	HealthAddress  string // host:port of /healthz and /readyz; empty: not served
	MetricsAddress string // host:port of /metrics; empty: not served
	// Metrics is where mic's own are registered; nil means nowhere.
	Metrics *metrics.Metrics

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default
}

// NewMetrics makes mic's metrics; Config.Cloud reports to them too.
func NewMetrics(r prometheus.Registerer) (*metrics.Metrics, error) { return metrics.New(r) }

// Run runs the controllers until the context ends or the lease is lost.
func Run(ctx context.Context, c Config) error {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Assignee == nil {
		c.Assignee = func() string { return "" }
	}
	if c.ReportDelay == 0 {
		c.ReportDelay = defaultReportDelay
	}
	m, err := newManager(c)
	if err != nil {
		return fmt.Errorf("making the manager: %w", err)
	}
	if err := setUp(ctx, m, c); err != nil {
		if ctx.Err() != nil {
			return nil // it was told to end before it had begun
		}
		return err
	}
	if err := m.Start(ctx); err != nil {
		return fmt.Errorf("running the controllers: %w", err)
	}
	return nil
}

func setUp(ctx context.Context, m manager.Manager, c Config) error {
	access, err := askAccess(ctx, m, c.Logger)
	if err != nil {
		return err
	}
	if err := assigned.AddIndexes(ctx, m.GetFieldIndexer(), access.requests); err != nil {
		return fmt.Errorf("indexing: %w", err)
	}
	recorder := m.GetEventRecorder(Component)
	p := &pods.Controller{
		Client: m.GetClient(), Live: m.GetAPIReader(), Events: recorder, ForceNamespaced: c.ForceNamespaced, Requests: access.requests,
		WindowLead: c.WindowLead, Metrics: c.Metrics, Now: c.Now, Logger: c.Logger,
	}
	controllers := []struct {
		name  string
		setUp func(manager.Manager) error
	}{
		{"pods", p.SetUp},
		{"machines", (&machines.Controller{
			Client: m.GetClient(), Cloud: c.Cloud, Entitlements: p, Events: recorder, Assignee: c.Assignee, ImmutableClientIDs: c.ImmutableClientIDs,
			Recheck: c.Recheck, Metrics: c.Metrics, Now: c.Now, Logger: c.Logger,
		}).SetUp},
		{"spellings", (&spellings.Controller{Client: m.GetClient(), Live: m.GetAPIReader(), Events: recorder, Logger: c.Logger}).SetUp},
		{"report", (&report.Controller{
			Client: m.GetClient(), Events: recorder, ForceNamespaced: c.ForceNamespaced, Requests: access.requests, Delay: c.ReportDelay, Now: c.Now, Logger: c.Logger,
		}).SetUp},
		{"requests", func(m manager.Manager) error {
			if !access.requests {
				return nil
			}
			return (&requests.Controller{Client: m.GetClient(), User: access.user, Now: c.Now, Logger: c.Logger}).SetUp(m)
		}},
		{"taint", func(m manager.Manager) error {
			if c.StartupTaint == "" {
				return nil
			}
			return (&taint.Controller{Client: m.GetClient(), Key: c.StartupTaint, Agents: c.Agents, Logger: c.Logger}).SetUp(m)
		}},
		{"election", func(m manager.Manager) error { return c.Election.setUp(m, c.Metrics, c.Logger) }},
		{"probes", func(m manager.Manager) error {
			if c.HealthAddress == "" {
				return nil
			}
			return m.Add(&Probes{Address: c.HealthAddress, Leads: m.Elected(), Cache: m.GetCache()})
		}},
	}
	for _, x := range controllers {
		if err := x.setUp(m); err != nil {
			return fmt.Errorf("setting up %s: %w", x.name, err)
		}
	}
	return nil
}

// Scheme returns the types that the controllers speak.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, v1.AddToScheme, lanyard.AddToScheme} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func newManager(c Config) (manager.Manager, error) {
	s, err := Scheme()
	if err != nil {
		return nil, err
	}
	address := c.MetricsAddress
	if address == "" {
		address = "0" // controller-runtime's word for none
	}
	unique := true // two managers in one process are two controllers in tests only
	o := manager.Options{
		Scheme: s,
		Logger: logr.FromSlogHandler(c.Logger.Handler()),
		Cache: cache.Options{
			DefaultTransform: slim,
			// All pods, not only those with the label of old: a binding may choose
			// any by their labels or service account, and 10,000 of them take less
			// than 20 MB like this. To watch more only when such a binding appears
			// would add a moment in which pods are missed.
			ByObject: map[client.Object]cache.ByObject{&corev1.Pod{}: {Transform: slimPod(c.Agents)}},
		},
		Metrics:                server.Options{BindAddress: address},
		HealthProbeBindAddress: "0", // see Probes
		Controller:             config.Controller{SkipNameValidation: &unique},
	}
	if err := c.Election.options(c.Kubernetes, &o); err != nil {
		return nil, err
	}
	kube := rest.CopyConfig(c.Kubernetes)
	// The API server warns of the finalizer's name, which is v1's, each time.
	kube.WarningHandlerWithContext = log.NewKubeAPIWarningLogger(log.KubeAPIWarningLoggerOptions{Deduplicate: true})
	return manager.New(kube, o)
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
		o.Status, o.Annotations, o.Labels = corev1.NodeStatus{}, nil, nil
		o.Spec = corev1.NodeSpec{ProviderID: o.Spec.ProviderID, Taints: o.Spec.Taints}
	}
	return obj, nil
}

// slimPod keeps the conditions of nmi's pods only.
func slimPod(agents taint.Agents) func(any) (any, error) {
	return func(obj any) (any, error) {
		p, ok := obj.(*corev1.Pod)
		if !ok {
			return obj, nil
		}
		p.ManagedFields, p.Annotations, p.OwnerReferences, p.Finalizers, p.GenerateName = nil, nil, nil, nil, ""
		p.Spec = corev1.PodSpec{NodeName: p.Spec.NodeName, ServiceAccountName: p.Spec.ServiceAccountName, HostNetwork: p.Spec.HostNetwork}
		status := corev1.PodStatus{Phase: p.Status.Phase}
		if agents.Include(p) {
			status.Conditions = p.Status.Conditions
		}
		p.Status = status
		return p, nil
	}
}

// AgentSelectors are the labels of nmi's pods in the manifests and in the chart.
func AgentSelectors() []labels.Selector {
	return []labels.Selector{
		labels.SelectorFromSet(labels.Set{"component": "nmi"}),
		labels.SelectorFromSet(labels.Set{"app.kubernetes.io/component": "nmi"}),
	}
}

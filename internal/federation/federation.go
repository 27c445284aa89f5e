// Package federation keeps the federated credentials of annotated service
// accounts: in Azure's managed identities and applications, as policies allow.
// This package puts the controllers together:
//
//	accounts     a service account    FederatedIdentities of its annotations
//	credentials  an identity          its federated credentials in Azure; Accepted, Created
//	probe        a FederatedIdentity  Entra takes the account's token; Usable
//	issuer       the API server       who issues the tokens
//
//	policy, plan   what may be and what is to be done: functions of values
//	record         conditions, events
//
// All state is in the cluster and in Azure; after a restart nothing is lost. One
// replica leads, by a Lease.
package federation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/federation/accounts"
	"github.com/lanyard-id/lanyard/internal/federation/credentials"
	"github.com/lanyard-id/lanyard/internal/federation/issuer"
	"github.com/lanyard-id/lanyard/internal/federation/metrics"
	"github.com/lanyard-id/lanyard/internal/federation/probe"
	"github.com/lanyard-id/lanyard/internal/federation/record"
)

// Component is the name under which events are recorded.
const Component = "lanyard-federation"

// Audiences are those of Entra's clouds: what the admission policy lets the
// controller ask tokens for.
func Audiences() []string {
	return []string{workloadidentity.Audience, workloadidentity.Audience + "USGov", workloadidentity.Audience + "China"}
}

// Azure is what the controllers need of a *federated.Client.
type Azure = metrics.Azure

// Config is what the controllers need to run. Kubernetes and Azure must be set.
type Config struct {
	Kubernetes *rest.Config
	Azure      Azure
	// Exchange probes credentials; nil means that nobody does.
	Exchange probe.Exchanger
	// ProbeResource is what the probe asks a token for.
	ProbeResource string
	ProbeDelay    time.Duration // before the first exchange; zero means 10 s

	Issuer         string        // empty: what the API server's discovery document says
	IssuerInterval time.Duration // between two looks at it; zero means a minute
	Audience       string        // empty means that of the public cloud
	TenantID       string        // of the identities; empty: what Azure says of each
	ClusterID      string        // empty means the UID of the namespace kube-system
	Interval       time.Duration // between two comparisons with Azure; zero means 10 minutes
	Retry          time.Duration // after a failure, at first; zero means 5 s
	AbandonAfter   time.Duration // how long a removal may fail; zero means for ever

	// Election makes replicas take turns; nil means that there is one replica.
	Election       *Election
	HealthAddress  string // host:port of /healthz and /readyz; empty: not served
	MetricsAddress string // host:port of /metrics; empty: not served
	// Metrics counts; nil means nobody does.
	Metrics *metrics.Metrics

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default
}

// An Election chooses one of the replicas by a Lease.
type Election struct {
	Namespace, Name string
	Duration        time.Duration // of the Lease without renewal; zero means 15 s
}

// NewMetrics makes and registers the metrics.
func NewMetrics(r prometheus.Registerer) (*metrics.Metrics, error) { return metrics.New(r) }

// Scheme returns the types that the controllers speak.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, lanyard.AddToScheme} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Run runs the controllers until the context ends or the lease is lost.
func Run(ctx context.Context, c Config) error {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Audience == "" {
		c.Audience = workloadidentity.Audience
	}
	if c.Interval == 0 {
		c.Interval = 10 * time.Minute
	}
	if c.ProbeDelay == 0 {
		c.ProbeDelay = 10 * time.Second
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
	if err := record.Index(ctx, m.GetFieldIndexer()); err != nil {
		return fmt.Errorf("indexing: %w", err)
	}
	cluster := c.ClusterID
	if cluster == "" {
		ns := record.Namespace()
		if err := m.GetAPIReader().Get(ctx, client.ObjectKey{Name: metav1.NamespaceSystem}, ns); err != nil {
			return fmt.Errorf("reading the namespace kube-system, whose UID is the cluster's id: %w", err)
		}
		cluster = string(ns.UID)
	}
	tokens, err := issuerOf(m, c)
	if err != nil {
		return err
	}
	recorder := m.GetEventRecorder(Component)
	events := record.Events{Recorder: recorder, Accounts: m.GetClient()}
	azure := metrics.Counted{Azure: c.Azure, Metrics: c.Metrics}
	keeper := &credentials.Controller{
		Client: m.GetClient(), Live: m.GetAPIReader(), Directory: azure, Store: azure, Events: events,
		ClusterID: cluster, Issuer: tokens.Issuer, Changed: tokens.Changed(), Audience: c.Audience, TenantID: c.TenantID, Probed: c.Exchange != nil,
		Interval: c.Interval, Retry: c.Retry, AbandonAfter: c.AbandonAfter, Abandoned: c.Metrics.Abandoned, Now: c.Now, Logger: c.Logger,
	}
	if err := keeper.SetUp(m); err != nil {
		return fmt.Errorf("setting up credentials: %w", err)
	}
	if err := (&accounts.Controller{Client: m.GetClient(), Events: recorder, Logger: c.Logger}).SetUp(m); err != nil {
		return fmt.Errorf("setting up accounts: %w", err)
	}
	c.Metrics.Count(m.GetCache())
	if c.Exchange == nil {
		return nil
	}
	prober := &probe.Controller{
		Client: m.GetClient(), Live: m.GetAPIReader(), Exchange: c.Exchange, Events: events, Resource: c.ProbeResource, TenantID: c.TenantID,
		Audiences: Audiences(), Delay: c.ProbeDelay, Counts: c.Metrics.Probe, Now: c.Now, Logger: c.Logger,
	}
	if err := prober.SetUp(m); err != nil {
		return fmt.Errorf("setting up the probe: %w", err)
	}
	return nil
}

// issuerOf returns what tells the issuer, and has the manager run it.
func issuerOf(m manager.Manager, c Config) (issuer.Teller, error) {
	if c.Issuer != "" {
		return issuer.Fixed(c.Issuer), issuer.Check(c.Issuer)
	}
	d, err := discovery.NewDiscoveryClientForConfigAndClient(m.GetConfig(), m.GetHTTPClient())
	if err != nil {
		return nil, fmt.Errorf("making a client for the discovery document: %w", err)
	}
	s := &issuer.Source{API: d.RESTClient(), Interval: c.IssuerInterval, Logger: c.Logger}
	return s, m.Add(s)
}

func newManager(c Config) (manager.Manager, error) {
	s, err := Scheme()
	if err != nil {
		return nil, err
	}
	none := func(address string) string {
		if address == "" {
			return "0" // controller-runtime's word for none
		}
		return address
	}
	unique := true // two managers in one process are two controllers in tests only
	o := manager.Options{
		Scheme:                 s,
		Logger:                 logr.FromSlogHandler(c.Logger.Handler()),
		Cache:                  cache.Options{DefaultTransform: slim},
		Metrics:                server.Options{BindAddress: none(c.MetricsAddress)},
		HealthProbeBindAddress: none(c.HealthAddress),
		Controller:             config.Controller{SkipNameValidation: &unique},
	}
	if e := c.Election; e != nil {
		lease := e.Duration
		if lease == 0 {
			lease = 15 * time.Second
		}
		renew, retry := lease/2, lease/4
		o.LeaderElection, o.LeaderElectionID, o.LeaderElectionNamespace = true, e.Name, e.Namespace
		o.LeaderElectionReleaseOnCancel = true
		o.LeaseDuration, o.RenewDeadline, o.RetryPeriod = &lease, &renew, &retry
	}
	m, err := manager.New(rest.CopyConfig(c.Kubernetes), o)
	if err != nil {
		return nil, err
	}
	if err := m.AddHealthzCheck("ping", func(*http.Request) error { return nil }); err != nil {
		return nil, err
	}
	return m, m.AddReadyzCheck("caches", func(r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if !m.GetCache().WaitForCacheSync(ctx) {
			return errors.New("the caches are not filled yet")
		}
		return nil
	})
}

// slim drops what no controller reads before an object enters the cache: of
// service accounts, of which there may be very many, all but two annotations
// and one more.
func slim(obj any) (any, error) {
	o, ok := obj.(client.Object)
	if !ok {
		return obj, nil
	}
	o.SetManagedFields(nil)
	p, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		if a := o.GetAnnotations(); a[corev1.LastAppliedConfigAnnotation] != "" {
			delete(a, corev1.LastAppliedConfigAnnotation)
		}
		return obj, nil
	}
	p.OwnerReferences, p.GenerateName = nil, ""
	if p.Namespace == "" {
		p.Annotations = nil // a namespace: its labels are read
		return p, nil
	}
	kept := map[string]string{}
	for _, name := range []string{workloadidentity.AnnotationClientID, workloadidentity.AnnotationTenantID, lanyard.AnnotationClientIDs} {
		if v, ok := p.Annotations[name]; ok {
			kept[name] = v
		}
	}
	p.Annotations, p.Labels = kept, nil
	if len(kept) == 0 {
		p.Annotations = nil
	}
	return p, nil
}

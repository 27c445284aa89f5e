package door2

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/bench"
	"github.com/lanyard-id/lanyard/internal/bench/bed"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
	"github.com/lanyard-id/lanyard/internal/cloud"
	"github.com/lanyard-id/lanyard/internal/estate"
)

const (
	parents     = 5  // managed identities
	onEach      = 20 // Azure's limit of federated credentials
	controllers = "lanyard-system"
	controller  = "lanyard-federation"
)

// federation annotates many service accounts at once, as many as some
// identities can have, and waits until Entra accepts the tokens of all.
func federation(ctx context.Context, r *bench.Runner) (m []bench.Measurement, err error) {
	e, end, err := r.Estate(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end(ctx)) }()
	seed := cloud.Seed{SubscriptionID: e.Cloud.SubscriptionID, ResourceGroup: estate.ResourceGroup, Location: estate.Location}
	for i := range parents {
		seed.Identities = append(seed.Identities, cloud.SeedIdentity{Name: fmt.Sprintf("bench-%d", i)})
	}
	seeded, err := e.Cloud.Seed(ctx, seed)
	if err != nil {
		return nil, fmt.Errorf("making identities: %w", err)
	}
	policy := &lanyard.FederationPolicy{ObjectMeta: metav1.ObjectMeta{Name: bed.Space}, Spec: lanyard.FederationPolicySpec{Namespaces: []string{bed.Space}}}
	clients := make([]string, parents)
	for i, s := range seed.Identities {
		clients[i] = seeded.Identities[s.Name].ClientID
		policy.Spec.Identities = append(policy.Spec.Identities, lanyard.PolicyIdentity{ClientID: clients[i]})
	}
	space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: bed.Space}}
	if err := errors.Join(e.Objects.Create(ctx, policy), e.Objects.Create(ctx, space)); err != nil {
		return nil, err
	}
	before, err := azureRequests(ctx, e)
	if err != nil {
		return nil, err
	}
	const n = parents * onEach
	r.Step("%d service accounts want %d identities", n, parents)
	watched, stop := context.WithCancel(ctx)
	defer stop()
	all, err := e.Objects.Watch(watched, &lanyard.FederatedIdentityList{}, client.InNamespace(bed.Space))
	if err != nil {
		return nil, err
	}
	started := time.Now()
	if err := bed.Each(ctx, n, func(ctx context.Context, i int) error {
		return e.Objects.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
			Namespace: bed.Space, Name: accountName(i), Annotations: map[string]string{workloadidentity.AnnotationClientID: clients[i%parents]},
		}})
	}); err != nil {
		return nil, fmt.Errorf("creating service accounts: %w", err)
	}
	annotated := time.Since(started)
	created, usable, err := follow(ctx, all, started, n)
	if err != nil {
		return nil, err
	}
	after, err := azureRequests(ctx, e)
	if err != nil {
		return nil, err
	}
	var requests float64
	var kinds []string
	for name, count := range after {
		if more := count - before[name]; more > 0 {
			requests += more
			kinds = append(kinds, fmt.Sprintf("%s %.0f", name, more))
		}
	}
	slices.Sort(kinds)
	perCredential := requests / n
	return []bench.Measurement{
		{
			Row: bench.Row{Name: "federation"}, Now: fmt.Sprintf("%d in %s", n, meter.Brief(usable)), Value: usable.Seconds(), Unit: "s", OK: true,
			Note: fmt.Sprintf("the local cloud, without latency; the service accounts were made in %s, the credentials in %s; the controller waits 10 s before it tries a new credential (--probe-delay)", meter.Brief(annotated), meter.Brief(created)),
		},
		{
			Row: bench.Row{Name: "federation-requests"}, Now: fmt.Sprintf("%.2f", perCredential), Value: perCredential, OK: perCredential > 0,
			Note: "of " + fmt.Sprint(n) + ": " + strings.Join(kinds, ", "),
		},
	}, nil
}

// follow waits until so many credentials are in Azure, and until all are usable.
func follow(ctx context.Context, all watch.Interface, started time.Time, n int) (created, usable time.Duration, err error) {
	made, good := map[string]bool{}, map[string]bool{}
	last := "nothing"
	for {
		select {
		case <-ctx.Done():
			return 0, 0, fmt.Errorf("%d of %d credentials are made and %d usable; the last: %s", len(made), n, len(good), last)
		case event, open := <-all.ResultChan():
			f, ok := event.Object.(*lanyard.FederatedIdentity)
			if !open || !ok {
				return 0, 0, fmt.Errorf("the watch of FederatedIdentities has ended: %v", event.Object)
			}
			last = fmt.Sprint(f.Status.Conditions)
			note := func(seen map[string]bool, condition string, took *time.Duration) {
				if apimeta.IsStatusConditionTrue(f.Status.Conditions, condition) && !seen[f.Name] {
					seen[f.Name] = true
					*took = time.Since(started)
				}
			}
			note(made, lanyard.ConditionCreated, &created)
			note(good, lanyard.ConditionReady, &usable)
			if len(good) == n {
				return created, usable, nil
			}
		}
	}
}

// azureRequests reads what the controllers count, by operation and result.
func azureRequests(ctx context.Context, e *estate.Estate) (map[string]float64, error) {
	pods, err := e.Lab.Client.CoreV1().Pods(controllers).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + controller})
	if err != nil {
		return nil, err
	}
	if len(pods.Items) == 0 {
		return nil, errors.New("no pod of the federation controller runs")
	}
	sum := map[string]float64{}
	for _, p := range pods.Items {
		text, err := e.Lab.Client.CoreV1().RESTClient().Get().Namespace(controllers).Resource("pods").Name(p.Name + ":8888").SubResource("proxy").Suffix("metrics").Do(ctx).Raw()
		if err != nil {
			return nil, fmt.Errorf("reading the metrics of %s: %w", p.Name, err)
		}
		for name, n := range countRequests(string(text)) {
			sum[name] += n
		}
	}
	return sum, nil
}

// countRequests reads lanyard_federation_azure_requests_total in the text format
// of Prometheus.
func countRequests(text string) map[string]float64 {
	out := map[string]float64{}
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "lanyard_federation_azure_requests_total{")
		labels, value, found := strings.Cut(rest, "} ")
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if !ok || !found || err != nil {
			continue
		}
		var name []string
		for l := range strings.SplitSeq(labels, ",") {
			_, v, _ := strings.Cut(l, "=")
			name = append(name, strings.Trim(v, `"`))
		}
		out[strings.Join(name, " ")] += n
	}
	return out
}

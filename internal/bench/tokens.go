package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/bench/bed"
	"github.com/lanyard-id/lanyard/internal/bench/load"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
	"github.com/lanyard-id/lanyard/internal/bench/standin"
	"github.com/lanyard-id/lanyard/internal/lab/process"
)

// What v1 measured with 110 pods and 110 assignments on the node.
const (
	v1CachedCPU        = 572 * time.Microsecond
	v1ServicePrincipal = 6198 * time.Millisecond
	v1ManyIdentities   = 36.0 // 19.9 ms against 0.55 ms of processor time
	v1Memory           = 161
	v1Dead             = 112 * time.Second
)

func cachedToken() Experiment {
	return Experiment{
		Name: "cached-token", What: "a token that is known already, for 110 pods on the node", Limit: 3 * time.Minute, onNode: true, Run: measureCachedToken,
		Rows: []Row{
			{"cached-cpu", "cached token, 110 pods on the node, CPU per request", "572 µs", "40 µs"},
			{"cached-throughput", "the same, throughput beside a bare net/http server", "-", "0.7"},
			{"connect-cpu", "the same with a connection per request, CPU beside the bare server's", "-", "1.43 times"},
			{"connect-throughput", "the same, throughput beside the bare server", "-", "0.7"},
		},
	}
}

func measureCachedToken(ctx context.Context, r *Runner) ([]Measurement, error) {
	b, err := r.node(ctx)
	if err != nil {
		return nil, err
	}
	keep, err := b.compare(ctx, b.Sources(), true)
	if err != nil {
		return nil, err
	}
	cpu := keep.Ours.CPUPerRequest()
	m := []Measurement{
		{Row: Row{Name: "cached-cpu"}, Now: meter.Micros(cpu), Value: meter.InMicros(cpu), Unit: "µs", Ratio: Times(v1CachedCPU, cpu), OK: cpu <= 40*time.Microsecond, Note: fmt.Sprintf("%.2f times the bare server's CPU", keep.Cost())},
		{Row: Row{Name: "cached-throughput"}, Now: fmt.Sprintf("%.2f", keep.Ratio), Value: keep.Ratio, OK: keep.Ratio >= 0.7, Note: keep.Note("nmi")},
	}
	anew, err := b.compare(ctx, b.Sources(), false)
	if err != nil {
		return m, err
	}
	return append(m,
		Measurement{Row: Row{Name: "connect-cpu"}, Now: fmt.Sprintf("%.2f times", anew.Cost()), Value: anew.Cost(), OK: anew.Cost() <= 1/0.7, Note: meter.Micros(anew.Ours.CPUPerRequest()) + " against " + meter.Micros(anew.Bare.CPUPerRequest())},
		Measurement{Row: Row{Name: "connect-throughput"}, Now: fmt.Sprintf("%.2f", anew.Ratio), Value: anew.Ratio, OK: anew.Ratio >= 0.7, Note: anew.Note("nmi")},
	), nil
}

func servicePrincipal() Experiment {
	return Experiment{
		Name: "service-principal", What: "service principals, Entra at 100 ms", Limit: 3 * time.Minute, onNode: true, Run: measureServicePrincipal,
		Rows: []Row{{"service-principal", "service principal token, 32 callers, p50", "6.2 s", "5 ms"}},
	}
}

// firstPrincipal is the number of the first service principal.
const firstPrincipal = 20001

func measureServicePrincipal(ctx context.Context, r *Runner) ([]Measurement, error) {
	b, err := r.node(ctx)
	if err != nil {
		return nil, err
	}
	before, err := b.Stats(ctx)
	if err != nil {
		return nil, err
	}
	b.Step("creating %d service principals", callers)
	err = bed.Each(ctx, callers, func(ctx context.Context, i int) error {
		n := firstPrincipal + i
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: standin.IdentityName(n), Namespace: bed.Space}, StringData: map[string]string{"clientsecret": "bench"}}
		id := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Name: standin.IdentityName(n), Namespace: bed.Space}, Spec: v1.AzureIdentitySpec{
			Type: v1.ServicePrincipal, TenantID: standin.Tenant, ClientID: standin.ClientID(n), ADEndpoint: bed.CloudURL() + "/",
			ClientPassword: v1.SecretReference{Name: secret.Name, Namespace: secret.Namespace},
		}}
		for _, o := range []client.Object{secret, id, bed.Bind(bed.Space, i+1, n)} {
			if err := b.Objects.Create(ctx, o); err != nil {
				return fmt.Errorf("creating %T %s: %w", o, o.GetName(), err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := b.Assign(ctx, bed.PodCount+callers); err != nil {
		return nil, fmt.Errorf("not available: mic assigns no service principals: %w", err)
	}
	sources := make([]load.Source, callers)
	for i := range sources {
		sources[i] = b.Source(i, firstPrincipal+i, bed.ARMResource)
	}
	first, err := warm(ctx, sources)
	if err != nil {
		return nil, fmt.Errorf("not available: %w", err)
	}
	var cold time.Duration
	for _, a := range first {
		cold = max(cold, a.Took)
	}
	got, err := load.Run(ctx, load.Config{Sources: sources, Host: bed.Metadata.Addr().String(), Target: bed.Metadata, Concurrency: callers, KeepAlive: true, For: 3 * time.Second, PID: b.NMI.PID()})
	if err != nil {
		return nil, err
	}
	after, err := b.Stats(ctx)
	if err != nil {
		return nil, err
	}
	p50 := meter.Percentile(got.Latencies, 0.5)
	return []Measurement{{
		Row: Row{Name: "service-principal"}, Now: meter.Brief(p50), Value: meter.InMillis(p50), Unit: "ms", Ratio: Times(v1ServicePrincipal, p50), OK: p50 <= 5*time.Millisecond,
		Note: fmt.Sprintf("p99 %s, %.0f/s, %s CPU; the first tokens of all 32 took up to %s; %d requests to Entra for %d tokens",
			meter.Brief(meter.Percentile(got.Latencies, 0.99)), got.PerSecond(), meter.Micros(got.CPUPerRequest()), meter.Brief(cold), after.Tokens-before.Tokens, got.Requests+callers),
	}}, nil
}

func upstreamDead() Experiment {
	return Experiment{
		Name: "upstream-dead", What: "the metadata service refuses, vanishes, hangs", Limit: 3 * time.Minute, onNode: true, Run: measureUpstreamDead,
		Rows: []Row{
			{"dead-unknown", "upstream dead, a token that is not known: slowest answer", "112 s", "1 s, retryable"},
			{"dead-cached", "upstream dead, a token that is known: slowest answer", "112 s", "1 s, the token"},
		},
	}
}

// retryable are the statuses after which Azure's SDKs ask the metadata service
// again.
var retryable = []int{
	http.StatusNotFound, http.StatusRequestTimeout, http.StatusGone, http.StatusTooManyRequests,
	http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

func measureUpstreamDead(ctx context.Context, r *Runner) (_ []Measurement, err error) {
	b, err := r.node(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := warm(ctx, b.Sources()); err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, b.revive(context.WithoutCancel(ctx), "https://after-all.example/"))
	}()
	var unknown, known slowest
	for _, way := range []struct {
		name string
		kill func() error
	}{
		{"refuses", func() error { return b.Metadata.Kill(ctx) }},
		{"vanishes", func() error { return errors.Join(b.Vanish(true), b.Metadata.Kill(ctx)) }},
		{"hangs", func() error { return b.Post(ctx, "http://"+bed.Metadata.String()+standin.HangPath, nil) }},
	} {
		if err := b.revive(ctx, "https://before-it-"+way.name+".example/"); err != nil {
			return nil, err
		}
		b.Step("the metadata service %s", way.name)
		if err := way.kill(); err != nil {
			return nil, err
		}
		for i := range 3 {
			// Another pod each time: what one has waited for, the next one must not know.
			a, err := load.Ask(ctx, b.Source(10+i, 11+i, "https://"+way.name+".example/"), bed.Metadata, 20*time.Second)
			unknown.note(way.name, a, err, slices.Contains(retryable, a.Status))
			a, err = load.Ask(ctx, b.Source(i, i+1, bed.ARMResource), bed.Metadata, 20*time.Second)
			known.note(way.name, a, err, a.Status == http.StatusOK && bytes.Contains(a.Body, standin.MarkText(i+1)))
		}
	}
	return []Measurement{unknown.measurement("dead-unknown"), known.measurement("dead-cached")}, nil
}

// slowest keeps the worst answer.
type slowest struct {
	took time.Duration
	bad  bool
	seen []string
}

func (s *slowest) note(way string, a load.Answer, err error, good bool) {
	s.took = max(s.took, a.Took)
	s.bad = s.bad || err != nil || !good || a.Took > time.Second
	said := fmt.Sprintf("%s: %d after %s", way, a.Status, meter.Brief(a.Took))
	var why struct {
		Description string `json:"error_description"`
	}
	if a.Status != http.StatusOK && json.Unmarshal(a.Body, &why) == nil {
		said += fmt.Sprintf(" (%s)", why.Description)
	}
	if err != nil {
		said = fmt.Sprintf("%s: no answer for %s", way, meter.Brief(a.Took))
	}
	s.seen = append(s.seen, said)
}

func (s *slowest) measurement(name string) Measurement {
	return Measurement{Row: Row{Name: name}, Now: meter.Brief(s.took), Value: s.took.Seconds(), Unit: "s", Ratio: Times(v1Dead, s.took), OK: !s.bad, Note: strings.Join(s.seen, ", ")}
}

// revive brings the metadata service back, and waits until nmi gives tokens
// again that it cannot have known.
func (b *node) revive(ctx context.Context, resource string) error {
	if err := errors.Join(b.Vanish(false), b.Metadata.Stop(ctx), b.StartMetadata(ctx)); err != nil {
		return err
	}
	_, err := warm(ctx, []load.Source{b.Source(20, 21, resource)})
	return err
}

func manyIdentities() Experiment {
	return Experiment{
		Name: "many-identities", What: "5,000 identities and bindings in the cluster", Limit: 5 * time.Minute, onNode: true, Run: measureManyIdentities,
		Rows: []Row{
			{"many-identities", "5,000 identities in the cluster vs 110, CPU per request", "-", "1.1 times"},
			{"many-identities-managed", "the same in managed mode", "36 times", "1.1 times"},
			{"memory", "agent memory at 110 pods, 5,000 identities", "161 MB", "40 MB"},
		},
	}
}

var managedMode = []string{"--operation-mode=managed", "--forceNamespaced"}

func measureManyIdentities(ctx context.Context, r *Runner) ([]Measurement, error) {
	b, err := r.node(ctx)
	if err != nil {
		return nil, err
	}
	few, err := b.compare(ctx, b.Sources(), true)
	if err != nil {
		return nil, err
	}
	fewManaged, managedErr := b.compareManaged(ctx)
	const all = 5000
	b.Step("creating %d identities and bindings", all-bed.PodCount)
	if err := b.Identities(ctx, bed.Space, bed.PodCount+1, all-bed.PodCount); err != nil {
		return nil, err
	}
	var m []Measurement
	var memory string
	if managedErr == nil {
		var manyManaged load.Comparison
		if manyManaged, managedErr = b.compareManaged(ctx); managedErr == nil {
			m = append(m, growth("many-identities-managed", fewManaged, manyManaged, Times(v1ManyIdentities, manyManaged.Cost()/fewManaged.Cost())))
			if used, err := meter.MemoryOf(b.NMI.PID()); err == nil {
				memory = fmt.Sprintf("; managed mode %s", meter.Megabytes(used.Resident))
			}
		}
	}
	if managedErr != nil {
		m = append(m, Measurement{Row: Row{Name: "many-identities-managed"}, Now: "not available", Error: managedErr.Error()})
	}
	if err := b.StartNMI(ctx); err != nil {
		return m, err
	}
	many, err := b.compare(ctx, b.Sources(), true)
	if err != nil {
		return m, err
	}
	m = append(m, growth("many-identities", few, many, ""))
	if err := b.Idle(ctx, b.NMI.PID()); err != nil {
		return m, err
	}
	used, err := meter.MemoryOf(b.NMI.PID())
	if err != nil {
		return m, err
	}
	return append(m, Measurement{
		Row: Row{Name: "memory"}, Now: meter.Megabytes(used.Resident), Value: float64(used.Resident) / 1e6, Unit: "MB", Ratio: Times(float64(v1Memory), float64(used.Resident)/1e6), OK: used.Resident <= 40e6,
		Note: fmt.Sprintf("resident; %s of it anonymous, at most %s so far%s", meter.Megabytes(used.Anonymous), meter.Megabytes(used.Peak), memory),
	}), nil
}

func (b *node) compareManaged(ctx context.Context) (load.Comparison, error) {
	if err := b.StartNMI(ctx, managedMode...); err != nil {
		said := process.Tail(b.NMI.Log, 3)
		return load.Comparison{}, errors.Join(fmt.Errorf("managed mode is not available: %s", said), b.StartNMI(ctx))
	}
	return b.compare(ctx, b.Sources(), true)
}

// growth is how much dearer a request has become, measured in requests to the
// bare server at the same time.
func growth(name string, few, many load.Comparison, ratio string) Measurement {
	g := many.Cost() / few.Cost()
	return Measurement{
		Row: Row{Name: name}, Now: fmt.Sprintf("%.2f times", g), Value: g, Ratio: ratio, OK: g <= 1.1,
		Note: fmt.Sprintf("%s with 110, %s with 5,000; the bare server %s and %s", meter.Micros(few.Ours.CPUPerRequest()), meter.Micros(many.Ours.CPUPerRequest()), meter.Micros(few.Bare.CPUPerRequest()), meter.Micros(many.Bare.CPUPerRequest())),
	}
}

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
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
		Name: "cached-token", What: "a token that is known already, for 110 pods on the node", limit: 3 * time.Minute, onNode: true, run: (*Runner).cachedToken,
		Rows: []Row{
			{"cached-cpu", "cached token, 110 pods on the node, CPU per request", "572 µs", "40 µs"},
			{"cached-throughput", "the same, throughput beside a bare net/http server", "-", "0.7"},
			{"connect-cpu", "the same with a connection per request, CPU beside the bare server's", "-", "1.43 times"},
			{"connect-throughput", "the same, throughput beside the bare server", "-", "0.7"},
		},
	}
}

func (r *Runner) cachedToken(ctx context.Context) ([]Measurement, error) {
	b, err := r.node(ctx)
	if err != nil {
		return nil, err
	}
	keep, err := b.compare(ctx, b.sources(), true)
	if err != nil {
		return nil, err
	}
	cpu := keep.nmi.CPUPerRequest()
	m := []Measurement{
		{Row: Row{Name: "cached-cpu"}, Now: micros(cpu), Value: inMicros(cpu), Unit: "µs", Ratio: times(v1CachedCPU, cpu), OK: cpu <= 40*time.Microsecond, Note: fmt.Sprintf("%.2f times the bare server's CPU", keep.cost())},
		{Row: Row{Name: "cached-throughput"}, Now: fmt.Sprintf("%.2f", keep.ratio), Value: keep.ratio, OK: keep.ratio >= 0.7, Note: keep.note()},
	}
	anew, err := b.compare(ctx, b.sources(), false)
	if err != nil {
		return m, err
	}
	return append(m,
		Measurement{Row: Row{Name: "connect-cpu"}, Now: fmt.Sprintf("%.2f times", anew.cost()), Value: anew.cost(), OK: anew.cost() <= 1/0.7, Note: micros(anew.nmi.CPUPerRequest()) + " against " + micros(anew.bare.CPUPerRequest())},
		Measurement{Row: Row{Name: "connect-throughput"}, Now: fmt.Sprintf("%.2f", anew.ratio), Value: anew.ratio, OK: anew.ratio >= 0.7, Note: anew.note()},
	), nil
}

func servicePrincipal() Experiment {
	return Experiment{
		Name: "service-principal", What: "service principals, Entra at 100 ms", limit: 3 * time.Minute, onNode: true, run: (*Runner).servicePrincipal,
		Rows: []Row{{"service-principal", "service principal token, 32 callers, p50", "6.2 s", "5 ms"}},
	}
}

// firstPrincipal is the number of the first service principal.
const firstPrincipal = 20001

func (r *Runner) servicePrincipal(ctx context.Context) ([]Measurement, error) {
	b, err := r.node(ctx)
	if err != nil {
		return nil, err
	}
	before, err := b.stats(ctx)
	if err != nil {
		return nil, err
	}
	b.step("creating %d service principals", callers)
	err = each(ctx, callers, func(ctx context.Context, i int) error {
		n := firstPrincipal + i
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: standin.IdentityName(n), Namespace: benchSpace}, StringData: map[string]string{"clientsecret": "bench"}}
		id := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Name: standin.IdentityName(n), Namespace: benchSpace}, Spec: v1.AzureIdentitySpec{
			Type: v1.ServicePrincipal, TenantID: standin.Tenant, ClientID: standin.ClientID(n), ADEndpoint: cloudURL() + "/",
			ClientPassword: v1.SecretReference{Name: secret.Name, Namespace: secret.Namespace},
		}}
		for _, o := range []client.Object{secret, id, bind(benchSpace, i+1, n)} {
			if err := b.objects.Create(ctx, o); err != nil {
				return fmt.Errorf("creating %T %s: %w", o, o.GetName(), err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := b.assign(ctx, podCount+callers); err != nil {
		return nil, fmt.Errorf("not available: mic assigns no service principals: %w", err)
	}
	sources := make([]load.Source, callers)
	for i := range sources {
		sources[i] = b.source(i, firstPrincipal+i, armResource)
	}
	first, err := warm(ctx, sources)
	if err != nil {
		return nil, fmt.Errorf("not available: %w", err)
	}
	var cold time.Duration
	for _, a := range first {
		cold = max(cold, a.Took)
	}
	got, err := load.Run(ctx, load.Config{Sources: sources, Host: metadata.Addr().String(), Target: metadata, Concurrency: callers, KeepAlive: true, For: 3 * time.Second, PID: b.nmi.PID()})
	if err != nil {
		return nil, err
	}
	after, err := b.stats(ctx)
	if err != nil {
		return nil, err
	}
	p50 := meter.Percentile(got.Latencies, 0.5)
	return []Measurement{{
		Row: Row{Name: "service-principal"}, Now: brief(p50), Value: inMillis(p50), Unit: "ms", Ratio: times(v1ServicePrincipal, p50), OK: p50 <= 5*time.Millisecond,
		Note: fmt.Sprintf("p99 %s, %.0f/s, %s CPU; the first tokens of all 32 took up to %s; %d requests to Entra for %d tokens",
			brief(meter.Percentile(got.Latencies, 0.99)), got.PerSecond(), micros(got.CPUPerRequest()), brief(cold), after.Tokens-before.Tokens, got.Requests+callers),
	}}, nil
}

func upstreamDead() Experiment {
	return Experiment{
		Name: "upstream-dead", What: "the metadata service refuses, vanishes, hangs", limit: 3 * time.Minute, onNode: true, run: (*Runner).upstreamDead,
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

func (r *Runner) upstreamDead(ctx context.Context) (_ []Measurement, err error) {
	b, err := r.node(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := warm(ctx, b.sources()); err != nil {
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
		{"refuses", func() error { return endChild(ctx, b.metadata) }},
		{"vanishes", func() error { return errors.Join(b.vanish(true), endChild(ctx, b.metadata)) }},
		{"hangs", func() error { return b.post(ctx, "http://"+metadata.String()+standin.HangPath, nil) }},
	} {
		if err := b.revive(ctx, "https://before-it-"+way.name+".example/"); err != nil {
			return nil, err
		}
		b.step("the metadata service %s", way.name)
		if err := way.kill(); err != nil {
			return nil, err
		}
		for i := range 3 {
			// Another pod each time: what one has waited for, the next one must not know.
			a, err := load.Ask(ctx, b.source(10+i, 11+i, "https://"+way.name+".example/"), metadata, 20*time.Second)
			unknown.note(way.name, a, err, slices.Contains(retryable, a.Status))
			a, err = load.Ask(ctx, b.source(i, i+1, armResource), metadata, 20*time.Second)
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
	said := fmt.Sprintf("%s: %d after %s", way, a.Status, brief(a.Took))
	var why struct {
		Description string `json:"error_description"`
	}
	if a.Status != http.StatusOK && json.Unmarshal(a.Body, &why) == nil {
		said += fmt.Sprintf(" (%s)", why.Description)
	}
	if err != nil {
		said = fmt.Sprintf("%s: no answer for %s", way, brief(a.Took))
	}
	s.seen = append(s.seen, said)
}

func (s *slowest) measurement(name string) Measurement {
	return Measurement{Row: Row{Name: name}, Now: brief(s.took), Value: s.took.Seconds(), Unit: "s", Ratio: times(v1Dead, s.took), OK: !s.bad, Note: strings.Join(s.seen, ", ")}
}

// vanish takes the metadata service's address away, so that what is sent there
// is lost, or brings it back.
func (b *nodeBed) vanish(gone bool) error {
	return b.ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		address := &netlink.Addr{IPNet: &net.IPNet{IP: metadata.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}}
		if !gone {
			return netlink.AddrReplace(lo, address)
		}
		out, err := netlink.LinkByName("node0")
		if err != nil {
			return err
		}
		// Nobody has this hardware address: without it the kernel would say at
		// once that the gateway does not answer.
		err = netlink.NeighSet(&netlink.Neigh{LinkIndex: out.Attrs().Index, State: netlink.NUD_PERMANENT, IP: nodeGateway.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0x99}})
		return errors.Join(err, netlink.AddrDel(lo, address))
	})
}

// revive brings the metadata service back, and waits until nmi gives tokens
// again that it cannot have known.
func (b *nodeBed) revive(ctx context.Context, resource string) error {
	if err := errors.Join(b.vanish(false), b.metadata.stop(ctx), b.startMetadata(ctx)); err != nil {
		return err
	}
	_, err := warm(ctx, []load.Source{b.source(20, 21, resource)})
	return err
}

func manyIdentities() Experiment {
	return Experiment{
		Name: "many-identities", What: "5,000 identities and bindings in the cluster", limit: 5 * time.Minute, onNode: true, run: (*Runner).manyIdentities,
		Rows: []Row{
			{"many-identities", "5,000 identities in the cluster vs 110, CPU per request", "-", "1.1 times"},
			{"many-identities-managed", "the same in managed mode", "36 times", "1.1 times"},
			{"memory", "agent memory at 110 pods, 5,000 identities", "161 MB", "40 MB"},
		},
	}
}

var managedMode = []string{"--operation-mode=managed", "--forceNamespaced"}

func (r *Runner) manyIdentities(ctx context.Context) ([]Measurement, error) {
	b, err := r.node(ctx)
	if err != nil {
		return nil, err
	}
	few, err := b.compare(ctx, b.sources(), true)
	if err != nil {
		return nil, err
	}
	fewManaged, managedErr := b.compareManaged(ctx)
	const all = 5000
	b.step("creating %d identities and bindings", all-podCount)
	if err := b.identities(ctx, benchSpace, podCount+1, all-podCount); err != nil {
		return nil, err
	}
	var m []Measurement
	var memory string
	if managedErr == nil {
		var manyManaged comparison
		if manyManaged, managedErr = b.compareManaged(ctx); managedErr == nil {
			m = append(m, growth("many-identities-managed", fewManaged, manyManaged, times(v1ManyIdentities, manyManaged.cost()/fewManaged.cost())))
			if used, err := meter.MemoryOf(b.nmi.PID()); err == nil {
				memory = fmt.Sprintf("; managed mode %s", megabytes(used.Resident))
			}
		}
	}
	if managedErr != nil {
		m = append(m, Measurement{Row: Row{Name: "many-identities-managed"}, Now: "not available", Error: managedErr.Error()})
	}
	if err := b.startNMI(ctx); err != nil {
		return m, err
	}
	many, err := b.compare(ctx, b.sources(), true)
	if err != nil {
		return m, err
	}
	m = append(m, growth("many-identities", few, many, ""))
	if err := b.idle(ctx, b.nmi.PID()); err != nil {
		return m, err
	}
	used, err := meter.MemoryOf(b.nmi.PID())
	if err != nil {
		return m, err
	}
	return append(m, Measurement{
		Row: Row{Name: "memory"}, Now: megabytes(used.Resident), Value: float64(used.Resident) / 1e6, Unit: "MB", Ratio: times(float64(v1Memory), float64(used.Resident)/1e6), OK: used.Resident <= 40e6,
		Note: fmt.Sprintf("resident; %s of it anonymous, at most %s so far%s", megabytes(used.Anonymous), megabytes(used.Peak), memory),
	}), nil
}

func (b *nodeBed) compareManaged(ctx context.Context) (comparison, error) {
	if err := b.startNMI(ctx, managedMode...); err != nil {
		said := process.Tail(b.nmi.log, 3)
		return comparison{}, errors.Join(fmt.Errorf("managed mode is not available: %s", said), b.startNMI(ctx))
	}
	return b.compare(ctx, b.sources(), true)
}

// growth is how much dearer a request has become, measured in requests to the
// bare server at the same time.
func growth(name string, few, many comparison, ratio string) Measurement {
	g := many.cost() / few.cost()
	return Measurement{
		Row: Row{Name: name}, Now: fmt.Sprintf("%.2f times", g), Value: g, Ratio: ratio, OK: g <= 1.1,
		Note: fmt.Sprintf("%s with 110, %s with 5,000; the bare server %s and %s", micros(few.nmi.CPUPerRequest()), micros(many.nmi.CPUPerRequest()), micros(few.bare.CPUPerRequest()), micros(many.bare.CPUPerRequest())),
	}
}

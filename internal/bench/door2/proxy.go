package door2

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/bench"
	"github.com/lanyard-id/lanyard/internal/bench/bed"
	"github.com/lanyard-id/lanyard/internal/bench/load"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
	"github.com/lanyard-id/lanyard/internal/bench/standin"
	"github.com/lanyard-id/lanyard/internal/lab/netns"
)

// many is how many ask at the same time, for the throughput in the note.
const many = 32

// proxy measures the sidecar in a pod, with its init applied.
func proxy(ctx context.Context, r *bench.Runner) (m []bench.Measurement, err error) {
	rounds, span := 5, 2*time.Second
	if r.Quick {
		rounds, span = 3, time.Second
	}
	binary := filepath.Join(r.Bin, "proxy")
	info, err := os.Stat(binary)
	if err != nil {
		return nil, err
	}
	size := float64(info.Size())
	m = []bench.Measurement{{
		Row: bench.Row{Name: "proxy-size"}, Now: fmt.Sprintf("%.1f MB", size/1e6), Value: size / 1e6, Unit: "MB", Ratio: bench.Times(v16ProxySize, size), OK: size <= reachProxySize,
		Note: "one file is the sidecar and its init",
	}}
	b, err := bed.New(ctx, r.Config)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, b.Close(ctx)) }()
	pod, err := b.Connect(0)
	if err != nil {
		return m, err
	}
	p, err := sidecar(ctx, b, pod, binary)
	if err != nil {
		return m, err
	}
	q := url.Values{"api-version": {"2018-02-01"}, "resource": {bed.ARMResource}}
	source := load.Source{NS: pod, Path: "/metadata/identity/oauth2/token?" + q.Encode(), Want: standin.MarkText(1)}
	var cold load.Answer
	if err := p.Ready(ctx, 20*time.Second, func() (err error) {
		cold, err = load.Ask(ctx, source, bed.Metadata, 15*time.Second)
		if err == nil && cold.Status != http.StatusOK {
			err = fmt.Errorf("a pod's first request is answered %d: %.400s", cold.Status, cold.Body)
		}
		return err
	}); err != nil {
		return m, err
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), bed.BarePort)
	bare, err := b.StartBare(ctx, pod, at, cold)
	if err != nil {
		return m, err
	}
	if err := b.Idle(ctx, p.PID()); err != nil {
		return m, err
	}
	ours := load.Config{Sources: []load.Source{source}, Host: bed.Metadata.Addr().String(), Target: bed.Metadata, Concurrency: 1, KeepAlive: true, For: span, PID: p.PID()}
	beside := ours
	beside.Target, beside.PID = at, bare.PID()
	one, err := load.Compare(ctx, ours, beside, rounds, func(i int) { b.Step("one caller of the sidecar, round %d of %d", i, rounds) })
	if err != nil {
		return m, err
	}
	ours.Sources, ours.Concurrency = repeat(source, many), many
	b.Step("%d callers of the sidecar", many)
	all, err := load.Run(ctx, ours)
	if err != nil {
		return m, err
	}
	used, err := meter.MemoryOf(p.PID())
	if err != nil {
		return m, err
	}
	p50, resident := meter.Percentile(one.Ours.Latencies, 0.5), float64(used.Resident)
	return append(m,
		bench.Measurement{
			Row: bench.Row{Name: "proxy-cached"}, Now: meter.Brief(p50), Value: meter.InMicros(p50), Unit: "µs", Ratio: bench.Times(v16Cached, p50), OK: p50 <= v16Cached,
			Note: fmt.Sprintf("asked at %s, through the init's redirect: %s; the first token, Entra at 100 ms and TLS, took %s; with %d callers %.0f/s, p99 %s (v1.6: 10.2-14.5k/s, 16-25 ms)",
				bed.Metadata, one.Note("sidecar"), meter.Brief(cold.Took), many, all.PerSecond(), meter.Brief(meter.Percentile(all.Latencies, 0.99))),
		},
		bench.Measurement{
			Row: bench.Row{Name: "proxy-throughput"}, Now: fmt.Sprintf("%.2f", one.Ratio), Value: one.Ratio, OK: one.Ratio >= reachThroughput,
			Note: fmt.Sprintf("%.2f times the bare server's CPU; with %d callers %s of it", one.Cost(), many, meter.Micros(all.CPUPerRequest())),
		},
		bench.Measurement{
			Row: bench.Row{Name: "proxy-memory"}, Now: meter.Megabytes(used.Resident), Value: resident / 1e6, Unit: "MB", Ratio: bench.Times(v16ProxyMemory, resident), OK: resident <= reachProxyMemory,
			Note: fmt.Sprintf("resident; %s of it anonymous (v1.6: 12.5 MB), at most %s so far", meter.Megabytes(used.Anonymous), meter.Megabytes(used.Peak)),
		},
	), nil
}

func repeat(s load.Source, n int) []load.Source {
	all := make([]load.Source, n)
	for i := range all {
		all[i] = s
	}
	return all
}

// sidecar runs the init in a pod and then the sidecar, with a federated token
// of the cluster and the stand-in for Entra.
func sidecar(ctx context.Context, b *bed.Bed, pod *netns.NS, binary string) (*bed.Child, error) {
	seconds := workloadidentity.DefaultTokenExpiration
	if err := b.Namespace(ctx, bed.Space); err != nil {
		return nil, err
	}
	t, err := b.Kube.CoreV1().ServiceAccounts(bed.Space).CreateToken(ctx, "default", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{workloadidentity.Audience}, ExpirationSeconds: &seconds},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("asking for a federated token: %w", err)
	}
	file := filepath.Join(b.Dir, "azure-identity-token")
	if err := os.WriteFile(file, []byte(t.Status.Token), 0o600); err != nil {
		return nil, err
	}
	initialize, err := b.StartIn(pod, "proxy-init", []string{"PROXY_PORT=" + strconv.Itoa(workloadidentity.DefaultProxyPort)}, binary, "init")
	if err != nil {
		return nil, err
	}
	if err := initialize.Wait(ctx); err != nil {
		return nil, err
	}
	cert, _ := b.Certificate()
	return b.StartIn(pod, "proxy", []string{
		workloadidentity.EnvTenantID + "=" + standin.Tenant, workloadidentity.EnvClientID + "=" + standin.ClientID(1),
		workloadidentity.EnvFederatedTokenFile + "=" + file, workloadidentity.EnvAuthorityHost + "=" + bed.CloudURL() + "/", "SSL_CERT_FILE=" + cert,
	}, binary, "--proxy-port="+strconv.Itoa(workloadidentity.DefaultProxyPort), "--log-level=info")
}

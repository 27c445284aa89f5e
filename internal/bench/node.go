package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/internal/bench/load"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
	"github.com/lanyard-id/lanyard/internal/bench/standin"
	"github.com/lanyard-id/lanyard/internal/lab/netns"
)

const (
	podCount      = 110 // the kubelet's own limit
	callers       = 32
	benchNode     = "bench-node"
	benchScaleSet = "bench-vmss"
	benchSpace    = "bench"
	armResource   = "https://management.azure.com/"
)

// A nodeBed is a bed whose machine is a node with 110 pods, each with an
// address behind a cable of its own and an identity that mic has assigned.
type nodeBed struct {
	*bed
	pods     []*netns.NS
	metadata *child
	nmi      *child
	bare     *child
}

// node returns the bed that experiments with 110 pods share.
func (r *Runner) node(ctx context.Context) (*nodeBed, error) {
	if r.shared != nil {
		return r.shared, nil
	}
	b, err := r.newBed(ctx)
	if err != nil {
		return nil, err
	}
	n := &nodeBed{bed: b}
	if err := n.fill(ctx); err != nil {
		return nil, errors.Join(err, b.Close(ctx))
	}
	r.shared = n
	return n, nil
}

func (r *Runner) closeNode(ctx context.Context) error {
	if r.shared == nil {
		return nil
	}
	b := r.shared
	r.shared = nil
	return b.Close(ctx)
}

func (b *nodeBed) fill(ctx context.Context) (err error) {
	b.step("connecting %d pods to a bridge", podCount)
	for i := range podCount {
		ns, err := netns.New()
		if err != nil {
			return err
		}
		b.end(func(context.Context) error { return ns.Close() })
		if err := b.ns.Connect("cni0", fmt.Sprintf("pod%d", i), ns, netip.PrefixFrom(podAddress(i), 24), podGateway); err != nil {
			return err
		}
		b.pods = append(b.pods, ns)
	}
	if err := b.startMetadata(ctx); err != nil {
		return err
	}
	b.step("creating %d pods with an identity each", podCount)
	if _, err := b.kube.CoreV1().Nodes().Create(ctx, node(benchNode, benchScaleSet, 0), metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating the node: %w", err)
	}
	if err := b.namespace(ctx, benchSpace); err != nil {
		return err
	}
	if err := b.identities(ctx, benchSpace, 1, podCount); err != nil {
		return err
	}
	if err := each(ctx, podCount, b.runPod); err != nil {
		return err
	}
	if err := b.assign(ctx, podCount); err != nil {
		return err
	}
	return b.startNMI(ctx)
}

func podAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, 0, byte(2 + i)}) }

// runPod makes a pod and says what a kubelet would: that it runs, and where.
func (b *nodeBed) runPod(ctx context.Context, i int) error {
	pods := b.kube.CoreV1().Pods(benchSpace)
	p, err := pods.Create(ctx, pod(benchSpace, fmt.Sprintf("pod-%03d", i), benchNode, i+1), metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("creating a pod: %w", err)
	}
	ip := podAddress(i).String()
	p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
	p.Status.HostIP, p.Status.HostIPs = nodeAddress.String(), []corev1.HostIP{{IP: nodeAddress.String()}}
	if _, err := pods.UpdateStatus(ctx, p, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("saying that a pod runs: %w", err)
	}
	return nil
}

// assign lets mic work until so many assignments are done, and ends it.
func (b *nodeBed) assign(ctx context.Context, n int) error {
	watch, stop := context.WithCancel(ctx)
	defer stop()
	t, err := b.track(watch)
	if err != nil {
		return err
	}
	mic, err := b.startMIC(ctx)
	if err != nil {
		return err
	}
	return errors.Join(t.wait(ctx, time.Minute, n, n), mic.stop(ctx))
}

func (b *nodeBed) startMetadata(ctx context.Context) (err error) {
	b.metadata, err = b.standIn(ctx, "metadata", standin.Config{Listen: metadata.String()})
	return err
}

// startNMI starts nmi anew, with its default flags and these.
func (b *nodeBed) startNMI(ctx context.Context, flags ...string) error {
	if b.nmi != nil {
		if err := b.nmi.stop(ctx); err != nil {
			return err
		}
	}
	b.step("starting nmi %s", strings.Join(flags, " "))
	kubeconfig, err := b.kubeconfig(ctx, "nmi")
	if err != nil {
		return err
	}
	args := append([]string{"--node=" + benchNode, "--kubeconfig=" + kubeconfig, "--allowed-authority-hosts=" + cloudHost()}, flags...)
	b.nmi, err = b.start("nmi", []string{"SSL_CERT_FILE=" + filepath.Join(b.dir, "cloud.crt"), "HOST_IP=" + nodeAddress.String()}, filepath.Join(b.Bin, "nmi"), args...)
	if err != nil {
		return err
	}
	if err := b.active(ctx, b.nmi, probePort); err != nil {
		return err
	}
	return b.forgetConnections()
}

// forgetConnections makes the kernel forget a connection a second after its end.
// It remembers 262,144 of them, for two minutes each, and drops what comes
// beyond: a load with a connection per request is there in half a minute. The
// setting is there since nmi's rules track connections.
func (b *nodeBed) forgetConnections() error {
	return b.ns.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", []byte("1"), 0o644); err != nil {
			return fmt.Errorf("letting the kernel forget connections: %w", err)
		}
		return nil
	})
}

// source is pod i that asks for a token of the identity with this number.
func (b *nodeBed) source(i, identity int, resource string) load.Source {
	q := url.Values{"api-version": {"2018-02-01"}, "resource": {resource}, "client_id": {standin.ClientID(identity)}}
	return load.Source{NS: b.pods[i], Path: "/metadata/identity/oauth2/token?" + q.Encode(), Want: standin.MarkText(identity)}
}

// sources are all pods, each asking for its own token.
func (b *nodeBed) sources() []load.Source {
	out := make([]load.Source, len(b.pods))
	for i := range out {
		out[i] = b.source(i, i+1, armResource)
	}
	return out
}

// warm asks for each source until it gets its token, as an SDK does, so that
// every token is cached. An answer's Took is the whole time until then.
func warm(ctx context.Context, sources []load.Source) ([]load.Answer, error) {
	answers := make([]load.Answer, len(sources))
	err := each(ctx, len(sources), func(ctx context.Context, i int) error {
		started := time.Now()
		return until(ctx, time.Minute, func() error {
			a, err := load.Ask(ctx, sources[i], metadata, 15*time.Second)
			if err == nil && a.Status != http.StatusOK {
				err = fmt.Errorf("a pod's first request is answered %d: %.400s", a.Status, a.Body)
				if !slices.Contains(retryable, a.Status) {
					return fatal{err}
				}
			}
			a.Took = time.Since(started)
			answers[i] = a
			return err
		})
	})
	return answers, err
}

// startBare starts the bare server with an answer of nmi's.
func (b *nodeBed) startBare(ctx context.Context, answer load.Answer) (err error) {
	if b.bare != nil {
		return nil
	}
	file := filepath.Join(b.dir, "answer.json")
	if err := (standin.Recorded{Header: answer.Header, Body: answer.Body}).Save(file); err != nil {
		return err
	}
	b.bare, err = b.standIn(ctx, "bare", standin.Config{Listen: netip.AddrPortFrom(nodeAddress, barePort).String(), Answer: file})
	return err
}

// A comparison is nmi beside the bare server.
type comparison struct {
	nmi, bare load.Result
	ratio     float64 // of throughput, the median of all rounds
}

// cost is nmi's processor time in units of the bare server's.
func (c comparison) cost() float64 {
	return float64(c.nmi.CPUPerRequest()) / float64(max(c.bare.CPUPerRequest(), 1))
}

func (c comparison) note() string {
	return fmt.Sprintf("nmi %.0f/s, %s CPU, p50 %s, p99 %s; bare %.0f/s, %s CPU, p50 %s",
		c.nmi.PerSecond(), micros(c.nmi.CPUPerRequest()), brief(meter.Percentile(c.nmi.Latencies, 0.5)), brief(meter.Percentile(c.nmi.Latencies, 0.99)),
		c.bare.PerSecond(), micros(c.bare.CPUPerRequest()), brief(meter.Percentile(c.bare.Latencies, 0.5)))
}

// compare puts the same load on nmi and on the bare server, in turns.
func (b *nodeBed) compare(ctx context.Context, sources []load.Source, keepAlive bool) (comparison, error) {
	answers, err := warm(ctx, sources)
	if err != nil {
		return comparison{}, err
	}
	if err := b.startBare(ctx, answers[0]); err != nil {
		return comparison{}, err
	}
	if err := b.idle(ctx, b.nmi.PID()); err != nil {
		return comparison{}, err
	}
	rounds, each := 5, 2*time.Second
	if b.Quick {
		rounds, each = 3, time.Second
	}
	var c comparison
	var ratios []float64
	anybody := make([]load.Source, len(sources)) // the bare server gives everybody the first pod's token
	for i, s := range sources {
		s.Want = sources[0].Want
		anybody[i] = s
	}
	host := metadata.Addr().String()
	for i := range rounds {
		b.step("%s, round %d of %d", kind(keepAlive), i+1, rounds)
		var nmi, bare load.Result
		turns := []func() error{
			func() (err error) {
				nmi, err = load.Run(ctx, load.Config{Sources: sources, Host: host, Target: metadata, Concurrency: callers, KeepAlive: keepAlive, For: each, PID: b.nmi.PID()})
				return err
			},
			func() (err error) {
				bare, err = load.Run(ctx, load.Config{Sources: anybody, Host: host, Target: netip.AddrPortFrom(nodeAddress, barePort), Concurrency: callers, KeepAlive: keepAlive, For: each, PID: b.bare.PID()})
				return err
			},
		}
		if i%2 == 1 {
			slices.Reverse(turns)
		}
		for _, turn := range turns {
			if err := turn(); err != nil {
				return c, err
			}
		}
		c.nmi, c.bare = c.nmi.Add(nmi), c.bare.Add(bare)
		ratios = append(ratios, nmi.PerSecond()/bare.PerSecond())
	}
	c.ratio = meter.Median(ratios)
	return c, nil
}

func kind(keepAlive bool) string {
	if keepAlive {
		return "keep-alive connections"
	}
	return "a connection per request"
}

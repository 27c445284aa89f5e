package bed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/internal/bench/load"
	"github.com/lanyard-id/lanyard/internal/bench/standin"
	"github.com/lanyard-id/lanyard/internal/lab/netns"
)

const (
	// PodCount is how many pods a Node has: the kubelet's own limit.
	PodCount = 110
	// Space is the namespace of the benchmark's objects.
	Space = "bench"
	// ARMResource is what pods ask a token for.
	ARMResource = "https://management.azure.com/"

	benchNode     = "bench-node"
	benchScaleSet = "bench-vmss"
)

// A Node is a bed whose machine is a node with 110 pods, each with an
// address behind a cable of its own and an identity that mic has assigned.
type Node struct {
	*Bed
	Pods     []*netns.NS
	Metadata *Child // the metadata service
	NMI      *Child
}

// NewNode starts a bed and fills it. After an error nothing is left.
func NewNode(ctx context.Context, c Config) (*Node, error) {
	b, err := New(ctx, c)
	if err != nil {
		return nil, err
	}
	n := &Node{Bed: b}
	if err := n.fill(ctx); err != nil {
		return nil, errors.Join(err, b.Close(ctx))
	}
	return n, nil
}

func (b *Node) fill(ctx context.Context) (err error) {
	b.Step("connecting %d pods to a bridge", PodCount)
	for i := range PodCount {
		ns, err := b.Connect(i)
		if err != nil {
			return err
		}
		b.Pods = append(b.Pods, ns)
	}
	if err := b.StartMetadata(ctx); err != nil {
		return err
	}
	b.Step("creating %d pods with an identity each", PodCount)
	if _, err := b.Kube.CoreV1().Nodes().Create(ctx, machine(benchNode, benchScaleSet, 0), metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating the node: %w", err)
	}
	if err := b.Namespace(ctx, Space); err != nil {
		return err
	}
	if err := b.Identities(ctx, Space, 1, PodCount); err != nil {
		return err
	}
	if err := Each(ctx, PodCount, b.runPod); err != nil {
		return err
	}
	if err := b.Assign(ctx, PodCount); err != nil {
		return err
	}
	return b.StartNMI(ctx)
}

// Connect makes the network namespace of pod i and a cable to it.
func (b *Bed) Connect(i int) (*netns.NS, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	b.End(func(context.Context) error { return ns.Close() })
	return ns, b.NS.Connect("cni0", fmt.Sprintf("pod%d", i), ns, netip.PrefixFrom(podAddress(i), 24), podGateway)
}

func podAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, 0, byte(2 + i)}) }

// runPod makes a pod and says what a kubelet would: that it runs, and where.
func (b *Node) runPod(ctx context.Context, i int) error {
	pods := b.Kube.CoreV1().Pods(Space)
	p, err := pods.Create(ctx, Pod(Space, fmt.Sprintf("pod-%03d", i), benchNode, i+1), metav1.CreateOptions{})
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

// Assign lets mic work until so many assignments are done, and ends it.
func (b *Node) Assign(ctx context.Context, n int) error {
	watch, stop := context.WithCancel(ctx)
	defer stop()
	t, err := b.Track(watch)
	if err != nil {
		return err
	}
	mic, err := b.StartMIC(ctx)
	if err != nil {
		return err
	}
	return errors.Join(t.Wait(ctx, time.Minute, n, n), mic.Stop(ctx))
}

// StartMetadata starts the stand-in for the metadata service.
func (b *Node) StartMetadata(ctx context.Context) (err error) {
	b.Metadata, err = b.standIn(ctx, b.NS, "metadata", standin.Config{Listen: Metadata.String()})
	return err
}

// StartNMI starts nmi anew, with its default flags and these.
func (b *Node) StartNMI(ctx context.Context, flags ...string) error {
	if b.NMI != nil {
		if err := b.NMI.Stop(ctx); err != nil {
			return err
		}
	}
	b.Step("starting nmi %s", strings.Join(flags, " "))
	kubeconfig, err := b.Kubeconfig(ctx, "nmi")
	if err != nil {
		return err
	}
	args := append([]string{"--node=" + benchNode, "--kubeconfig=" + kubeconfig, "--allowed-authority-hosts=" + cloudHost()}, flags...)
	b.NMI, err = b.Start("nmi", []string{"SSL_CERT_FILE=" + filepath.Join(b.Dir, "cloud.crt"), "HOST_IP=" + nodeAddress.String()}, filepath.Join(b.Bin, "nmi"), args...)
	if err != nil {
		return err
	}
	if err := b.active(ctx, b.NMI, probePort); err != nil {
		return err
	}
	return b.forgetConnections()
}

// forgetConnections makes the kernel forget a connection a second after its end.
// It remembers 262,144 of them, for two minutes each, and drops what comes
// beyond: a load with a connection per request is there in half a minute. The
// setting is there since nmi's rules track connections.
func (b *Node) forgetConnections() error {
	return b.NS.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", []byte("1"), 0o644); err != nil {
			return fmt.Errorf("letting the kernel forget connections: %w", err)
		}
		return nil
	})
}

// Source is pod i that asks for a token of the identity with this number.
func (b *Node) Source(i, identity int, resource string) load.Source {
	q := url.Values{"api-version": {"2018-02-01"}, "resource": {resource}, "client_id": {standin.ClientID(identity)}}
	return load.Source{NS: b.Pods[i], Path: "/metadata/identity/oauth2/token?" + q.Encode(), Want: standin.MarkText(identity)}
}

// Sources are all pods, each asking for its own token.
func (b *Node) Sources() []load.Source {
	out := make([]load.Source, len(b.Pods))
	for i := range out {
		out[i] = b.Source(i, i+1, ARMResource)
	}
	return out
}

// Vanish takes the metadata service's address away, so that what is sent there
// is lost, or brings it back.
func (b *Node) Vanish(gone bool) error {
	return b.NS.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		address := &netlink.Addr{IPNet: &net.IPNet{IP: Metadata.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}}
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

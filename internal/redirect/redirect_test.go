package redirect

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/lab/netns"
	"github.com/lanyard-id/lanyard/internal/lab/netns/netnstest"
)

// The tests run in a user namespace of their own, so that they need no root
// and what they do to the kernel ends with them.
func TestMain(m *testing.M) { netnstest.Main(m.Run) }

var (
	metadata = netip.MustParseAddrPort("169.254.169.254:80")
	agent    = netip.MustParseAddrPort("10.9.0.1:2579")
)

// A node is a network namespace with two pods, a metadata service and the
// place where an agent may listen.
type node struct {
	*netns.NS
	pods [2]*netns.NS
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{NS: namespace(t)}
	err := n.Setup(netns.Setup{
		Bridge:          "br0",
		BridgeAddresses: []netip.Prefix{netip.PrefixFrom(agent.Addr(), 24)},
		Loopback:        []netip.Prefix{netip.PrefixFrom(metadata.Addr(), 32)},
		Gateway:         netip.MustParseAddr("10.9.0.254"),
		Sysctls:         map[string]string{"net/ipv4/ip_forward": "1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n.pods {
		n.pods[i] = n.pod(t, i)
	}
	return n
}

func namespace(t *testing.T) *netns.NS {
	t.Helper()
	n, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// pod is a namespace with the addresses 10.9.0.(2+i) and fd09::(2+i), plugged into the bridge.
func (n *node) pod(t *testing.T, i int) *netns.NS {
	t.Helper()
	pod := namespace(t)
	var handle vnetns.NsHandle
	must(t, pod.Do(func() (err error) { handle, err = vnetns.Get(); return err }))
	defer handle.Close()
	must(t, n.Do(func() error {
		bridge, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = fmt.Sprintf("veth%d", i), bridge.Attrs().Index
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(handle)}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	}))
	must(t, pod.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr := &net.IPNet{IP: net.IPv4(10, 9, 0, byte(2+i)), Mask: net.CIDRMask(24, 32)}
		addr6 := &net.IPNet{IP: netip.MustParseAddr(fmt.Sprintf("fd09::%x", 2+i)).AsSlice(), Mask: net.CIDRMask(64, 128)}
		for _, a := range []netlink.Addr{{IPNet: addr}, {IPNet: addr6, Flags: unix.IFA_F_NODAD}} {
			if err := netlink.AddrAdd(eth0, &a); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(eth0); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: agent.Addr().AsSlice()})
	}))
	// What is sent earlier is lost; network plugins wait for it too.
	eventually(t, func() error { return n.Do(func() error { return up(fmt.Sprintf("veth%d", i), "br0") }) })
	eventually(t, func() error { return pod.Do(func() error { return up("eth0") }) })
	return pod
}

// up tells that interfaces carry frames.
func up(names ...string) error {
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if s := l.Attrs().OperState; s != netlink.OperUp {
			return fmt.Errorf("%s is %s", name, s)
		}
	}
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve answers every line on a connection with name and the peer's address.
func (n *node) serve(t *testing.T, at netip.AddrPort, name string) net.Listener {
	t.Helper()
	l, err := n.Listen(t.Context(), "tcp", at.String())
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				peer := netip.MustParseAddrPort(c.RemoteAddr().String()).Addr()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					fmt.Fprintf(c, "%s saw %s\n", name, peer)
				}
			}()
		}
	}()
	return l
}

func (n *node) install(t *testing.T) {
	t.Helper()
	must(t, n.Do(func() error { return (&Writer{Rules: Rules{Metadata: metadata, Agent: agent}}).Install() }))
}

// ask connects from a namespace and asks once.
func ask(t *testing.T, from *netns.NS, to netip.AddrPort) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c, err := from.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	return line(c)
}

func line(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "who are you\n"); err != nil {
		return "", err
	}
	s, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(s), err
}

func expect(t *testing.T, from *netns.NS, to netip.AddrPort, want string) {
	t.Helper()
	if got, err := ask(t, from, to); got != want || err != nil {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestPodsAreLedToTheAgentWithTheirOwnAddresses(t *testing.T) {
	n := newNode(t)
	n.serve(t, metadata, "metadata")
	n.serve(t, agent, "agent")
	expect(t, n.pods[0], metadata, "metadata saw 10.9.0.2")
	n.install(t)
	expect(t, n.pods[0], metadata, "agent saw 10.9.0.2")
	expect(t, n.pods[1], metadata, "agent saw 10.9.0.3")
	expect(t, n.NS, metadata, "metadata saw 169.254.169.254") // the node itself, and so the agent, reaches the real one
}

func TestOtherPortsOfTheMetadataAddressAreLeftAlone(t *testing.T) {
	n := newNode(t)
	other := netip.AddrPortFrom(metadata.Addr(), 8080)
	n.serve(t, other, "other")
	n.serve(t, agent, "agent")
	n.install(t)
	expect(t, n.pods[0], other, "other saw 10.9.0.2")
}

func TestWithoutAnAgentPodsAreRefusedAndNeverReachTheMetadataService(t *testing.T) {
	n := newNode(t)
	n.serve(t, metadata, "metadata")
	n.install(t)
	if got, err := ask(t, n.pods[0], metadata); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("got %q, %v; want a refused connection", got, err)
	}
}

func TestTheAgentCannotBeReachedButByTheRedirection(t *testing.T) {
	n := newNode(t)
	n.serve(t, agent, "agent")
	n.install(t)
	if got, err := ask(t, n.pods[0], agent); err == nil {
		t.Errorf("a pod that asks the agent's own address got %q; want no answer", got)
	}
	expect(t, n.NS, agent, "agent saw 10.9.0.1") // probes of the node itself
}

func TestInstallCutsConnectionsThatLeadElsewhere(t *testing.T) {
	n := newNode(t)
	n.serve(t, metadata, "metadata")
	n.serve(t, agent, "agent")
	c, err := n.pods[0].DialContext(t.Context(), "tcp", metadata.String())
	must(t, err)
	defer c.Close()
	if got, err := line(c); got != "metadata saw 10.9.0.2" || err != nil {
		t.Fatalf("before: %q, %v", got, err)
	}
	n.install(t)
	if got, err := line(c); err == nil && strings.HasPrefix(got, "metadata") {
		t.Errorf("a kept-alive connection still reaches the metadata service: %q", got)
	}
}

func TestInstallTwiceKeepsConnectionsAndOneTable(t *testing.T) {
	n := newNode(t)
	n.serve(t, agent, "agent")
	n.install(t)
	c, err := n.pods[0].DialContext(t.Context(), "tcp", metadata.String())
	must(t, err)
	defer c.Close()
	n.install(t)
	if got, err := line(c); got != "agent saw 10.9.0.2" || err != nil {
		t.Errorf("after the second install: %q, %v", got, err)
	}
	expect(t, n.pods[0], metadata, "agent saw 10.9.0.2")
}

func TestRemoveLeavesNothingAndMayBeRepeated(t *testing.T) {
	n := newNode(t)
	n.serve(t, metadata, "metadata")
	n.serve(t, agent, "agent")
	n.install(t)
	for range 2 {
		must(t, n.Do(func() error { return Remove(metadata) }))
		var there bool
		must(t, n.Do(func() (err error) {
			there, err = (&Writer{Rules: Rules{Metadata: metadata, Agent: agent}}).installed()
			return err
		}))
		if there {
			t.Error("the table is still there")
		}
		expect(t, n.pods[0], metadata, "metadata saw 10.9.0.2")
	}
}

func TestAddressesThatCannotBeLedToAreRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		rules Rules
		want  string
	}{
		"the agent on loopback":              {Rules{Metadata: metadata, Agent: netip.MustParseAddrPort("127.0.0.1:2579")}, "use an address of the node"},
		"the agent on all addresses":         {Rules{Metadata: metadata, Agent: netip.MustParseAddrPort("0.0.0.0:2579")}, "use an address of the node"},
		"the agent without a port":           {Rules{Metadata: metadata, Agent: netip.MustParseAddrPort("10.9.0.1:0")}, "not an IPv4 address and a port"},
		"IPv6 for the agent alone":           {Rules{Metadata: metadata, Agent: agent, Agent6: agent6}, "both, or none"},
		"IPv4 in the place of IPv6":          {Rules{Metadata: metadata, Agent: agent, Metadata6: metadata, Agent6: agent}, "not IPv6 addresses"},
		"the agent on all addresses of IPv6": {Rules{Metadata: metadata, Agent: agent, Metadata6: metadata6, Agent6: netip.MustParseAddrPort("[::]:1")}, "use an address of the node"},
		"the agent on IPv6":                  {Rules{Metadata: metadata, Agent: netip.MustParseAddrPort("[fd00::1]:2579")}, "not an IPv4 address and a port"},
		"the metadata service on IPv6":       {Rules{Metadata: netip.MustParseAddrPort("[fd00::1]:80"), Agent: agent}, "not an IPv4 address and a port"},
		"nothing at all":                     {Rules{}, "not an IPv4 address and a port"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := (&Writer{Rules: tt.rules}).Install(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// A firewall that is loaded anew flushes what it did not write.
func TestRulesThatSomebodyElseTookAwayComeBack(t *testing.T) {
	for name, take := range map[string]func(*nftables.Conn, *nftables.Table){
		"the whole ruleset": func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() },
		"our table":         func(c *nftables.Conn, t *nftables.Table) { c.DelTable(t) },
		"the rules of our table": func(c *nftables.Conn, t *nftables.Table) {
			c.FlushTable(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.serve(t, metadata, "metadata")
			n.serve(t, agent, "agent")
			n.install(t)
			ctx, cancel := context.WithCancel(t.Context())
			losses := make(chan struct{}, 100)
			done := make(chan error, 1)
			go func() {
				done <- n.Do(func() error {
					w := &Writer{Rules: Rules{Metadata: metadata, Agent: agent}}
					return w.Keep(ctx, 10*time.Millisecond, func() { losses <- struct{}{} })
				})
			}()
			must(t, n.Do(func() error {
				c, err := nftables.New()
				if err != nil {
					return err
				}
				take(c, &nftables.Table{Family: nftables.TableFamilyIPv4, Name: TableName})
				return c.Flush()
			}))
			deadline := time.After(10 * time.Second)
			for there := false; !there; {
				select {
				case <-deadline:
					t.Fatal("the rules do not come back")
				default:
				}
				must(t, n.Do(func() (err error) {
					there, err = (&Writer{Rules: Rules{Metadata: metadata, Agent: agent}}).installed()
					return err
				}))
			}
			expect(t, n.pods[0], metadata, "agent saw 10.9.0.2")
			cancel()
			must(t, <-done)
			if got := len(losses); got != 1 {
				t.Errorf("%d losses were told, want 1", got)
			}
		})
	}
}

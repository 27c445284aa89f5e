package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestTheNodeItselfIsRefusedWithBlockHostUnlessItsSocketIsMarked(t *testing.T) {
	n := newNode(t)
	n.serve(t, metadata, "metadata")
	n.serve(t, agent, "agent")
	rules := guard()
	rules.BlockHost = true
	g := start(t, n, rules)
	g.admitted(t, "10.9.0.2")
	if got, err := ask(t, n.NS, metadata); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a process of the node got %q, %v; want a refused connection", got, err)
	}
	expect(t, n.pods[0], metadata, "agent saw 10.9.0.2")
	var got string
	must(t, n.Do(func() error {
		c, err := (&net.Dialer{Control: Control}).DialContext(t.Context(), "tcp", metadata.String())
		if err != nil {
			return err
		}
		defer c.Close()
		got, err = line(c)
		return err
	}))
	if got != "metadata saw 169.254.169.254" {
		t.Errorf("the agent got %q", got)
	}
	must(t, n.Do(func() error { return Remove(metadata) }))
	expect(t, n.NS, metadata, "metadata saw 169.254.169.254")
}

func TestAMarkNeedsACapability(t *testing.T) {
	n := newNode(t)
	must(t, n.Do(func() error {
		hdr, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
		if err := unix.Capset(&hdr, &none[0]); err != nil {
			return err
		}
		c, err := (&net.Dialer{Control: Control}).DialContext(t.Context(), "tcp", metadata.String())
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("marking a socket without a capability: %v", err)
		}
		return nil
	}))
}

var (
	metadata6 = netip.MustParseAddrPort("[fd00:a9fe:a9fe::254]:80")
	agent6    = netip.MustParseAddrPort("[fd09::1]:2579")
)

// dual gives the node IPv6 addresses beside the others, and its pods a way
// there; theirs are fd09::2 and fd09::3.
func (n *node) dual(t *testing.T) {
	t.Helper()
	add := func(link string, a netip.Prefix) error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		at := &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), 128)}
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: at, Flags: unix.IFA_F_NODAD})
	}
	must(t, n.Do(func() error {
		return errors.Join(add("br0", netip.PrefixFrom(agent6.Addr(), 64)), add("lo", netip.PrefixFrom(metadata6.Addr(), 128)))
	}))
	for _, pod := range n.pods {
		must(t, pod.Do(func() error {
			everywhere := &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
			return netlink.RouteAdd(&netlink.Route{Dst: everywhere, Gw: agent6.Addr().AsSlice()})
		}))
	}
}

func TestPodsAreLedAndHeldToTheirAddressesWithIPv6(t *testing.T) {
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprintf("guard %t", guarded), func(t *testing.T) {
			n := newNode(t)
			n.dual(t)
			n.serve(t, agent, "agent")
			n.serve(t, agent6, "agent")
			rules, want := Rules{Metadata: metadata, Agent: agent, Metadata6: metadata6, Agent6: agent6, Guard: guarded}, ""
			if !guarded {
				want = "agent saw fd09::2"
			}
			g := start(t, n, rules)
			g.admitted(t, "10.9.0.2", "fd09::2", "10.9.0.3", "fd09::3")
			expect(t, n.pods[0], metadata, "agent saw 10.9.0.2")
			// The kernel is still making sure that nobody else has the new
			// link-local addresses.
			eventually(t, func() error {
				got, err := ask(t, n.pods[0], metadata6)
				if err == nil && got != "agent saw fd09::2" {
					t.Fatalf("got %q", got)
				}
				return err
			})
			if got, err := ask(t, n.pods[0], agent6); err == nil {
				t.Errorf("the agent's own address answers %q", got)
			}
			th := newThief(t, n.pods[1], n.hardware(t, n.NS, "br0"))
			if got := th.steal(t, netip.MustParseAddr("fd09::2"), agent6.Addr(), metadata6, true); got != want {
				t.Errorf("the thief read %q, want %q", got, want)
			}
			if guarded {
				expect(t, n.pods[0], metadata6, "agent saw fd09::2")
			}
			must(t, n.Do(func() error { return Remove(metadata, metadata6) }))
		})
	}
}

func TestAPodWithARouteOfItsOwnIsHeldToIt(t *testing.T) {
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprintf("guard %t", guarded), func(t *testing.T) {
			n := newNode(t)
			must(t, n.Do(func() error {
				return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("0"), 0o644)
			}))
			n.serve(t, agent, "agent")
			rules := guard()
			rules.Guard = guarded
			must(t, n.Do((&Writer{Rules: rules}).Install)) // no agent tells who is where: the route is enough
			victim, other := n.routed(t, 6), n.routed(t, 7)
			expect(t, victim, metadata, "agent saw 10.9.0.8")
			expect(t, other, metadata, "agent saw 10.9.0.9")
			th := newThief(t, other, n.hardware(t, n.NS, "veth7"))
			th.segment(t, netip.MustParseAddr("10.9.0.8"), metadata, syn, 1000, 0, "")
			expect(t, other, metadata, "agent saw 10.9.0.9") // comes after the forged packet
			if got := n.arrived(t, netip.AddrPortFrom(netip.MustParseAddr("10.9.0.8"), th.port)); got == guarded {
				t.Errorf("the forged packet arrived: %t", got)
			}
		})
	}
}

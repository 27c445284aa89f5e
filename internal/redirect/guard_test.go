package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/lab/netns"
	"github.com/lanyard-id/lanyard/internal/sandbox"
)

func guard() Rules { return Rules{Metadata: metadata, Agent: agent, Guard: true} }

// A guarded node runs what nmi runs beside its server: a Writer, and a Table
// that tells it.
type guarded struct {
	writer *Writer
	table  *sandbox.Table
	stop   func() // the agent dies; its rules stay
}

func start(t *testing.T, n *node, rules Rules) *guarded {
	t.Helper()
	g := &guarded{writer: &Writer{Rules: rules}}
	must(t, n.Do(g.writer.Install))
	g.stop = func() {}
	if !rules.Guard {
		return g
	}
	g.table = &sandbox.Table{Known: g.writer.Known(), Admit: g.writer.Admit}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Do(func() error { return g.table.Run(ctx) }) }()
	stopped := false
	g.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(g.stop)
	return g
}

// admitted waits until the packet filter knows these addresses.
func (g *guarded) admitted(t *testing.T, addresses ...string) {
	t.Helper()
	if !g.writer.Rules.Guard {
		return
	}
	eventually(t, func() error {
		there := map[string]bool{}
		for _, c := range g.writer.Known() {
			for _, a := range c.Addresses {
				p, ok := g.table.Behind(a)
				there[a.String()] = ok && p.Index == c.Port // and not the former pod's
			}
		}
		for _, a := range addresses {
			if !there[a] {
				return fmt.Errorf("%s is not admitted; %v are", a, there)
			}
		}
		return nil
	})
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	tick, limit := time.NewTicker(5*time.Millisecond), time.After(10*time.Second)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal(err)
		}
	}
}

// stranger expects that a namespace gets no answer.
func stranger(t *testing.T, from *netns.NS, to netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if c, err := from.DialContext(ctx, "tcp", to.String()); err == nil {
		c.Close()
		t.Error("it is connected; want silence")
	}
}

func (n *node) hardware(t *testing.T, in *netns.NS, name string) (h [6]byte) {
	t.Helper()
	must(t, in.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			copy(h[:], l.Attrs().HardwareAddr)
		}
		return err
	}))
	return h
}

// unlocked lets the node believe each claim of a neighbour at once, as it does
// a second after the last.
func (n *node) unlocked(t *testing.T) {
	t.Helper()
	must(t, n.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/neigh/br0/locktime", []byte("0"), 0o644) }))
}

// Each attack works without the guard: what is tested is the guard.
func TestAPodWithRawSocketsCannotAskInItsNeighboursName(t *testing.T) {
	for name, prepare := range map[string]struct {
		claim bool
		as    func(th *thief, victim [6]byte)
	}{
		"by claiming its address in ARP":                    {true, func(*thief, [6]byte) {}},
		"by sending with its hardware address":              {false, func(th *thief, victim [6]byte) { th.source = victim }},
		"by claiming its address in a frame with a tag":     {true, func(th *thief, _ [6]byte) { th.tags = 1 }},
		"by claiming its address in frames with two tags":   {true, func(th *thief, _ [6]byte) { th.tags = 2 }},
		"by sending with its hardware address and two tags": {false, func(th *thief, victim [6]byte) { th.source, th.tags = victim, 2 }},
	} {
		for _, guarded := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, guard %t", name, guarded), func(t *testing.T) {
				n := newNode(t)
				n.unlocked(t)
				n.serve(t, agent, "agent")
				rules, want := guard(), ""
				if !guarded {
					rules.Guard, want = false, "agent saw 10.9.0.2"
				}
				g := start(t, n, rules)
				g.admitted(t, "10.9.0.2", "10.9.0.3")
				expect(t, n.pods[0], metadata, "agent saw 10.9.0.2")
				th := newThief(t, n.pods[1], n.hardware(t, n.NS, "br0"))
				prepare.as(th, n.hardware(t, n.pods[0], "eth0"))
				if got := th.steal(t, netip.MustParseAddr("10.9.0.2"), agent.Addr(), metadata, prepare.claim); got != want {
					t.Errorf("the thief read %q, want %q", got, want)
				}
				if guarded {
					expect(t, n.pods[0], metadata, "agent saw 10.9.0.2")
					expect(t, n.pods[1], metadata, "agent saw 10.9.0.3")
				}
			})
		}
	}
}

// A claim in ARP without a request would send the neighbour's answers, with
// its token, to the thief.
func TestAnswersGoToThePodThatAsked(t *testing.T) {
	for _, tt := range []struct {
		guarded bool
		tags    int
	}{{false, 0}, {true, 0}, {false, 2}, {true, 2}} {
		t.Run(fmt.Sprintf("guard %t, %d tags", tt.guarded, tt.tags), func(t *testing.T) {
			n := newNode(t)
			n.unlocked(t)
			n.serve(t, agent, "agent")
			rules := guard()
			rules.Guard = tt.guarded
			g := start(t, n, rules)
			g.admitted(t, "10.9.0.2", "10.9.0.3")
			expect(t, n.pods[0], metadata, "agent saw 10.9.0.2")
			th := newThief(t, n.pods[1], n.hardware(t, n.NS, "br0"))
			th.tags = tt.tags
			th.claim(t, netip.MustParseAddr("10.9.0.2"), agent.Addr())
			_, err := ask(t, n.pods[0], metadata)
			if (err == nil) != tt.guarded {
				t.Errorf("the victim's own request: %v", err)
			}
		})
	}
}

// A bridge sends frames to the port that their receiver was last heard at.
func TestABridgeIsNotToldThatAPodHasMoved(t *testing.T) {
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprintf("guard %t", guarded), func(t *testing.T) {
			n := newNode(t)
			rules := guard()
			rules.Guard = guarded
			g := start(t, n, rules)
			g.admitted(t, "10.9.0.2", "10.9.0.3")
			at := netip.MustParseAddrPort("10.9.0.2:8080")
			(&node{NS: n.pods[0]}).serve(t, at, "victim")
			expect(t, n.NS, at, "victim saw 10.9.0.1")
			th := newThief(t, n.pods[1], n.hardware(t, n.NS, "br0"))
			th.source = n.hardware(t, n.pods[0], "eth0")
			steal := func() error {
				th.segment(t, netip.MustParseAddr("10.9.0.3"), metadata, syn, 1000, 0, "")
				_, err := ask(t, n.NS, at)
				return err
			}
			if !guarded { // a late frame of the victim's may tell the bridge otherwise
				eventually(t, func() error {
					if steal() == nil {
						return errors.New("what is sent to the victim still arrives there")
					}
					return nil
				})
				return
			}
			for range 5 {
				must(t, steal())
			}
		})
	}
}

// synAgain is after how long Linux sends a SYN again (RFC 6298 section 2).
const synAgain = time.Second

func TestANewPodIsAnsweredAtItsFirstPacket(t *testing.T) {
	n := newNode(t)
	n.serve(t, agent, "agent")
	g := start(t, n, guard())
	pod := n.pod(t, 5)
	g.admitted(t, "10.9.0.7")
	began := time.Now()
	expect(t, pod, metadata, "agent saw 10.9.0.7")
	if took := time.Since(began); took >= synAgain {
		t.Errorf("a packet was sent twice: it took %s", took)
	}
}

// With br_netfilter, which kube-proxy wants for bridges, the rules of the IP
// layer see a packet while it still is in the bridge.
func TestItDoesNotMatterWhetherBridgesAskTheIPLayer(t *testing.T) {
	for _, asks := range []string{"0", "1"} {
		t.Run(asks, func(t *testing.T) {
			n := newNode(t)
			n.unlocked(t)
			must(t, n.Do(func() error {
				err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(asks), 0o644)
				if errors.Is(err, os.ErrNotExist) && asks == "0" {
					return nil // the module is not there: it is off
				}
				return err
			}))
			n.serve(t, agent, "agent")
			g := start(t, n, guard())
			g.admitted(t, "10.9.0.2", "10.9.0.3")
			expect(t, n.pods[0], metadata, "agent saw 10.9.0.2")
			th := newThief(t, n.pods[1], n.hardware(t, n.NS, "br0"))
			if got := th.steal(t, netip.MustParseAddr("10.9.0.2"), agent.Addr(), metadata, true); got != "" {
				t.Errorf("the thief read %q", got)
			}
			if n.arrived(t, netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), th.port)) {
				t.Error("the forged packet arrived")
			}
		})
	}
}

// What the node remembers of the former pod does not stand in the way of the
// next one.
func TestAReusedAddressIsAnsweredAtItsFirstPacket(t *testing.T) {
	n := newNode(t)
	n.serve(t, agent, "agent")
	g := start(t, n, guard())
	address := netip.MustParseAddr("10.9.0.7")
	var last sandbox.Port
	for range 3 {
		pod := n.pod(t, 5)
		g.admitted(t, address.String())
		p, ok := g.table.Behind(address)
		if !ok || p.Generation <= last.Generation {
			t.Errorf("after %+v: %+v, %t", last, p, ok)
		}
		last = p
		began := time.Now()
		expect(t, pod, metadata, "agent saw 10.9.0.7")
		if took := time.Since(began); took >= synAgain {
			t.Errorf("a packet was sent twice: it took %s", took)
		}
		must(t, n.Do(func() error {
			l, err := netlink.LinkByName("veth5")
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}))
		eventually(t, func() error {
			if p, ok := g.table.Behind(address); ok {
				return fmt.Errorf("still behind %v", p)
			}
			return nil
		})
	}
}

func TestWithoutAnAgentKnownPodsAreRefusedAndNewOnesHearNothing(t *testing.T) {
	n := newNode(t)
	n.serve(t, metadata, "metadata")
	g := start(t, n, guard())
	g.admitted(t, "10.9.0.2", "10.9.0.3")
	g.stop()
	if got, err := ask(t, n.pods[0], metadata); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("got %q, %v; want a refused connection", got, err)
	}
	pod := n.pod(t, 5)
	stranger(t, pod, metadata)
	// Its other ways are open: an agent that is dead stops nothing else.
	n.serve(t, netip.AddrPortFrom(agent.Addr(), 8080), "other")
	expect(t, pod, netip.AddrPortFrom(agent.Addr(), 8080), "other saw 10.9.0.7")

	// The next agent takes over what the kernel knows, and learns the rest.
	n.serve(t, agent, "agent")
	g = start(t, n, guard())
	if known := g.writer.Known(); len(known) < 2 {
		t.Errorf("the next agent knows %v", known)
	}
	expect(t, n.pods[0], metadata, "agent saw 10.9.0.2")
	g.admitted(t, "10.9.0.7")
	expect(t, pod, metadata, "agent saw 10.9.0.7")
}

// move gives a pod another address, as one with NET_ADMIN can.
func move(t *testing.T, pod *netns.NS, address string) {
	t.Helper()
	must(t, pod.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(eth0, a), netlink.RouteReplace(&netlink.Route{Gw: agent.Addr().AsSlice(), Src: a.IP}))
	}))
}

func TestAPodThatGivesItselfAnAddressGainsNothing(t *testing.T) {
	n := newNode(t)
	n.serve(t, agent, "agent")
	g := start(t, n, guard())
	g.admitted(t, "10.9.0.2", "10.9.0.3")
	// A runtime needs longer than this from a pod's address to its process.
	born := time.Now()
	eventually(t, func() error {
		if time.Since(born) < 200*time.Millisecond {
			return errors.New("the pod is still being made")
		}
		return nil
	})
	n.pods[0].Close()
	for _, restart := range []bool{false, true} {
		if restart { // also while no agent looks
			g.stop()
		}
		move(t, n.pods[1], map[bool]string{false: "10.9.0.99/24", true: "10.9.0.98/24"}[restart])
		stranger(t, n.pods[1], metadata)
		if restart {
			g = start(t, n, guard())
			g.admitted(t, "10.9.0.3")
			stranger(t, n.pods[1], metadata)
		}
	}
	for _, a := range []string{"10.9.0.98", "10.9.0.99"} {
		if p, ok := g.table.Behind(netip.MustParseAddr(a)); ok {
			t.Errorf("%s is behind %v", a, p)
		}
	}
}

// routed plugs a pod in as Calico does: a route to each pod, no bridge.
func (n *node) routed(t *testing.T, i int) *netns.NS {
	t.Helper()
	pod := n.pod(t, i)
	must(t, n.Do(func() error {
		port, err := netlink.LinkByName(fmt.Sprintf("veth%d", i))
		if err != nil {
			return err
		}
		at := &net.IPNet{IP: net.IPv4(10, 9, 0, byte(2+i)), Mask: net.CIDRMask(32, 32)}
		return errors.Join(
			netlink.LinkSetNoMaster(port),
			os.WriteFile("/proc/sys/net/ipv4/conf/"+port.Attrs().Name+"/proxy_arp", []byte("1"), 0o644),
			os.WriteFile("/proc/sys/net/ipv4/conf/"+port.Attrs().Name+"/rp_filter", []byte("0"), 0o644),
			netlink.RouteAdd(&netlink.Route{LinkIndex: port.Attrs().Index, Dst: at, Scope: netlink.SCOPE_LINK}),
		)
	}))
	return pod
}

// arrived reports whether a packet from an address got as far as connection
// tracking.
func (n *node) arrived(t *testing.T, from netip.AddrPort) (there bool) {
	t.Helper()
	must(t, n.Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
		for _, f := range flows {
			there = there || same(f.Forward.SrcIP, f.Forward.SrcPort, from)
		}
		return err
	}))
	return there
}

// Whoever starts many pods at once loses no packet of any.
func TestManyPodsAtOnceAreAllAnswered(t *testing.T) {
	n := newNode(t)
	n.serve(t, agent, "agent")
	g := start(t, n, guard())
	var pods []*netns.NS
	var addresses []string
	for i := range 40 {
		pods = append(pods, n.pod(t, 10+i))
		addresses = append(addresses, fmt.Sprintf("10.9.0.%d", 12+i))
	}
	g.admitted(t, addresses...)
	for i, pod := range pods {
		expect(t, pod, metadata, "agent saw "+addresses[i])
	}
	// Nothing of them is left when they are gone.
	for _, pod := range pods {
		pod.Close()
	}
	eventually(t, func() error {
		if known := g.writer.Known(); len(known) != 2 {
			return fmt.Errorf("%d ports are known", len(known))
		}
		return nil
	})
	eventually(t, func() error {
		var kept []sandbox.Cable
		must(t, n.Do(func() error {
			c, err := nftables.New()
			if err == nil {
				kept, err = known(c)
			}
			return err
		}))
		if len(kept) != 2 {
			return fmt.Errorf("the kernel knows %d ports", len(kept))
		}
		return nil
	})
}

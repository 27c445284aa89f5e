package sandbox

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/lab/netns"
	"github.com/lanyard-id/lanyard/internal/lab/netns/netnstest"
)

// The tests run in a user namespace of their own, so that they need no root
// and what they do to the kernel ends with them.
func TestMain(m *testing.M) {
	netnstest.Main(func() int {
		goleak.VerifyTestMain(m) // ends the process itself
		return 1
	})
}

// A node is a network namespace with a bridge.
type node struct {
	*netns.NS
	t *testing.T

	mu    sync.Mutex
	admit []Cable // as told last
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{NS: namespace(t), t: t}
	must(t, n.Setup(netns.Setup{Bridge: "cni0", BridgeAddresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")}}))
	return n
}

func namespace(t *testing.T) *netns.NS {
	t.Helper()
	n, err := netns.New()
	must(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// plug gives a pod a cable whose end here has this name, and addresses.
func (n *node) plug(pod *netns.NS, name, inside string, addresses ...string) {
	n.t.Helper()
	var handle vnetns.NsHandle
	must(n.t, pod.Do(func() (err error) { handle, err = vnetns.Get(); return err }))
	defer handle.Close()
	must(n.t, n.Do(func() error {
		bridge, err := netlink.LinkByName("cni0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex, attrs.Flags = name, bridge.Attrs().Index, net.FlagUp
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: inside, PeerNamespace: netlink.NsFd(handle)})
	}))
	give(n.t, pod, inside, addresses...)
}

func give(t *testing.T, pod *netns.NS, inside string, addresses ...string) {
	t.Helper()
	must(t, pod.Do(func() error {
		l, err := netlink.LinkByName(inside)
		if err != nil {
			return err
		}
		for _, s := range addresses {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}))
}

func (n *node) unplug(name string) {
	n.t.Helper()
	must(n.t, n.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	}))
}

// run starts a table; stop ends it, at the latest with the test.
func (n *node) run(known ...Cable) (table *Table, stop func()) {
	n.t.Helper()
	table = &Table{Known: known, Admit: func(c []Cable) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.admit = c
		return nil
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Do(func() error { return table.Run(ctx) }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
	})
	n.t.Cleanup(stop)
	return table, stop
}

func (n *node) told() []Cable {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.admit
}

// forgets waits until the packet filter is told that an address is nobody's: it
// is told after the agent, which refuses the address already.
func (n *node) forgets(t *testing.T, address string) {
	t.Helper()
	limit, tick := time.After(10*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	has := func(c Cable) bool { return slices.Contains(c.Addresses, netip.MustParseAddr(address)) }
	for slices.ContainsFunc(n.told(), has) {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("the packet filter was told %v", n.told())
		}
	}
}

// find waits for an address to be behind a port of this name; "" is none.
func find(t *testing.T, table *Table, address, name string) Port {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		changed := table.Changed()
		p, ok := table.Behind(netip.MustParseAddr(address))
		if ok == (name != "") && p.Name == name {
			return p
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("%s is behind %q, want %q", address, p.Name, name)
		}
	}
}

// settle waits until whatever was made is too old to get more.
func settle(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*settling)
	defer cancel()
	<-ctx.Done()
}

func TestPodsAreFoundThatWereThereAndThatCome(t *testing.T) {
	n := newNode(t)
	n.plug(namespace(t), "veth1", "eth0", "10.9.0.2/24", "fd09::2/64")
	table, _ := n.run()
	first := find(t, table, "10.9.0.2", "veth1")
	if p := find(t, table, "fd09::2", "veth1"); p != first {
		t.Errorf("two addresses of a pod: %v and %v", first, p)
	}
	if p, _ := table.Behind(netip.MustParseAddr("::ffff:10.9.0.2")); p != first {
		t.Errorf("the same address written for IPv6: %v", p)
	}
	began := time.Now()
	n.plug(namespace(t), "veth2", "eth0", "10.9.0.3/24")
	second := find(t, table, "10.9.0.3", "veth2")
	if took := time.Since(began); took >= slowest {
		t.Errorf("a new pod was found after %s", took)
	}
	if second.Generation <= first.Generation || second.Index == first.Index || second.Since.Before(began) {
		t.Errorf("first %+v, then %+v", first, second)
	}
	for _, a := range []string{"10.9.0.1", "127.0.0.1", "10.9.0.9", "fe80::1"} {
		if p, ok := table.Behind(netip.MustParseAddr(a)); ok {
			t.Errorf("%s is behind %v", a, p)
		}
	}
}

// slowest is what the table must beat on any machine: it listens, and does not
// only look around now and then.
const slowest = time.Second

// The plugin makes the cable first, and asks for an address afterwards.
func TestAPodWhoseAddressComesLateIsFoundSoonAfter(t *testing.T) {
	n := newNode(t)
	table, _ := n.run()
	pod := namespace(t)
	n.plug(pod, "veth1", "eth0")
	settle(t)
	began := time.Now()
	give(t, pod, "eth0", "10.9.0.2/24")
	find(t, table, "10.9.0.2", "veth1")
	if took := time.Since(began); took >= slowest {
		t.Errorf("it took %s", took)
	}
}

func TestAReusedAddressHasAnotherGeneration(t *testing.T) {
	n := newNode(t)
	table, _ := n.run()
	n.plug(namespace(t), "veth1", "eth0", "10.9.0.2/24")
	first := find(t, table, "10.9.0.2", "veth1")
	n.unplug("veth1")
	find(t, table, "10.9.0.2", "")
	n.plug(namespace(t), "veth1", "eth0", "10.9.0.2/24") // the name too
	second := find(t, table, "10.9.0.2", "veth1")
	if second.Generation <= first.Generation || second.Index == first.Index {
		t.Errorf("first %+v, then %+v", first, second)
	}
}

func TestAnAddressThatAPodGivesItselfIsNobodys(t *testing.T) {
	n := newNode(t)
	table, stop := n.run()
	victim, thief := namespace(t), namespace(t)
	n.plug(victim, "veth1", "eth0", "10.9.0.2/24")
	n.plug(thief, "veth2", "eth0", "10.9.0.3/24")
	own := find(t, table, "10.9.0.2", "veth1")
	find(t, table, "10.9.0.3", "veth2")
	settle(t)
	give(t, thief, "eth0", "10.9.0.2/24", "10.9.0.77/24")
	n.plug(namespace(t), "veth3", "eth0", "10.9.0.4/24") // something happens
	find(t, table, "10.9.0.4", "veth3")
	if p, _ := table.Behind(netip.MustParseAddr("10.9.0.2")); p != own {
		t.Errorf("the neighbour's address is behind %v, was behind %v", p, own)
	}
	if p, ok := table.Behind(netip.MustParseAddr("10.9.0.77")); ok {
		t.Errorf("an address nobody gave is behind %v", p)
	}

	// An agent that starts now reads both; the kernel keeps when addresses
	// were made.
	stop()
	table, stop = n.run()
	find(t, table, "10.9.0.2", "veth1")
	find(t, table, "10.9.0.3", "veth2")
	stop()

	// A thief that has thrown its own address away is known by what the last
	// agent had told the kernel, and without that both are refused.
	must(t, thief.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr("10.9.0.3/24")
		if err != nil {
			return err
		}
		return netlink.AddrDel(l, a)
	}))
	give(t, thief, "eth0", "10.9.0.2/24", "10.9.0.5/24")
	table, stop = n.run(n.told()...)
	find(t, table, "10.9.0.2", "veth1")
	find(t, table, "10.9.0.3", "veth2")
	find(t, table, "10.9.0.5", "")
	stop()
	table, _ = n.run()
	find(t, table, "10.9.0.4", "veth3")
	find(t, table, "10.9.0.2", "")
	n.unplug("veth1")
	n.plug(namespace(t), "veth4", "eth0", "10.9.0.6/24")
	find(t, table, "10.9.0.6", "veth4")
	find(t, table, "10.9.0.2", "") // still: the thief was there before us
}

// A plugin may free an address before it takes the old cable away, and an
// owner of pods may make a plugin give any address.
func TestAnAddressThatTwoPodsWereGivenIsNobodysUntilTheOlderIsGone(t *testing.T) {
	n := newNode(t)
	table, _ := n.run()
	n.plug(namespace(t), "veth1", "eth0", "10.9.0.2/24")
	find(t, table, "10.9.0.2", "veth1")
	n.plug(namespace(t), "veth2", "eth0", "10.9.0.2/24", "10.9.0.3/24")
	find(t, table, "10.9.0.3", "veth2")
	find(t, table, "10.9.0.2", "")
	n.forgets(t, "10.9.0.2")
	n.unplug("veth1")
	find(t, table, "10.9.0.2", "veth2")
}

func TestWhatOneCableWasToldAnotherIsNot(t *testing.T) {
	n := newNode(t)
	pod := namespace(t)
	n.plug(pod, "veth1", "eth0", "10.9.0.2/24")
	n.plug(pod, "veth2", "net1", "10.9.0.3/24")
	table, _ := n.run()
	find(t, table, "10.9.0.2", "veth1")
	find(t, table, "10.9.0.3", "veth2")
	for _, c := range n.told() {
		if len(c.Addresses) != 1 || c.Hardware == (HardwareAddr{}) {
			t.Errorf("told %v", c)
		}
	}
}

// What the node's neighbour table says of a new pod's address is a former
// pod's, or a claim.
func TestClaimsFromBeforeAPodWasKnownAreForgotten(t *testing.T) {
	n := newNode(t)
	table, _ := n.run()
	neighbours := func() []netlink.Neigh {
		var all []netlink.Neigh
		must(t, n.Do(func() (err error) { all, err = netlink.NeighList(0, netlink.FAMILY_V4); return err }))
		return slices.DeleteFunc(all, func(n netlink.Neigh) bool { return n.IP.String() != "10.9.0.2" })
	}
	n.plug(namespace(t), "veth0", "eth0", "10.9.0.9/24")
	find(t, table, "10.9.0.9", "veth0")
	must(t, n.Do(func() error {
		l, err := netlink.LinkByName("cni0")
		for err == nil && l.Attrs().OperState != netlink.OperUp { // before, it forgets all neighbours
			l, err = netlink.LinkByName("cni0")
		}
		if err != nil {
			return err
		}
		return netlink.NeighAdd(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: net.IPv4(10, 9, 0, 2), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}, State: unix.NUD_REACHABLE})
	}))
	if len(neighbours()) != 1 {
		t.Fatal("no neighbour")
	}
	n.plug(namespace(t), "veth1", "eth0", "10.9.0.2/24")
	find(t, table, "10.9.0.2", "veth1")
	if got := neighbours(); len(got) != 0 {
		t.Errorf("neighbours: %v", got)
	}
}

func TestAPacketFilterThatFailsIsToldAgain(t *testing.T) {
	n := newNode(t)
	n.plug(namespace(t), "veth1", "eth0", "10.9.0.2/24")
	k, err := n.open()
	must(t, err)
	defer k.close()
	calls := 0
	table := &Table{Admit: func([]Cable) error {
		calls++
		if calls == 1 {
			return errors.New("no")
		}
		return nil
	}}
	w := &watch{table: table, kernel: k, ledger: ledger{ports: map[int]*cable{}}}
	must(t, w.lookAround())
	must(t, w.lookAround())
	must(t, w.lookAround())
	if calls != 2 {
		t.Errorf("told %d times, want 2: once in vain, once again", calls)
	}
}

func (n *node) open() (k *kernel, err error) {
	err = n.Do(func() (err error) { k, err = open(); return err })
	return k, err
}

func BenchmarkBehind(b *testing.B) {
	owners := map[netip.Addr]Port{}
	a := netip.MustParseAddr("10.9.0.1")
	for i := range 250 {
		a = a.Next()
		owners[a] = Port{Index: i}
	}
	table := &Table{}
	table.publish(owners)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := table.Behind(a); !ok {
			b.Fatal("nobody")
		}
	}
}

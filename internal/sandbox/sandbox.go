// Package sandbox tells behind which network interface of the node an address
// is, in a way that a pod cannot forge. A source address alone is no proof: a
// pod with NET_RAW writes any address into its packets (CVE-2021-1677).
//
//	veth appears (RTM_NEWLINK) ──> whose other end is in another namespace (IFLA_LINK_NETNSID)
//	   1 the other end's link     it names our end, and its hardware address (RTM_GETLINK, IFLA_TARGET_NETNSID)
//	   2 the other end's addresses (RTM_GETADDR, IFA_TARGET_NETNSID), again and again until there are some
//	   3 the ledger               which address belongs to which port
//	   4 Table.Behind             for the agent;  Table.Admit: for the kernel's packet filter (package redirect)
//	veth is gone (RTM_DELLINK) ──> its addresses are free
//
// The kernel answers for both ends; nothing is read from a packet. Three rules
// make the answer hold against pods that may change their own network
// (NET_ADMIN):
//
//   - A port has the addresses it was born with: those that the network plugin
//     gave it in one go, before a process of the pod ran. The kernel keeps the
//     time at which each address was made (ifa_cacheinfo.cstamp), so that it
//     does not matter when we look. What a pod adds later counts for nothing,
//     what it takes away stays its own.
//   - An address that two ports were born with belongs to neither. Once the
//     others are gone it belongs to the youngest, if we saw that one come: a
//     plugin may free an address just before it removes the old port. The older
//     never get it back, and no port that was there before us does.
//   - What an earlier run of the agent knew is taken over (Table.Known), so
//     that a pod gains nothing from changing its address while no agent runs.
//
// So a pod that is given a neighbour's address by a plugin that its owner may
// configure (a static address in a NetworkAttachmentDefinition) takes the
// neighbour's service away, but does not become the neighbour. One gap is the
// caller's to close: a younger port keeps the address when the neighbour has
// ended and the API server has not heard of it. A pod that was seen at one
// Generation must not be believed at another on the word of its address alone.
//
// Other ways that were weighed: the interface that a socket's packets came by
// (IP_PKTINFO) is the bridge for all pods of a bridge; reading pods' namespaces
// by path needs the container runtime's directory and CAP_SYS_ADMIN; neighbour
// and forwarding tables are filled from what pods send; the names of interfaces
// are a plugin's habit.
//
// It needs Linux 5.0, the node's network namespace and CAP_NET_ADMIN.
package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Port is the node's end of the cable to a network namespace.
type Port struct {
	Index int    // of the interface; the kernel does not give an index twice
	Name  string // for people

	// Generation is higher for each port that appears, and never used twice by
	// a Table. An address with another generation than before has been given
	// to another sandbox.
	Generation uint64
	Since      time.Time // the Table saw the port first
}

// A Cable is a port with what the other end may say it is.
type Cable struct {
	Port      int          // interface index
	Hardware  HardwareAddr // zero if unknown
	Addresses []netip.Addr // that belong to this port alone, in order
}

// A HardwareAddr is an Ethernet address.
type HardwareAddr [6]byte

// A Table learns and keeps who is behind which port. The zero value is ready;
// Run fills it.
type Table struct {
	// Known is what an earlier run had told Admit, if the kernel still has it.
	Known []Cable
	// Admit is told all cables after each change, so that the kernel can hold
	// packets to them; nil means nobody. It is called by Run only. After an
	// error it is called again within a few seconds.
	Admit func([]Cable) error

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default

	owners atomic.Pointer[map[netip.Addr]Port]

	mu      sync.Mutex
	changed chan struct{} // closed at the next change
}

// Behind returns the port that an address is behind. It is false for an
// address that no sandbox has, that two have, or before Run has looked around.
// It costs nanoseconds.
func (t *Table) Behind(ip netip.Addr) (Port, bool) {
	owners := t.owners.Load()
	if owners == nil {
		return Port{}, false
	}
	p, ok := (*owners)[ip.Unmap()]
	return p, ok
}

// Changed returns a channel that is closed at the next change of anything that
// Behind would return.
func (t *Table) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return t.changed
}

func (t *Table) publish(owners map[netip.Addr]Port) {
	t.owners.Store(&owners)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

func (t *Table) now() time.Time {
	if t.Now != nil {
		return t.Now()
	}
	return time.Now()
}

func (t *Table) logger() *slog.Logger {
	if t.Logger != nil {
		return t.Logger
	}
	return slog.Default()
}

// resync is how often everything is looked at, whatever events say.
const resync = 5 * time.Second

// Run follows the kernel until ctx ends; the answer is then nil. The calling
// goroutine's network namespace is the node's.
func (t *Table) Run(ctx context.Context) error {
	k, err := open()
	if err != nil {
		return fmt.Errorf("following network interfaces (CAP_NET_ADMIN and Linux 5.0 are needed): %w", err)
	}
	defer k.close()
	w := &watch{table: t, kernel: k, ledger: ledger{ports: map[int]*cable{}}}
	for ctx.Err() == nil {
		// The kernel drops events when we are too slow: then the
		// subscription ends, and a new one starts from what is there.
		if err := w.follow(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("following network interfaces: %w", err)
		}
	}
	return nil
}

// A watch is one run.
type watch struct {
	table  *Table
	kernel *kernel
	ledger ledger

	looked bool // the first look around is over
	stale  bool // Admit has failed
}

// follow handles events until the subscription ends.
func (w *watch) follow(ctx context.Context) error {
	// A pod's cable makes about ten events, and the kernel's own buffer
	// holds those of a dozen pods.
	events, done := make(chan netlink.LinkUpdate, 1024), make(chan struct{})
	var lost error
	err := netlink.LinkSubscribeWithOptions(events, done, netlink.LinkSubscribeOptions{ErrorCallback: func(err error) { lost = err }})
	if err != nil {
		close(done)
		return err
	}
	defer func() {
		close(done)
		for range events { // until the subscription's goroutine has seen it
		}
	}()
	if err := w.lookAround(); err != nil {
		return err
	}
	full := time.NewTicker(resync)
	defer full.Stop()
	for {
		due := time.NewTimer(w.readDue())
		select {
		case <-ctx.Done():
		case e, ok := <-events:
			if !ok {
				w.table.logger().WarnContext(ctx, "network events were lost; looking at all interfaces again", "err", lost)
				due.Stop()
				return nil
			}
			w.link(e)
			for range len(events) {
				if e, ok := <-events; ok {
					w.link(e)
				}
			}
		case <-due.C:
		case <-full.C:
			if err := w.lookAround(); err != nil {
				return err
			}
		}
		due.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (w *watch) link(e netlink.LinkUpdate) {
	// Messages of the bridge's own family tell of a port's membership and
	// lack the other end's namespace.
	if e.Family == unix.AF_BRIDGE {
		return
	}
	end, ok := endOf(e.Link)
	if !ok || e.Header.Type == unix.RTM_DELLINK {
		w.ledger.unplug(e.Attrs().Index)
		return
	}
	w.plug(end)
}

// lookAround compares the ledger with all interfaces that there are.
func (w *watch) lookAround() error {
	ends, err := w.kernel.ends()
	if err != nil {
		return err
	}
	there := map[int]bool{}
	for _, e := range ends { // by index: the older first
		there[e.index] = true
		w.plug(e)
	}
	for index := range w.ledger.ports {
		if !there[index] {
			w.ledger.unplug(index)
		}
	}
	if !w.looked {
		for _, c := range w.table.Known {
			w.ledger.restore(c)
		}
	}
	if w.stale || !w.looked {
		w.ledger.changed = true
	}
	w.readDue()
	w.looked = true
	return nil
}

func (w *watch) plug(e end) {
	w.ledger.plug(e, w.table.now(), !w.looked)
}

// readDue reads the addresses of new ports whose time has come, tells what
// has changed, and returns how long until the next reading.
func (w *watch) readDue() time.Duration {
	now, wait := w.table.now(), resync
	for _, c := range w.ledger.ports {
		if c.settled {
			continue
		}
		if !now.Before(c.due) {
			w.read(c, now)
		}
		if !c.settled {
			wait = min(wait, max(0, c.due.Sub(now)))
		}
	}
	w.tell()
	return wait
}

func (w *watch) read(c *cable, now time.Time) {
	hardware, addresses, err := w.kernel.read(c.end)
	if err != nil || len(addresses) == 0 {
		// The namespace is still being furnished, or just went away: in that
		// case its link's end is on the way to us.
		if c.retry(now) {
			w.table.logger().Warn("no address can be read behind this network interface; if it is a pod's, that pod is refused", "port", c.Name, "err", err)
		}
		return
	}
	w.ledger.own(c, hardware, addresses)
	w.kernel.forget(hardware, addresses)
	if c.first.IsZero() {
		c.first = now
	}
	c.settled = now.Sub(c.first) >= settling
	c.due = c.first.Add(settling)
}

func (w *watch) tell() {
	if !w.ledger.changed {
		return
	}
	w.ledger.changed = false
	for _, d := range w.ledger.disputes() {
		w.table.logger().Warn("two network interfaces were given one address: neither is trusted", "address", d.address, "ports", d.ports)
	}
	w.table.publish(w.ledger.owners())
	w.stale = false
	if w.table.Admit == nil {
		return
	}
	if err := w.table.Admit(w.ledger.cables()); err != nil {
		w.stale = true
		w.table.logger().Error("the packet filter was not told of new pods: they are refused until it is", "err", err)
	}
}

package sandbox

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// settling is how long after the first address a port may get others: network
// plugins give an IPv4 and an IPv6 address one after the other, on a busy node
// with a pause between. It must be shorter than what a runtime needs from there
// to the pod's first process: until then it makes two containers. A process that
// were quicker could take an address that nobody has, and lose it, for both, as
// soon as somebody is given it.
const settling = 150 * time.Millisecond

// Waiting for the first address: at first it is a matter of milliseconds, and
// a port that has none after some seconds is probably none of a pod.
const (
	firstRetry = time.Millisecond
	quickRetry = 25 * time.Millisecond
	quickFor   = 10 * time.Second
	slowRetry  = time.Second
)

// An end is the node's end of a cable whose other end is in another namespace.
type end struct {
	index     int
	name      string
	namespace int // the node's id of the other namespace (IFLA_LINK_NETNSID)
	peer      int // the other end's index there (IFLA_LINK)
}

// A cable is a port that is there now.
type cable struct {
	Port
	end

	initial   bool // was there before we looked
	hardware  HardwareAddr
	addresses []netip.Addr // it was born with
	void      map[netip.Addr]bool

	settled bool      // nothing will be added
	first   time.Time // when addresses were read first
	due     time.Time // of the next reading
	delay   time.Duration
}

// retry sets the time of the next reading. It is true once: when the readings
// become slow.
func (c *cable) retry(now time.Time) bool {
	slow := now.Sub(c.Since) > quickFor
	turned := slow && c.delay != slowRetry
	c.delay = min(max(2*c.delay, firstRetry), quickRetry)
	if slow {
		c.delay = slowRetry
	}
	c.due = now.Add(c.delay)
	return turned
}

// A ledger holds who has which address. It is not safe for concurrent use.
type ledger struct {
	ports   map[int]*cable
	last    uint64 // generation
	changed bool   // since whoever asks has set it to false
	quarrel map[netip.Addr]bool
}

// plug adds a port, unless it is known.
func (l *ledger) plug(e end, now time.Time, initial bool) {
	if c, ok := l.ports[e.index]; ok {
		if c.namespace == e.namespace && c.peer == e.peer {
			c.name = e.name
			return
		}
		l.unplug(e.index) // the other end was moved: another sandbox
	}
	l.last++
	l.ports[e.index] = &cable{
		Port: Port{Index: e.index, Name: e.name, Generation: l.last, Since: now},
		end:  e, initial: initial, due: now, void: map[netip.Addr]bool{},
	}
}

func (l *ledger) unplug(index int) {
	if c, ok := l.ports[index]; ok {
		delete(l.ports, index)
		l.changed = l.changed || len(c.addresses) > 0
	}
}

// restore settles a port with what is known of it.
func (l *ledger) restore(k Cable) {
	c, ok := l.ports[k.Port]
	if !ok || c.settled || len(k.Addresses) == 0 {
		return
	}
	l.own(c, k.Hardware, k.Addresses)
	c.settled = true
}

// own gives a port addresses beside those that it has.
func (l *ledger) own(c *cable, hardware HardwareAddr, addresses []netip.Addr) {
	if c.hardware == (HardwareAddr{}) {
		c.hardware = hardware
	}
	for _, a := range addresses {
		if slices.Contains(c.addresses, a) {
			continue
		}
		for _, other := range l.claimants(a) {
			switch {
			case c.initial && other.initial:
				c.void[a], other.void[a] = true, true
			case c.Generation < other.Generation:
				c.void[a] = true
			default:
				other.void[a] = true
			}
		}
		c.addresses = append(c.addresses, a)
		l.changed = true
	}
}

func (l *ledger) claimants(a netip.Addr) []*cable {
	var all []*cable
	for _, c := range l.sorted() {
		if slices.Contains(c.addresses, a) {
			all = append(all, c)
		}
	}
	return all
}

func (l *ledger) sorted() []*cable {
	return slices.SortedFunc(maps.Values(l.ports), func(a, b *cable) int { return cmp.Compare(a.Generation, b.Generation) })
}

// claims lists the ports of each address, the older first.
func (l *ledger) claims() map[netip.Addr][]*cable {
	all := map[netip.Addr][]*cable{}
	for _, c := range l.sorted() {
		for _, a := range c.addresses {
			all[a] = append(all[a], c)
		}
	}
	return all
}

// owners are the ports that have an address to themselves.
func (l *ledger) owners() map[netip.Addr]Port {
	owners := map[netip.Addr]Port{}
	for a, claims := range l.claims() {
		if len(claims) == 1 && !claims[0].void[a] {
			owners[a] = claims[0].Port
		}
	}
	return owners
}

// cables lists every port that has an address, by index.
func (l *ledger) cables() []Cable {
	owners := l.owners()
	var all []Cable
	for _, c := range l.sorted() {
		if len(c.addresses) == 0 {
			continue
		}
		k := Cable{Port: c.Index, Hardware: c.hardware}
		for _, a := range c.addresses {
			if owners[a].Index == c.Index {
				k.Addresses = append(k.Addresses, a)
			}
		}
		slices.SortFunc(k.Addresses, netip.Addr.Compare)
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b Cable) int { return cmp.Compare(a.Port, b.Port) })
	return all
}

// A dispute is an address that several ports were born with.
type dispute struct {
	address netip.Addr
	ports   []string
}

// disputes returns those that are new since the last call.
func (l *ledger) disputes() []dispute {
	now := map[netip.Addr]bool{}
	var fresh []dispute
	for a, claims := range l.claims() {
		if len(claims) < 2 {
			continue
		}
		now[a] = true
		if l.quarrel[a] {
			continue
		}
		d := dispute{address: a}
		for _, c := range claims {
			d.ports = append(d.ports, c.Name)
		}
		fresh = append(fresh, d)
	}
	l.quarrel = now
	return fresh
}

package sandbox

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	alpha = netip.MustParseAddr("10.9.0.2")
	beta  = netip.MustParseAddr("10.9.0.3")
	gamma = netip.MustParseAddr("fd00::3")
)

// A step is one thing that happens to a ledger.
type step func(*ledger)

func seen(index int, addresses ...netip.Addr) step  { return comes(index, false, addresses) }
func found(index int, addresses ...netip.Addr) step { return comes(index, true, addresses) }
func gone(index int) step                           { return func(l *ledger) { l.unplug(index) } }

func comes(index int, initial bool, addresses []netip.Addr) step {
	return func(l *ledger) {
		l.plug(end{index: index, namespace: index, peer: 2}, time.Time{}, initial)
		l.own(l.ports[index], HardwareAddr{5: byte(index)}, addresses)
	}
}

func TestAnAddressBelongsToOnePortOrToNone(t *testing.T) {
	for name, tt := range map[string]struct {
		steps []step
		want  map[netip.Addr]int
	}{
		"each port has its own":                            {[]step{seen(1, alpha), seen(2, beta, gamma)}, map[netip.Addr]int{alpha: 1, beta: 2, gamma: 2}},
		"an address is free when its port is gone":         {[]step{seen(1, alpha), gone(1)}, map[netip.Addr]int{}},
		"it is given to the next":                          {[]step{seen(1, alpha), gone(1), seen(2, alpha)}, map[netip.Addr]int{alpha: 2}},
		"two have it: nobody does":                         {[]step{seen(1, alpha), seen(2, alpha, beta)}, map[netip.Addr]int{beta: 2}},
		"the younger has it when the older is gone":        {[]step{seen(1, alpha), seen(2, alpha), gone(1)}, map[netip.Addr]int{alpha: 2}},
		"the older never has it again":                     {[]step{seen(1, alpha), seen(2, alpha), gone(2)}, map[netip.Addr]int{}},
		"the older was waiting with it: still nobody":      {[]step{seen(1, alpha), seen(2, alpha), gone(2), seen(3, alpha)}, map[netip.Addr]int{}},
		"of three, the youngest waits for both":            {[]step{seen(1, alpha), seen(2, alpha), seen(3, alpha), gone(1)}, map[netip.Addr]int{}},
		"of three, the youngest remains":                   {[]step{seen(1, alpha), seen(2, alpha), seen(3, alpha), gone(1), gone(2)}, map[netip.Addr]int{alpha: 3}},
		"the older tells it late: it still is the older":   {[]step{seen(1), seen(2, alpha), func(l *ledger) { l.own(l.ports[1], HardwareAddr{}, []netip.Addr{alpha}) }, gone(2)}, map[netip.Addr]int{}},
		"both were there before us: neither, also later":   {[]step{found(1, alpha), found(2, alpha), gone(1)}, map[netip.Addr]int{}},
		"another end in the same place is another sandbox": {[]step{seen(1, alpha), func(l *ledger) { l.plug(end{index: 1, namespace: 7, peer: 2}, time.Time{}, false) }}, map[netip.Addr]int{}},
		"what is known of a port is all that it has": {[]step{func(l *ledger) {
			l.plug(end{index: 1}, time.Time{}, true)
			l.restore(Cable{Port: 1, Addresses: []netip.Addr{alpha}})
		}}, map[netip.Addr]int{alpha: 1}},
		"what is known of a port that is gone is nothing": {[]step{func(l *ledger) { l.restore(Cable{Port: 1, Addresses: []netip.Addr{alpha}}) }}, map[netip.Addr]int{}},
	} {
		t.Run(name, func(t *testing.T) {
			l := ledger{ports: map[int]*cable{}}
			for _, s := range tt.steps {
				s(&l)
			}
			got := map[netip.Addr]int{}
			for a, p := range l.owners() {
				got[a] = p.Index
			}
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("owners (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGenerationsOnlyRise(t *testing.T) {
	l := ledger{ports: map[int]*cable{}}
	var last uint64
	for i := range 3 {
		seen(5, alpha)(&l)
		p := l.owners()[alpha]
		if p.Generation <= last {
			t.Errorf("round %d: generation %d after %d", i, p.Generation, last)
		}
		last = p.Generation
		gone(5)(&l)
	}
}

func TestOnlyWhatWasMadeInOneGoCounts(t *testing.T) {
	got := born([]stamped{{alpha, 1000}, {beta, 1016}, {gamma, 1015}})
	if diff := cmp.Diff([]string{alpha.String(), gamma.String()}, []string{got[0].String(), got[1].String()}); diff != "" || len(got) != 2 {
		t.Errorf("%v\n%s", got, diff)
	}
}

func TestNewPortsAreReadSoonAndEmptyOnesSeldom(t *testing.T) {
	start := time.Unix(0, 0)
	c := &cable{Port: Port{Since: start}}
	now, n, turned := start, 0, 0
	for ; now.Before(start.Add(100 * time.Millisecond)); n++ {
		c.retry(now)
		now = c.due
	}
	if n < 7 {
		t.Errorf("%d readings in the first 100 ms", n)
	}
	for range 3 {
		if c.retry(start.Add(time.Minute)) {
			turned++
		}
	}
	if got := c.due.Sub(start.Add(time.Minute)); got != slowRetry || turned != 1 {
		t.Errorf("after a minute: every %s, told %d times", got, turned)
	}
}

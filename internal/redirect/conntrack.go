package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stray matches connections from pods to an address that lead anywhere but to
// the agent; with no agent, all of them.
type stray struct{ from, agent netip.AddrPort }

func (r Rules) strays() []stray {
	all := []stray{{r.Metadata, r.Agent}}
	if r.Metadata6.IsValid() {
		all = append(all, stray{r.Metadata6, r.Agent6})
	}
	return all
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s stray) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_TCP || !same(f.Forward.DstIP, f.Forward.DstPort, s.from) {
		return false
	}
	return !s.agent.IsValid() || !same(f.Reverse.SrcIP, f.Reverse.SrcPort, s.agent)
}

func same(ip net.IP, port uint16, want netip.AddrPort) bool {
	a, ok := netip.AddrFromSlice(ip)
	return ok && a.Unmap() == want.Addr() && port == want.Port()
}

func (s stray) cut() error {
	family := netlink.InetFamily(netlink.FAMILY_V4)
	if s.from.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, s)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cutting connections of the old way: %w", err)
	}
	return nil
}

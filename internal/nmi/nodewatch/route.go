package nodewatch

import (
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/lanyard-id/lanyard/internal/nmi"
	"github.com/lanyard-id/lanyard/internal/sandbox"
)

// Routed is an nmi.Arrivals for nodes some of whose pods are not behind a veth
// of their own: where the table knows nothing of an address, its port is the
// interface that the node's route to it leads to. There the kernel refuses a
// packet that comes by another interface (rp_filter), and the interface is
// never a bridge or a cable, whose pods the table would know.
type Routed struct{ nmi.Arrivals }

// routed marks the generations that are interface indexes.
const routed = 1 << 63

// Behind implements nmi.Arrivals.
func (r Routed) Behind(ip netip.Addr) (sandbox.Port, bool) {
	if p, ok := r.Arrivals.Behind(ip); ok {
		return p, true
	}
	routes, err := netlink.RouteGet(ip.AsSlice())
	if err != nil || len(routes) != 1 || routes[0].Gw != nil {
		return sandbox.Port{}, false
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return sandbox.Port{}, false
	}
	switch link.Type() {
	case "veth", "netkit", "bridge", "openvswitch", "device": // loopback and the machine's own cards are devices
		return sandbox.Port{}, false
	}
	a := link.Attrs()
	return sandbox.Port{Index: a.Index, Name: a.Name, Generation: routed | uint64(a.Index)}, true //nolint:gosec // an index is positive
}

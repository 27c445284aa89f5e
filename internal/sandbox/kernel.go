package sandbox

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// kernel asks rtnetlink.
type kernel struct {
	handle *netlink.Handle
	strict *nl.NetlinkSocket
}

func open() (*kernel, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	strict, err := nl.Subscribe(unix.NETLINK_ROUTE) // to no group: a socket
	if err != nil {
		handle.Close()
		return nil, err
	}
	// Without strict checking the kernel overlooks which namespace and
	// interface are asked for and tells of our own.
	if err := unix.SetsockoptInt(strict.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		strict.Close()
		handle.Close()
		return nil, fmt.Errorf("asking for strict checking: %w", err)
	}
	return &kernel{handle: handle, strict: strict}, nil
}

func (k *kernel) close() {
	k.strict.Close()
	k.handle.Close()
}

// endOf reads an interface; false if it is not our end of a cable.
func endOf(link netlink.Link) (end, bool) {
	a := link.Attrs()
	if link.Type() != "veth" && link.Type() != "netkit" || a.NetNsID < 0 || a.ParentIndex <= 0 {
		return end{}, false
	}
	return end{index: a.Index, name: a.Name, namespace: a.NetNsID, peer: a.ParentIndex}, true
}

// ends lists all, by index, which is the order in which they were made.
func (k *kernel) ends() ([]end, error) {
	links, err := k.handle.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	if err != nil { // something changed meanwhile: what is missing comes as an event, what is doubled is known
		if links, err = k.handle.LinkList(); err != nil {
			return nil, fmt.Errorf("listing interfaces: %w", err)
		}
	}
	var all []end
	for _, l := range links {
		if e, ok := endOf(l); ok {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b end) int { return cmp.Compare(a.index, b.index) })
	return all, nil
}

var errOther = errors.New("the other end is another cable's")

// read returns what the other end was born with.
func (k *kernel) read(e end) (HardwareAddr, []netip.Addr, error) {
	hardware, err := k.peer(e)
	if err != nil {
		return hardware, nil, err
	}
	stamped, err := k.addresses(e)
	if err != nil {
		return hardware, nil, err
	}
	return hardware, born(stamped), nil
}

// peer asks for the other end's hardware address. The id of a namespace that
// is gone is given to a new one: only an end that names ours is believed.
func (k *kernel) peer(e end) (HardwareAddr, error) {
	req := k.request(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(e.peer)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(e.namespace))))
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return HardwareAddr{}, fmt.Errorf("reading the other end of %s: %w", e.name, err)
	}
	var hardware HardwareAddr
	named := false
	for _, m := range answers {
		attrs, err := nl.ParseRouteAttr(m[nl.DeserializeIfInfomsg(m).Len():])
		if err != nil {
			return HardwareAddr{}, err
		}
		for _, a := range attrs {
			switch {
			case a.Attr.Type == unix.IFLA_ADDRESS && len(a.Value) == len(hardware):
				copy(hardware[:], a.Value)
			case a.Attr.Type == unix.IFLA_LINK && len(a.Value) == 4:
				named = int(nl.NativeEndian().Uint32(a.Value)) == e.index
			}
		}
	}
	if !named {
		return HardwareAddr{}, errOther
	}
	return hardware, nil
}

// A stamped address was made at stamp, in hundredths of a second since boot.
type stamped struct {
	netip.Addr
	stamp uint32
}

func (k *kernel) addresses(e end) ([]stamped, error) {
	req := k.request(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	msg := nl.NewIfAddrmsg(unix.AF_UNSPEC)
	msg.Index = uint32(e.peer)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_TARGET_NETNSID, nl.Uint32Attr(uint32(e.namespace))))
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	if err != nil {
		return nil, fmt.Errorf("reading addresses behind %s: %w", e.name, err)
	}
	var all []stamped
	for _, m := range answers {
		msg := nl.DeserializeIfAddrmsg(m)
		attrs, err := nl.ParseRouteAttr(m[msg.Len():])
		if err != nil {
			return nil, err
		}
		if int(msg.Index) != e.peer {
			continue
		}
		var s stamped
		var local bool
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFA_LOCAL, unix.IFA_ADDRESS:
				// IPv4 sends both, and on a point-to-point cable
				// IFA_ADDRESS is the other side's.
				if ip, ok := netip.AddrFromSlice(a.Value); ok && !local {
					s.Addr, local = ip, a.Attr.Type == unix.IFA_LOCAL
				}
			case unix.IFA_CACHEINFO:
				if len(a.Value) >= 16 { // struct ifa_cacheinfo: preferred, valid, cstamp, tstamp
					s.stamp = nl.NativeEndian().Uint32(a.Value[8:12])
				}
			}
		}
		if s.IsGlobalUnicast() { // link-local addresses are no pod's
			all = append(all, s)
		}
	}
	return all, nil
}

// born picks the addresses that were made within settling of the first.
func born(all []stamped) []netip.Addr {
	if len(all) == 0 {
		return nil
	}
	first := slices.MinFunc(all, func(a, b stamped) int { return cmp.Compare(a.stamp, b.stamp) }).stamp
	var addresses []netip.Addr
	for _, s := range all {
		if s.stamp-first <= uint32(settling.Milliseconds()/10) {
			addresses = append(addresses, s.Addr)
		}
	}
	return addresses
}

// request is one over the strict socket.
func (k *kernel) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: k.strict}}
	return req
}

// forget deletes what the node's neighbour tables say of these addresses if it
// is another hardware address: the former pod's, or what somebody claimed
// before this port was known. A failure costs nothing but that; the kernel
// asks the neighbour again.
func (k *kernel) forget(hardware HardwareAddr, addresses []netip.Addr) {
	neighbours, err := k.handle.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		return
	}
	for _, n := range neighbours {
		ip, ok := netip.AddrFromSlice(n.IP)
		if !ok || !slices.Contains(addresses, ip.Unmap()) || n.State&unix.NUD_PERMANENT != 0 {
			continue
		}
		// Without a hardware address the neighbour is being asked for, and
		// packets wait for its answer.
		if len(n.HardwareAddr) == 0 || bytes.Equal(n.HardwareAddr, hardware[:]) {
			continue
		}
		// Gone meanwhile is as good.
		_ = k.handle.NeighDel(&n)
	}
}

package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Setup describes what a fresh namespace is filled with.
type Setup struct {
	Bridge          string            // name of the bridge that plays the machine's network card
	BridgeAddresses []netip.Prefix    // the first one is the machine's primary address
	Loopback        []netip.Prefix    // besides 127.0.0.1/8 and ::1
	Gateway         netip.Addr        // default route; nobody has to answer there
	Sysctls         map[string]string // "net/ipv4/ip_forward": "1"
}

// Setup fills the namespace. Nothing outside is touched.
func (n *NS) Setup(s Setup) error {
	return n.Do(func() error {
		if err := s.loopback(); err != nil {
			return fmt.Errorf("setting up lo: %w", err)
		}
		if err := s.bridge(); err != nil {
			return fmt.Errorf("setting up %s: %w", s.Bridge, err)
		}
		for name, value := range s.Sysctls {
			// /proc/sys/net shows the namespace of the thread that opens it.
			if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
				return fmt.Errorf("setting a sysctl: %w", err)
			}
		}
		return nil
	})
}

func (s Setup) loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	return add(lo, s.Loopback)
}

func (s Setup) bridge() error {
	if s.Bridge == "" {
		return nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = s.Bridge
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	if err := add(bridge, s.BridgeAddresses); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return err
	}
	if !s.Gateway.IsValid() {
		return nil
	}
	// Without a default route the kernel refuses a connection before
	// netfilter could redirect it to where it is answered.
	return netlink.RouteAdd(&netlink.Route{LinkIndex: bridge.Index, Gw: s.Gateway.AsSlice()})
}

// Connect puts a cable between a bridge of n and another namespace, in which
// it becomes eth0 with the given address and a default route to gateway. The
// cable is gone with either end.
func (n *NS) Connect(bridge, port string, other *NS, address netip.Prefix, gateway netip.Addr) error {
	conn, err := other.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = conn.Control(func(fd uintptr) {
		inner = n.Do(func() error { return plug(bridge, port, netlink.NsFd(fd)) })
	})
	if err = errors.Join(err, inner); err != nil {
		return fmt.Errorf("connecting %s to %s: %w", port, bridge, err)
	}
	return other.Do(func() error {
		if err := (Setup{}).loopback(); err != nil {
			return fmt.Errorf("setting up lo: %w", err)
		}
		eth0, err := netlink.LinkByName("eth0")
		if err == nil {
			err = add(eth0, []netip.Prefix{address})
		}
		if err == nil {
			err = netlink.LinkSetUp(eth0)
		}
		if err == nil {
			err = netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gateway.AsSlice()})
		}
		if err != nil {
			return fmt.Errorf("setting up eth0: %w", err)
		}
		return nil
	})
}

func plug(bridge, port string, other netlink.NsFd) error {
	to, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex, attrs.Flags = port, to.Attrs().Index, net.FlagUp
	return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: other})
}

func add(link netlink.Link, addresses []netip.Prefix) error {
	for _, a := range addresses {
		ip := &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}
		err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("adding %s: %w", a, err)
		}
	}
	return nil
}

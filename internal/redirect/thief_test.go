package redirect

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/lab/netns"
)

// A thief is a pod's process with no capability but NET_RAW, which the
// container runtimes give by default. It sends frames of its own making and
// sees the answers.
type thief struct {
	fd           int
	own, gateway [6]byte
	source       [6]byte // of its frames
	tags         int     // VLAN tags on its frames
	port         uint16
}

func newThief(t *testing.T, pod *netns.NS, gateway [6]byte) *thief {
	t.Helper()
	th := &thief{gateway: gateway, port: 40000}
	must(t, pod.Do(func() error {
		runtime.LockOSThread() // Do's thread ends with its capabilities
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		raw := uint32(1) << unix.CAP_NET_RAW
		data := [2]unix.CapUserData{{Effective: raw, Permitted: raw}}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		copy(th.own[:], eth0.Attrs().HardwareAddr)
		th.source = th.own
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			return err
		}
		if err := netlink.LinkSetDown(eth0); err == nil {
			return errors.New("the thief may change its network: it has NET_ADMIN")
		}
		th.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(order(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(th.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
			return err
		}
		return unix.Bind(th.fd, &unix.SockaddrLinklayer{Protocol: order(unix.ETH_P_ALL), Ifindex: eth0.Attrs().Index})
	}))
	t.Cleanup(func() { unix.Close(th.fd) })
	return th
}

func order(v uint16) uint16 { return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)) }

func (th *thief) send(t *testing.T, kind uint16, payload []byte) {
	t.Helper()
	frame := slices.Concat(th.gateway[:], th.source[:])
	for range th.tags {
		frame = append(frame, 0x81, 0x00, 0, 0) // priority only: VLAN 0
	}
	frame = append(binary.BigEndian.AppendUint16(frame, kind), payload...)
	if _, err := unix.Write(th.fd, frame); err != nil {
		t.Fatal(err)
	}
}

// claim tells the node that an address is at the thief's hardware address.
func (th *thief) claim(t *testing.T, a netip.Addr, node netip.Addr) {
	t.Helper()
	if a.Is4() {
		arp := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 1}, th.own[:], a.AsSlice(), make([]byte, 6), node.AsSlice())
		th.send(t, unix.ETH_P_ARP, arp)
		return
	}
	na := slices.Concat([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, a.AsSlice(), []byte{2, 1}, th.own[:]) // solicited, override
	th.send(t, unix.ETH_P_IPV6, ip(a, node, unix.IPPROTO_ICMPV6, na, 2))
	ns := slices.Concat([]byte{135, 0, 0, 0, 0, 0, 0, 0}, node.AsSlice(), []byte{1, 1}, th.own[:])
	th.send(t, unix.ETH_P_IPV6, ip(a, node, unix.IPPROTO_ICMPV6, ns, 2))
}

// ip is a packet; sum is the offset of the checksum in the payload.
func ip(from, to netip.Addr, protocol byte, payload []byte, sum int) []byte {
	pseudo := slices.Concat(from.AsSlice(), to.AsSlice(), binary.BigEndian.AppendUint32(nil, uint32(len(payload))), []byte{0, 0, 0, protocol}, payload)
	binary.BigEndian.PutUint16(payload[sum:], checksum(pseudo))
	if from.Is6() {
		h := []byte{0x60, 0, 0, 0, 0, 0, protocol, 255}
		binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
		return slices.Concat(h, from.AsSlice(), to.AsSlice(), payload)
	}
	h := slices.Concat([]byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0}, from.AsSlice(), to.AsSlice())
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

const (
	syn = 0x02
	psh = 0x08
	ack = 0x10
)

func (th *thief) segment(t *testing.T, from netip.Addr, to netip.AddrPort, flags byte, seq, acked uint32, data string) {
	t.Helper()
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, th.port)
	binary.BigEndian.PutUint16(h[2:], to.Port())
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], acked)
	h[12], h[13] = 5<<4, flags
	binary.BigEndian.PutUint16(h[14:], 0xffff)
	kind := uint16(unix.ETH_P_IP)
	if from.Is6() {
		kind = unix.ETH_P_IPV6
	}
	th.send(t, kind, ip(from, to.Addr(), unix.IPPROTO_TCP, append(h, data...), 16))
}

// receive waits for a segment to our port from to, and returns its sequence
// number and data.
func (th *thief) receive(to netip.AddrPort, victim netip.Addr, withData bool) (seq uint32, data string, ok bool) {
	deadline := time.Now().Add(time.Second)
	b := make([]byte, 2048)
	for time.Now().Before(deadline) {
		n, _, err := unix.Recvfrom(th.fd, b, 0)
		if err != nil || n < 14 {
			continue
		}
		p, head := b[14:n], 40
		if victim.Is4() {
			head = 20
		}
		if len(p) < head+20 {
			continue
		}
		if victim.Is4() && (p[9] != unix.IPPROTO_TCP || netip.AddrFrom4([4]byte(p[16:20])) != victim) ||
			victim.Is6() && (p[6] != unix.IPPROTO_TCP || netip.AddrFrom16([16]byte(p[24:40])) != victim) {
			continue
		}
		s := p[head:]
		if binary.BigEndian.Uint16(s) != to.Port() || binary.BigEndian.Uint16(s[2:]) != th.port {
			continue
		}
		data := strings.TrimRight(string(s[s[12]>>4*4:]), "\x00\n")
		if withData == (data != "") && s[13]&ack != 0 {
			return binary.BigEndian.Uint32(s[4:]), data, true
		}
	}
	return 0, "", false
}

// steal asks in the victim's name and returns what the thief gets to read;
// "" means nothing.
func (th *thief) steal(t *testing.T, victim netip.Addr, node netip.Addr, to netip.AddrPort, claim bool) string {
	t.Helper()
	th.port++
	if claim {
		th.claim(t, victim, node)
	}
	th.segment(t, victim, to, syn, 1000, 0, "")
	seq, _, ok := th.receive(to, victim, false)
	if !ok {
		return ""
	}
	th.segment(t, victim, to, ack, 1001, seq+1, "")
	th.segment(t, victim, to, ack|psh, 1001, seq+1, "who are you\n")
	_, data, _ := th.receive(to, victim, true)
	return data
}

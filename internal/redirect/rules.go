package redirect

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	chainSources    = "sources"
	chainPrerouting = "prerouting"
	chainInput      = "input"
	chainOutput     = "output"
)

const (
	// beforeServices comes before kube-proxy's and iptables' own address
	// translation, which sit at dstnat (-100).
	beforeServices = -110
	// beforeRaw comes after fragments are put together (-400), and before
	// connection tracking and whoever reads marks.
	beforeRaw = -310
)

// passed is the mark with which the bridge sends a packet to the IP layer. The
// kernel takes the marks of a packet away where it leaves a pod's namespace,
// and we take this one away before anybody else looks.
const passed = 0x2129

// Registers of 4 bytes (NFT_REG32_00 and following); a concatenation stands in
// consecutive ones.
const (
	reg0 = unix.NFT_REG32_00
	reg1 = unix.NFT_REG32_01
)

// A protocol is what differs between IPv4 (RFC 791 section 3.1) and IPv6 (RFC
// 8200 section 3).
type protocol struct {
	family    nftables.TableFamily
	ether     uint16
	size      uint32 // of an address
	from, to  uint32 // offsets of addresses in the header
	addresses nftables.SetDatatype
}

func ipv4() protocol {
	return protocol{nftables.TableFamilyIPv4, unix.ETH_P_IP, 4, 12, 16, nftables.TypeIPAddr}
}

func ipv6() protocol {
	return protocol{nftables.TableFamilyIPv6, unix.ETH_P_IPV6, 16, 8, 24, nftables.TypeIP6Addr}
}

// A way is one family's part of the rules.
type way struct {
	protocol
	metadata, agent netip.AddrPort
}

func (r Rules) ways() []way {
	all := []way{{ipv4(), r.Metadata, r.Agent}}
	if r.Metadata6.IsValid() {
		all = append(all, way{ipv6(), r.Metadata6, r.Agent6})
	}
	return all
}

// A chain with its rules.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    [][]expr.Any
}

// replace queues all tables; the kernel takes the batch at once or not at all.
// Adding a table first makes its deletion valid where there is none.
func (r Rules) replace(c *nftables.Conn, sets contents) error {
	for _, f := range families() {
		t := &nftables.Table{Family: f, Name: TableName}
		c.AddTable(t)
		c.DelTable(t)
	}
	for _, f := range families() {
		chains := r.chains(f)
		if len(chains) == 0 {
			continue
		}
		t := c.AddTable(&nftables.Table{Family: f, Name: TableName})
		if r.Guard {
			for _, s := range setsOf(t) {
				if err := c.AddSet(s, sets.elements(s)); err != nil {
					return err
				}
			}
		}
		for _, ch := range chains {
			added := c.AddChain(&nftables.Chain{Name: ch.name, Table: t, Type: ch.kind, Hooknum: ch.hook, Priority: &ch.priority})
			for _, rule := range ch.rules {
				c.AddRule(&nftables.Rule{Table: t, Chain: added, Exprs: rule})
			}
		}
	}
	return nil
}

// chains of one of our tables; none means that there is no such table.
func (r Rules) chains(f nftables.TableFamily) []chain {
	if f == nftables.TableFamilyBridge {
		if !r.Guard {
			return nil
		}
		return []chain{{chainPrerouting, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, beforeRaw, r.bridge()}}
	}
	for _, w := range r.ways() {
		if w.family == f {
			return w.chains(r)
		}
	}
	return nil
}

func (w way) chains(r Rules) []chain {
	all := []chain{
		{chainPrerouting, nftables.ChainTypeNAT, nftables.ChainHookPrerouting, beforeServices, [][]expr.Any{
			join(notFromLoopback(), w.tcpTo(w.metadata), w.dnat()),
		}},
		{chainInput, nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter, [][]expr.Any{
			join(notFromLoopback(), w.tcpTo(w.agent), unlessTranslated(), verdict(expr.VerdictDrop)),
		}},
	}
	if r.Guard {
		all = append(all, chain{chainSources, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, beforeRaw, w.sources()})
	}
	if r.BlockHost {
		all = append(all, chain{chainOutput, nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter, [][]expr.Any{
			join(w.tcpTo(w.metadata), marked(expr.CmpOpNeq, Mark), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}),
		}})
	}
	return all
}

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// notFromLoopback matches packets of other hosts and pods.
func notFromLoopback() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: name("lo")},
	}
}

// name is an interface's name or kind as the kernel compares it.
func name(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

// tcpTo matches TCP packets to one address and port (RFC 9293 section 3.1).
func (w way) tcpTo(to netip.AddrPort) []expr.Any {
	return join(w.destination(to.Addr()), layer4(unix.IPPROTO_TCP), []expr.Any{
		&expr.Payload{DestRegister: reg0, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.BigEndian.PutUint16(to.Port())},
		&expr.Counter{},
	})
}

func (p protocol) destination(to netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg0, Base: expr.PayloadBaseNetworkHeader, Offset: p.to, Len: p.size},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: to.AsSlice()},
	}
}

func layer4(protocol byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{protocol}},
	}
}

func (w way) dnat() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG_1, Data: w.agent.Addr().AsSlice()},
		&expr.Immediate{Register: unix.NFT_REG_2, Data: binaryutil.BigEndian.PutUint16(w.agent.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(w.family), RegAddrMin: unix.NFT_REG_1, RegProtoMin: unix.NFT_REG_2},
	}
}

// statusDestinationNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const statusDestinationNAT = 1 << 5

// unlessTranslated matches packets of connections whose destination was not
// rewritten.
func unlessTranslated() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(statusDestinationNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: make([]byte, 4)},
	}
}

func marked(op expr.CmpOp, mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0},
		&expr.Cmp{Op: op, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(mark)},
	}
}

func mark(value uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg0, Data: binaryutil.NativeEndian.PutUint32(value)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0, SourceRegister: true},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

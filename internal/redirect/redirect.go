// Package redirect leads the pods of a node that ask the instance metadata
// service to an agent on the node instead, with netfilter rules of its own
// that are written over netlink.
//
//	pod ── tcp 169.254.169.254:80 ──> prerouting: dnat ──> agent
//	anybody ── tcp agent ───────────> input: dropped, unless it came by the dnat
//
// The rules outlive the process that wrote them: while no agent listens, a
// pod's connection is refused, and never reaches the node's own metadata
// service. We take them away in Remove only; what a firewall takes away when it
// is loaded anew, Keep writes again. A process in the host's network is not
// led anywhere: prerouting sees only what arrives from outside.
package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TableName is the name of our table: nothing else in the kernel is touched.
const TableName = "lanyard-nmi"

const (
	chainPrerouting = "prerouting"
	chainInput      = "input"
)

// beforeServices is the priority of the prerouting chain: before kube-proxy's
// and iptables' own address translation, which sit at dstnat (-100).
const beforeServices = -110

// Rules say what is led where. Both addresses must be IPv4, which is all that
// the metadata service speaks.
type Rules struct {
	Metadata netip.AddrPort // 169.254.169.254:80
	Agent    netip.AddrPort // the node's own address, not loopback, and the agent's port
}

func (r Rules) validate() error {
	if !r.Metadata.IsValid() || !r.Metadata.Addr().Is4() {
		return fmt.Errorf("the metadata address %s is not an IPv4 address and a port", r.Metadata)
	}
	if !r.Agent.IsValid() || !r.Agent.Addr().Is4() || r.Agent.Port() == 0 {
		return fmt.Errorf("the agent's address %s is not an IPv4 address and a port", r.Agent)
	}
	if r.Agent.Addr().IsLoopback() || r.Agent.Addr().IsUnspecified() {
		return fmt.Errorf("the agent's address %s cannot be led to: use an address of the node that pods can reach", r.Agent)
	}
	return nil
}

// Install writes the rules in one transaction, in the place of those that an
// earlier Install wrote, and cuts the connections that the kernel still leads
// elsewhere: an established connection would otherwise keep its old way. It
// needs CAP_NET_ADMIN in the node's network namespace.
func Install(r Rules) error {
	if err := r.validate(); err != nil {
		return fmt.Errorf("redirecting the metadata service: %w", err)
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("redirecting the metadata service: %w", err)
	}
	r.replace(c)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("redirecting the metadata service: writing netfilter rules (CAP_NET_ADMIN and nf_tables are needed): %w", err)
	}
	if err := cut(stray{r.Metadata, r.Agent}); err != nil {
		return fmt.Errorf("redirecting the metadata service: %w", err)
	}
	return nil
}

// Remove takes the rules away and cuts the connections that they led: pods
// then reach the node's own metadata service. It is no error if there are none.
func Remove(metadata netip.AddrPort) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("removing the redirection: %w", err)
	}
	t, err := table(c)
	if err != nil {
		return fmt.Errorf("removing the redirection: %w", err)
	}
	if t != nil {
		c.DelTable(t)
		if err := c.Flush(); err != nil {
			return fmt.Errorf("removing the redirection: %w", err)
		}
	}
	if err := cut(stray{from: metadata}); err != nil {
		return fmt.Errorf("removing the redirection: %w", err)
	}
	return nil
}

// Keep looks at the rules at this interval until ctx ends, and installs them
// again if somebody else has taken them away: a firewall that is loaded anew
// flushes all tables, and pods would reach the node's own metadata service from
// then on. lost is told each time. The error is that of an Install, or nil
// when ctx has ended.
func Keep(ctx context.Context, r Rules, interval time.Duration, lost func()) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if ok, err := installed(); ok && err == nil {
			continue
		}
		lost()
		if err := Install(r); err != nil {
			return err
		}
	}
}

// installed reports whether the table is there with both of its rules.
func installed() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	t, err := table(c)
	if t == nil || err != nil {
		return false, err
	}
	for _, name := range []string{chainPrerouting, chainInput} {
		rules, err := c.GetRules(t, &nftables.Chain{Name: name, Table: t})
		if err != nil || len(rules) == 0 {
			return false, err
		}
	}
	return true, nil
}

// replace queues the whole table; the kernel takes the batch at once or not
// at all. Adding the table first makes its deletion valid where there is none.
func (r Rules) replace(c *nftables.Conn) {
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: TableName}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	pre := c.AddChain(&nftables.Chain{
		Name: chainPrerouting, Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(beforeServices),
	})
	c.AddRule(&nftables.Rule{Table: t, Chain: pre, Exprs: join(notFromLoopback(), tcpTo(r.Metadata), dnat(r.Agent))})
	in := c.AddChain(&nftables.Chain{
		Name: chainInput, Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: t, Chain: in, Exprs: join(notFromLoopback(), tcpTo(r.Agent), unlessTranslated(), drop())})
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
	lo := make([]byte, unix.IFNAMSIZ)
	copy(lo, "lo")
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: lo},
	}
}

// tcpTo matches TCP packets to one address and port. Offsets: RFC 791 section
// 3.1 (destination address) and RFC 9293 section 3.1 (destination port).
func tcpTo(to netip.AddrPort) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: to.Addr().AsSlice()},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(to.Port())},
		&expr.Counter{},
	}
}

func dnat(to netip.AddrPort) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	}
}

// statusDestinationNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const statusDestinationNAT = 1 << 5

// unlessTranslated matches packets of connections whose destination was not
// rewritten.
func unlessTranslated() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(statusDestinationNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
	}
}

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

// table finds our table; nil means that there is none.
func table(c *nftables.Conn) (*nftables.Table, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, fmt.Errorf("listing netfilter tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == TableName {
			return t, nil
		}
	}
	return nil, nil
}

// stray matches connections from pods to an address that lead anywhere but to
// the agent; with no agent, all of them.
type stray struct{ from, agent netip.AddrPort }

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

func cut(s stray) error {
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, s)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cutting connections of the old way: %w", err)
	}
	return nil
}

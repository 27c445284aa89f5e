// Package pod leads a pod's own programs that ask the instance metadata service
// to a proxy in the same pod, with netfilter rules in the pod's network.
//
//	program ── tcp 169.254.169.254:80 ──> output: redirect ──> 127.0.0.1:8000, or ::1, the proxy
//	proxy's user ── tcp 169.254.169.254:80 ──> output: as it is ──> the node's metadata service
//
// Package redirect, its parent, does the same for all pods of a node, from
// outside. Here an init container writes the rules before anything else runs,
// and they live as long as the pod's network does.
package pod

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is the name of our tables, one for each family that is led: nothing
// else in the kernel is touched.
const TableName = "lanyard-proxy"

const chainOutput = "output"

// beforeOthers comes before the address translation of iptables (-100), such as
// that of a service mesh in the same pod: whoever translates a connection first
// has it. This goes for the proxy's own connections too: those that a mesh has it
// sends on as its own user, who is led to the proxy again.
const beforeOthers = -110

// Rules say what is led where.
type Rules struct {
	Metadata []netip.AddrPort // usually 169.254.169.254:80; IPv4 or IPv6
	Port     uint16           // of the proxy, at the loopback address
	UID      uint32           // the proxy's user, whose connections are left alone
}

func (r Rules) validate() error {
	if len(r.Metadata) == 0 {
		return errors.New("no metadata address")
	}
	for _, m := range r.Metadata {
		if !m.IsValid() || m.Port() == 0 || m.Addr().Is4In6() || m.Addr().Zone() != "" || m.Addr().IsUnspecified() {
			return fmt.Errorf("%s is not an address and a port", m)
		}
	}
	if r.Port == 0 {
		return errors.New("the proxy's port is 0")
	}
	return nil
}

// Install writes the rules into the network of the calling thread, in one
// transaction and in the place of what an earlier Install wrote, and reads them
// back. It needs CAP_NET_ADMIN and nothing else. After an error the pod must not
// start: its programs could reach the node's own metadata service.
func (r Rules) Install() error {
	if err := r.validate(); err != nil {
		return fmt.Errorf("redirecting the metadata service: %w", err)
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("redirecting the metadata service: %w", err)
	}
	present, err := tables(c)
	if err != nil {
		return fmt.Errorf("redirecting the metadata service: %w", err)
	}
	for _, t := range present {
		c.DelTable(t)
	}
	for _, w := range r.ways() {
		t := c.AddTable(&nftables.Table{Family: w.family, Name: TableName})
		ch := c.AddChain(w.chain(t))
		for _, rule := range w.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: rule})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("redirecting the metadata service: writing netfilter rules (CAP_NET_ADMIN and the kernel's nf_tables with nat are needed): %w", err)
	}
	if err := r.verify(c); err != nil {
		return fmt.Errorf("redirecting the metadata service: %w", err)
	}
	return nil
}

// tables finds ours.
func tables(c *nftables.Conn) ([]*nftables.Table, error) {
	all, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("listing netfilter tables (CAP_NET_ADMIN and the kernel's nf_tables are needed): %w", err)
	}
	var own []*nftables.Table
	for _, t := range all {
		if t.Name == TableName {
			own = append(own, t)
		}
	}
	return own, nil
}

// verify compares what the kernel has with what it was told.
func (r Rules) verify(c *nftables.Conn) error {
	present, err := tables(c)
	if err != nil {
		return err
	}
	ways := r.ways()
	if len(present) != len(ways) {
		return fmt.Errorf("the kernel has %d of our tables instead of %d", len(present), len(ways))
	}
	for _, w := range ways {
		t := &nftables.Table{Family: w.family, Name: TableName}
		ch, err := c.ListChain(t, chainOutput)
		if err != nil {
			return fmt.Errorf("reading the rules back: %w", err)
		}
		want := w.chain(t)
		if ch.Type != want.Type || ch.Hooknum == nil || *ch.Hooknum != *want.Hooknum || ch.Priority == nil || *ch.Priority != *want.Priority {
			return errors.New("the kernel has our chain at another hook")
		}
		rules, err := c.GetRules(t, ch)
		if err != nil {
			return fmt.Errorf("reading the rules back: %w", err)
		}
		if len(rules) != len(w.rules) {
			return fmt.Errorf("the kernel has %d of our rules instead of %d", len(rules), len(w.rules))
		}
		for i, rule := range rules {
			if !same(rule.Exprs, w.rules[i]) {
				return fmt.Errorf("the kernel has another rule %d than it was told", i+1)
			}
		}
	}
	return nil
}

func same(got, want []expr.Any) bool {
	if len(got) != len(want) {
		return false
	}
	for i := range want {
		if _, ok := want[i].(*expr.Counter); ok {
			_, ok = got[i].(*expr.Counter) // it may count by now
			if !ok {
				return false
			}
			continue
		}
		if !reflect.DeepEqual(got[i], want[i]) {
			return false
		}
	}
	return true
}

// A way is one family's part of the rules.
type way struct {
	family nftables.TableFamily
	rules  [][]expr.Any
}

func (w way) chain(t *nftables.Table) *nftables.Chain {
	priority := nftables.ChainPriority(beforeOthers)
	return &nftables.Chain{Name: chainOutput, Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: &priority}
}

// ways are the families that are led. Two rules for each address: a packet
// without a known user meets the second, so that in doubt it is led.
func (r Rules) ways() []way {
	var all []way
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		w := way{family: family}
		for _, m := range r.Metadata {
			if m.Addr().Is4() == (family == nftables.TableFamilyIPv4) {
				w.rules = append(w.rules,
					append(tcpTo(m), keep(r.UID, m.Addr(), family)...),
					append(tcpTo(m), redirect(r.Port)...))
			}
		}
		if len(w.rules) > 0 {
			all = append(all, w)
		}
	}
	return all
}

// tcpTo matches TCP packets to one address and port: RFC 791 section 3.1, RFC
// 8200 section 3, RFC 9293 section 3.1.
func tcpTo(to netip.AddrPort) []expr.Any {
	offset := uint32(16)
	if to.Addr().Is6() {
		offset = 24
	}
	address := to.Addr().AsSlice()
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(address))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: address},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binaryutil.BigEndian.PutUint16(to.Port())},
	}
}

// keep translates what a user's sockets send to where it goes anyway, which
// ends the translation: an accept would only end this chain.
func keep(uid uint32, to netip.Addr, family nftables.TableFamily) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeySKUID, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binaryutil.NativeEndian.PutUint32(uid)},
		&expr.Counter{},
		&expr.Immediate{Register: unix.NFT_REG_1, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family), RegAddrMin: unix.NFT_REG_1, RegAddrMax: unix.NFT_REG_1},
	}
}

// redirect leads to a port of the loopback address.
func redirect(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Counter{},
		&expr.Immediate{Register: unix.NFT_REG_1, Data: binaryutil.BigEndian.PutUint16(port)},
		// The kernel would fill in the rest, and what is read back be something else.
		&expr.Redir{RegisterProtoMin: unix.NFT_REG_1, RegisterProtoMax: unix.NFT_REG_1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	}
}

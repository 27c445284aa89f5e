package redirect

import (
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/sandbox"
)

// metaInterfaceKind is NFT_META_IIFKIND of linux/netfilter/nf_tables.h.
const metaInterfaceKind = 26

// Our sets. Those of the bridge hold both families.
const (
	setOwners     = "owners"     // port . address that belongs to it
	setOwners6    = "owners6"    // in the bridge: the same for IPv6
	setAddresses  = "addresses"  // in the bridge: all addresses that belong to somebody
	setAddresses6 = "addresses6" //
	setPorts      = "ports"      // in the bridge: ports that we know
	setHardware   = "hardware"   // in the bridge: hardware addresses of pods
	setCables     = "cables"     // in the bridge: port . hardware address of its pod
)

// setsOf makes the sets of a table.
func setsOf(t *nftables.Table) []*nftables.Set {
	types := map[string][]nftables.SetDatatype{}
	switch t.Family {
	case nftables.TableFamilyIPv4:
		types[setOwners] = []nftables.SetDatatype{nftables.TypeIFIndex, nftables.TypeIPAddr}
	case nftables.TableFamilyIPv6:
		types[setOwners] = []nftables.SetDatatype{nftables.TypeIFIndex, nftables.TypeIP6Addr}
	case nftables.TableFamilyBridge:
		types[setOwners] = []nftables.SetDatatype{nftables.TypeIFIndex, nftables.TypeIPAddr}
		types[setOwners6] = []nftables.SetDatatype{nftables.TypeIFIndex, nftables.TypeIP6Addr}
		types[setAddresses] = []nftables.SetDatatype{nftables.TypeIPAddr}
		types[setAddresses6] = []nftables.SetDatatype{nftables.TypeIP6Addr}
		types[setPorts] = []nftables.SetDatatype{nftables.TypeIFIndex}
		types[setHardware] = []nftables.SetDatatype{nftables.TypeEtherAddr}
		types[setCables] = []nftables.SetDatatype{nftables.TypeIFIndex, nftables.TypeEtherAddr}
	}
	var all []*nftables.Set
	for name, key := range types {
		s := &nftables.Set{Table: t, Name: name, ID: uint32(len(all) + 1), KeyType: key[0]}
		if len(key) > 1 {
			s.KeyType, s.Concatenation = nftables.MustConcatSetType(key...), true
		}
		all = append(all, s)
	}
	return all
}

// contents are the keys of sets.
type contents map[in]map[string]bool

type in struct {
	family nftables.TableFamily
	set    string
}

func (c contents) add(f nftables.TableFamily, set string, key ...[]byte) {
	at := in{f, set}
	if c[at] == nil {
		c[at] = map[string]bool{}
	}
	c[at][string(slices.Concat(key...))] = true
}

func (c contents) elements(s *nftables.Set) []nftables.SetElement {
	return elements(c[in{s.Table.Family, s.Name}], nil)
}

// elements of keys that are not in except.
func elements(keys, except map[string]bool) []nftables.SetElement {
	var all []nftables.SetElement
	for k := range keys {
		if !except[k] {
			all = append(all, nftables.SetElement{Key: []byte(k)})
		}
	}
	return all
}

// contents says what the sets have to hold.
func (r Rules) contents(cables []sandbox.Cable) (contents, error) {
	all := contents{}
	if !r.Guard {
		return all, nil
	}
	address := func(a netip.Addr) {
		if a.Is4() {
			all.add(nftables.TableFamilyBridge, setAddresses, a.AsSlice())
		} else {
			all.add(nftables.TableFamilyBridge, setAddresses6, a.AsSlice())
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, a := range own {
		// No pod is the node: neither the agent nor a pod's gateway.
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				address(ip.Unmap())
			}
		}
	}
	for _, c := range cables {
		port := binaryutil.NativeEndian.PutUint32(uint32(c.Port))
		all.add(nftables.TableFamilyBridge, setPorts, port)
		if c.Hardware != (sandbox.HardwareAddr{}) {
			all.add(nftables.TableFamilyBridge, setHardware, c.Hardware[:])
			all.add(nftables.TableFamilyBridge, setCables, port, c.Hardware[:], make([]byte, 2)) // padded to registers
		}
		for _, a := range c.Addresses {
			address(a)
			if a.Is4() {
				all.add(nftables.TableFamilyIPv4, setOwners, port, a.AsSlice())
				all.add(nftables.TableFamilyBridge, setOwners, port, a.AsSlice())
				continue
			}
			if r.Metadata6.IsValid() {
				all.add(nftables.TableFamilyIPv6, setOwners, port, a.AsSlice())
			}
			all.add(nftables.TableFamilyBridge, setOwners6, port, a.AsSlice())
		}
	}
	return all, nil
}

// update queues what turns the sets from one state into another; false if
// there is nothing to do.
func (r Rules) update(c *nftables.Conn, from, to contents) (bool, error) {
	changed := false
	for _, f := range families() {
		for _, s := range setsOf(&nftables.Table{Family: f, Name: TableName}) {
			at := in{f, s.Name}
			s.ID = 0 // not of this batch
			if less := elements(from[at], to[at]); len(less) > 0 {
				changed = true
				if err := c.SetDeleteElements(s, less); err != nil {
					return false, err
				}
			}
			if more := elements(to[at], from[at]); len(more) > 0 {
				changed = true
				if err := c.SetAddElements(s, more); err != nil {
					return false, err
				}
			}
		}
	}
	return changed, nil
}

// known reads the sets back.
func known(c *nftables.Conn) ([]sandbox.Cable, error) {
	t, err := table(c, nftables.TableFamilyBridge)
	if t == nil || err != nil {
		return nil, err
	}
	var all []sandbox.Cable
	at := map[int]int{} // where in all a port is
	for _, set := range []string{setPorts, setCables, setOwners, setOwners6} {
		keys, err := c.GetSetElements(&nftables.Set{Table: t, Name: set})
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			port := int(binaryutil.NativeEndian.Uint32(k.Key[:4]))
			i, ok := at[port]
			if !ok {
				i = len(all)
				at[port], all = i, append(all, sandbox.Cable{Port: port})
			}
			switch rest := k.Key[4:]; set {
			case setCables:
				copy(all[i].Hardware[:], rest)
			case setOwners, setOwners6:
				if a, ok := netip.AddrFromSlice(rest); ok {
					all[i].Addresses = append(all[i].Addresses, a)
				}
			}
		}
	}
	return all, nil
}

// bridge are the rules of the chain that sees ports.
func (r Rules) bridge() [][]expr.Any {
	const (
		hardware      = 6   // offset of the source in an Ethernet frame
		sender        = 14  // offset of the sender's IPv4 address in ARP (RFC 826)
		advertisement = 136 // type of ICMPv6 (RFC 4861 section 4.4)
		target        = 8   // offset of the address that it advertises
	)
	known := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: reg0},
		&expr.Lookup{SourceRegister: reg0, SetName: setPorts},
	}
	four, six := ipv4(), ipv6()
	all := [][]expr.Any{
		// The kernel has taken the outer tag away: what still has one had two,
		// and would come to the IP layer although no rule here could read it.
		join(ether(unix.ETH_P_8021Q), known, verdict(expr.VerdictDrop)),
		join(ether(unix.ETH_P_8021AD), known, verdict(expr.VerdictDrop)),
		join(known, notOwn(setHardware, setCables, &expr.Payload{Base: expr.PayloadBaseLLHeader, Offset: hardware, Len: 6}), verdict(expr.VerdictDrop)),
		join(ether(unix.ETH_P_ARP), known, notOwn(setAddresses, setOwners, &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: sender, Len: four.size}), verdict(expr.VerdictDrop)),
		join(ether(unix.ETH_P_IPV6), layer4(unix.IPPROTO_ICMPV6), known,
			notOwn(setAddresses6, setOwners6, &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: six.from, Len: six.size}), verdict(expr.VerdictDrop)),
		join(ether(unix.ETH_P_IPV6), layer4(unix.IPPROTO_ICMPV6), known, []expr.Any{
			&expr.Payload{DestRegister: reg0, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{advertisement}},
		}, notOwn(setAddresses6, setOwners6, &expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: target, Len: six.size}), verdict(expr.VerdictDrop)),
	}
	for _, w := range r.ways() {
		owners := setOwners
		if w.family == nftables.TableFamilyIPv6 {
			owners = setOwners6
		}
		all = append(all, join(ether(w.ether), w.destination(w.metadata.Addr()), w.fromOwner(owners), mark(passed)))
	}
	return all
}

// notOwn matches if what the payload says belongs to somebody, and not to the
// port that it came by.
func notOwn(somebodys, own string, p *expr.Payload) []expr.Any {
	p.DestRegister = reg1
	return []expr.Any{
		p,
		&expr.Lookup{SourceRegister: reg1, SetName: somebodys},
		&expr.Meta{Key: expr.MetaKeyIIF, Register: reg0},
		&expr.Lookup{SourceRegister: reg0, SetName: own, Invert: true},
	}
}

// sources are the rules of the chain that holds packets to the metadata
// address to their sources.
func (w way) sources() [][]expr.Any {
	asked := join(notFromLoopback(), w.tcpTo(w.metadata))
	return [][]expr.Any{
		join(asked, w.fromOwner(setOwners), verdict(expr.VerdictAccept)),
		join(asked, marked(expr.CmpOpEq, passed), mark(0), verdict(expr.VerdictAccept)),
		join(asked, []expr.Any{
			&expr.Meta{Key: metaInterfaceKind, Register: reg0},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: name("bridge")},
		}, verdict(expr.VerdictDrop)),
		join(asked, []expr.Any{
			&expr.Fib{Register: reg0, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: make([]byte, 4)},
		}, verdict(expr.VerdictDrop)),
	}
}

// fromOwner matches if the source address belongs to the port.
func (p protocol) fromOwner(owners string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: reg0},
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: p.from, Len: p.size},
		&expr.Lookup{SourceRegister: reg0, SetName: owners},
	}
}

func ether(kind uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.BigEndian.PutUint16(kind)},
	}
}

// Package redirect leads the pods of a node that ask the instance metadata
// service to an agent on the node instead, with netfilter rules of its own
// that are written over netlink.
//
//	pod ── tcp 169.254.169.254:80 ──> bridge: who is at this port?  ──> sources: from where it says? ──> prerouting: dnat ──> agent
//	anybody ── tcp agent ───────────> input: dropped, unless it came by the dnat
//	process of the node ── tcp 169.254.169.254:80 ──> output: reset, unless it is the agent (BlockHost)
//
// The rules outlive the process that wrote them: while no agent listens, a
// pod's connection is refused, and never reaches the node's own metadata
// service. We take them away in Remove only; what a firewall takes away when it
// is loaded anew, Keep writes again. A process in the host's network is not
// led anywhere: prerouting sees only what arrives from outside.
//
// # Sources
//
// The agent tells pods apart by their addresses, and a pod with NET_RAW sends
// any address that it likes. With Rules.Guard a packet to the metadata address
// goes on only if one of these holds:
//
//   - It came to the IP layer by the port (veth) that its source address belongs
//     to, according to Admit. Package sandbox finds that out.
//   - It came over a bridge, which hides the port from the IP layer, and our
//     chain in the bridge saw it at the port that its address belongs to. That
//     chain marks it, and drops nothing on this way: what it does not
//     understand, such as a fragment or a frame in two VLAN tags, comes to the
//     IP layer without the mark and is dropped there.
//   - It came by an interface that is no bridge, and the route back to its
//     source leads there. So pods with a route each are known before anybody
//     has told us.
//
// That keeps false requests out. So that true answers go to nobody else, the
// bridge also drops, from ports that we know, ARP and IPv6 neighbour messages
// that claim an address of another known port or of the node, and frames with
// the hardware address of another known port.
//
// An address that is not admitted yet, because its pod is new or no agent
// runs, gets no answer over a bridge; Admit is quicker than a runtime starts a
// container. What was admitted stays so without an agent. That is safe as the
// kernel gives the index of an interface once, and a port's addresses do not
// change.
//
// Other ways that were weighed: tc or netdev hooks have to be put on each new
// veth, so that a new pod is unguarded until they are; the interface that a
// socket's packets came by (IP_PKTINFO) is the bridge; permanent neighbour
// entries would cut a new pod with a former pod's address off while no agent
// runs.
package redirect

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/google/nftables"

	"github.com/lanyard-id/lanyard/internal/sandbox"
)

// TableName is the name of our tables, one for each of the families ip, ip6
// and bridge: nothing else in the kernel is touched.
const TableName = "lanyard-nmi"

// Rules say what is led where.
type Rules struct {
	Metadata netip.AddrPort // 169.254.169.254:80
	Agent    netip.AddrPort // the node's own IPv4 address, not loopback, and the agent's port

	// The same for IPv6; zero if IPv6 is not led. Azure has no such metadata
	// address: it is one of our own, and needs a route in pods, which the
	// default route is.
	Metadata6, Agent6 netip.AddrPort

	// Guard holds packets to the port that their source address belongs to.
	// Over a bridge only what Admit was told gets through.
	Guard bool

	// BlockHost resets connections of the node's own processes to the
	// metadata addresses, except for sockets that carry Mark.
	BlockHost bool
}

func (r Rules) validate() error {
	if !r.Metadata.IsValid() || !r.Metadata.Addr().Is4() {
		return fmt.Errorf("the metadata address %s is not an IPv4 address and a port", r.Metadata)
	}
	if !r.Agent.IsValid() || !r.Agent.Addr().Is4() || r.Agent.Port() == 0 {
		return fmt.Errorf("the agent's address %s is not an IPv4 address and a port", r.Agent)
	}
	if r.Metadata6.IsValid() != r.Agent6.IsValid() {
		return errors.New("the metadata service and the agent need an IPv6 address both, or none")
	}
	if r.Metadata6.IsValid() && (!plain6(r.Metadata6.Addr()) || !plain6(r.Agent6.Addr()) || r.Agent6.Port() == 0) {
		return fmt.Errorf("%s and %s are not IPv6 addresses and ports", r.Metadata6, r.Agent6)
	}
	for _, a := range []netip.AddrPort{r.Agent, r.Agent6} {
		if a.IsValid() && (a.Addr().IsLoopback() || a.Addr().IsUnspecified()) {
			return fmt.Errorf("the agent's address %s cannot be led to: use an address of the node that pods can reach", a)
		}
	}
	return nil
}

func plain6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.Zone() == "" }

// A Writer writes rules, and what they have to know about pods. Its methods
// may be called concurrently; each acts on the network namespace of the
// calling goroutine, and needs CAP_NET_ADMIN there.
type Writer struct {
	Rules  Rules
	Logger *slog.Logger // nil means slog.Default

	mu       sync.Mutex
	told     bool // cables are known, be there any or none
	cables   []sandbox.Cable
	contents contents // of the sets, as last written
}

// Install writes the rules in one transaction, in the place of those that an
// earlier Install wrote, and cuts the connections that the kernel still leads
// elsewhere: an established connection would otherwise keep its old way. What
// an earlier agent had admitted stays admitted.
func (w *Writer) Install() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.install()
}

func (w *Writer) install() error {
	if err := w.Rules.validate(); err != nil {
		return fmt.Errorf("redirecting the metadata service: %w", err)
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("redirecting the metadata service: %w", err)
	}
	if w.Rules.Guard && !w.told {
		if w.cables, err = known(c); err != nil {
			return fmt.Errorf("redirecting the metadata service: reading what an earlier agent admitted: %w", err)
		}
		w.told = true
	}
	next, err := w.Rules.contents(w.cables)
	if err != nil {
		return fmt.Errorf("redirecting the metadata service: %w", err)
	}
	if err := w.Rules.replace(c, next); err != nil {
		return fmt.Errorf("redirecting the metadata service: %w", err)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("redirecting the metadata service: writing netfilter rules (CAP_NET_ADMIN and nf_tables are needed, with the bridge family for guarding sources): %w", err)
	}
	w.contents = next
	for _, s := range w.Rules.strays() {
		if err := s.cut(); err != nil {
			return fmt.Errorf("redirecting the metadata service: %w", err)
		}
	}
	return nil
}

// Known is what an earlier agent had admitted: Table.Known of package sandbox
// wants it. It is to be called after Install, before the first Admit.
func (w *Writer) Known() []sandbox.Cable {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cables
}

// Admit says which pods are at which ports, all of them. Without Guard it does
// nothing.
func (w *Writer) Admit(cables []sandbox.Cable) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cables, w.told = cables, true
	if !w.Rules.Guard {
		return nil
	}
	next, err := w.Rules.contents(cables)
	if err != nil {
		return fmt.Errorf("admitting pods: %w", err)
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("admitting pods: %w", err)
	}
	changed, err := w.Rules.update(c, w.contents, next)
	if err == nil && changed {
		err = c.Flush()
	}
	if err == nil {
		w.contents = next
		return nil
	}
	// The sets are not what we left: somebody else took them away.
	w.logger().Warn("the sets of admitted pods were changed by somebody else; installing the rules again", "err", err)
	return w.install()
}

func (w *Writer) logger() *slog.Logger {
	if w.Logger != nil {
		return w.Logger
	}
	return slog.Default()
}

// Remove takes the rules away and cuts the connections that they led: pods
// then reach the node's own metadata service. metadata is one or both of the
// addresses that pods asked. It is no error if there are no rules.
func Remove(metadata ...netip.AddrPort) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("removing the redirection: %w", err)
	}
	for _, f := range families() {
		t, err := table(c, f)
		if err != nil {
			return fmt.Errorf("removing the redirection: %w", err)
		}
		if t != nil {
			c.DelTable(t)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("removing the redirection: %w", err)
	}
	for _, m := range metadata {
		if err := (stray{from: m}).cut(); err != nil {
			return fmt.Errorf("removing the redirection: %w", err)
		}
	}
	return nil
}

func families() []nftables.TableFamily {
	return []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyBridge}
}

// table finds our table of a family; nil means that there is none.
func table(c *nftables.Conn, f nftables.TableFamily) (*nftables.Table, error) {
	tables, err := c.ListTablesOfFamily(f)
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

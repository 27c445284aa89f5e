package redirect

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// tool runs a program inside the node.
func (n *node) tool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, n.Start(cmd))
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out.String())
	}
}

// A service at 10.96.0.10:80 that leads to the first pod's port 8080, as
// kube-proxy writes it, and what it masquerades.
const (
	serviceIPTables = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -j KUBE-MARK-MASQ
-A KUBE-SVC-A -p tcp -m tcp -j DNAT --to-destination 10.9.0.2:8080
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
`
	serviceNFTables = `table ip kube-proxy {
	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 10.96.0.10 . tcp . 80 : goto service-a }
	}
	chain service-a { meta mark set meta mark | 0x4000; meta l4proto tcp dnat to 10.9.0.2:8080; }
	chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
	chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
	chain nat-output { type nat hook output priority -100; jump services; }
	chain nat-postrouting { type nat hook postrouting priority srcnat; meta mark & 0x4000 != 0 meta mark set meta mark ^ 0x4000 masquerade; }
}
`
)

func TestItWorksBesideKubeProxy(t *testing.T) {
	iptables := func(kind string) func(*testing.T, *node) {
		return func(t *testing.T, n *node) { n.tool(t, serviceIPTables, kind+"-restore", "--noflush") }
	}
	flush := func(kind string) func(*testing.T, *node) {
		return func(t *testing.T, n *node) { n.tool(t, "", kind, "-t", "nat", "-F"); n.tool(t, "", kind, "-F") }
	}
	for name, kube := range map[string]struct{ write, flush func(*testing.T, *node) }{
		"iptables, legacy":      {iptables("iptables-legacy"), flush("iptables-legacy")},
		"iptables, on nftables": {iptables("iptables-nft"), flush("iptables-nft")},
		"nftables": {
			func(t *testing.T, n *node) { n.tool(t, serviceNFTables, "nft", "-f", "-") },
			func(t *testing.T, n *node) { n.tool(t, "", "nft", "delete", "table", "ip", "kube-proxy") },
		},
	} {
		for _, first := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, kube-proxy first %t", name, first), func(t *testing.T) {
				n := newNode(t)
				n.serve(t, metadata, "metadata")
				n.serve(t, agent, "agent")
				(&node{NS: n.pods[0]}).serve(t, netip.MustParseAddrPort("10.9.0.2:8080"), "service")
				if first {
					kube.write(t, n)
				}
				g := start(t, n, guard())
				g.admitted(t, "10.9.0.2", "10.9.0.3")
				if !first {
					kube.write(t, n)
				}
				expect(t, n.pods[1], metadata, "agent saw 10.9.0.3")
				expect(t, n.pods[1], netip.MustParseAddrPort("10.96.0.10:80"), "service saw 10.9.0.1")
				expect(t, n.pods[0], metadata, "agent saw 10.9.0.2")
				kube.flush(t, n)
				expect(t, n.pods[1], metadata, "agent saw 10.9.0.3")
				must(t, n.Do(func() error { return Remove(metadata) }))
				expect(t, n.pods[1], metadata, "metadata saw 10.9.0.3")
			})
		}
	}
}

func TestWhatSomebodyElseTookAwayComesBackAtOnce(t *testing.T) {
	for _, take := range []string{
		"flush ruleset",
		"delete table bridge " + TableName,
		"flush chain ip " + TableName + " sources",
		"flush set bridge " + TableName + " owners",
		"delete chain ip " + TableName + " output",
	} {
		t.Run(take, func(t *testing.T) {
			n := newNode(t)
			n.serve(t, metadata, "metadata")
			n.serve(t, agent, "agent")
			rules := guard()
			rules.BlockHost = true
			g := start(t, n, rules)
			g.admitted(t, "10.9.0.2", "10.9.0.3")
			ctx, cancel := context.WithCancel(t.Context())
			lost, done := make(chan struct{}, 100), make(chan error, 1)
			go func() {
				done <- n.Do(func() error { return g.writer.Keep(ctx, time.Hour, func() { lost <- struct{}{} }) })
			}()
			// Keep listens as soon as it runs; until it has told of a loss,
			// the same is taken away again.
			eventually(t, func() error {
				select {
				case <-lost:
					return nil
				default:
				}
				if ok := n.complete(t, g.writer); ok {
					if strings.HasPrefix(take, "delete chain") {
						n.tool(t, "", "nft", strings.Replace(take, "delete", "flush", 1))
					}
					n.tool(t, "", "nft", take)
				}
				return fmt.Errorf("%s: not told", take)
			})
			eventually(t, func() error {
				if !n.complete(t, g.writer) {
					return fmt.Errorf("%s: not restored", take)
				}
				return nil
			})
			expect(t, n.pods[0], metadata, "agent saw 10.9.0.2")
			cancel()
			must(t, <-done)
		})
	}
}

func (n *node) complete(t *testing.T, w *Writer) (ok bool) {
	t.Helper()
	must(t, n.Do(func() (err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		ok, err = w.installed()
		return err
	}))
	return ok
}

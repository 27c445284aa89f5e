package pod

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/lab/netns"
	"github.com/lanyard-id/lanyard/internal/lab/netns/netnstest"
)

// Variables that make this test binary a program of the pod instead.
const (
	variableAsk     = "LANYARD_TEST_ASK"     // connect to this address and print the answer
	variableInstall = "LANYARD_TEST_INSTALL" // install the rules
)

func TestMain(m *testing.M) {
	if a := os.Getenv(variableAsk); a != "" {
		fmt.Println(answer(a))
		return
	}
	if os.Getenv(variableInstall) != "" {
		if err := usual().Install(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	netnstest.Main(m.Run)
}

var (
	metadata  = netip.MustParseAddrPort("169.254.169.254:80")
	metadata6 = netip.MustParseAddrPort("[fd00:ec2::254]:80")
)

const (
	port  = 8000
	owner = 1501
)

func usual() Rules {
	return Rules{Metadata: []netip.AddrPort{metadata, metadata6}, Port: port, UID: owner}
}

// A pod has a network of its own, with a proxy at its loopback addresses, and a
// node beyond it that has the metadata service.
type podNet struct{ *netns.NS }

func newPod(t *testing.T) podNet {
	t.Helper()
	node, pod := namespace(t), namespace(t)
	must(t, node.Setup(netns.Setup{
		Bridge: "br0", BridgeAddresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")},
		Loopback: []netip.Prefix{netip.PrefixFrom(metadata.Addr(), 32)},
	}))
	must(t, node.Connect("br0", "veth0", pod, netip.MustParsePrefix("10.9.0.2/24"), netip.MustParseAddr("10.9.0.1")))
	// An address of its own stands for the metadata service over IPv6: that the
	// answer comes from elsewhere shows the way.
	must(t, pod.Setup(netns.Setup{Loopback: []netip.Prefix{netip.PrefixFrom(metadata6.Addr(), 128)}}))
	serve(t, node, metadata.String(), "the metadata service")
	serve(t, pod, metadata6.String(), "the metadata service")
	serve(t, pod, fmt.Sprintf("127.0.0.1:%d", port), "the proxy")
	serve(t, pod, fmt.Sprintf("[::1]:%d", port), "the proxy")
	return podNet{pod}
}

func namespace(t *testing.T) *netns.NS {
	t.Helper()
	n, err := netns.New()
	must(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve says name to whoever connects.
func serve(t *testing.T, n *netns.NS, at, name string) {
	t.Helper()
	l, err := n.Listen(t.Context(), "tcp", at)
	for deadline := time.Now().Add(5 * time.Second); errors.Is(err, unix.EADDRNOTAVAIL) && time.Now().Before(deadline); {
		// The kernel brings IPv6 addresses up a little later.
		l, err = n.Listen(t.Context(), "tcp", at)
	}
	must(t, err)
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, name)
			c.Close()
		}
	}()
}

// answer connects, in the network of this thread.
func answer(address string) string {
	c, err := (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", address)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	s, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err.Error()
	}
	return strings.TrimSpace(s)
}

// run runs this test binary in the pod.
func (p podNet) run(t *testing.T, attr *syscall.SysProcAttr, env string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("/proc/self/exe")
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = []string{env}, &out, &out, attr
	must(t, p.Start(cmd))
	err := cmd.Wait()
	return strings.TrimSpace(out.String()), err
}

// ask asks an address from a process of this user.
func (p podNet) ask(t *testing.T, uid uint32, to netip.AddrPort) string {
	t.Helper()
	out, err := p.run(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, NoSetGroups: true}}, variableAsk+"="+to.String())
	if err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	return out
}

func (p podNet) expect(t *testing.T, uid uint32, to netip.AddrPort, want string) {
	t.Helper()
	if got := p.ask(t, uid, to); got != want {
		t.Errorf("user %d asked %s and got %q, want %q", uid, to, got, want)
	}
}

func (p podNet) install(t *testing.T, r Rules) {
	t.Helper()
	must(t, p.Do(r.Install))
}

func (p podNet) rules(t *testing.T) string {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("nft", "--stateless", "list", "ruleset")
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, p.Start(cmd))
	must(t, cmd.Wait())
	return out.String()
}

// users of whom the first is the proxy's. Without root there is but one: then
// it is what the rules say of it that changes.
func users() []uint32 {
	if netnstest.Users() {
		return []uint32{owner, 0, 1000}
	}
	return []uint32{0}
}

func TestEveryUserButTheProxyIsLedToTheProxy(t *testing.T) {
	p := newPod(t)
	for _, to := range []netip.AddrPort{metadata, metadata6} {
		p.expect(t, 0, to, "the metadata service")
	}
	p.install(t, usual())
	for _, to := range []netip.AddrPort{metadata, metadata6} {
		for _, uid := range users() {
			want := "the proxy"
			if uid == owner {
				want = "the metadata service"
			}
			p.expect(t, uid, to, want)
		}
	}
	// Other ports of the address are none of ours.
	if got := p.ask(t, 0, netip.AddrPortFrom(metadata.Addr(), 81)); !strings.Contains(got, "refused") {
		t.Errorf("port 81: %s", got)
	}
}

func TestTheExemptionFollowsTheUserThatIsNamed(t *testing.T) {
	p := newPod(t)
	r := usual()
	r.UID = 0
	p.install(t, r)
	p.expect(t, 0, metadata, "the metadata service")
	p.install(t, usual())
	p.expect(t, 0, metadata, "the proxy")
}

func TestASecondRunChangesNothing(t *testing.T) {
	p := newPod(t)
	p.install(t, usual())
	once := p.rules(t)
	p.install(t, usual())
	if twice := p.rules(t); twice != once {
		t.Errorf("first:\n%s\nthen:\n%s", once, twice)
	}
	if strings.Count(once, "redirect to") != 2 || strings.Count(once, "skuid") != 2 {
		t.Errorf("the rules are\n%s", once)
	}
}

func TestARunWithoutIPv6TakesTheRulesOfOneWithItAway(t *testing.T) {
	p := newPod(t)
	p.install(t, usual())
	r := usual()
	r.Metadata = r.Metadata[:1]
	p.install(t, r)
	p.expect(t, 0, metadata, "the proxy")
	p.expect(t, 0, metadata6, "the metadata service")
}

// A service mesh leads everything that a pod sends to its own proxy.
func TestItComesBeforeAServiceMesh(t *testing.T) {
	const mesh = "*nat\n:MESH - [0:0]\n-A OUTPUT -p tcp -j MESH\n-A MESH -d 127.0.0.1/32 -j RETURN\n-A MESH -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n"
	for _, kind := range []string{"iptables-legacy", "iptables-nft"} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, the mesh first: %v", kind, first), func(t *testing.T) {
				p := newPod(t)
				serve(t, p.NS, "127.0.0.1:15001", "the mesh")
				if !first {
					p.install(t, usual())
				}
				cmd := exec.Command(kind+"-restore", "--noflush")
				cmd.Stdin = strings.NewReader(mesh)
				must(t, p.Start(cmd))
				must(t, cmd.Wait())
				if first {
					p.install(t, usual())
				}
				p.expect(t, 0, metadata, "the proxy")
				p.expect(t, 0, netip.MustParseAddrPort("10.9.0.1:80"), "the mesh")
				// What the mesh gets of the proxy's own it sends on as another
				// user, who is led back to the proxy.
				r := usual()
				r.UID = 0
				p.install(t, r)
				p.expect(t, 0, metadata, "the metadata service")
				p.expect(t, 0, netip.MustParseAddrPort("10.9.0.1:80"), "the mesh")
			})
		}
	}
}

func TestWithoutPermissionNothingIsPretended(t *testing.T) {
	p := newPod(t)
	// Root of a user namespace below is nobody in this network.
	out, err := p.run(t, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}, variableInstall+"=1")
	if err == nil || !strings.Contains(out, "CAP_NET_ADMIN") {
		t.Errorf("got %v and %q, want a failure that names CAP_NET_ADMIN", err, out)
	}
	if rules := p.rules(t); strings.Contains(rules, TableName) {
		t.Errorf("rules were written:\n%s", rules)
	}
}

func TestNetAdminIsAllItNeeds(t *testing.T) {
	p := newPod(t)
	all := users()
	out, err := p.run(t, &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: all[len(all)-1], NoSetGroups: true},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN},
	}, variableInstall+"=1")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p.expect(t, 0, metadata, "the proxy")
}

func TestRulesThatSomebodyElseChangedAreNoticed(t *testing.T) {
	for name, change := range map[string]func(c *nftables.Conn, t *nftables.Table, ch *nftables.Chain){
		"a table is gone": func(c *nftables.Conn, t *nftables.Table, _ *nftables.Chain) { c.DelTable(t) },
		"a rule is gone":  func(c *nftables.Conn, _ *nftables.Table, ch *nftables.Chain) { c.FlushChain(ch) },
		"a rule is doubled": func(c *nftables.Conn, t *nftables.Table, ch *nftables.Chain) {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: redirect(port)})
		},
		"another user is spared": func(c *nftables.Conn, t *nftables.Table, ch *nftables.Chain) {
			c.FlushChain(ch)
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(tcpTo(metadata), keep(0, metadata.Addr(), nftables.TableFamilyIPv4)...)})
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(tcpTo(metadata), redirect(port)...)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			p.install(t, usual())
			must(t, p.Do(func() error {
				c, err := nftables.New()
				if err != nil {
					return err
				}
				if err := usual().verify(c); err != nil {
					return fmt.Errorf("before: %w", err)
				}
				own := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: TableName}
				change(c, own, &nftables.Chain{Name: chainOutput, Table: own})
				if err := c.Flush(); err != nil {
					return err
				}
				if usual().verify(c) == nil {
					return errors.New("the change was not noticed")
				}
				return nil
			}))
		})
	}
}

func TestRulesThatMeanNothingAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Rules){
		"no address":             func(r *Rules) { r.Metadata = nil },
		"an invalid address":     func(r *Rules) { r.Metadata[0] = netip.AddrPort{} },
		"an address in disguise": func(r *Rules) { r.Metadata[0] = netip.MustParseAddrPort("[::ffff:169.254.169.254]:80") },
		"no metadata port":       func(r *Rules) { r.Metadata[0] = netip.AddrPortFrom(metadata.Addr(), 0) },
		"no port":                func(r *Rules) { r.Port = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			r := usual()
			change(&r)
			if err := r.Install(); err == nil {
				t.Error("no error")
			}
		})
	}
}

package netns

import (
	"bufio"
	"context"
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

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const inUserNamespace = "LANYARD_TEST_USER_NAMESPACE"

// Without root the tests run in a user namespace of their own.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		out, err := inNewUserNamespace(os.Args[1:]...).CombinedOutput()
		fmt.Print(string(out))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// inNewUserNamespace is this test binary as root of a user namespace.
func inNewUserNamespace(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), inUserNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	return cmd
}

func TestTheOtherTestsPassWithoutPrivilege(t *testing.T) {
	if os.Getenv(inUserNamespace) != "" {
		return // this is the run that the test asks for
	}
	out, err := inNewUserNamespace("-test.run=^Test[^T]").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("in a user namespace: %v\n%s", err, out)
	}
}

func machine(t *testing.T) *NS {
	t.Helper()
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	err = n.Setup(Setup{
		Bridge:          "node0",
		BridgeAddresses: []netip.Prefix{netip.MustParsePrefix("10.250.0.1/24"), netip.MustParsePrefix("10.250.0.10/32")},
		Loopback:        []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32")},
		Gateway:         netip.MustParseAddr("10.250.0.254"),
		Sysctls:         map[string]string{"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/route_localnet": "1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func own(t *testing.T) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// echo answers each connection with what it got, after the other side has
// closed its writing half.
func echo(t *testing.T, l net.Listener) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			got, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%s from %s", got, c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

func ask(t *testing.T, c net.Conn, question string) string {
	t.Helper()
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, question)
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

func TestConnectionsStayInsideTheirNamespace(t *testing.T) {
	ctx := t.Context()
	a, b := machine(t), machine(t)
	l, err := a.Listen(ctx, "tcp", "169.254.169.254:80")
	if err != nil {
		t.Fatal(err)
	}
	echo(t, l)

	c, err := a.DialContext(ctx, "tcp", "169.254.169.254:80")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := ask(t, c, "hello"), "hello from 169.254.169.254"; got != want {
		t.Errorf("answer %q, want %q", got, want)
	}
	if _, err := b.DialContext(ctx, "tcp", "169.254.169.254:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the same address in another namespace: %v, want connection refused", err)
	}
	p, err := a.ListenPacket(ctx, "udp", "10.250.0.10:53")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	u, err := a.DialContext(ctx, "udp", "10.250.0.10:53")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	fmt.Fprint(u, "q")
	buf := make([]byte, 8)
	if n, _, err := p.ReadFrom(buf); err != nil || string(buf[:n]) != "q" {
		t.Errorf("datagram %q, %v", buf[:n], err)
	}
}

func TestNothingOutsideChanges(t *testing.T) {
	before, links := own(t), interfaces(t)
	n := machine(t)
	inside := ""
	err := n.Do(func() (err error) {
		inside, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if err != nil || inside == before {
		t.Errorf("Do ran in %s, %v; outside is %s", inside, err, before)
	}
	if got := own(t); got != before {
		t.Errorf("the process moved from %s to %s", before, got)
	}
	if got := interfaces(t); got != links {
		t.Errorf("interfaces outside: %s, before %s", got, links)
	}
}

func interfaces(t *testing.T) string {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(all)
}

func TestSysctlsAreSetInsideOnly(t *testing.T) {
	n := machine(t)
	read := func() string {
		b, err := os.ReadFile("/proc/thread-self/net/route")
		if err != nil {
			t.Error(err)
		}
		f, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		if err != nil {
			t.Error(err)
		}
		return string(f) + string(b)
	}
	var inside string
	if err := n.Do(func() error { inside = read(); return nil }); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(inside, "1\n") || !strings.Contains(inside, "node0\t00000000\tFE00FA0A") {
		t.Errorf("ip_forward and routes inside:\n%s", inside)
	}
}

func TestAnAddressThatCannotBeReachedInsideIsRefused(t *testing.T) {
	n := machine(t)
	for addr, want := range map[string]string{
		"login.microsoftonline.com:443": `"login.microsoftonline.com" is not an IP address`,
		":443":                          "not an IP address",
		"10.250.0.1":                    "missing port",
	} {
		if _, err := n.DialContext(t.Context(), "tcp", addr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("dialing %q: %v, want %q", addr, err, want)
		}
	}
	if _, err := n.Listen(t.Context(), "tcp", "localhost:0"); err == nil {
		t.Error("listening on a name succeeded")
	}
	if _, err := n.Listen(t.Context(), "tcp", "10.99.0.1:0"); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("listening on a foreign address: %v", err)
	}
}

func TestAChildIsBornInsideAndDiesWithTheNamespace(t *testing.T) {
	n := machine(t)
	cmd := exec.Command("sh", "-c", "readlink /proc/self/ns/net; exec cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	if err := n.Do(func() (err error) { inside, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(line); got != inside {
		t.Errorf("the child lives in %s, want %s", got, inside)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("the child ended with %v, want killed", err)
	}
}

func TestAClosedNamespaceSaysSo(t *testing.T) {
	n := machine(t)
	for range 2 {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("Do: %v", err)
	}
	if _, err := n.DialContext(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, ErrClosed) {
		t.Errorf("DialContext: %v", err)
	}
	if err := n.Start(exec.Command("true")); !errors.Is(err, ErrClosed) {
		t.Errorf("Start: %v", err)
	}
}

func TestForwardReachesInside(t *testing.T) {
	n := machine(t)
	inside, err := n.Listen(t.Context(), "tcp", "10.250.0.1:6443")
	if err != nil {
		t.Fatal(err)
	}
	echo(t, inside)
	outside, done, stop := forward(t, n, "10.250.0.1:6443")
	for i := range 3 {
		c, err := net.Dial("tcp", outside)
		if err != nil {
			t.Fatal(err)
		}
		// The answer comes after the end of the question: half-close works.
		if got, want := ask(t, c, fmt.Sprint(i)), fmt.Sprintf("%d from 10.250.0.1", i); got != want {
			t.Errorf("answer %q, want %q", got, want)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Forward ended with %v", err)
	}
	if c, err := net.Dial("tcp", outside); err == nil {
		c.Close()
		t.Error("the forwarded port is still open")
	}
}

func TestForwardClosesWhatCannotBeReached(t *testing.T) {
	n := machine(t)
	outside, done, stop := forward(t, n, "10.250.0.1:9")
	c, err := net.Dial("tcp", outside)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading: %v, want the end of the connection", err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestForwardEndsConnectionsThatAreOpen(t *testing.T) {
	n := machine(t)
	inside, err := n.Listen(t.Context(), "tcp", "10.250.0.1:6443")
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	outside, done, stop := forward(t, n, "10.250.0.1:6443")
	c, err := net.Dial("tcp", outside)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	far, err := inside.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func forward(t *testing.T, n *NS, to string) (addr string, done chan error, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	done = make(chan error, 1)
	go func() { done <- Forward(ctx, l, n.DialContext, to, nil) }()
	return l.Addr().String(), done, cancel
}

func TestACableLeadsToAnotherNamespace(t *testing.T) {
	n := machine(t)
	if err := n.Setup(Setup{Bridge: "cni0", BridgeAddresses: []netip.Prefix{netip.MustParsePrefix("10.244.0.1/24")}}); err != nil {
		t.Fatal(err)
	}
	pod, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	if err := n.Connect("cni0", "pod1", pod, netip.MustParsePrefix("10.244.0.2/24"), netip.MustParseAddr("10.244.0.1")); err != nil {
		t.Fatal(err)
	}
	l, err := n.Listen(t.Context(), "tcp", "169.254.169.254:80")
	if err != nil {
		t.Fatal(err)
	}
	echo(t, l)
	c, err := pod.DialContext(t.Context(), "tcp", "169.254.169.254:80")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := ask(t, c, "hello"), "hello from 10.244.0.2"; got != want {
		t.Errorf("answer %q, want %q", got, want)
	}
}

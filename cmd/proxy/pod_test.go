package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/lab/netns"
	"github.com/lanyard-id/lanyard/internal/lab/netns/netnstest"
)

// asProgram makes this test binary a program of the pod that asks this URL.
const asProgram = "LANYARD_TEST_PROGRAM"

// program asks and prints the status and the body.
func program(url string) {
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	r.Header.Set("Metadata", "true")
	res, err := (&http.Client{Timeout: 20 * time.Second}).Do(r)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	fmt.Println(res.StatusCode, string(body), err)
}

const (
	proxyUser = 1501
	clientID  = "11111111-aaaa-bbbb-cccc-000000000001"
)

// A testPod is a network with an Entra at its loopback address, beyond which is
// a node with a metadata service.
type testPod struct {
	*netns.NS
	env      []string
	dir      string
	mu       sync.Mutex
	paths    []string // that reached the node's metadata service
	exchange int
}

func newPod(t *testing.T) *testPod {
	t.Helper()
	p := &testPod{NS: namespace(t), dir: t.TempDir()}
	node := namespace(t)
	metadata := netip.MustParseAddr("169.254.169.254")
	must(t, node.Setup(netns.Setup{
		Bridge: "br0", BridgeAddresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")},
		Loopback: []netip.Prefix{netip.PrefixFrom(metadata, 32)},
	}))
	must(t, node.Connect("br0", "veth0", p.NS, netip.MustParsePrefix("10.9.0.2/24"), netip.MustParseAddr("10.9.0.1")))
	p.serve(t, node, "169.254.169.254:80", false, func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.paths = append(p.paths, r.URL.Path)
		p.mu.Unlock()
		fmt.Fprint(w, "the node's own answer")
	})
	login := p.serve(t, p.NS, "127.0.0.1:0", true, func(w http.ResponseWriter, r *http.Request) {
		q, err := entra.ParseTokenRequest(r, entra.V2)
		if err != nil || q.Assertion == "" {
			http.Error(w, "no assertion", http.StatusBadRequest)
			return
		}
		p.mu.Lock()
		p.exchange++
		p.mu.Unlock()
		_ = entra.WriteToken(w, entra.V2, entra.TokenResponse{AccessToken: "token of " + q.ClientID, ExpiresIn: time.Hour})
	})
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: login.Certificate().Raw})
	must(t, os.WriteFile(filepath.Join(p.dir, "ca"), ca, 0o644))
	must(t, os.WriteFile(filepath.Join(p.dir, "token"), []byte("eyJh.eyJz.c2ln"), 0o644))
	must(t, os.Chmod(p.dir, 0o755))
	must(t, os.Chmod(filepath.Dir(p.dir), 0o755))
	p.env = []string{
		"AZURE_TENANT_ID=contoso.com", "AZURE_CLIENT_ID=" + clientID, "AZURE_FEDERATED_TOKEN_FILE=" + filepath.Join(p.dir, "token"),
		"AZURE_AUTHORITY_HOST=" + login.URL, "SSL_CERT_FILE=" + filepath.Join(p.dir, "ca"),
	}
	return p
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

func (p *testPod) serve(t *testing.T, n *netns.NS, at string, tls bool, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	l, err := n.Listen(t.Context(), "tcp", at)
	must(t, err)
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	s.Listener = l
	if tls {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

// start runs this test binary in the pod, as this user.
func (p *testPod) start(t *testing.T, out io.Writer, uid uint32, attr *syscall.SysProcAttr, args []string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: args, Env: env, Stdout: out, Stderr: out, SysProcAttr: attr}
	if attr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, NoSetGroups: true}
	must(t, p.Start(cmd))
	return cmd
}

// init runs the init container.
func (p *testPod) init(t *testing.T, uid uint32) {
	t.Helper()
	var out bytes.Buffer
	if err := p.start(t, &out, 0, nil, []string{"/proxy-init"}, asProxy+"=1", "PROXY_PORT=8000", "PROXY_UID="+strconv.Itoa(int(uid))).Wait(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
}

// A sidecar is a running proxy.
type sidecar struct {
	cmd  *exec.Cmd
	log  bytes.Buffer
	gone chan error
}

// sidecar starts the proxy and its hook at the same time, as a kubelet does.
func (p *testPod) sidecar(t *testing.T, uid uint32) *sidecar {
	t.Helper()
	s := &sidecar{gone: make(chan error, 1)}
	var out bytes.Buffer
	hook := p.start(t, &out, uid, nil, []string{"/proxy", "--proxy-port=8000", "--probe", "--log-level=info"}, asProxy+"=1")
	s.cmd = p.start(t, &s.log, uid, nil, []string{"/proxy", "--proxy-port=8000", "--log-level=info"}, append(p.env, asProxy+"=1")...)
	ended := make(chan struct{})
	go func() { s.gone <- s.cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // it may be gone
		<-ended
	})
	if err := hook.Wait(); err != nil {
		t.Fatalf("the hook: %v: %s", err, out.String())
	}
	return s
}

// ask asks the metadata service from a program of this user.
func (p *testPod) ask(t *testing.T, uid uint32, path string) string {
	t.Helper()
	var out bytes.Buffer
	must(t, p.start(t, &out, uid, nil, []string{"program"}, asProgram+"=http://169.254.169.254"+path).Wait())
	return strings.TrimSuffix(strings.TrimSpace(out.String()), " <nil>")
}

// reached is what reached the node's metadata service.
func (p *testPod) reached() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.paths, " ")
}

const tokenPath = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net"

// programs are users that programs of a pod may run as. Without root there is
// but one user, and only one side of the exemption can be seen at a time.
func programs() []uint32 {
	if netnstest.Users() {
		return []uint32{0, 1000, 65534}
	}
	return []uint32{0}
}

func TestProgramsOfAPodGetThePodsIdentityAndTheNodesOtherAnswers(t *testing.T) {
	p := newPod(t)
	p.init(t, proxyUser)
	p.init(t, proxyUser) // the kubelet may run it again
	user := uint32(proxyUser)
	if !netnstest.Users() {
		user = 0
	}
	s := p.sidecar(t, user)
	for _, uid := range programs() {
		got := p.ask(t, uid, tokenPath)
		var body struct {
			AccessToken string `json:"access_token"`
		}
		status, text, _ := strings.Cut(got, " ")
		if err := json.Unmarshal([]byte(text), &body); err != nil || status != "200" || body.AccessToken != "token of "+clientID {
			t.Errorf("user %d got %s", uid, got)
		}
		if user != proxyUser {
			continue // the loop's test has this case
		}
		if got := p.ask(t, uid, "/metadata/instance?api-version=2021-02-01"); got != "200 the node's own answer" {
			t.Errorf("user %d got %s", uid, got)
		}
	}
	if strings.Contains(p.reached(), "identity") {
		t.Errorf("the node's metadata service was asked %s", p.reached())
	}
	if p.exchange != 1 {
		t.Errorf("Entra was asked %d times", p.exchange)
	}
	// The pod's containers have ended: so does the sidecar, at once and well.
	must(t, s.cmd.Process.Signal(unix.SIGTERM))
	asked := time.Now()
	if err := <-s.gone; err != nil {
		t.Errorf("%v: %s", err, s.log.String())
	}
	if took := time.Since(asked); took > 3*time.Second {
		t.Errorf("it took %s to end", took)
	}
	// Without it nothing else answers.
	if got := p.ask(t, 0, tokenPath); !strings.Contains(got, "refused") {
		t.Errorf("got %s", got)
	}
	for line := range strings.Lines(s.log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("the log has %q", line)
		}
	}
}

// v1.6's proxy asked itself until it had no descriptors left when the pod set
// another user than its image did.
func TestAProxyOfAnotherUserThanTheRulesSpareDoesNotAskItself(t *testing.T) {
	p := newPod(t)
	p.init(t, proxyUser)
	users := programs()
	user := users[min(1, len(users)-1)]
	s := p.sidecar(t, user)
	got := p.ask(t, 0, "/metadata/instance?api-version=2021-02-01")
	if !strings.HasPrefix(got, "508 ") || !strings.Contains(got, fmt.Sprintf("the proxy's, which is %d; remove runAsUser", user)) {
		t.Errorf("got %s", got)
	}
	if files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid)); err != nil || len(files) > 20 {
		t.Errorf("it has %d files open, %v", len(files), err)
	}
	if got := p.ask(t, 0, tokenPath); !strings.HasPrefix(got, "200 ") {
		t.Errorf("a token: %s", got)
	}
	if p.reached() != "" {
		t.Errorf("the node's metadata service was asked %s", p.reached())
	}
}

func TestInitFailsClosed(t *testing.T) {
	p := newPod(t)
	var out bytes.Buffer
	// A user namespace below has no say in the pod's network.
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: []syscall.SysProcIDMap{{Size: 1}}, GidMappings: []syscall.SysProcIDMap{{Size: 1}}}
	cmd := p.start(t, &out, 0, attr, []string{"/proxy-init"}, asProxy+"=1")
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(out.String(), "CAP_NET_ADMIN") {
		t.Errorf("got %v: %s", err, out.String())
	}
}

// The binary itself, not this one of tests, after what a busy pod and a hostile
// program do to it.
func TestTheSidecarTakesLittleMemory(t *testing.T) {
	p := newPod(t)
	p.init(t, proxyUser)
	cmd := exec.Command(built(t), "--log-level=info")
	cmd.Env = p.env
	must(t, p.Start(cmd))
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	transport := &http.Transport{MaxIdleConnsPerHost: 32, DialContext: p.DialContext}
	ask := func(query string) error {
		r, err := http.NewRequest(http.MethodGet, "http://127.0.0.1:8000"+tokenPath+query, nil)
		if err != nil {
			return err
		}
		r.Header.Set("Metadata", "true")
		res, err := transport.RoundTrip(r)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK && query == "" {
			return fmt.Errorf("%s, %w", res.Status, err)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), probeTime)
	defer cancel()
	must(t, p.probe(ctx))
	must(t, ask(""))
	took := make([]time.Duration, 5000)
	for i := range took {
		start := time.Now()
		must(t, ask(""))
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	t.Logf("cached token: p50 %s, p99 %s", took[len(took)/2], took[len(took)*99/100])
	atRest := memoryOf(t, cmd)
	t.Logf("at rest: %v", atRest)
	if kb := atRest["VmRSS"]; kb == 0 || kb > 20_000 {
		t.Errorf("%d kB are resident", kb)
	}
	var all errgroup.Group
	for worker := range 32 {
		all.Go(func() error {
			for i := range 200 {
				query := ""
				if i%2 == 1 {
					query = fmt.Sprintf("&client_id=%s-%d-%d", strings.Repeat("x", 500), worker, i)
				}
				if err := ask(query); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(t, all.Wait())
	transport.CloseIdleConnections()
	resident := memoryOf(t, cmd)
	t.Logf("after 32 at a time, half of them for ever new client ids: %v", resident)
	if kb := resident["VmHWM"]; kb == 0 || kb > 32_000 {
		t.Errorf("it took %d kB at most", kb)
	}
	must(t, cmd.Process.Signal(unix.SIGTERM))
	must(t, <-gone)
}

// built is the program as it is shipped.
func built(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "proxy")
	if out, err := exec.Command("go", "build", "-ldflags", "-s -w", "-o", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return file
}

// probe waits until the proxy is ready.
func (p *testPod) probe(ctx context.Context) error {
	for {
		c, err := p.DialContext(ctx, "tcp", "127.0.0.1:8000")
		if err == nil {
			return c.Close()
		}
		if ctx.Err() != nil {
			return err
		}
	}
}

// memoryOf returns kilobytes by the names of the kernel.
func memoryOf(t *testing.T, cmd *exec.Cmd) map[string]int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	must(t, err)
	found := map[string]int{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		if name == "VmRSS" || name == "RssAnon" || name == "VmHWM" {
			kb, err := strconv.Atoi(strings.Fields(value)[0])
			must(t, err)
			found[name] = kb
		}
	}
	return found
}

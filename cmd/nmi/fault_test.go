package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/lab/netns"
	"github.com/lanyard-id/lanyard/internal/lab/netns/netnstest"
	"github.com/lanyard-id/lanyard/internal/nmi/nodewatch"
)

// The tests run in a user namespace of their own, so that they need no root
// and what they do to the kernel ends with them. The agent is this program too.
func TestMain(m *testing.M) {
	if os.Getenv(agentVariable) != "" {
		main()
	}
	netnstest.Main(func() int {
		if err := network(); err != nil {
			fmt.Fprintln(os.Stderr, "in a user namespace:", err)
			return 1
		}
		return m.Run()
	})
}

// agentVariable makes the test binary the agent itself.
const agentVariable = "LANYARD_TEST_NMI"

// network is what an API server needs: loopback, and a default route to choose
// its address by.
func network() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "card"
	card := &netlink.Bridge{LinkAttrs: attrs}
	own := &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}
	return errors.Join(
		netlink.LinkSetUp(lo), netlink.LinkAdd(card), netlink.AddrAdd(card, &netlink.Addr{IPNet: own}), netlink.LinkSetUp(card),
		netlink.RouteAdd(&netlink.Route{LinkIndex: card.Attrs().Index, Gw: net.IPv4(192, 0, 2, 254)}),
	)
}

var cluster = labtest.Cluster{CRDs: deploy.FS}

// A machine is a node with two pods, a metadata service and a way to the API
// server, in network namespaces of its own.
type machine struct {
	*netns.NS
	client.Client
	namespace  string
	kubeconfig string
	pods       map[string]*netns.NS // by name; the pod's identity has the same

	mu     sync.Mutex
	asked  map[string]int // by whom the metadata service was asked
	strays []string       // requests that did not come from the agent
}

const (
	nodeAddress      = "10.9.0.1"
	metadataAddress  = "169.254.169.254"
	nodeAddress6     = "fd09::1"
	metadataAddress6 = "fd00:a9fe:a9fe::254"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	m := &machine{NS: ns, namespace: cluster.Namespace(t), pods: map[string]*netns.NS{}, asked: map[string]int{}}
	must(t, m.Setup(netns.Setup{
		Bridge: "br0", BridgeAddresses: []netip.Prefix{netip.MustParsePrefix(nodeAddress + "/24")},
		Loopback: []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32")},
		Sysctls:  map[string]string{"net/ipv4/ip_forward": "1"},
	}))
	scheme, err := nodewatch.Scheme()
	must(t, err)
	m.Client, err = client.New(cluster.Config(t), client.Options{Scheme: scheme})
	must(t, err)
	m.apiServer(t)
	m.metadata(t, metadataAddress)
	return m
}

// apiServer makes the API server reachable in the node, and a kubeconfig for
// that.
func (m *machine) apiServer(t *testing.T) {
	t.Helper()
	u, err := url.Parse(cluster.Config(t).Host)
	must(t, err)
	l, err := m.Listen(t.Context(), "tcp", "127.0.0.1:6443")
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- netns.Forward(ctx, l, (&net.Dialer{}).DialContext, u.Host, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() {
		stop()
		t.Log("closed:", <-done)
	})
	config, err := clientcmd.LoadFromFile(cluster.Kubeconfig(t))
	must(t, err)
	for _, c := range config.Clusters {
		c.Server, c.TLSServerName = "https://127.0.0.1:6443", u.Hostname()
	}
	m.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	must(t, clientcmd.WriteToFile(*config, m.kubeconfig))
}

// metadata serves the machine's metadata service: the token of an identity is
// its name.
func (m *machine) metadata(t *testing.T, address string) {
	t.Helper()
	l, err := m.Listen(t.Context(), "tcp", net.JoinHostPort(address, "80"))
	must(t, err)
	s := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		m.mu.Lock()
		m.asked[from]++
		if strings.HasPrefix(from, "10.9.0.") && from != nodeAddress || strings.HasPrefix(from, "fd09::") && from != nodeAddress6 {
			m.strays = append(m.strays, r.RemoteAddr+" "+r.RequestURI)
		}
		m.mu.Unlock()
		id := r.URL.Query().Get("msi_res_id")
		_ = json.NewEncoder(w).Encode(map[string]string{
			"access_token": "token-of-" + id[strings.LastIndex(id, "/")+1:], "expires_on": fmt.Sprint(time.Now().Add(time.Hour).Unix()), "resource": r.URL.Query().Get("resource"),
		})
	})}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		t.Log("closed:", <-done)
	})
}

// pod plugs a pod in and reports it, with an identity of its own.
func (m *machine) pod(t *testing.T, name, address string) {
	t.Helper()
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	must(t, ns.Setup(netns.Setup{}))
	ip, gateway, bits := netip.MustParseAddr(address), nodeAddress, 24
	if ip.Is6() {
		gateway, bits = nodeAddress6, 64
	}
	must(t, m.Connect("br0", "v-"+name, ns, netip.PrefixFrom(ip, bits), netip.MustParseAddr(gateway)))
	m.pods[name] = ns
	id := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: m.namespace}, Spec: v1.AzureIdentitySpec{
		ResourceID: "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + name, ClientID: name,
	}}
	must(t, m.Create(t.Context(), id))
	must(t, m.Create(t.Context(), &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: m.namespace}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: name, Selector: name}}))
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: m.namespace, Labels: map[string]string{v1.BindingLabel: name}},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	must(t, m.Create(t.Context(), p))
	t.Cleanup(func() { // no kubelet ends it, and its address must be free for the next test
		must(t, m.Delete(context.Background(), p, client.GracePeriodSeconds(0)))
	})
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}}, ContainerStatuses: []corev1.ContainerStatus{
		{Name: "c", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}},
	}}
	must(t, m.Status().Update(t.Context(), p))
}

// agent starts the node agent.
func (m *machine) agent(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{
		"--node=n1", "--kubeconfig=" + m.kubeconfig, "--operation-mode=managed", "--forceNamespaced", "--nmi-listen-address=" + nodeAddress,
	}, args...)...)
	cmd.Env = append(os.Environ(), agentVariable+"=1")
	cmd.Stderr = os.Stderr
	must(t, m.Start(cmd))
	return cmd
}

// in makes a client of a namespace, with a connection for each request.
func in(ns *netns.NS) *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: ns.DialContext, DisableKeepAlives: true}}
}

func (m *machine) ready(t *testing.T) {
	t.Helper()
	c := in(m.NS)
	labtest.Eventually(t, t.Context(), func() error {
		res, err := c.Get("http://" + nodeAddress + ":8085/readyz")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", res.Status)
		}
		return nil
	})
}

// ask returns the token that a pod gets at an address; empty if none.
func ask(ctx context.Context, c *http.Client, address string) string {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(address, "80")+"/metadata/identity/oauth2/token?resource=r", nil)
	if err != nil {
		return ""
	}
	r.Header.Set("Metadata", "true")
	res, err := c.Do(r)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return ""
	}
	return answer.AccessToken
}

// An agent that is killed and started again under load leaves no moment in
// which a pod reaches the metadata service, and no pod gets another's token.
func TestAnAgentThatIsKilledUnderLoadLetsNothingThrough(t *testing.T) {
	m := newMachine(t)
	m.pod(t, "one", "10.9.0.2")
	m.pod(t, "two", "10.9.0.3")
	agent := m.agent(t)
	m.ready(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var load sync.WaitGroup
	var mu sync.Mutex
	got := map[string]int{} // "pod token"
	for name, ns := range m.pods {
		for range 4 {
			load.Go(func() {
				c := in(ns)
				c.Timeout = 500 * time.Millisecond
				for ctx.Err() == nil {
					token := ask(ctx, c, metadataAddress)
					mu.Lock()
					got[name+" "+token]++
					mu.Unlock()
				}
			})
		}
	}
	right := func() int {
		mu.Lock()
		defer mu.Unlock()
		return min(got["one token-of-one"], got["two token-of-two"])
	}
	served := func() {
		t.Helper()
		before := right()
		labtest.Eventually(t, t.Context(), func() error {
			if n := right() - before; n < 50 {
				return fmt.Errorf("only %d tokens; %v", n, got)
			}
			return nil
		})
	}
	served()
	for range 3 {
		must(t, agent.Process.Kill())
		_ = agent.Wait() // killed
		mu.Lock()
		failed := got["one "]
		mu.Unlock()
		labtest.Eventually(t, t.Context(), func() error { // pods ask while nobody answers
			mu.Lock()
			defer mu.Unlock()
			if got["one "] < failed+5 {
				return fmt.Errorf("%d requests without an agent", got["one "]-failed)
			}
			return nil
		})
		agent = m.agent(t)
		m.ready(t)
		served()
	}
	stop()
	load.Wait()
	must(t, agent.Process.Signal(syscall.SIGTERM))
	must(t, agent.Wait())
	for what, n := range got {
		switch what {
		case "one token-of-one", "two token-of-two", "one ", "two ":
		default:
			t.Errorf("%d times %s", n, what)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.strays) > 0 || len(m.asked) == 0 {
		t.Errorf("the metadata service was asked by %v: %.5v", m.asked, m.strays)
	}
	t.Logf("%v; the metadata service was asked by %v", got, m.asked)
}

// dual gives the machine IPv6 addresses and a metadata service there.
func (m *machine) dual(t *testing.T) {
	t.Helper()
	must(t, m.Do(func() error {
		var failures []error
		for name, address := range map[string]string{"br0": nodeAddress6 + "/64", "lo": metadataAddress6 + "/128"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			ip, network, err := net.ParseCIDR(address)
			if err != nil {
				return err
			}
			network.IP = ip
			failures = append(failures, netlink.AddrAdd(link, &netlink.Addr{IPNet: network, Flags: unix.IFA_F_NODAD}))
		}
		return errors.Join(failures...)
	}))
	m.metadata(t, metadataAddress6)
}

func TestPodsWithIPv6AreServedAsThemselves(t *testing.T) {
	m := newMachine(t)
	m.dual(t)
	m.pod(t, "six-one", "fd09::2")
	m.pod(t, "six-two", "fd09::3")
	m.pod(t, "four", "10.9.0.2")
	agent := m.agent(t, "--metadata-ipv6="+metadataAddress6, "--nmi-listen-address-ipv6="+nodeAddress6)
	m.ready(t)
	at := func(name string) string {
		if name == "four" {
			return metadataAddress
		}
		return metadataAddress6
	}
	for name, ns := range m.pods {
		c := in(ns)
		labtest.Eventually(t, t.Context(), func() error { // the kernel looks whether a new address is taken
			switch got := ask(t.Context(), c, at(name)); got {
			case "token-of-" + name:
				return nil
			case "":
				return fmt.Errorf("no token for %s", name)
			default:
				t.Fatalf("%s got %s", name, got)
				return nil
			}
		})
	}
	must(t, agent.Process.Kill())
	_ = agent.Wait() // killed
	for name, ns := range m.pods {
		if got := ask(t.Context(), in(ns), at(name)); got != "" {
			t.Errorf("without an agent %s got %s", name, got)
		}
	}
	m.mu.Lock()
	strays := m.strays
	m.mu.Unlock()
	if len(strays) > 0 {
		t.Errorf("the metadata service was asked by %v", strays)
	}
	// The pods had a way there all the time.
	must(t, m.agent(t, "--metadata-ipv6="+metadataAddress6, "--remove").Wait())
	for name, ns := range m.pods {
		if got := ask(t.Context(), in(ns), at(name)); got != "token-of-" {
			t.Errorf("without the redirection %s got %q", name, got)
		}
	}
}

func TestWhatIsDoneForAPodBeforeItAsks(t *testing.T) {
	m := newMachine(t)
	m.pod(t, "early", "10.9.0.2")
	host := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "host", Namespace: m.namespace, Labels: map[string]string{v1.BindingLabel: "early"}},
		Spec:       corev1.PodSpec{NodeName: "n1", HostNetwork: true, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	must(t, m.Create(t.Context(), host))
	t.Cleanup(func() { must(t, m.Delete(context.Background(), host, client.GracePeriodSeconds(0))) })
	agent := m.agent(t, "--prefetch-resources=soon")
	m.ready(t)
	labtest.Eventually(t, t.Context(), func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.asked[metadataAddress] != 1 { // from its own address, on the machine
			return fmt.Errorf("the metadata service was asked by %v", m.asked)
		}
		return nil
	})
	labtest.Eventually(t, t.Context(), func() error {
		var all eventsv1.EventList
		if err := m.List(t.Context(), &all, client.InNamespace(m.namespace)); err != nil {
			return err
		}
		for _, e := range all.Items {
			if e.Reason == "HostNetworkPod" && e.Regarding.Kind == "AzureIdentityBinding" && e.Regarding.Name == "early" && e.Related.Name == "host" {
				return nil
			}
		}
		return fmt.Errorf("nobody warns of the pod in the host's network among %d events", len(all.Items))
	})
	must(t, agent.Process.Signal(syscall.SIGTERM))
	must(t, agent.Wait())
}

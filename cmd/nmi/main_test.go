package main

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/nmi"
)

func env(pairs map[string]string) func(string) string {
	return func(name string) string { return pairs[name] }
}

func TestTheManifestsOfPodIdentityV1Parse(t *testing.T) {
	var out, errs bytes.Buffer
	c, done, code := parse([]string{
		"--node=$(NODE_NAME)", "--http-probe-port=8086", "--enableScaleFeatures=true", "--metadata-header-required=false", "--operation-mode=standard",
		"--logtostderr", "--v=5", "--log-format=text", "--nmi-listen-address=127.0.0.1", "--nmi-port=2580", "--metadata-ip=169.254.169.253", "--metadata-port=8080",
		"--ipt-update-interval-sec=60", "--forceNamespaced=false", "--MICNamespace=default", "--retry-attempts-for-created=16", "--retry-attempts-for-assigned=4",
		"--find-identity-retry-interval=5", "--enableProfile=false", "--block-instance-metadata=true", "--prometheus-port=9091", "--allow-network-plugin-kubenet=true",
		"--kubelet-config=/etc/default/kubelet", "--set-retry-after-header=true", "--enable-conntrack-deletion=true", "--custom-user-agent=x",
	}, env(map[string]string{"FORCENAMESPACED": "true"}), &out, &errs)
	if done || code != 0 {
		t.Fatalf("done %v, code %d, %s", done, code, errs.String())
	}
	want := config{
		node: "$(NODE_NAME)", listen: "127.0.0.1", port: 2580, metadataIP: "169.254.169.253", metadataPort: 8080, probePort: 8086, metricsPort: 9091,
		blockInstance: true, setRetryAfter: true, wait: 20 * time.Second, logFormat: "text", userAgent: "x",
		guard: true, podInflight: 100, podRate: 1000, hostCallers: nmi.DefaultHostCallers,
	}
	if c != want {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	if got := c.metadata().String(); got != "169.254.169.253:8080" {
		t.Errorf("metadata service at %s", got)
	}
}

func TestNamespacesAreForcedByTheEnvironmentToo(t *testing.T) {
	c, _, _ := parse([]string{"--node=n"}, env(map[string]string{"FORCENAMESPACED": "true"}), &bytes.Buffer{}, &bytes.Buffer{})
	if !c.forceNamespaced {
		t.Error("FORCENAMESPACED=true is overlooked")
	}
}

func TestManagedModeNeedsTheNamespacesOfEither(t *testing.T) {
	for _, c := range []struct {
		args []string
		env  map[string]string
	}{
		{[]string{"--node=n", "--operation-mode=managed", "--forceNamespaced"}, nil},
		{[]string{"--node=n", "--operation-mode=managed"}, map[string]string{"FORCENAMESPACED": "true"}},
	} {
		var errs bytes.Buffer
		if got, done, _ := parse(c.args, env(c.env), &bytes.Buffer{}, &errs); done || !got.managed || !got.forceNamespaced {
			t.Errorf("%v: %+v %s", c.args, got, errs.String())
		}
	}
}

func TestAnAgentWhoseRulesWereTakenAwayIsNotReadyForAWhile(t *testing.T) {
	var s state
	now := time.Unix(1700000000, 0)
	if s.ready(now) == "" {
		t.Error("ready before anything is")
	}
	s.active.Store(true)
	if why := s.ready(now); why != "" {
		t.Error(why)
	}
	s.lost(now)
	if s.ready(now.Add(time.Second)) == "" {
		t.Error("ready right after the rules were found missing")
	}
	if why := s.ready(now.Add(rulesInterval)); why != "" {
		t.Error(why)
	}
}

func TestAnswersAreNotSentForEverToAPodThatHasEnded(t *testing.T) {
	l, err := config{}.listeners(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("[::1]:0"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []net.Listener{l.pods, l.pods6} {
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		raw, err := accepted.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		if err := raw.Control(func(fd uintptr) { got, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); err != nil || got != 5000 {
			t.Errorf("%s: %d ms, %v", l.Addr(), got, err)
		}
	}
}

func TestBadInputIsRefusedWithWhatToDo(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no node", nil, 2, "set --node, or NODENAME from spec.nodeName"},
		{"an argument", []string{"--node=n", "start"}, 2, "every setting is a flag"},
		{"an unknown flag", []string{"--nonsense"}, 2, "nonsense"},
		{"no port", []string{"--node=n", "--nmi-port=0"}, 2, "--nmi-port=0 is not a port"},
		{"a port that is none", []string{"--node=n", "--prometheus-port=70000"}, 2, "--prometheus-port=70000 is not a port"},
		{"a metadata address of IPv6", []string{"--node=n", "--metadata-ip=::1"}, 2, "is not an IPv4 address"},
		{"a log format", []string{"--node=n", "--log-format=xml"}, 2, "only text and json"},
		{"managed mode without namespaces", []string{"--node=n", "--operation-mode=managed"}, 2, "--operation-mode=managed needs --forceNamespaced"},
		{"a mode that does not exist", []string{"--node=n", "--operation-mode=other"}, 2, "use standard or managed"},
		{"a driver's account without a namespace", []string{"--node=n", "--host-token-callers=csi"}, 2, "is not namespace/name"},
		{"half of IPv6", []string{"--node=n", "--metadata-ipv6=fd00::1"}, 2, "belong together"},
		{"an IPv4 address for IPv6", []string{"--node=n", "--metadata-ipv6=10.0.0.1", "--nmi-listen-address-ipv6=fd00::1"}, 2, "--metadata-ipv6=10.0.0.1 is not an IPv6 address"},
		{"a limit below zero", []string{"--node=n", "--pod-qps=-1"}, 2, "must be limits"},
		{"no kubeconfig", []string{"--node=n", "--kubeconfig=" + t.TempDir() + "/missing"}, 1, "missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := run(t.Context(), c.args, env(nil), &out, &errs); code != c.code || !strings.Contains(errs.String(), c.want) {
				t.Errorf("code %d, %q", code, errs.String())
			}
		})
	}
}

func TestHelpShowsExamplesAndVersionIsShort(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, env(nil), &out, &errs); code != 0 || !strings.Contains(errs.String(), "nmi --remove") || !strings.Contains(errs.String(), "-block-instance-metadata") {
		t.Errorf("code %d, %s", code, errs.String())
	}
	if code := run(t.Context(), []string{"--version"}, env(nil), &out, &errs); code != 0 || out.String() != "nmi "+version+"\n" {
		t.Errorf("code %d, %q", code, out.String())
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lanyard-id/lanyard/lab/kubernetes/internal/controlplane"
	"github.com/lanyard-id/lanyard/lab/kubernetes/internal/pki"
)

// asKube makes this test binary the program under test: a second build of
// Kubernetes would take longer than all tests.
const asKube = "LANYARD_TEST_AS_KUBE"

func TestMain(m *testing.M) {
	if os.Getenv(asKube) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func kube(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), asKube+"=1")
	return cmd
}

func TestVerbs(t *testing.T) {
	for name, test := range map[string]struct {
		args   []string
		stdout string
		err    string
	}{
		"help lists the verbs":             {args: []string{"--help"}, stdout: "kube-controller-manager"},
		"server --help has examples":       {args: []string{"server", "--help"}, stdout: "--authorization-config authz.yaml"},
		"server --help explains each flag": {args: []string{"server", "--help"}, stdout: "-service-account-jwks-uri URL"},
		"no verb":                          {err: "a verb is missing"},
		"an unknown verb":                  {args: []string{"sever"}, err: `unknown verb "sever"`},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout bytes.Buffer
			err := run(t.Context(), test.args, &stdout, os.Stderr)
			if errors.Is(err, flag.ErrHelp) {
				err = nil
			}
			if !strings.Contains(stdout.String(), test.stdout) {
				t.Errorf("stdout %q, want it to contain %q", stdout.String(), test.stdout)
			}
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
}

func TestServerFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := controlplane.ParseFlags([]string{
		"--dir", "/d", "--bind", "10.250.0.1", "--port", "6443", "--node", "n1=10.250.0.1", "--node", "n2=10.250.0.2",
		"--service-account-issuer", "https://a/", "--service-account-issuer", "https://b", "--api-audiences", "x,y", "--api-audiences", "z",
		"--audit-policy-file", file, "--apiserver-arg", "v=2", "--controllers", "*,-cronjob-controller", "--no-scheduler",
	}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	want := controlplane.Config{
		Dir: "/d", Bind: net.ParseIP("10.250.0.1"), Port: 6443, Nodes: []pki.Node{{Name: "n1", IP: net.ParseIP("10.250.0.1")}, {Name: "n2", IP: net.ParseIP("10.250.0.2")}},
		Issuers: []string{"https://a/", "https://b"}, Audiences: []string{"x", "y", "z"}, AuditPolicyFile: file, AuditLogPath: "/d/audit.log",
		APIServerArgs: []string{"v=2"}, Controllers: []string{"*", "-cronjob-controller"}, NoScheduler: true, Verbosity: 1,
	}
	if diff := cmp.Diff(want, config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}

	for name, test := range map[string]struct{ args, want string }{
		"no directory":                          {"", "--dir is required"},
		"a port out of range":                   {"--port 99999", "--port 99999"},
		"a name instead of an address":          {"--bind localhost", "not an IP address"},
		"any address without an advertised":     {"--bind 0.0.0.0", "needs --advertise"},
		"a loopback address for pods":           {"--advertise 127.0.0.1", "cannot be reached by pods"},
		"an audit log without a policy":         {"--audit-log-path x", "needs --audit-policy-file"},
		"a node name that leaves the directory": {"--node ../x=10.0.0.1", "not NAME=IP"},
		"a node without an address":             {"--node n1", "not NAME=IP"},
		"an argument with dashes":               {"--apiserver-arg --v=2", "without dashes"},
		"controllers for no controller manager": {"--controllers x --no-controller-manager", "exclude each other"},
		"a configuration file that is missing":  {"--authentication-config /nonexistent/authn.yaml", "/nonexistent/authn.yaml"},
		"an unknown flag":                       {"--nope", "--help"},
		"an argument too many":                  {"now", `unexpected argument "now"`},
	} {
		t.Run(name, func(t *testing.T) {
			args := strings.Fields(test.args)
			if name != "no directory" {
				args = append([]string{"--dir", t.TempDir()}, args...)
			}
			if _, err := controlplane.ParseFlags(args, os.Stderr); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want it to contain %q", err, test.want)
			}
		})
	}
}

// A control plane is a running "kube server".
type controlPlane struct {
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	ready  controlplane.Ready
	client *kubernetes.Clientset
}

func start(t *testing.T, dir string, args ...string) *controlPlane {
	t.Helper()
	p := &controlPlane{cmd: kube(t, append([]string{"server", "--dir", dir, "--die-with-parent"}, args...)...), stderr: new(bytes.Buffer)}
	p.cmd.Stderr = p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill() }) // of a test that failed before stop
	eventually(t, func() error {
		content, err := os.ReadFile(filepath.Join(dir, "ready.json"))
		if err == nil {
			err = json.Unmarshal(content, &p.ready)
		}
		return err
	})
	if p.ready.PID != p.cmd.Process.Pid || p.ready.ReadySeconds <= 0 || time.Since(p.ready.StartedAt) > time.Hour {
		t.Errorf("ready.json says %+v", p.ready)
	}
	p.client = client(t, p.ready.Kubeconfig)
	return p
}

func (p *controlPlane) stop(t *testing.T) {
	t.Helper()
	began := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, p.stderr)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

func client(t *testing.T, kubeconfig string) *kubernetes.Clientset {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("it did not happen: %v", err)
		case <-ticker.C:
		}
	}
}

func TestServerKeepsItsStateAndStopsCleanly(t *testing.T) {
	// The path is longer than that of a unix socket may be.
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	first := start(t, dir)
	configMap := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Data: map[string]string{"k": "v"}}
	if _, err := first.client.CoreV1().ConfigMaps("default").Create(t.Context(), configMap, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if version, err := first.client.Discovery().ServerVersion(); err != nil || version.Major != "1" {
		t.Errorf("version %+v, %v", version, err)
	}

	second := kube(t, "server", "--dir", dir)
	if output, err := second.CombinedOutput(); err == nil || !strings.Contains(string(output), fmt.Sprintf("in use by the kube server with process id %d", first.ready.PID)) {
		t.Errorf("a second server: %v, %s", err, output)
	}

	first.stop(t)
	if _, err := os.Stat(filepath.Join(dir, "ready.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ready.json after the end: %v", err)
	}

	again := start(t, dir)
	if again.ready.Server != first.ready.Server {
		t.Errorf("the server moved from %s to %s", first.ready.Server, again.ready.Server)
	}
	// first.client holds the certificate of the first start.
	if got, err := first.client.CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{}); err != nil || got.Data["k"] != "v" {
		t.Errorf("the object of the first start: %v, %v", got, err)
	}
	again.stop(t)
}

func TestEphemeralServerLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	start(t, dir, "--ephemeral", "--no-controller-manager", "--no-scheduler").stop(t)
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory after the end: %v", err)
	}

	keep := filepath.Join(t.TempDir(), "photos")
	if err := os.Mkdir(keep, 0o700); err != nil {
		t.Fatal(err)
	}
	refused := kube(t, "server", "--ephemeral", "--dir", filepath.Dir(keep))
	if output, err := refused.CombinedOutput(); err == nil || !strings.Contains(string(output), "holds photos") {
		t.Errorf("a directory with something in it: %v, %s", err, output)
	}
	if _, err := os.Stat(keep); err != nil {
		t.Error(err)
	}
}

func TestFailedStartSaysWhyAndEnds(t *testing.T) {
	cmd := kube(t, "server", "--dir", t.TempDir(), "--apiserver-arg", "nope=1")
	output, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(output), "configuring kube-apiserver: unknown flag: --nope") {
		t.Errorf("an unknown flag for kube-apiserver: %v, %s", err, output)
	}
}

func TestCoreDNSAnswersForServicesAndForGivenHosts(t *testing.T) {
	dir := t.TempDir()
	server := start(t, filepath.Join(dir, "state"), "--no-scheduler")
	defer server.stop(t)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "webhook"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.77", Ports: []corev1.ServicePort{{Port: 443}}},
	}
	if _, err := server.client.CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	probe, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := probe.LocalAddr().String()
	probe.Close()
	_, port, _ := net.SplitHostPort(address)
	corefile := filepath.Join(dir, "Corefile")
	content := fmt.Sprintf(`.:%s {
	bind 127.0.0.1
	errors
	hosts {
		10.250.0.10 login.microsoftonline.com
		fallthrough
	}
	template IN A vault.azure.net {
		answer "{{ .Name }} 60 IN A 10.250.0.10"
	}
	template IN AAAA vault.azure.net {
		rcode NOERROR
	}
	kubernetes cluster.local {
		kubeconfig %s
	}
}
`, port, filepath.Join(dir, "state", "coredns.kubeconfig"))
	if err := os.WriteFile(corefile, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	coredns := kube(t, "coredns", "-conf", corefile)
	var output bytes.Buffer
	coredns.Stdout, coredns.Stderr = &output, &output
	if err := coredns.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = coredns.Process.Kill()
		_ = coredns.Wait()
		if t.Failed() {
			t.Logf("coredns: %s", &output)
		}
	})
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}}
	for name, want := range map[string]string{
		"webhook.default.svc.cluster.local.": "10.96.0.77",
		"login.microsoftonline.com.":         "10.250.0.10",
		"lab-vault.vault.azure.net.":         "10.250.0.10",
	} {
		eventually(t, func() error {
			got, err := resolver.LookupHost(t.Context(), name)
			if err == nil && (len(got) != 1 || got[0] != want) {
				err = fmt.Errorf("%s is %v, want %s", name, got, want)
			}
			return err
		})
	}
}

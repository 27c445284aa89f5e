package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/internal/lab/image"
)

// The test binary plays three parts: the tests, a node's first process, and a
// supervisor that is killed.
func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "node":
		err = Main(context.Background(), os.Args[2:], os.Stdin, os.Stdout)
	case len(os.Args) > 1 && os.Args[1] == "supervise":
		err = supervise(config(os.Args[2], os.Args[3]))
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func supervise(cfg Config) error {
	l, err := Start(context.Background(), cfg)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return l.Wait(context.Background())
}

// programs returns the folder with the lab's programs and the probe.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, args := range [][]string{
		{"../../lab/kubernetes/build", filepath.Join(dir, "kube")},
		{"go", "build", "-o", filepath.Join(dir, "pause"), "../../cmd/pause"},
		{"go", "build", "-o", filepath.Join(dir, "probe"), "./testdata/probe"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	return dir
}

func config(stateDir, bin string) Config {
	return Config{
		StateDir: stateDir, BinDir: bin, Self: []string{"/proc/self/exe", "node"},
		Node: NodeSpec{
			Name:       "aks-nodepool1-0",
			ProviderID: "azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/v/virtualMachines/0",
			Labels:     map[string]string{"agentpool": "nodepool1"},
		},
		Hosts: []string{"login.microsoftonline.com", "*.vault.azure.net"},
	}
}

// start starts a lab and, at the end of the test, stops it and checks that
// the machine is as before.
func start(t *testing.T, cfg Config) *Lab {
	t.Helper()
	if missing := Missing(); len(missing) > 0 && !cfg.ProcessNode {
		t.Fatalf("a real node needs %v", missing)
	}
	before := look(t)
	cfg.Step = t.Logf
	l, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	mark := marks(t, l)
	t.Cleanup(func() {
		began := time.Now()
		for range 2 {
			if err := l.Stop(context.Background()); err != nil {
				t.Errorf("stopping: %v", err)
			}
		}
		t.Logf("stopped after %v", time.Since(began))
		mark.check(t)
		if diff := cmp.Diff(before, look(t)); diff != "" {
			t.Errorf("the machine is not as before (-before +after):\n%s", diff)
		}
	})
	return l
}

// look returns what must not change on the machine.
func look(t *testing.T) map[string]string {
	t.Helper()
	seen := map[string]string{}
	for name := range map[string]bool{
		"vm/overcommit_memory": true, "vm/panic_on_oom": true, "kernel/panic": true, "kernel/panic_on_oops": true,
		"kernel/hostname": true, "net/ipv4/ip_forward": true, "net/ipv4/conf/all/route_localnet": true,
	} {
		b, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil {
			t.Fatal(err)
		}
		seen[name] = string(b)
	}
	for _, dir := range []string{"/run/netns", "/run/containerd", "/run/runc", "/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/etc/cni", "/opt/cni", "/var/log/pods", "/usr/libexec/kubernetes"} {
		_, err := os.Stat(dir)
		seen[dir] = fmt.Sprint(err)
	}
	return seen
}

// marks tell what belongs to one lab.
type mark struct{ dir, cgroup, netns string }

func marks(t *testing.T, l *Lab) mark {
	t.Helper()
	m := mark{dir: l.cfg.StateDir, cgroup: l.claim.state.Cgroup}
	m.netns = link(t, l)
	if len(m.processes(t)) < 2 { // else check proves nothing
		t.Errorf("processes in the lab's network namespace: %q", m.processes(t))
	}
	return m
}

func (m mark) processes(t *testing.T) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, link := range links {
		if got, err := os.Readlink(link); err == nil && got == m.netns {
			name, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(link)), "cmdline"))
			if err != nil {
				continue // it has just ended
			}
			found = append(found, strings.ReplaceAll(string(name), "\x00", " "))
		}
	}
	return found
}

// check asserts that nothing of the lab is left.
func (m mark) check(t *testing.T) {
	t.Helper()
	if left := m.processes(t); len(left) > 0 {
		t.Errorf("processes left: %q", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), m.dir) {
		t.Errorf("mounts left:\n%s", mounts)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/" + m.cgroup, "/sys/fs/cgroup/*/" + m.cgroup} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
			t.Errorf("cgroups left: %q, %v", left, err)
		}
	}
	if _, err := os.Stat(m.dir); !errors.Is(err, fs.ErrNotExist) {
		entries, _ := os.ReadDir(m.dir)
		t.Errorf("files left: %v, %v", entries, err)
	}
}

// eventually waits until check returns nil.
func eventually(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after %v: %v", limit, err)
		}
	}
}

func probe(ctx context.Context, t *testing.T, l *Lab) *corev1.Pod {
	t.Helper()
	pods := l.Client.CoreV1().Pods("default")
	grace := int64(0)
	_, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "probe"},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "probe", Image: "lanyard/probe:dev", ImagePullPolicy: corev1.PullNever,
				Args: []string{
					"kubernetes.default.svc", "kubernetes", "login.microsoftonline.com", "a-vault.vault.azure.net",
					"x.a-vault.vault.azure.net", "vault.azure.net", "example.com",
				},
			}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var pod *corev1.Pod
	eventually(t, 30*time.Second, func() error {
		if pod, err = pods.Get(ctx, "probe", metav1.GetOptions{}); err != nil {
			return err
		}
		if s := pod.Status.ContainerStatuses; len(s) == 0 || s[0].State.Running == nil {
			return fmt.Errorf("pod status %+v", pod.Status)
		}
		return nil
	})
	t.Logf("pod runs after %v", time.Since(began))
	return pod
}

func TestARealPodRunsInALabThatLeavesNothingBehind(t *testing.T) {
	ctx := t.Context()
	cfg := config(filepath.Join(t.TempDir(), "state"), programs(t))
	l := start(t, cfg)
	if err := l.LoadImages(ctx, image.Image{Ref: "lanyard/probe:dev", Binary: l.program("probe"), User: "65532:65532"}); err != nil {
		t.Fatal(err)
	}
	pod := probe(ctx, t, l)

	t.Run("cluster DNS knows the cluster and the cloud and nothing else", func(t *testing.T) {
		want := strings.Join([]string{
			"kubernetes.default.svc [10.96.0.1]", "kubernetes [10.96.0.1]", "login.microsoftonline.com [10.250.0.10]",
			"a-vault.vault.azure.net [10.250.0.10]", "x.a-vault.vault.azure.net does not exist", "vault.azure.net does not exist",
			"example.com does not exist", "hostname probe <nil>", "",
		}, "\n")
		eventually(t, 20*time.Second, func() error {
			got, err := l.Client.CoreV1().Pods("default").GetLogs("probe", &corev1.PodLogOptions{}).DoRaw(ctx)
			if err == nil && string(got) != want {
				err = errors.New(cmp.Diff(want, string(got)))
			}
			return err
		})
	})
	t.Run("the pod is reachable from inside the machine only", func(t *testing.T) {
		client := &http.Client{Transport: &http.Transport{DialContext: l.Netns.DialContext, DisableKeepAlives: true}}
		var body []byte
		eventually(t, 10*time.Second, func() error {
			res, err := client.Get("http://" + pod.Status.PodIP + ":8080/")
			if err != nil {
				return err
			}
			defer res.Body.Close()
			body, err = io.ReadAll(res.Body)
			return err
		})
		if !strings.HasPrefix(string(body), "10.244.0.1:") {
			t.Errorf("the pod saw %q", body)
		}
	})
	t.Run("kubectl exec works through the kubeconfig of the host", func(t *testing.T) {
		out, err := exec.CommandContext(ctx, l.program("kube"), "kubectl", "--kubeconfig", l.Kubeconfig, "exec", "probe", "--", "/probe", "--help").Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) || !strings.Contains(string(out), "--help does not exist") {
			t.Errorf("exec: %q, %v", out, err)
		}
	})
	t.Run("the node is what the cloud says", func(t *testing.T) {
		n, err := l.Client.CoreV1().Nodes().Get(ctx, cfg.Node.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if n.Spec.ProviderID != cfg.Node.ProviderID || n.Labels["agentpool"] != "nodepool1" || n.Status.Addresses[0].Address != "10.250.0.1" {
			t.Errorf("node %q, labels %v, addresses %v", n.Spec.ProviderID, n.Labels, n.Status.Addresses)
		}
	})
	t.Run("a second lab on the same state says so", func(t *testing.T) {
		_, err := Start(ctx, cfg)
		want := fmt.Sprintf(`the lab in %s is already running (pid %d): use "lanyard lab status" or "lanyard lab down"`, cfg.StateDir, os.Getpid())
		if err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
		if s, err := Status(cfg.StateDir); err != nil || !s.Ready || s.Kubeconfig != l.Kubeconfig {
			t.Errorf("status %+v, %v", s, err)
		}
	})
}

func TestWhatAKilledLabLeftIsCleanedUp(t *testing.T) {
	before := look(t)
	cfg := config(filepath.Join(t.TempDir(), "state"), programs(t))
	cmd := exec.Command("/proc/self/exe", "supervise", cfg.StateDir, cfg.BinDir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
	}()
	if line, err := io.ReadAll(io.LimitReader(out, 6)); err != nil || string(line) != "ready\n" {
		t.Fatalf("the supervisor said %q, %v", line, err)
	}
	s, err := Status(cfg.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", s.Processes[0].PID))
	if err != nil {
		t.Fatal(err)
	}
	m := mark{dir: cfg.StateDir, cgroup: s.Cgroup, netns: link}
	if len(m.processes(t)) < 5 {
		t.Errorf("processes in the lab: %q", m.processes(t))
	}
	if err := Clean(t.Context(), cfg.StateDir); err == nil || !strings.Contains(err.Error(), "already running") {
		t.Errorf("cleaning a running lab: %v", err)
	}

	if err := cmd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the supervisor was not killed")
	}
	if _, err := Status(cfg.StateDir); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "lanyard lab down") {
		t.Errorf("status of a killed lab: %v", err)
	}
	for range 2 {
		if err := Clean(t.Context(), cfg.StateDir); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 5*time.Second, func() error { // all that is not recorded ends with what is
		if left := m.processes(t); len(left) > 0 {
			return fmt.Errorf("processes left: %q", left)
		}
		return nil
	})
	if err := os.Remove(cfg.StateDir); err != nil { // whoever killed it does not know whether it was there before
		t.Errorf("the state directory is not empty: %v", err)
	}
	m.check(t)
	if diff := cmp.Diff(before, look(t)); diff != "" {
		t.Errorf("the machine is not as before (-before +after):\n%s", diff)
	}
}

func TestAFailedStartLeavesNothingBehind(t *testing.T) {
	bin := programs(t)
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{
			"an unknown flag of the API server is named",
			func(c *Config) { c.APIServer.Args = []string{"no-such-flag=1"} }, "no-such-flag",
		},
		{
			"a node that cannot be started is named",
			func(c *Config) { c.Self = []string{"/bin/false"} }, "node aks-nodepool1-0: its first process ended",
		},
		{
			"a host that DNS cannot answer for is named",
			func(c *Config) { c.Hosts = []string{"login.*.com"} }, `"login.*.com" is not a host name`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(filepath.Join(t.TempDir(), "state"), bin)
			c.change(&cfg)
			_, err := Start(t.Context(), cfg)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			nothingLeft(t, cfg)
		})
	}
	t.Run("an interrupted start", func(t *testing.T) {
		cfg := config(filepath.Join(t.TempDir(), "state"), bin)
		ctx, cancel := context.WithCancel(t.Context())
		cfg.Step = func(string, ...any) { cancel() } // as soon as anything works
		if _, err := Start(ctx, cfg); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
		nothingLeft(t, cfg)
	})
}

// nothingLeft checks what a lab that never was leaves.
func nothingLeft(t *testing.T, cfg Config) {
	t.Helper()
	if _, err := os.Stat(cfg.StateDir); !errors.Is(err, fs.ErrNotExist) {
		entries, _ := os.ReadDir(cfg.StateDir)
		t.Errorf("files left: %v, %v", entries, err)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range lines {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), cfg.StateDir) {
			t.Errorf("process left: %s", strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
}

func TestTwoLabsLiveSideBySide(t *testing.T) {
	bin := programs(t)
	a := start(t, config(filepath.Join(t.TempDir(), "state"), bin))
	b := start(t, config(filepath.Join(t.TempDir(), "state"), bin))
	if a.claim.state.Cgroup == b.claim.state.Cgroup || a.Kubeconfig == b.Kubeconfig {
		t.Errorf("they share %s or %s", a.claim.state.Cgroup, a.Kubeconfig)
	}
	var uids []string
	for _, l := range []*Lab{a, b} {
		ns, err := l.Client.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		uids = append(uids, string(ns.UID))
	}
	if uids[0] == uids[1] {
		t.Error("they are the same cluster")
	}
}

package caller_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/lanyard-id/lanyard/internal/nmi/caller"
)

const (
	uidA = "0a1b2c3d-1111-2222-3333-444455556666"
	uidB = "ffffffff-1111-2222-3333-444455556666"
)

func TestPodOfCgroups(t *testing.T) {
	low := strings.ReplaceAll(uidA, "-", "_")
	for _, c := range []struct{ name, cgroups, want string }{
		{"version 1, cgroupfs, containerd", "11:memory:/kubepods/burstable/pod" + uidA + "/5d6e\n1:name=systemd:/kubepods/burstable/pod" + uidA + "/5d6e\n0::/\n", uidA},
		{"version 1, cgroupfs, guaranteed", "4:cpu:/kubepods/pod" + uidA + "/5d6e\n", uidA},
		{"version 1, systemd, containerd", "11:memory:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + low + ".slice/cri-containerd-5d6e.scope\n", uidA},
		{"version 2, systemd, containerd", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + low + ".slice/cri-containerd-5d6e.scope\n", uidA},
		{"version 2, systemd, cri-o", "0::/kubepods.slice/kubepods-pod" + low + ".slice/crio-5d6e.scope/container\n", uidA},
		{"version 2, cgroupfs", "0::/kubepods/besteffort/pod" + uidA + "/5d6e\n", uidA},
		{"the old form of containerd's names", "0::/system.slice/containerd.service/kubepods-burstable-pod" + low + ".slice:cri-containerd:5d6e\n", ""},
		{"a node in a container", "0::/docker/9f/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + low + ".slice/cri-containerd-5d6e.scope\n", uidA},
		{"seen from a cgroup namespace", "0::/../../kubepods-besteffort-pod" + low + ".slice/cri-containerd-5d6e.scope\n", uidA},
		{"a UID in capitals", "0::/kubepods/pod" + strings.ToUpper(uidA) + "/x\n", uidA},
		{"a cgroup that the container made, named like another pod's", "0::/kubepods/pod" + uidA + "/5d6e/pod" + uidB + "\n", uidA},
		{"the same with systemd", "0::/kubepods.slice/kubepods-pod" + low + ".slice/cri-containerd-1.scope/kubepods-pod" + strings.ReplaceAll(uidB, "-", "_") + ".slice\n", uidA},
		{"hierarchies that disagree", "2:cpu:/kubepods/pod" + uidA + "/x\n1:memory:/kubepods/pod" + uidB + "/x\n", ""},
		{"a service of the host", "0::/system.slice/sshd.service\n", ""},
		{"a slice that is not kubelet's", "0::/user.slice/user-pod" + low + ".slice\n", ""},
		{"a static pod's hash", "0::/kubepods/pod0123456789abcdef0123456789abcdef/x\n", ""},
		{"nothing", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := caller.PodOfCgroups(c.cgroups); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func FuzzPodOfCgroups(f *testing.F) {
	f.Add("0::/kubepods/pod"+uidA+"/x\n", "/x/pod"+uidB)
	f.Fuzz(func(t *testing.T, cgroups, below string) {
		// What a container makes below its own cgroup never changes its pod.
		if strings.ContainsAny(below, "\n") {
			return
		}
		line := "0::/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uidA, "-", "_") + ".slice/cri-containerd-1.scope/" + below
		if got := caller.PodOfCgroups(line); got != uidA {
			t.Errorf("%q is of pod %q", line, got)
		}
		if got := caller.PodOfCgroups(cgroups); got != "" && len(got) != len(uidA) {
			t.Errorf("%q is of pod %q", cgroups, got)
		}
	})
}

// A connection over loopback between this process and itself, seen through
// the real procfs.
func connect(t *testing.T, network, address string) (peer, local netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			accepted <- c
		}
		close(accepted)
	}()
	c, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	server := <-accepted
	if server == nil {
		t.Fatal("not accepted")
	}
	t.Cleanup(func() { server.Close() })
	return netip.MustParseAddrPort(server.RemoteAddr().String()), netip.MustParseAddrPort(server.LocalAddr().String())
}

// A procfs is the real one's sockets beside invented processes.
type procfs struct{ dir string }

func newProcfs(t *testing.T) procfs {
	t.Helper()
	p := procfs{t.TempDir()}
	if err := os.Symlink("/proc/self/net", filepath.Join(p.dir, "net")); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p procfs) process(t *testing.T, pid int, cgroup string, sockets ...string) {
	t.Helper()
	fd := filepath.Join(p.dir, strconv.Itoa(pid), "fd")
	if err := os.MkdirAll(fd, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, inode := range sockets {
		if err := os.Symlink("socket:["+inode+"]", filepath.Join(fd, strconv.Itoa(i+3))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(p.dir, strconv.Itoa(pid), "cgroup"), []byte(cgroup), 0o600); err != nil {
		t.Fatal(err)
	}
}

// inode is that of the peer's end, read from this process's own descriptors.
func inode(t *testing.T, peer netip.AddrPort) string {
	t.Helper()
	for _, table := range []string{"tcp", "tcp6"} {
		data, err := os.ReadFile("/proc/self/net/" + table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) > 9 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", peer.Port())) && f[3] == "01" {
				return f[9]
			}
		}
	}
	t.Fatal("the kernel does not show the connection")
	return ""
}

func TestTheCallerIsTheOneWhoseProcessHoldsTheSocket(t *testing.T) {
	cgroup := func(uid string) string { return "0::/kubepods/pod" + uid + "/x\n" }
	for _, c := range []struct {
		name  string
		setup func(t *testing.T, p procfs, inode string)
		want  string
		why   string
	}{
		{"one process of a pod", func(t *testing.T, p procfs, i string) {
			p.process(t, 7, cgroup(uidA), "1", i)
			p.process(t, 8, cgroup(uidB), "2")
		}, uidA, ""},
		{"two processes of one pod", func(t *testing.T, p procfs, i string) {
			p.process(t, 7, cgroup(uidA), i)
			p.process(t, 8, cgroup(uidA), i)
		}, uidA, ""},
		{"two processes of two pods", func(t *testing.T, p procfs, i string) {
			p.process(t, 7, cgroup(uidA), i)
			p.process(t, 8, cgroup(uidB), i)
		}, "", "several pods"},
		{"a pod's process and one of the host", func(t *testing.T, p procfs, i string) {
			p.process(t, 7, cgroup(uidA), i)
			p.process(t, 8, "0::/system.slice/sshd.service\n", i)
		}, "", "in no pod's cgroup"},
		{"no process that is seen", func(t *testing.T, p procfs, _ string) { p.process(t, 7, cgroup(uidA), "1") }, "", "hostPID: true"},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer, local := connect(t, "tcp", "127.0.0.1:0")
			p := newProcfs(t)
			c.setup(t, p, inode(t, peer))
			got, err := caller.Finder{Proc: p.dir}.PodUID(peer, local)
			if got != c.want {
				t.Errorf("got %q, want %q (%v)", got, c.want, err)
			}
			var hidden *caller.HiddenError
			if c.why != "" && (!errors.As(err, &hidden) || !strings.Contains(err.Error(), c.why)) {
				t.Errorf("got %v, want %q", err, c.why)
			}
		})
	}
}

func TestTheKernelsOwnProcfsIsUnderstood(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		t.Run(address, func(t *testing.T) {
			peer, local := connect(t, "tcp", address)
			// This test runs in no pod: what says so is that its process was found.
			_, err := caller.Finder{}.PodUID(peer, local)
			if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("process %d is in no pod's cgroup", os.Getpid())) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAPeerWithoutAConnectionIsNobody(t *testing.T) {
	_, local := connect(t, "tcp", "127.0.0.1:0")
	_, err := caller.Finder{}.PodUID(netip.MustParseAddrPort("127.0.0.1:1"), local)
	if err == nil || !strings.Contains(err.Error(), "no open connection") {
		t.Errorf("got %v", err)
	}
}

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/google/nftables"

	"github.com/lanyard-id/lanyard/internal/lab/netns"
	"github.com/lanyard-id/lanyard/internal/lab/node"
)

// A Requirement is something that a real node needs and this machine lacks.
type Requirement struct {
	Name string // "containerd"
	Fix  string // one line: what to do
}

func (r Requirement) String() string { return r.Name + " (" + r.Fix + ")" }

const install = "apt-get install -y --no-install-recommends "

// Missing returns what is missing for a real node, nothing if all is there.
func Missing() []Requirement {
	var missing []Requirement
	need := func(name, fix string, there bool) {
		if !there {
			missing = append(missing, Requirement{Name: name, Fix: fix})
		}
	}
	for _, p := range []struct{ program, debian string }{{"containerd", "containerd"}, {"ctr", "containerd"}, {"runc", "runc"}, {"nft", "nftables"}} {
		_, err := exec.LookPath(p.program)
		need(p.program, install+p.debian, err == nil)
	}
	_, err := node.Plugins()
	need("CNI plugins", install+"containernetworking-plugins", err == nil)
	if os.Getuid() != 0 || InUserNamespace() {
		need("root", "run it as root", false)
		return missing // nothing else can be found out
	}
	filesystems, err := os.ReadFile("/proc/filesystems")
	need("overlayfs", "use a kernel with CONFIG_OVERLAY_FS, or modprobe overlay", err == nil && strings.Contains(string(filesystems), "\toverlay\n"))
	if err := kernel(); err != nil {
		need(err.Error(), "use a kernel with network namespaces, bridges and nf_tables, and a container with CAP_SYS_ADMIN and CAP_NET_ADMIN", false)
	}
	return missing
}

// kernel tries what the lab does with the kernel, in a namespace that is gone
// afterwards.
func kernel() error {
	ns, err := netns.New()
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := ns.Setup(network()); err != nil {
		return err
	}
	return ns.Do(func() error {
		c, err := nftables.New()
		if err == nil {
			c.AddTable(&nftables.Table{Name: "lab", Family: nftables.TableFamilyIPv4})
			err = c.Flush()
		}
		if err != nil {
			return fmt.Errorf("nf_tables: %w", err)
		}
		return nil
	})
}

package node

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctls are global values that the kubelet sets for the whole machine. The
// node finds files that already say what it wants, so it changes nothing.
var sysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// private are folders of the node that need a real file system; all other
// files that it writes end in memory.
var private = []string{"/var/lib/kubelet", "/var/lib/containerd", "/var/log"}

// enterRoot makes the node's view of the file system and moves into it: a
// copy-on-write view of the host's, so that well-known paths hold and yet
// whatever is written never reaches the host.
//
//	/                       overlay: the host's root below, memory above
//	every other mount       as on the host
//	Keep                    as on the host
//	/proc /sys /run         of this node
//	/var/lib/kubelet, ...   folders below Dir
func (c Config) enterRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("leaving the host's mount propagation: %w", err)
	}
	mounts, err := hostMounts()
	if err != nil {
		return err
	}
	base := c.file("root")
	if err := c.overlay(base); err != nil {
		return fmt.Errorf("making the node's root: %w", err)
	}
	root := filepath.Join(base, "merged")
	own := []string{"/proc", "/sys", "/run", base}
	for _, m := range mounts {
		if slices.ContainsFunc(own, func(o string) bool { return within(m, o) }) {
			continue
		}
		err := unix.Mount(m, filepath.Join(root, m), "", unix.MS_BIND|unix.MS_REC, "")
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EACCES) { // hidden below another mount
			return fmt.Errorf("showing %s to the node: %w", m, err)
		}
	}
	for _, k := range c.Keep {
		if err := unix.Mount(k, filepath.Join(root, k), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("showing %s to the node: %w", k, err)
		}
	}
	if err := c.ownMounts(root); err != nil {
		return err
	}
	return pivot(root)
}

func (c Config) overlay(base string) error {
	if err := os.MkdirAll(base, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("lanyard", base, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	// Relative names need no quoting in the options, whatever the path is.
	if err := os.Chdir(base); err != nil {
		return err
	}
	for _, dir := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return unix.Mount("lanyard", "merged", "overlay", 0, "lowerdir=/,upperdir=upper,workdir=work")
}

func (c Config) ownMounts(root string) error {
	in := func(p string) string { return filepath.Join(root, p) }
	for _, dir := range append([]string{"/proc", "/sys", "/run"}, private...) {
		if err := os.MkdirAll(in(dir), 0o755); err != nil {
			return err
		}
	}
	for _, m := range []struct {
		source, target, fs string
		flags              uintptr
		data               string
	}{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""}, // shows this network namespace
		{"/sys/fs/cgroup", "/sys/fs/cgroup", "", unix.MS_BIND | unix.MS_REC, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	} {
		if err := unix.Mount(m.source, in(m.target), m.fs, m.flags, m.data); err != nil {
			return fmt.Errorf("mounting %s for the node: %w", m.target, err)
		}
	}
	for _, dir := range private {
		source := c.file("fs" + strings.ReplaceAll(dir, "/", "-"))
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(source, in(dir), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting %s for the node: %w", dir, err)
		}
	}
	for name, value := range sysctls {
		file := in(filepath.Join("/run/sysctl", name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, in(filepath.Join("/proc/sys", name)), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("covering sysctl %s: %w", name, err)
		}
	}
	return os.MkdirAll(in("/run/lock"), 0o1777)
}

// pivot makes root the root. Mounts below it are shared, as pods that ask for
// bidirectional propagation need.
func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing the node's root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the host's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("sharing the node's mounts: %w", err)
	}
	return nil
}

// hostMounts returns the mount points right below the root's own mount; what
// is mounted below those comes along with them. Format: proc(5), mountinfo.
func hostMounts() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	children := map[string][]string{}
	root := ""
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			return nil, fmt.Errorf("reading mountinfo: %q", lines.Text())
		}
		id, parent, point := fields[0], fields[1], unescape(fields[4])
		if point == "/" {
			root = id // the last one covers the others
		}
		children[parent] = append(children[parent], point)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(children[root], func(p string) bool { return p == "/" }), nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

package processnode

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/lab/image"
)

// A spec is what a container's first process is told on its stdin.
type spec struct {
	Root     string // an empty folder on which the container's files are mounted
	Binary   string // on this machine; in the container it is in /
	Args     []string
	Env      []string
	Dir      string
	Hostname string
	Files    map[string]string // by path: content
	Mounts   []mount
	User     *int64 // nil means who we are
	Group    *int64
}

// A mount shows a file or folder of this machine in the container.
type mount struct {
	Source, Target string
	ReadOnly       bool
}

// Main is the first process of a container: it reads a spec from in, makes
// the container's files and becomes the container's program.
func Main(in io.Reader) error {
	if os.Getpid() != 1 {
		return errors.New("this is the first process of a lab's container and is started by the lab itself")
	}
	var s spec
	if err := json.NewDecoder(in).Decode(&s); err != nil {
		return fmt.Errorf("reading the container's spec: %w", err)
	}
	if err := s.enter(); err != nil {
		return fmt.Errorf("making the container: %w", err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	if err := unix.Dup3(int(null.Fd()), 0, 0); err != nil {
		return err
	}
	if err := unix.Exec("/"+filepath.Base(s.Binary), s.Args, s.Env); err != nil {
		return fmt.Errorf("starting %s: %w", s.Args[0], err)
	}
	return nil
}

func (s spec) enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("lanyard", s.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	if err := os.Mkdir(s.in("/tmp"), 0o777); err != nil {
		return err
	}
	if err := os.Chmod(s.in("/tmp"), 0o1777); err != nil {
		return err
	}
	for path, content := range s.Files {
		if err := os.MkdirAll(filepath.Dir(s.in(path)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(s.in(path), []byte(content), 0o644); err != nil {
			return err
		}
	}
	mounts := []mount{{Source: s.Binary, Target: "/" + filepath.Base(s.Binary), ReadOnly: true}}
	for _, device := range []string{"null", "zero", "full", "random", "urandom"} {
		mounts = append(mounts, mount{Source: "/dev/" + device, Target: "/dev/" + device})
	}
	for _, m := range append(mounts, s.Mounts...) {
		if err := s.bind(m); err != nil {
			return fmt.Errorf("mounting %s: %w", m.Target, err)
		}
	}
	if err := s.proc(); err != nil {
		return err
	}
	if err := os.Chdir(s.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := os.Chdir(filepath.Join("/", s.Dir)); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return err
	}
	return s.becomeUser()
}

func (s spec) in(path string) string { return filepath.Join(s.Root, filepath.Clean("/"+path)) }

func (s spec) bind(m mount) error {
	info, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	target := s.in(m.Target)
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else {
		if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
			var f *os.File
			if f, err = os.OpenFile(target, os.O_CREATE, 0o644); err == nil {
				err = f.Close()
			}
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(m.Source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if !m.ReadOnly {
		return nil
	}
	// Unlike a remount it keeps the other flags, which a user namespace must.
	return unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

func (s spec) proc() error {
	target := s.in("/proc")
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	err := unix.Mount("proc", target, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if errors.Is(err, unix.EPERM) {
		// A user namespace may not uncover what is masked in ours.
		err = unix.Mount("/proc", target, "", unix.MS_BIND|unix.MS_REC, "")
	}
	return err
}

// becomeUser does nothing in a user namespace, which knows one user only.
func (s spec) becomeUser() error {
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return err
	}
	if fields := strings.Fields(string(ids)); len(fields) == 3 && fields[2] == "1" {
		return nil
	}
	if s.Group != nil {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(int(*s.Group), int(*s.Group), int(*s.Group))); err != nil {
			return err
		}
	}
	if s.User != nil {
		return syscall.Setresuid(int(*s.User), int(*s.User), int(*s.User))
	}
	return nil
}

// files are those that every container has.
func files(caCerts []byte, resolv, hosts string) map[string]string {
	return map[string]string{
		"/etc/passwd":      image.Passwd,
		"/etc/group":       image.Group,
		"/etc/resolv.conf": resolv,
		"/etc/hosts":       hosts,
		image.CABundle:     string(caCerts),
	}
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// InUserNamespace tells whether this process is in a user namespace other
// than the machine's: its root is not the machine's then.
func InUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	fields := strings.Fields(string(b))
	return err == nil && !slices.Equal(fields, []string{"0", "0", "4294967295"})
}

// RunInUserNamespace runs this program again with the given arguments as root
// of a user namespace, which is what a lab with a simulated node needs where
// there is no root. It returns the program's exit code. When ctx ends the
// program gets SIGTERM, and it dies with this process.
func RunInUserNamespace(ctx context.Context, args []string) (code int, err error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	runtime.LockOSThread() // the death of the thread that starts it would be its own
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return exit.ExitCode(), nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSPC):
		return 0, fmt.Errorf("this machine does not let users make user namespaces (%w): as root, run sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000", err)
	}
	return 0, err
}

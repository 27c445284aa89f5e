// Package netnstest gives the tests of a package a network of their own, and
// root in it, whoever runs them.
package netnstest

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside marks the process that has the network.
const inside = "LANYARD_TEST_USER_NAMESPACE"

// Main is for a TestMain: it starts this test binary again as root of a new user
// and network namespace, runs the tests there with run (mostly m.Run), and ends
// the process with their code.
func Main(run func() int) {
	if os.Getenv(inside) != "" {
		os.Exit(run())
	}
	ids := 1
	if os.Getuid() == 0 {
		ids = 1 << 16 // root may lend other users too
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: ids}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: ids}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "in a user namespace:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Users reports whether processes in there can be those of other users than
// root.
func Users() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	var inside, outside, ids int
	if err == nil {
		_, err = fmt.Sscan(string(b), &inside, &outside, &ids)
	}
	return err == nil && ids > 1
}

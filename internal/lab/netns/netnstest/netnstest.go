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
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "in a user namespace:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An interrupt at any moment leaves the machine as it was. It goes to the
// whole process group, as a terminal sends it.
func TestAnInterruptLeavesNothing(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	// testscript runs a command by the name of the program.
	lanyard := filepath.Join(t.TempDir(), "lanyard")
	if err := os.Link(exe, lanyard); err != nil {
		t.Fatal(err)
	}
	for _, after := range []string{"opening the local cloud", "etcd is ready", "the cluster is ready", "waiting until mic", "door 2"} {
		t.Run(after, func(t *testing.T) {
			tmp := t.TempDir()
			sysctls := readSysctls(t)
			cmd := exec.Command(lanyard, "demo", "--bin", bin)
			cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
			w := &interrupter{at: after, interrupt: func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGINT) }}
			cmd.Stderr = w
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			killer := time.AfterFunc(2*time.Minute, func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
			err := cmd.Wait()
			killer.Stop()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != exitInterrupted || !strings.Contains(w.said.String(), "lanyard: interrupted") {
				t.Errorf("%v, want exit code %d; it said:\n%s", err, exitInterrupted, &w.said)
			}
			if err := leftOf(tmp); err != nil {
				t.Errorf("left behind: %v", err)
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
				t.Errorf("files left behind: %v, %v", left, err)
			}
			if now := readSysctls(t); now != sysctls {
				t.Errorf("sysctls were %s and are %s", sysctls, now)
			}
		})
	}
}

// An interrupter interrupts when a text is written to it.
type interrupter struct {
	said      bytes.Buffer // no embedded field: its ReadFrom would pass Write by
	at        string
	interrupt func() error
	done      bool
}

func (i *interrupter) Write(p []byte) (int, error) {
	n, err := i.said.Write(p)
	if !i.done && strings.Contains(i.said.String(), i.at) {
		i.done = true
		err = errors.Join(err, i.interrupt())
	}
	return n, err
}

func readSysctls(t *testing.T) string {
	t.Helper()
	var all []string
	for _, name := range []string{"vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward"} {
		v, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s=%s", name, bytes.TrimSpace(v)))
	}
	return strings.Join(all, " ")
}

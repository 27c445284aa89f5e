package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/lab/process"
)

// A person may name any directory. What was there before must survive both a
// refused start and a clean-up.
func TestADirectoryWithOtherThingsInItIsRefusedAndKept(t *testing.T) {
	self, err := process.Self()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		file, content string
		want          string
		clean         bool // whether there is nothing that Clean would look at
	}{
		"a folder of that name":         {"cluster/main.tf", "x", `holds "cluster", which is not of a lab`, true},
		"a folder of that name too":     {"node/package.json", "x", `holds "node", which is not of a lab`, true},
		"a kubeconfig":                  {"kubeconfig", "x", `holds "kubeconfig", which is not of a lab`, true},
		"state of another program":      {"state.json", `{"version": 4}`, "is not the state of a lab", false},
		"state that is no JSON":         {"state.json", "x", "reading the lab's state", false},
		"state that leads elsewhere":    {"state.json", fmt.Sprintf(`{"supervisor":{"pid":%d},"boot":"b","cgroup":"../user"}`, self.PID), "is not the state of a lab", false},
		"state without a cgroup's name": {"state.json", fmt.Sprintf(`{"supervisor":{"pid":%d},"boot":"b"}`, self.PID), "is not the state of a lab", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, tt.file)
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the lock is given up each time
				c, err := claimDir(t.Context(), dir)
				if err == nil {
					err = c.release()
					t.Errorf("the directory was taken (%v)", err)
				} else if !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %q, want %q", err, tt.want)
				}
			}
			if err := Clean(t.Context(), dir); (err == nil) != tt.clean {
				t.Errorf("cleaning: %v", err)
			}
			if got, err := os.ReadFile(file); string(got) != tt.content || err != nil {
				t.Errorf("%s holds %q, %v; want %q", tt.file, got, err, tt.content)
			}
		})
	}
}

func TestALabThatDoesNotEndIsKilled(t *testing.T) {
	cmd := exec.Command("sh", "-c", "trap '' TERM; echo; while :; do sleep 60; done")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // its sleep
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c, err := claimDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	supervisor, err := process.Find(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.save(func(s *State) { s.Supervisor = supervisor }), c.lock.Close()); err != nil {
		t.Fatal(err)
	}
	if err := down(t.Context(), dir, 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if supervisor.Alive() {
		t.Error("the supervisor is still alive")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the supervisor ended with %v, want killed", err)
	}
}

func TestADirectoryIsTakenAndGivenBackAsItWas(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cloud"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c, err := claimDir(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(c.path("cluster", "etcd"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := c.release(); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 1 || left[0].Name() != "cloud" {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

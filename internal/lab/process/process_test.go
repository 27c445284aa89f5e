package process

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// child starts a shell script that has begun when child returns.
func child(t *testing.T, script string) (*exec.Cmd, ID) {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	id, err := Find(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, id
}

func signal(t *testing.T, err error) syscall.Signal {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("the child ended with %v", err)
	}
	return exit.Sys().(syscall.WaitStatus).Signal()
}

func TestEndAsksFirst(t *testing.T) {
	cmd, id := child(t, "echo; exec sleep 60")
	if !id.Alive() {
		t.Fatal("a running process is not alive")
	}
	if err := id.End(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if got := signal(t, cmd.Wait()); got != syscall.SIGTERM {
		t.Errorf("ended by %v", got)
	}
	if id.Alive() {
		t.Error("it is still alive")
	}
	if err := id.End(t.Context(), time.Minute); err != nil {
		t.Errorf("ending it again: %v", err)
	}
}

func TestEndInsists(t *testing.T) {
	cmd, id := child(t, "trap '' TERM; echo; while :; do sleep 60; done")
	if err := id.End(t.Context(), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if got := signal(t, cmd.Wait()); got != syscall.SIGKILL {
		t.Errorf("ended by %v", got)
	}
}

func TestAnotherProcessWithTheSameNumberIsLeftAlone(t *testing.T) {
	_, id := child(t, "echo; exec sleep 60")
	earlier := ID{PID: id.PID, Start: id.Start - 1}
	if earlier.Alive() {
		t.Error("a process that started at another time is taken for it")
	}
	if err := earlier.End(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if !id.Alive() {
		t.Error("a foreign process was ended")
	}
}

func TestTheWaitIsOverWhenItsContextIs(t *testing.T) {
	_, id := child(t, "echo; exec sleep 60")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := id.Wait(ctx, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting: %v", err)
	}
}

func TestAnEndedProcessIsNotFound(t *testing.T) {
	cmd, id := child(t, "echo; exec sleep 60")
	if err := id.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := id.Wait(t.Context(), 10*time.Second); err != nil { // a zombie: nobody has waited for it yet
		t.Fatal(err)
	}
	if _, err := Find(id.PID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("finding it: %v", err)
	}
	if got := signal(t, cmd.Wait()); got != syscall.SIGKILL {
		t.Errorf("ended by %v", got)
	}
	if self, err := Self(); err != nil || self.PID != os.Getpid() || !self.Alive() {
		t.Errorf("this process is %+v, %v", self, err)
	}
}

func TestTailShowsTheLastLines(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(file, []byte(strings.Repeat("x\n", 100_000)+"one\ntwo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := Tail(file, 3), "x\none\ntwo"; got != want {
		t.Errorf("tail %q, want %q", got, want)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Tail(file, 3); got != "" {
		t.Errorf("tail of an empty log: %q", got)
	}
	if got := Tail(file+"x", 3); !strings.Contains(got, "no such file") {
		t.Errorf("tail of a missing log: %q", got)
	}
}

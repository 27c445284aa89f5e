package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// readyEnv names the descriptor on which a detached lab tells the command
// that started it how far it is.
const readyEnv = "LANYARD_READY_FD"

// upDetached starts this same command again, in a session of its own and
// without --detach, and follows its progress until it is ready.
func upDetached(ctx context.Context, state string, p *progress) error {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	logPath := filepath.Join(state, "lab.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the lab's log: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	// The lab outlives this command, so it does not end with its context.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), exe, attached(os.Args[1:])...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), readyEnv+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("starting the lab: %w", err)
	}
	// Interrupted meanwhile: the lab must not stay half-started.
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	for lines := bufio.NewScanner(r); lines.Scan(); {
		kind, text, _ := strings.Cut(lines.Text(), " ")
		switch kind {
		case "step":
			p.Step("%s", text)
		case "failed":
			return errors.Join(errors.New(text), waitFor(cmd))
		case "ready":
			return cmd.Process.Release()
		}
	}
	return fmt.Errorf("the lab ended before it was ready: see %s (%w)", logPath, waitFor(cmd))
}

// attached is a command line without --detach, in all of the forms that the
// flag has: one that is left would start labs without end.
func attached(args []string) []string {
	var rest []string
	for _, a := range args {
		if a != "--detach" && !strings.HasPrefix(a, "--detach=") {
			rest = append(rest, a)
		}
	}
	return rest
}

// waitFor waits for a lab that failed. Its exit code says nothing new.
func waitFor(cmd *exec.Cmd) error {
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}

// A pipe to the command that started this one detached. A nil pipe is for a
// lab in the foreground.
type pipe struct{ f *os.File }

func readyPipe() *pipe {
	if os.Getenv(readyEnv) != "3" {
		return nil
	}
	syscall.CloseOnExec(3)
	return &pipe{os.NewFile(3, "ready")}
}

// The reader may be gone (interrupted): then nobody needs to be told.

func (p *pipe) step(format string, args ...any) {
	fmt.Fprintln(p.f, "step", oneLine(fmt.Sprintf(format, args...)))
}

func (p *pipe) ready() {
	fmt.Fprintln(p.f, "ready")
	p.f.Close()
}

func (p *pipe) failed(err error) {
	if p != nil {
		fmt.Fprintln(p.f, "failed", oneLine(err.Error()))
		p.f.Close()
	}
}

func oneLine(s string) string {
	return strings.ReplaceAll(s, "\n", "; ")
}

package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/lab/netns"
	"github.com/lanyard-id/lanyard/internal/lab/process"
)

// A Child is a process inside the namespace.
type Child struct {
	Log string // file with all that it said

	name string
	cmd  *exec.Cmd
	over chan struct{} // closed when it has ended
	err  error         // how, once over is closed
}

// PID is the process's number.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Start starts a program on the machine, with its output in a file.
func (b *Bed) Start(name string, env []string, program string, args ...string) (*Child, error) {
	return b.StartIn(b.NS, name, env, program, args...)
}

// StartIn starts a program in a network namespace that is connected to the
// machine's, or in the machine's own.
func (b *Bed) StartIn(ns *netns.NS, name string, env []string, program string, args ...string) (*Child, error) {
	log, err := os.CreateTemp(b.Dir, name+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := &Child{name: name, cmd: exec.Command(program, args...), Log: log.Name(), over: make(chan struct{})}
	c.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.Dir}, env...)
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := ns.Start(c.cmd); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		defer close(c.over)
		c.err = c.cmd.Wait()
	}()
	b.End(c.Stop)
	return c, nil
}

// Wait waits until the process ends by itself, and well.
func (c *Child) Wait(ctx context.Context) error {
	select {
	case <-c.over:
	case <-ctx.Done():
		return ctx.Err()
	}
	if c.err != nil {
		return fmt.Errorf("%s: %w; the last it said:\n%s", c.name, c.err, process.Tail(c.Log, 5))
	}
	return nil
}

// Stop ends the process. It may be called again.
func (c *Child) Stop(ctx context.Context) error {
	if id, err := process.Find(c.PID()); err == nil {
		if err := id.End(ctx, 10*time.Second); err != nil {
			return fmt.Errorf("ending %s: %w", c.name, err)
		}
	}
	<-c.over
	return nil
}

// Ready waits until check succeeds, or the process ends.
func (c *Child) Ready(ctx context.Context, limit time.Duration, check func() error) error {
	err := Until(ctx, limit, func() error {
		select {
		case <-c.over:
			return Fatal{Err: errors.New("it has ended")}
		default:
			return check()
		}
	})
	if err != nil {
		return fmt.Errorf("%s is not ready: %w; the last it said:\n%s", c.name, err, process.Tail(c.Log, 5))
	}
	return nil
}

// Kill stops a process at once; what was said of it stays.
func (c *Child) Kill(ctx context.Context) error {
	if err := c.cmd.Process.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-c.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Package process knows processes for certain: a number alone is not enough,
// because the kernel gives it to another process one day.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An ID is one process of this boot, and never another one.
type ID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot: proc_pid_stat(5), field 22
}

// Self is the calling process.
func Self() (ID, error) { return Find(os.Getpid()) }

// Find returns the process that has this number now. A process that has ended
// and waits for its parent is none: the error is then fs.ErrNotExist.
func Find(pid int) (ID, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, unix.ESRCH) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return ID{}, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	// The command's name is in parentheses and may itself hold any byte.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const state, start = 0, 22 - 3 // the first two are gone
	if len(fields) <= start {
		return ID{}, fmt.Errorf("looking at process %d: its stat has %d fields", pid, len(fields))
	}
	if fields[state] == "Z" || fields[state] == "X" {
		return ID{}, fmt.Errorf("process %d has ended: %w", pid, fs.ErrNotExist)
	}
	ticks, err := strconv.ParseUint(fields[start], 10, 64)
	if err != nil {
		return ID{}, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	return ID{PID: pid, Start: ticks}, nil
}

// Alive tells whether the process still runs.
func (p ID) Alive() bool {
	now, err := Find(p.PID)
	return err == nil && now == p
}

// Signal sends a signal to this very process; one that has ended is no error.
func (p ID) Signal(s unix.Signal) error {
	if p.PID <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.Alive() { // from here on the descriptor cannot become another process
		return nil
	}
	if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signalling process %d: %w", p.PID, err)
	}
	return nil
}

// End asks the process to end, and after the grace period makes it.
func (p ID) End(ctx context.Context, grace time.Duration) error {
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, 10 * time.Second}} {
		if err := p.Signal(step.signal); err != nil {
			return err
		}
		if err := p.Wait(ctx, step.wait); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return err
		}
	}
	return fmt.Errorf("process %d does not end", p.PID)
}

// Wait waits until the process has ended, for at most the given time. It need
// not be a child.
func (p ID) Wait(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for p.Alive() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for process %d: %w", p.PID, ctx.Err())
		}
	}
	return nil
}

// Tail returns the last lines of a log, or why they cannot be shown.
func Tail(file string, lines int) string {
	const most = 64 << 10
	f, err := os.Open(file)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	buf := make([]byte, min(info.Size(), most))
	n, err := f.ReadAt(buf, info.Size()-int64(len(buf)))
	if n == 0 && err != nil && len(buf) > 0 {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(buf[:n]), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

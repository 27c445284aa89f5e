package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// logTail is how much of the log is shown after a failure.
const logTail = 4 << 10

func (s *server) logFile() string { return filepath.Join(s.Dir, "server.log") }

// redirect points the descriptor of stderr to Dir/server.log and progress to
// where stderr pointed. The components, their libraries and a panic write to
// that descriptor by many ways; this catches all of them.
func (s *server) redirect(stderr *os.File) (restore func(), err error) {
	if err := os.Rename(s.logFile(), s.logFile()+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("keeping the last log: %w", err)
	}
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	defer log.Close()
	fd := int(stderr.Fd())
	saved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicating stderr: %w", err)
	}
	if err := unix.Dup3(int(log.Fd()), fd, 0); err != nil {
		unix.Close(saved)
		return nil, fmt.Errorf("redirecting stderr: %w", err)
	}
	original := os.NewFile(uintptr(saved), stderr.Name())
	s.progress = original
	return func() {
		klog.Flush()
		// Best effort: the caller is about to end, and descriptor fd is valid.
		_ = unix.Dup3(int(original.Fd()), fd, 0)
	}, nil
}

// showLog writes the end of the log to the user.
func (s *server) showLog() {
	if s.LogToStderr {
		return
	}
	klog.Flush()
	content, err := os.ReadFile(s.logFile())
	if err != nil || len(content) == 0 {
		return
	}
	if len(content) > logTail {
		content = content[len(content)-logTail:]
		if i := bytes.IndexByte(content, '\n'); i >= 0 {
			content = content[i+1:]
		}
	}
	fmt.Fprintf(s.progress, "the end of %s:\n%s", s.logFile(), content)
}

// setVerbosity sets the detail of the components' log.
func setVerbosity(level int) error {
	var l klog.Level
	if err := l.Set(strconv.Itoa(level)); err != nil {
		return fmt.Errorf("setting --v: %w", err)
	}
	return nil
}

// exitsAreFailures replaces what klog does to end the process. The components
// give up that way, among others when they are stopped while they start; the
// rest of the process must still stop in order.
func exitsAreFailures(ctx context.Context, group *errgroup.Group) {
	klog.OsExit = func(code int) {
		group.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			return &componentError{fmt.Errorf("a component gave up with exit status %d", code)}
		})
		runtime.Goexit() // the caller counts on not going on
	}
}

// withParent returns a context that ends with the parent process.
//
// prctl(PR_SET_PDEATHSIG) is not used: it fires when the parent's thread ends
// that called fork, and a Go program may end threads while it lives (a
// goroutine that locked its thread to enter a network namespace does).
func withParent(ctx context.Context) (context.Context, context.CancelFunc, error) {
	parent := os.Getppid()
	if parent == 0 {
		return nil, nil, errors.New("--die-with-parent: the parent process is outside this PID namespace")
	}
	fd, err := unix.PidfdOpen(parent, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("--die-with-parent: opening process %d: %w (Linux 5.10 or newer is needed)", parent, err)
	}
	pidfd := os.NewFile(uintptr(fd), "parent") // non-blocking: waits in the runtime's poller
	if os.Getppid() != parent {
		pidfd.Close()
		return nil, nil, errors.New("--die-with-parent: the parent process has ended")
	}
	conn, err := pidfd.SyscallConn()
	if err != nil {
		pidfd.Close()
		return nil, nil, fmt.Errorf("--die-with-parent: watching process %d: %w", parent, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		// Fails only when pidfd is closed, which is when nobody needs it.
		_ = conn.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0 && err == nil
		})
	}()
	return ctx, func() { cancel(); pidfd.Close() }, nil
}

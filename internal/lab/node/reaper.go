package node

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// A reaper waits for every process that ends in the node, as its first
// process must: for our own children and for the orphans that shims leave.
// os/exec would wait for the former by itself and lose the race.
type reaper struct {
	mu       sync.Mutex
	children map[int]chan unix.WaitStatus
}

// newReaper starts reaping; it goes on as long as the process lives.
func newReaper() *reaper {
	r := &reaper{children: map[int]chan unix.WaitStatus{}}
	ended := make(chan os.Signal, 1) // one is enough: reap takes all there are
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		for range ended {
			r.reap()
		}
	}()
	return r
}

// start starts cmd. The channel gets how it ended.
func (r *reaper) start(cmd *exec.Cmd) (<-chan unix.WaitStatus, error) {
	r.mu.Lock() // it may end before it is known
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan unix.WaitStatus, 1)
	r.children[cmd.Process.Pid] = ended
	return ended, nil
}

func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid == 0 {
			return
		}
		if ended := r.children[pid]; ended != nil {
			ended <- status
			delete(r.children, pid)
		}
	}
}

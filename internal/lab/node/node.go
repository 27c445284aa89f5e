// Package node runs a real Kubernetes node: containerd, kubelet, kube-proxy
// and the cluster's DNS, in namespaces of their own, on Debian's containerd.
//
//	Start ── clone(mount, pid, uts, ipc), inside a network namespace ──> Main, the node's first process
//	   1 enterRoot     a copy-on-write view of the host's files; global sysctls covered
//	   2 containerd    ready -> images can be imported
//	   3 Join          kubelet, kube-proxy, coredns
//	   4 Stop          the first process ends, and the kernel ends everything else with it
//
// Nothing on the host changes: what the node writes is in memory or below
// Config.Dir, and one cgroup in each hierarchy is removed afterwards. When the
// process that started the node dies in whatever way, the node dies too.
package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/lab/process"
)

// A Starter starts a child process that dies with this one. It is a
// netns.NS.
type Starter interface {
	Start(cmd *exec.Cmd) error
}

// A Node is a running node.
type Node struct {
	cfg    Config
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	events chan event

	done chan struct{}
	err  error // valid after done

	stopping sync.Once
	stopErr  error
}

// Start starts a node and returns when its containerd answers. self is the
// command line that calls Main in this same program, or one that does.
// After an error nothing is left.
func Start(ctx context.Context, starter Starter, self []string, cfg Config) (*Node, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the node's folder: %w", err)
	}
	n := &Node{cfg: cfg, events: make(chan event, 3), done: make(chan struct{})}
	if err := n.start(ctx, starter, self); err != nil {
		return nil, errors.Join(err, n.Stop(context.WithoutCancel(ctx)))
	}
	return n, nil
}

func (n *Node) start(ctx context.Context, starter Starter, self []string) error {
	launched := false
	defer func() {
		if !launched {
			close(n.done)
		}
	}()
	if err := makeCgroup(n.cfg.Cgroup); err != nil {
		return err
	}
	log, err := os.OpenFile(n.cfg.file("node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	n.cmd = exec.Command(self[0], self[1:]...)
	n.cmd.Env = []string{searchPath, "HOME=/root"}
	n.cmd.Stderr = log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	stdout, err := n.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if n.stdin, err = n.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := starter.Start(n.cmd); err != nil {
		return fmt.Errorf("starting the node: %w", err)
	}
	launched = true
	go n.watch(json.NewDecoder(stdout))
	err = json.NewEncoder(n.stdin).Encode(n.cfg)
	if errors.Is(err, syscall.EPIPE) {
		err = nil // it has ended already: await says why
	}
	if err != nil {
		return fmt.Errorf("configuring the node: %w", err)
	}
	return n.await(ctx, "containerd")
}

// watch ends with the node.
func (n *Node) watch(told *json.Decoder) {
	defer close(n.done)
	var last event
	for {
		var e event
		if told.Decode(&e) != nil {
			break
		}
		last = e
		n.events <- e // never blocks: there are three
	}
	err := n.cmd.Wait()
	switch {
	case last.Failed != "" && last.Log != "":
		n.err = fmt.Errorf("node %s: %s; the end of its log:\n%s", n.cfg.Name, last.Failed, process.Tail(last.Log, 15))
	case last.Failed != "":
		n.err = fmt.Errorf("node %s: %s", n.cfg.Name, last.Failed)
	case err != nil:
		n.err = fmt.Errorf("node %s: its first process ended: %w; the end of its log:\n%s", n.cfg.Name, err, process.Tail(n.cfg.file("node.log"), 15))
	}
}

// await waits until the node tells that something is ready.
func (n *Node) await(ctx context.Context, what string) error {
	for {
		select {
		case e := <-n.events:
			if e.Ready == what {
				return nil
			}
		case <-n.done:
			return n.Err()
		case <-ctx.Done():
			return fmt.Errorf("waiting for the node's %s: %w", what, context.Cause(ctx))
		}
	}
}

// Join starts what makes the node part of a cluster. It returns when the
// kubelet runs, not when the Node object is ready.
func (n *Node) Join(ctx context.Context, j Join) error {
	if err := json.NewEncoder(n.stdin).Encode(j); err != nil {
		return fmt.Errorf("joining node %s: %w", n.cfg.Name, err)
	}
	return n.await(ctx, "kubelet")
}

// Import adds the images of an archive to the node.
func (n *Node) Import(ctx context.Context, archive io.Reader) error {
	// The node's files are reachable through its first process.
	address := filepath.Join("/proc", strconv.Itoa(n.cmd.Process.Pid), "root", socket)
	cmd := exec.CommandContext(ctx, "ctr", "--address", address, "--namespace", "k8s.io",
		"images", "import", "--snapshotter", snapshotter(n.cfg.Dir), "-")
	cmd.Stdin = archive
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("importing an image into node %s: %w: %s", n.cfg.Name, err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// PID is the node's first process; killing it ends the node.
func (n *Node) PID() int { return n.cmd.Process.Pid }

// Done is closed when the node has ended.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err is why the node has ended: nil before that and after a Stop.
func (n *Node) Err() error {
	select {
	case <-n.done:
		return n.err
	default:
		return nil
	}
}

// Stop ends the node and removes what it leaves behind. It may be called
// again and by several callers.
func (n *Node) Stop(ctx context.Context) error {
	n.stopping.Do(func() { n.stopErr = n.stop(ctx) })
	return n.stopErr
}

func (n *Node) stop(ctx context.Context) error {
	if n.stdin != nil {
		_ = n.stdin.Close() // tells Main to end; it may have ended already
		select {
		case <-n.done:
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
		}
		select {
		case <-n.done:
		default:
			if n.cmd.Process != nil {
				_ = n.cmd.Process.Kill() // fails only when it has ended
				<-n.done
			}
		}
	}
	return Clean(context.WithoutCancel(ctx), n.cfg.Cgroup, n.cfg.Dir)
}

// Clean removes what a node leaves behind whose processes have been killed.
func Clean(ctx context.Context, cgroup, dir string) error {
	return errors.Join(removeCgroup(ctx, cgroup), os.RemoveAll(dir))
}

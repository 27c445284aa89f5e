// Package netns makes anonymous network namespaces and does things inside
// them.
//
// A namespace is held by one file descriptor only: it has no name under
// /run/netns, so nothing has to be removed afterwards and any number of them
// live side by side. It ends with its last process, socket or descriptor.
//
//	New ── a thread of its own, unshare(CLONE_NEWNET) ──> NS
//	NS.Setup    loopback, bridge, addresses, routes, sysctls (rtnetlink, no shell)
//	NS.Listen   a listener that lives inside and is used from anywhere
//	NS.DialContext, NS.Do
//	NS.Start    a child process that is born inside and dies with us
//	Forward     a listener anywhere -> a connection inside
//
// The caller needs CAP_SYS_ADMIN and CAP_NET_ADMIN in its user namespace.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned by every method after Close.
var ErrClosed = errors.New("network namespace is closed")

// An NS is a network namespace. Its methods may be called concurrently.
type NS struct {
	file  *os.File
	tasks chan func() // run, one after the other, by the thread that never leaves the namespace

	closing sync.Once
	closed  chan struct{}
	gone    chan struct{} // the thread has ended
}

// New makes an empty network namespace: no address, loopback down.
func New() (*NS, error) {
	n := &NS{tasks: make(chan func()), closed: make(chan struct{}), gone: make(chan struct{})}
	made := make(chan error)
	go onOwnThread(func() {
		defer close(n.gone)
		file, err := unshare()
		n.file = file
		made <- err
		if err != nil {
			return
		}
		for {
			select {
			case task := <-n.tasks:
				task()
			case <-n.closed:
				return
			}
		}
	})
	if err := <-made; err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	return n, nil
}

// onOwnThread runs fn on an operating system thread that is not used for
// anything else and ends afterwards. It is never the main thread: that one
// stands for the whole process in /proc and cannot end before the process.
func onOwnThread(fn func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		fn() // returning while locked ends the thread
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onOwnThread(fn)
	}()
	<-done // the main thread stays taken until the other one has found its own
	runtime.UnlockOSThread()
}

func unshare() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("%w (it needs root, or a user namespace of its own)", err)
		}
		return nil, err
	}
	return os.Open("/proc/thread-self/ns/net")
}

// Close gives the namespace up. Processes that Start started are killed with
// it; listeners and connections that were made in it go on until they are
// closed themselves.
func (n *NS) Close() error {
	var err error
	n.closing.Do(func() {
		close(n.closed)
		<-n.gone
		err = n.file.Close()
	})
	return err
}

// Do calls fn on a thread inside the namespace. fn must not start goroutines
// that rely on being inside, nor processes: the former run elsewhere, the
// latter are for Start.
func (n *NS) Do(fn func() error) error {
	result := make(chan error, 1)
	go onOwnThread(func() {
		if err := n.enter(); err != nil {
			result <- fmt.Errorf("entering the network namespace: %w", err)
			return
		}
		result <- fn()
	})
	return <-result
}

// enter moves the calling thread inside.
func (n *NS) enter() error {
	select {
	case <-n.closed:
		return ErrClosed
	default:
	}
	conn, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = conn.Control(func(fd uintptr) { inner = unix.Setns(int(fd), unix.CLONE_NEWNET) })
	return errors.Join(err, inner)
}

// Listen is net.Listen inside the namespace. The host in addr must be empty
// or an IP address.
func (n *NS) Listen(ctx context.Context, network, addr string) (net.Listener, error) {
	if err := literal(addr, true); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	var l net.Listener
	err := n.Do(func() (err error) {
		var c net.ListenConfig
		l, err = c.Listen(ctx, network, addr)
		return err
	})
	return l, err
}

// ListenPacket is net.ListenPacket inside the namespace.
func (n *NS) ListenPacket(ctx context.Context, network, addr string) (net.PacketConn, error) {
	if err := literal(addr, true); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	var c net.PacketConn
	err := n.Do(func() (err error) {
		var lc net.ListenConfig
		c, err = lc.ListenPacket(ctx, network, addr)
		return err
	})
	return c, err
}

// DialContext is net.Dialer.DialContext inside the namespace. The host in
// addr must be an IP address: a name would be resolved outside.
func (n *NS) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := literal(addr, false); err != nil {
		return nil, fmt.Errorf("dialing %s: %w", addr, err)
	}
	var c net.Conn
	err := n.Do(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// literal refuses names: net resolves them on goroutines, hence threads, of
// its own choice, which are not inside.
func literal(addr string, emptyHost bool) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if host == "" && emptyHost {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fmt.Errorf("%q is not an IP address; names are not resolved in a network namespace", host)
	}
	return nil
}

// Start starts cmd inside the namespace. Unless cmd asks for another signal,
// the kernel kills it when the namespace is closed or this process ends, in
// whatever way: the thread that gives birth to it ends only then.
func (n *NS) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if cmd.SysProcAttr.Pdeathsig == 0 {
		cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	}
	started := make(chan error, 1)
	select {
	case n.tasks <- func() { started <- cmd.Start() }:
		return <-started
	case <-n.closed:
		return fmt.Errorf("starting %s: %w", cmd.Path, ErrClosed)
	}
}

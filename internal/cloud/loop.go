package cloud

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

// A loop is a listener inside the process: its connections are socket pairs.
// The cloud asks its own hosts through it with real TLS, whatever the process
// can reach and resolve. (A net.Pipe has no buffer: both sides would wait for
// each other when they close TLS.)
type loop struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newLoop() *loop { return &loop{conns: make(chan net.Conn), done: make(chan struct{})} }

// Accept returns the server's end of the next connection.
func (l *loop) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close lets Accept and dial fail from now on.
func (l *loop) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr says what kind of listener this is.
func (l *loop) Addr() net.Addr { return loopAddr{} }

// dial returns the client's end of a new connection.
func (l *loop) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server, err := pair()
	if err != nil {
		return nil, fmt.Errorf("dialling in process: %w", err)
	}
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
		err = net.ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(err, client.Close(), server.Close())
}

// pair makes two connected sockets that no other process inherits.
func pair() (a, b net.Conn, err error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "loop")
		conn, connErr := net.FileConn(f) // a duplicate
		err = errors.Join(err, connErr, f.Close())
		conns[i] = conn
	}
	if err != nil {
		for _, c := range conns {
			if c != nil {
				err = errors.Join(err, c.Close())
			}
		}
		return nil, nil, err
	}
	return conns[0], conns[1], nil
}

type loopAddr struct{}

func (loopAddr) Network() string { return "loop" }
func (loopAddr) String() string  { return "in-process" }

package nodewatch

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"k8s.io/client-go/rest"
)

// A line is a way to the API server that can be cut.
type line struct {
	mu    sync.Mutex
	whole bool
	conns map[net.Conn]bool
	wait  sync.WaitGroup
}

// newLine leads the clients of config over a line.
func newLine(t *testing.T, config *rest.Config) *line {
	t.Helper()
	u, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := u.Host
	u.Host = l.Addr().String()
	config.Host, config.ServerName = u.String(), "localhost"
	x := &line{whole: true, conns: map[net.Conn]bool{}}
	t.Cleanup(func() {
		l.Close()
		x.cut()
		x.wait.Wait()
	})
	x.wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			x.wait.Go(func() { x.carry(c, to) })
		}
	})
	return x
}

func (x *line) carry(from net.Conn, address string) {
	defer from.Close()
	to, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer to.Close()
	x.mu.Lock()
	whole := x.whole
	if whole {
		x.conns[from], x.conns[to] = true, true
	}
	x.mu.Unlock()
	if !whole {
		return
	}
	x.wait.Go(func() {
		_, _ = io.Copy(to, from)
		to.Close()
	})
	_, _ = io.Copy(from, to)
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.conns, from)
	delete(x.conns, to)
}

func (x *line) cut() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.whole = false
	for c := range x.conns {
		c.Close()
	}
}

func (x *line) mend() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.whole = true
}

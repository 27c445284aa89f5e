package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// largest is more than any answer with a token.
const largest = 32 << 10

// A conn is one pod's connection, which lives as long as the run.
type conn struct {
	fd   int
	ask  []byte
	want []byte
	buf  []byte
	have int
	sent time.Time
}

func (c Config) runKeepAlive(ctx context.Context, asks [][]byte) (r Result, err error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return r, fmt.Errorf("making an epoll: %w", err)
	}
	defer unix.Close(ep)
	conns := make([]*conn, 0, len(asks))
	defer func() {
		for _, k := range conns {
			unix.Close(k.fd)
		}
	}()
	for i, s := range c.Sources {
		k := &conn{ask: asks[i], want: s.Want, buf: make([]byte, largest)}
		if err := s.NS.Do(func() (err error) { k.fd, err = dial(c.Target); return err }); err != nil {
			return r, err
		}
		conns = append(conns, k)
		if err := unix.SetNonblock(k.fd, true); err != nil {
			return r, err
		}
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, k.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			return r, fmt.Errorf("watching a connection: %w", err)
		}
	}
	err = c.measured(func() error { return c.loop(ctx, ep, conns, &r) }, &r)
	return r, err
}

// loop keeps Concurrency requests under way until the time is over, and waits
// for the last answers.
func (c Config) loop(ctx context.Context, ep int, conns []*conn, r *Result) error {
	resting := append(make([]*conn, 0, len(conns)+c.Concurrency), conns...)
	next := func(now time.Time) error {
		k := resting[0]
		resting = resting[1:]
		k.sent, k.have = now, 0
		return write(k.fd, k.ask)
	}
	now := time.Now()
	end := now.Add(c.For)
	busy := 0
	for ; busy < c.Concurrency; busy++ {
		if err := next(now); err != nil {
			return err
		}
	}
	events := make([]unix.EpollEvent, len(conns))
	for busy > 0 {
		n := 0
		if err := retry(func() (err error) { n, err = unix.EpollWait(ep, events, int(patience.Milliseconds())); return err }); err != nil {
			return fmt.Errorf("waiting for answers: %w", err)
		}
		if n <= 0 {
			return fmt.Errorf("no answer for %s", patience)
		}
		now = time.Now()
		over := now.After(end) || ctx.Err() != nil
		for _, e := range events[:n] {
			k := conns[e.Fd]
			done, err := k.read()
			if err != nil {
				return err
			}
			if !done {
				continue
			}
			r.Latencies = append(r.Latencies, now.Sub(k.sent))
			resting = append(resting, k)
			if over {
				busy--
				continue
			}
			if err := next(now); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// read takes what has come and reports whether the answer is whole.
func (k *conn) read() (bool, error) {
	n, err := read(k.fd, k.buf[k.have:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("reading an answer: %w", err)
	case n == 0:
		return false, errors.New("the server closed a connection")
	}
	k.have += n
	return complete(k.buf[:k.have], k.want)
}

// visit is how many connections a thread makes in one pod before it goes on to
// the next: entering costs more than a request.
const visit = 20

func (c Config) runAnew(ctx context.Context, asks [][]byte) (r Result, err error) {
	var mu sync.Mutex
	err = c.measured(func() error {
		end := time.Now().Add(c.For)
		g, going := errgroup.WithContext(ctx)
		for w := range c.Concurrency {
			g.Go(func() error {
				var took []time.Duration
				buf := make([]byte, largest)
				for i := w; time.Now().Before(end) && going.Err() == nil; i += c.Concurrency {
					k := &conn{ask: asks[i%len(asks)], want: c.Sources[i%len(asks)].Want, buf: buf}
					if err := c.Sources[i%len(asks)].NS.Do(func() error { return c.visit(going, k, end, &took) }); err != nil {
						return err
					}
				}
				mu.Lock()
				defer mu.Unlock()
				r.Latencies = append(r.Latencies, took...)
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		return ctx.Err()
	}, &r)
	return r, err
}

// visit asks a few times from the pod that the calling thread is in.
func (c Config) visit(ctx context.Context, k *conn, end time.Time, took *[]time.Duration) error {
	for range visit {
		started := time.Now()
		if started.After(end) || ctx.Err() != nil {
			return nil
		}
		if err := c.once(k); err != nil {
			return err
		}
		*took = append(*took, time.Since(started))
	}
	return nil
}

func (c Config) once(k *conn) (err error) {
	if k.fd, err = dial(c.Target); err != nil {
		return err
	}
	defer unix.Close(k.fd)
	if err := write(k.fd, k.ask); err != nil {
		return err
	}
	k.have = 0
	for {
		done, err := k.read()
		if done || err != nil {
			return err
		}
	}
}

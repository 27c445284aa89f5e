package netns

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// A Dialer is the DialContext method of an NS or a net.Dialer.
type Dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// Forward accepts connections from l and copies each to and from a connection
// that dial makes to addr, until ctx ends. It closes l, returns when the last
// connection is gone, and its error is nil when ctx was the reason.
// A connection that is closed for writing on one side is closed for writing
// on the other: protocols that end a request that way work through it.
// A nil logger means slog.Default.
func Forward(ctx context.Context, l net.Listener, dial Dialer, addr string, logger *slog.Logger) error {
	if logger == nil {
		logger = slog.Default()
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	var all sync.WaitGroup
	defer func() {
		stop()
		l.Close()
		cancel()
		all.Wait()
	}()
	for {
		near, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			logger.WarnContext(ctx, "accepting a connection to forward", "addr", l.Addr().String(), "err", err)
			select { // out of descriptors, say: what is open has to end first
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		all.Go(func() {
			defer near.Close()
			far, err := dial(ctx, "tcp", addr)
			if err != nil {
				logger.WarnContext(ctx, "forwarding a connection", "to", addr, "err", err)
				return
			}
			defer far.Close()
			join(ctx, near, far)
		})
	}
}

// join copies both ways until both ended or ctx did.
func join(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() {
		a.Close()
		b.Close()
	})
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { half(a, b) })
	both.Go(func() { half(b, a) })
	both.Wait()
}

// half copies one direction and passes its end on.
func half(dst, src net.Conn) {
	if _, err := io.Copy(dst, src); err != nil {
		// A broken direction breaks the other one, or it would wait for ever.
		dst.Close()
		src.Close()
		return
	}
	if c, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // fails only when dst is broken, which its reader sees too
		return
	}
	dst.Close()
}

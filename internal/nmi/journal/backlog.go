package journal

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// DefaultBacklog is how many bytes a Backlog keeps for a slow reader.
const DefaultBacklog = 4 << 20

// A Backlog is a writer of whole lines that never blocks: they are gathered and
// written by Run. A reader of standard output that stands still must not stop
// the pods' requests; what does not fit is counted, and the count is written as
// a line of its own when there is room. To must be set.
type Backlog struct {
	To    io.Writer
	Limit int // bytes; zero means DefaultBacklog

	mu     sync.Mutex
	lines  []byte
	spare  []byte
	lost   uint64 // all
	untold uint64 // not yet written
	more   chan struct{}
}

// Write takes one or more whole lines. The error is always nil.
func (b *Backlog) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	limit := b.Limit
	if limit == 0 {
		limit = DefaultBacklog
	}
	if len(b.lines)+len(p) > limit {
		b.lost++
		b.untold++
		return len(p), nil
	}
	b.lines = append(b.lines, p...)
	select {
	case b.signal() <- struct{}{}:
	default:
	}
	return len(p), nil
}

// signal needs the lock.
func (b *Backlog) signal() chan struct{} {
	if b.more == nil {
		b.more = make(chan struct{}, 1)
	}
	return b.more
}

// Lost returns how many lines were never written.
func (b *Backlog) Lost() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lost
}

// gather is how long lines are collected to be written at once.
const gather = 5 * time.Millisecond

// Run writes lines until the context ends, and then the rest.
func (b *Backlog) Run(ctx context.Context) error {
	b.mu.Lock()
	more := b.signal()
	b.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		select {
		case <-more:
		case <-ctx.Done():
			return b.flush()
		}
		timer.Reset(gather)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		if err := b.flush(); err != nil {
			return err
		}
	}
}

func (b *Backlog) flush() error {
	b.mu.Lock()
	lines, untold := b.lines, b.untold
	b.lines, b.spare, b.untold = b.spare[:0], nil, 0
	b.mu.Unlock()
	if untold > 0 {
		lines = fmt.Appendf(lines, `{"level":"WARN","msg":"log lines lost: nobody read them fast enough","lost":%d}`+"\n", untold)
	}
	var err error
	if len(lines) > 0 {
		if _, err = b.To.Write(lines); err != nil {
			err = fmt.Errorf("writing the log: %w", err)
		}
	}
	b.mu.Lock()
	if cap(lines) <= 1<<20 { // a burst must not keep its memory
		b.spare = lines[:0]
	}
	b.mu.Unlock()
	return err
}

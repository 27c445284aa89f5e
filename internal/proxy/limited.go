package proxy

import (
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// A limited log is one that a program of the pod can fill at will: twenty lines
// at once, then one a second.
type limited struct {
	once    sync.Once
	limiter *rate.Limiter
	dropped atomic.Int64
}

// line reports whether a line may be written, and how many were left out since
// the last one.
func (l *limited) line() (dropped int64, ok bool) {
	l.once.Do(func() { l.limiter = rate.NewLimiter(1, 20) })
	if !l.limiter.Allow() {
		l.dropped.Add(1)
		return 0, false
	}
	return l.dropped.Swap(0), true
}

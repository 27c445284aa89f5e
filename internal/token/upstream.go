package token

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// An upstream is one service that gives tokens: how many ask it at a time, how
// often, and until when nobody does.
type upstream struct {
	turns chan struct{}
	limit *rate.Limiter // nil: none

	mu       sync.Mutex
	failures int       // pauses in a row
	until    time.Time // monotonic; nobody asks before
	cause    error     // of the pause
}

// A pausedError stands for a request that was not made.
type pausedError struct {
	left time.Duration
	err  error // what the upstream said
}

func (p *pausedError) Error() string {
	return fmt.Sprintf("not asked for another %s because the last answer was: %v", p.left.Round(time.Millisecond), p.err)
}

func (p *pausedError) Unwrap() error { return p.err }

// enter waits for a turn. Whoever waited through the start of a pause is sent
// away, so that a pause costs an upstream no more than the requests under way.
func (u *upstream) enter(ctx context.Context) error {
	if err := u.paused(); err != nil {
		return err
	}
	select {
	case u.turns <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("waiting for a turn: %w", ctx.Err())
	}
	err := u.paused()
	if err == nil && u.limit != nil {
		if err = u.limit.Wait(ctx); err != nil {
			err = fmt.Errorf("waiting for a turn: %w", err)
		} else {
			err = u.paused()
		}
	}
	if err != nil {
		u.leave()
	}
	return err
}

func (u *upstream) leave() { <-u.turns }

func (u *upstream) paused() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if left := time.Until(u.until); left > 0 {
		return &pausedError{left, u.cause}
	}
	return nil
}

// failed begins a pause if the failure asks for one.
func (u *upstream) failed(err error, f Failure) {
	if _, ok := errors.AsType[*pausedError](err); ok || !f.Everyone {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	if now.Before(u.until) {
		// Requests that were under way together fail together: one step.
		u.until = later(u.until, now.Add(f.RetryAfter))
		return
	}
	u.failures++
	pause := f.RetryAfter
	if pause == 0 {
		pause = min(30*time.Second, time.Second<<min(u.failures-1, 10))
	}
	u.until, u.cause = now.Add(pause), err
}

func (u *upstream) succeeded() {
	u.mu.Lock()
	u.failures = 0
	u.mu.Unlock()
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

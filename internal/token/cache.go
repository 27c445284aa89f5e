package token

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Defaults of a Cache.
const (
	DefaultPatience    = 800 * time.Millisecond // the answer is to come within a second on a busy machine too
	DefaultTimeout     = 15 * time.Second
	DefaultConcurrency = 4
	DefaultMax         = 4096
)

// A Cache keeps tokens by key and asks for them ahead of their end:
//
//	Token(k) ── usable, not due ────────────────────────────── the token (no lock but a read lock)
//	         ── usable, due ── one fetch in the background ─── the token
//	         ── renewed (Renew) ── one fetch, awaited briefly ─ the new token, else the old
//	         ── nothing ── one fetch, awaited for Patience ─── the token, or *Unavailable
//
// K is the identity and the resource, never the pod: who may ask is decided
// before. A key has one fetch at a time, an upstream has Concurrency of them; a
// caller that leaves ends only its own wait. A token counts as expired when
// Now reaches its ExpiresOn; that a clock was moved is noticed by the
// monotonic clock and leads to a fetch, not to a loss.
//
// Fetches are goroutines that end by Timeout, or with Run.
type Cache[K comparable] struct {
	// Fetch gets a token. It must end with its context.
	Fetch func(ctx context.Context, k K) (Token, error)
	// Judge says what an error of Fetch means; nil means that all are transient.
	Judge func(error) Failure
	// Upstream names the service that a key's tokens come from; keys of one
	// name share Concurrency, Rate and the pause that the service asks for.
	// nil means that there is but one.
	Upstream func(K) string

	// Group names whom keys belong to; nil means that nobody's are counted. A
	// group has GroupMax fetches for keys without a token at a time, so that one
	// who asks for ever new keys leaves turns and memory to the others.
	Group    func(K) string
	GroupMax int

	Concurrency int           // fetches of one upstream at a time; 0 means DefaultConcurrency
	Rate        float64       // fetches of one upstream a second; 0 means without limit
	Patience    time.Duration // how long a caller without a token waits; 0 means DefaultPatience
	Timeout     time.Duration // of one fetch with its wait for a turn; 0 means DefaultTimeout
	RefusedMax  time.Duration // the longest that a permanent error is kept; 0 means a minute
	Max         int           // entries; 0 means DefaultMax

	Now     func() time.Time                         // nil means time.Now
	OnHit   func()                                   // a token came from memory; nil means nothing
	OnMiss  func()                                   // a caller had to wait or to leave empty-handed; nil means nothing
	OnFetch func(k K, took time.Duration, err error) // a fetch reached the upstream; nil means nothing

	mu        sync.RWMutex
	entries   map[K]*entry[K]
	upstreams map[string]*upstream
	flights   map[*flight]struct{}
	flying    map[string]int // flights by group
	closed    bool
	running   sync.WaitGroup
}

// A Failure is what an error of an upstream means.
type Failure struct {
	// Permanent: asking again changes nothing until somebody changes something.
	Permanent bool
	// RetryAfter is what the upstream asked for; zero means that it did not say.
	// Two minutes are the most that is honoured: an answer that asks for an hour
	// must not take every pod's identity away for that long.
	RetryAfter time.Duration
	// Everyone: the upstream is not to be asked for other keys either until
	// RetryAfter is over (one second, growing, if that is zero).
	Everyone bool
}

// Unavailable says that there is no token now but may be one later.
type Unavailable struct {
	RetryAfter time.Duration // never zero
	Err        error         // of the last attempt; ErrPending if it goes on
}

// usedGrain is how exactly the last use of an entry is known.
const usedGrain = time.Second

// ErrPending says that the upstream has not answered yet.
var ErrPending = errors.New("the upstream has not answered yet")

// errCrowded answers when a group has all of its fetches under way.
var errCrowded = errors.New("too many tokens of this identity are being fetched")

// errClosed answers after Run has ended.
var errClosed = errors.New("the token cache is closed")

func (u *Unavailable) Error() string {
	return fmt.Sprintf("no token now, retry after %s: %v", u.RetryAfter, u.Err)
}

// Unwrap returns the cause.
func (u *Unavailable) Unwrap() error { return u.Err }

// An entry is what is known of one key.
type entry[K comparable] struct {
	key      K
	upstream *upstream
	held     atomic.Pointer[held] // nil: no token yet
	renewal  atomic.Uint64        // counts Renew; a held token of an older one is to be replaced
	used     atomic.Int64         // when a caller asked, in nanoseconds of Unix time by the real clock

	mu       sync.Mutex
	flight   *flight
	failures int       // in a row
	retryAt  time.Time // monotonic; no fetch before
	err      error     // of the last attempt; nil after a success
	failure  Failure   // what err means
}

// A flight is one fetch.
type flight struct {
	renewal uint64
	started time.Time // monotonic
	cancel  context.CancelFunc
	done    chan struct{} // closed when the rest is set
	token   Token
	err     error
	failure Failure
}

// Token returns a token for k. The error is permanent and comes from Fetch, or
// is an *Unavailable, or wraps the context's error.
func (c *Cache[K]) Token(ctx context.Context, k K) (Token, error) {
	wall, mono := c.now()
	c.mu.RLock()
	e := c.entries[k]
	c.mu.RUnlock()
	if e != nil {
		if h := e.held.Load(); h != nil && h.renewal == e.renewal.Load() && h.usable(wall, mono) && !h.due(wall, mono) {
			e.touch(mono)
			c.hit()
			return h.token, nil
		}
	}
	return c.await(ctx, k)
}

// await is Token for a key that has no token, or one that is due.
func (c *Cache[K]) await(ctx context.Context, k K) (Token, error) {
	if err := ctx.Err(); err != nil {
		return Token{}, fmt.Errorf("waiting for a token: %w", err)
	}
	e, err := c.entry(k)
	if err != nil {
		return Token{}, err
	}
	wall, mono := c.now()
	e.touch(mono)
	e.mu.Lock()
	h := e.held.Load()
	if h != nil && !h.usable(wall, mono) {
		h = nil
	}
	current := h != nil && h.renewal == e.renewal.Load()
	if resting := mono.Before(e.retryAt); resting || current && !h.due(wall, mono) {
		err := e.refusal(mono)
		e.mu.Unlock()
		if h != nil {
			c.hit()
			return h.token, nil
		}
		c.miss()
		return Token{}, err
	}
	f, err := c.launch(ctx, e)
	e.mu.Unlock()
	if current || err != nil && h != nil {
		c.hit()
		return h.token, nil
	}
	c.miss()
	if err != nil {
		return Token{}, err
	}
	patience := c.patience()
	if h != nil {
		patience -= mono.Sub(f.started) // those who have an old token do not wait anew
	}
	return wait(ctx, f, h, patience)
}

// wait waits for f. The held token, if not nil, is what there is otherwise.
func wait(ctx context.Context, f *flight, h *held, patience time.Duration) (Token, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	err := error(&Unavailable{RetryAfter: time.Second, Err: ErrPending})
	select {
	case <-f.done:
		if f.err == nil {
			return f.token, nil
		}
		err = f.err
		if !f.failure.Permanent {
			err = &Unavailable{RetryAfter: max(time.Second, f.failure.RetryAfter), Err: f.err}
		}
	case <-timer.C:
	case <-ctx.Done():
		return Token{}, fmt.Errorf("waiting for a token: %w", ctx.Err())
	}
	if h != nil {
		return h.token, nil
	}
	return Token{}, err
}

// refusal is the last error, for a key that rests. e.mu is held.
func (e *entry[K]) refusal(mono time.Time) error {
	if e.failure.Permanent {
		return e.err
	}
	return &Unavailable{RetryAfter: max(time.Second, e.retryAt.Sub(mono)), Err: e.err}
}

func (e *entry[K]) touch(mono time.Time) {
	// One writer a second is enough to know, and keeps the line in every
	// core's cache.
	if t := mono.UnixNano(); t-e.used.Load() > int64(usedGrain) {
		e.used.Store(t)
	}
}

// usedSince reports whether a caller asked at the instant mono or later.
func (e *entry[K]) usedSince(mono time.Time) bool {
	return e.used.Load() >= mono.Add(-usedGrain).UnixNano()
}

// launch returns the key's fetch and starts it if there is none, or only one
// from before a Renew. e.mu is held.
func (c *Cache[K]) launch(ctx context.Context, e *entry[K]) (*flight, error) {
	renewal := e.renewal.Load()
	if f := e.flight; f != nil && f.renewal == renewal {
		return f, nil
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	f := &flight{renewal: renewal, started: time.Now(), cancel: cancel, done: make(chan struct{})}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		cancel()
		return nil, &Unavailable{RetryAfter: time.Second, Err: errClosed}
	}
	if e.held.Load() == nil && c.crowded(e.key) {
		c.mu.Unlock()
		cancel()
		return nil, &Unavailable{RetryAfter: time.Second, Err: errCrowded}
	}
	c.flights[f] = struct{}{}
	if c.Group != nil {
		c.flying[c.Group(e.key)]++
	}
	c.running.Add(1)
	c.mu.Unlock()
	e.flight = f
	go c.fly(ctx, e, f)
	return f, nil
}

// fly fetches and keeps what came.
func (c *Cache[K]) fly(ctx context.Context, e *entry[K], f *flight) {
	defer c.running.Done()
	defer f.cancel()
	f.token, f.err = c.fetch(ctx, e)
	if f.err != nil {
		f.failure = c.judge(f.err)
		f.failure.RetryAfter = min(f.failure.RetryAfter, longestPause)
		e.upstream.failed(f.err, f.failure)
	} else {
		e.upstream.succeeded()
	}
	e.mu.Lock()
	c.keep(e, f)
	if e.flight == f {
		e.flight = nil
	}
	e.mu.Unlock()
	close(f.done)
	c.mu.Lock()
	delete(c.flights, f)
	if c.Group != nil {
		g := c.Group(e.key)
		if c.flying[g]--; c.flying[g] == 0 {
			delete(c.flying, g)
		}
	}
	c.mu.Unlock()
}

// crowded reports whether a key's group has no fetch left. c.mu is held.
func (c *Cache[K]) crowded(k K) bool {
	return c.Group != nil && c.GroupMax > 0 && c.flying[c.Group(k)] >= c.GroupMax
}

func (c *Cache[K]) fetch(ctx context.Context, e *entry[K]) (Token, error) {
	if err := e.upstream.enter(ctx); err != nil {
		return Token{}, err
	}
	defer e.upstream.leave()
	start := time.Now()
	t, err := c.Fetch(ctx, e.key)
	if c.OnFetch != nil {
		c.OnFetch(e.key, time.Since(start), err)
	}
	return t, err
}

// keep enters the outcome of a fetch. e.mu is held.
func (c *Cache[K]) keep(e *entry[K], f *flight) {
	wall, mono := c.now()
	old := e.held.Load()
	stale := f.renewal != e.renewal.Load() // a Renew came in between
	if f.err == nil {
		if !stale || old == nil || !old.usable(wall, mono) {
			e.held.Store(newHeld(f, wall, mono))
		}
		if !stale {
			e.failures, e.err, e.failure, e.retryAt = 0, nil, Failure{}, time.Time{}
		}
		return
	}
	if stale {
		return
	}
	e.err, e.failure = f.err, f.failure
	if p, ok := errors.AsType[*pausedError](f.err); ok {
		e.retryAt = mono.Add(p.left) // the key itself has not failed
	} else {
		e.failures++
		e.retryAt = mono.Add(rest(f.failure, e.failures, c.RefusedMax))
	}
	if old != nil && old.renewal != f.renewal {
		// The renewal failed: the old token serves on, without anybody waiting.
		again := *old
		again.renewal, again.refreshAfter = f.renewal, 0
		e.held.Store(&again)
	}
}

func (c *Cache[K]) judge(err error) Failure {
	if p, ok := errors.AsType[*pausedError](err); ok {
		return Failure{RetryAfter: p.left}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), c.Judge == nil:
		return Failure{}
	}
	return c.Judge(err)
}

// now returns the time by the wall clock and by the monotonic one.
func (c *Cache[K]) now() (wall, mono time.Time) {
	mono = time.Now()
	if c.Now == nil {
		return mono.Round(0), mono
	}
	return c.Now().Round(0), mono
}

func (c *Cache[K]) patience() time.Duration {
	if c.Patience == 0 {
		return DefaultPatience
	}
	return c.Patience
}

func (c *Cache[K]) hit() {
	if c.OnHit != nil {
		c.OnHit()
	}
}

func (c *Cache[K]) miss() {
	if c.OnMiss != nil {
		c.OnMiss()
	}
}

func (c *Cache[K]) newUpstream() *upstream {
	n := c.Concurrency
	if n == 0 {
		n = DefaultConcurrency
	}
	u := &upstream{turns: make(chan struct{}, n)}
	if c.Rate > 0 {
		u.limit = rate.NewLimiter(rate.Limit(c.Rate), max(1, int(c.Rate)))
	}
	return u
}

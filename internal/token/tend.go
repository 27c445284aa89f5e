package token

import (
	"context"
	"errors"
	"time"
)

// tendInterval is how often Run looks for tokens that are due.
const tendInterval = 10 * time.Second

// errFull answers when every entry has a fetch under way.
var errFull = errors.New("too many tokens are being fetched")

// Run refreshes tokens that are due and were used, and drops what nobody
// needs, until ctx ends; then it ends all fetches and returns nil. A cache
// works without Run too: then a token is refreshed when it is asked for.
func (c *Cache[K]) Run(ctx context.Context) error {
	ticker := time.NewTicker(tendInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			c.close()
			return nil
		case <-ticker.C:
			c.tend(ctx)
		}
	}
}

// close ends all fetches; there are none after it.
func (c *Cache[K]) close() {
	c.mu.Lock()
	c.closed = true
	for f := range c.flights {
		f.cancel()
	}
	c.mu.Unlock()
	c.running.Wait()
}

func (c *Cache[K]) tend(ctx context.Context) {
	wall, mono := c.now()
	for _, e := range c.matching(func(K) bool { return true }) {
		e.mu.Lock()
		h := e.held.Load()
		switch idle := h == nil || !h.usable(wall, mono); {
		case e.flight != nil || mono.Before(e.retryAt):
		case idle && !e.usedSince(mono.Add(-time.Minute)):
			c.remove(e)
		case !idle && h.due(wall, mono) && e.usedSince(mono.Add(-h.lifetime)):
			_, _ = c.launch(ctx, e) // fails only when the cache is closed
		}
		e.mu.Unlock()
	}
	c.dropUpstreams()
}

// Renew makes the tokens of all keys that match be fetched again before they
// are served: what they are made from has changed. They are fetched at once.
// Until the new one is there, or if it cannot be had, the old one serves.
// What is known of failures is forgotten.
func (c *Cache[K]) Renew(ctx context.Context, match func(K) bool) {
	wall, mono := c.now()
	for _, e := range c.matching(match) {
		e.mu.Lock()
		e.renewal.Add(1)
		e.failures, e.err, e.failure, e.retryAt = 0, nil, Failure{}, time.Time{}
		if h := e.held.Load(); h != nil && h.usable(wall, mono) {
			_, _ = c.launch(ctx, e) // fails only when the cache is closed
		}
		e.mu.Unlock()
	}
}

// Forget drops the tokens of all keys that match. A fetch that is under way
// still answers those who wait for it.
func (c *Cache[K]) Forget(match func(K) bool) {
	for _, e := range c.matching(match) {
		e.mu.Lock()
		c.remove(e)
		e.mu.Unlock()
	}
}

// Prefetch begins to fetch the token of k if there is none, and forgets that
// it was refused before.
func (c *Cache[K]) Prefetch(ctx context.Context, k K) {
	e, err := c.entry(k)
	if err != nil {
		return // a cache that is full fetches nothing ahead
	}
	wall, mono := c.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if h := e.held.Load(); h != nil && h.usable(wall, mono) {
		return
	}
	if e.failure.Permanent {
		e.failures, e.err, e.failure, e.retryAt = 0, nil, Failure{}, time.Time{}
	}
	if mono.Before(e.retryAt) {
		return
	}
	e.touch(mono)
	_, _ = c.launch(ctx, e) // without a place it is fetched when it is asked for
}

// Len returns how many keys are known.
func (c *Cache[K]) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.entries)
}

func (c *Cache[K]) matching(match func(K) bool) []*entry[K] {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var found []*entry[K]
	for k, e := range c.entries {
		if match(k) {
			found = append(found, e)
		}
	}
	return found
}

func (c *Cache[K]) remove(e *entry[K]) {
	c.mu.Lock()
	if c.entries[e.key] == e {
		delete(c.entries, e.key)
	}
	c.mu.Unlock()
}

// entry returns the entry of k and makes it if need be.
func (c *Cache[K]) entry(k K) (*entry[K], error) {
	name := ""
	if c.Upstream != nil {
		name = c.Upstream(k)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[k]; e != nil {
		return e, nil
	}
	if c.crowded(k) {
		return nil, &Unavailable{RetryAfter: time.Second, Err: errCrowded}
	}
	if c.entries == nil {
		c.entries, c.upstreams, c.flights, c.flying = map[K]*entry[K]{}, map[string]*upstream{}, map[*flight]struct{}{}, map[string]int{}
	}
	most := c.Max
	if most == 0 {
		most = DefaultMax
	}
	if len(c.entries) >= most && !c.evict() {
		return nil, &Unavailable{RetryAfter: time.Second, Err: errFull}
	}
	u := c.upstreams[name]
	if u == nil {
		u = c.newUpstream()
		c.upstreams[name] = u
	}
	e := &entry[K]{key: k, upstream: u}
	c.entries[k] = e
	return e, nil
}

// evict drops the entry that is missed least: one without a token before one
// with, and the one that was used longest ago. c.mu is held, so an entry's own
// lock is only tried: an entry that is locked is in use.
func (c *Cache[K]) evict() bool {
	var worst *entry[K]
	var worstHeld bool
	for _, e := range c.entries {
		has := e.held.Load() != nil
		if worst != nil && (has && !worstHeld || has == worstHeld && e.used.Load() >= worst.used.Load()) {
			continue
		}
		if !e.mu.TryLock() {
			continue
		}
		busy := e.flight != nil
		e.mu.Unlock()
		if !busy {
			worst, worstHeld = e, has
		}
	}
	if worst == nil {
		return false
	}
	delete(c.entries, worst.key)
	return true
}

// dropUpstreams forgets upstreams that no key uses.
func (c *Cache[K]) dropUpstreams() {
	c.mu.Lock()
	defer c.mu.Unlock()
	needed := map[*upstream]bool{}
	for _, e := range c.entries {
		needed[e.upstream] = true
	}
	for name, u := range c.upstreams {
		if !needed[u] {
			delete(c.upstreams, name)
		}
	}
}

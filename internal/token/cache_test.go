package token_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lanyard-id/lanyard/internal/token"
)

// An issuer is an upstream: it counts, and does what the test says.
type issuer struct {
	calls   atomic.Int64
	atOnce  atomic.Int64
	highest atomic.Int64

	mu       sync.Mutex
	took     time.Duration
	lifetime time.Duration
	err      error
	hang     bool
}

var errDown = errors.New("down")

func (i *issuer) set(f func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f(i)
}

func (i *issuer) fetch(ctx context.Context, k string) (token.Token, error) {
	n := i.calls.Add(1)
	if now := i.atOnce.Add(1); now > i.highest.Load() {
		i.highest.Store(now)
	}
	defer i.atOnce.Add(-1)
	i.mu.Lock()
	took, lifetime, err, hang := i.took, i.lifetime, i.err, i.hang
	i.mu.Unlock()
	if hang {
		<-ctx.Done()
		return token.Token{}, ctx.Err()
	}
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return token.Token{}, ctx.Err()
	}
	if err != nil {
		return token.Token{}, err
	}
	return token.Token{AccessToken: fmt.Sprintf("%s-%d", k, n), ExpiresOn: time.Now().Add(lifetime)}, nil
}

// pass lets the bubble's time pass.
func pass(d time.Duration) { <-time.After(d) }

func get(t *testing.T, c *token.Cache[string], k string) string {
	t.Helper()
	tok, err := c.Token(t.Context(), k)
	if err != nil {
		t.Fatalf("Token(%s): %v", k, err)
	}
	return tok.AccessToken
}

func TestATokenIsFetchedOnceAndServedFromMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour, took: 3 * time.Millisecond}
		var hits, misses int
		c := &token.Cache[string]{Fetch: up.fetch, OnHit: func() { hits++ }, OnMiss: func() { misses++ }}
		for range 10 {
			if got := get(t, c, "a"); got != "a-1" {
				t.Fatalf("got %s", got)
			}
		}
		if got := get(t, c, "b"); got != "b-2" {
			t.Errorf("another key got %s", got)
		}
		if hits != 9 || misses != 2 {
			t.Errorf("%d hits and %d misses, want 9 and 2", hits, misses)
		}
	})
}

func TestAThousandCallersAreOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour, took: 500 * time.Millisecond}
		c := &token.Cache[string]{Fetch: up.fetch}
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if tok, err := c.Token(t.Context(), "a"); err != nil || tok.AccessToken != "a-1" {
					t.Errorf("got %v, %v", tok, err)
				}
			})
		}
		wg.Wait()
		if n := up.calls.Load(); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})
}

func TestACallerThatLeavesEndsOnlyItsOwnWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour, took: 500 * time.Millisecond}
		c := &token.Cache[string]{Fetch: up.fetch}
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error)
		go func() {
			_, err := c.Token(ctx, "a") // it is the one that starts the fetch
			left <- err
		}()
		synctest.Wait()
		stayed := make(chan string)
		go func() { stayed <- get(t, c, "a") }()
		synctest.Wait()
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("the caller that left got %v", err)
		}
		if got := <-stayed; got != "a-1" {
			t.Errorf("the caller that stayed got %s", got)
		}
		if _, err := c.Token(ctx, "b"); !errors.Is(err, context.Canceled) || up.calls.Load() != 1 {
			t.Errorf("a caller that is gone already got %v, and %d requests were made", err, up.calls.Load())
		}
	})
}

func TestATokenIsRefreshedAheadWithoutAnybodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour, took: 5 * time.Second}
		c := &token.Cache[string]{Fetch: up.fetch, Patience: 10 * time.Second}
		get(t, c, "a")
		pass(29 * time.Minute)
		if got := get(t, c, "a"); got != "a-1" || up.calls.Load() != 1 {
			t.Errorf("at 29 of 60 minutes: %s after %d requests", got, up.calls.Load())
		}
		pass(19*time.Minute + 10*time.Second)
		start := time.Now()
		if got := get(t, c, "a"); got != "a-1" || time.Since(start) != 0 {
			t.Errorf("at the refresh: %s after %s, want the old one at once", got, time.Since(start))
		}
		pass(6 * time.Second)
		if got := get(t, c, "a"); got != "a-2" {
			t.Errorf("after the refresh: %s", got)
		}
	})
}

func TestRunRefreshesWhatIsUsedAndDropsWhatIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour}
		c := &token.Cache[string]{Fetch: up.fetch}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		get(t, c, "unused")
		for range 36 { // three hours
			start := time.Now()
			get(t, c, "used")
			if took := time.Since(start); took != 0 {
				t.Errorf("it took %s", took)
			}
			pass(5 * time.Minute)
		}
		if n := c.Len(); n != 1 {
			t.Errorf("%d entries, want only the used one", n)
		}
		if n := up.calls.Load(); n > 2+6 {
			t.Errorf("%d requests in three hours, want at most 2 and 6", n)
		}
		// Whoever asks once per lifetime never gets a token near its end.
		for range 5 {
			tok, err := c.Token(t.Context(), "seldom")
			if err != nil || time.Until(tok.ExpiresOn) < 11*time.Minute {
				t.Errorf("got %v, %v", tok, err)
			}
			pass(55 * time.Minute)
		}
		pass(3 * time.Hour)
		if n := c.Len(); n != 0 {
			t.Errorf("%d entries after three idle hours", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := c.Token(t.Context(), "late"); err == nil {
			t.Error("a closed cache fetches")
		}
	})
}

func TestTheEndOfRunEndsFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{hang: true}
		c := &token.Cache[string]{Fetch: up.fetch, Timeout: time.Hour}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		_, _ = c.Token(t.Context(), "a")
		start := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("Run ended %s after its context", took)
		}
	})
}

func TestAMetadataServiceThatReturnsTheSameTokenIsAskedFewTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ends := time.Now().Add(24 * time.Hour)
		var calls atomic.Int64
		c := &token.Cache[string]{Fetch: func(context.Context, string) (token.Token, error) {
			calls.Add(1)
			return token.Token{AccessToken: "same", ExpiresOn: ends}, nil
		}}
		for time.Now().Before(ends) {
			get(t, c, "a")
			pass(time.Second)
		}
		if n := calls.Load(); n < 3 || n > 40 {
			t.Errorf("asked %d times for one token of 24 h", n)
		}
		// By this clock it is over, but the service insists: once a second.
		calls.Store(0)
		for range 100 {
			get(t, c, "a")
			pass(100 * time.Millisecond)
		}
		if n := calls.Load(); n > 11 {
			t.Errorf("asked %d times in 10 s for a token that is over", n)
		}
	})
}

func TestRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour, took: 50 * time.Millisecond}
		c := &token.Cache[string]{Fetch: up.fetch}
		get(t, c, "a")
		get(t, c, "b")
		only := func(want string) func(string) bool { return func(k string) bool { return k == want } }

		c.Renew(t.Context(), only("a"))
		if got := get(t, c, "a"); got != "a-3" {
			t.Errorf("after Renew: %s, want the new token at once", got)
		}
		if got := get(t, c, "b"); got != "b-2" {
			t.Errorf("another key: %s", got)
		}

		up.set(func(i *issuer) { i.err = errDown })
		c.Renew(t.Context(), only("a"))
		for range 100 {
			if got := get(t, c, "a"); got != "a-3" {
				t.Fatalf("while the new one fails: %s, want the old one", got)
			}
		}
		if n := up.calls.Load(); n != 4 {
			t.Errorf("%d requests, want 4", n)
		}

		up.set(func(i *issuer) { i.err, i.hang = nil, true })
		c.Renew(t.Context(), only("a"))
		start := time.Now()
		for range 10 {
			if got := get(t, c, "a"); got != "a-3" {
				t.Fatalf("while the upstream hangs: %s, want the old one", got)
			}
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("ten requests waited %s for a renewal that hangs", took)
		}
		// The next Renew does not wait for the fetch that hangs.
		up.set(func(i *issuer) { i.hang = false })
		c.Renew(t.Context(), only("a"))
		if got := get(t, c, "a"); got != "a-6" {
			t.Errorf("after the next Renew: %s", got)
		}
		pass(time.Minute)
		if got := get(t, c, "a"); got != "a-6" {
			t.Errorf("after the end of the fetch that hung: %s", got)
		}
	})
}

func TestForgetAndPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour, err: errRefused}
		c := &token.Cache[string]{Fetch: up.fetch, Judge: judge}
		if _, err := c.Token(t.Context(), "a"); !errors.Is(err, errRefused) {
			t.Fatalf("got %v", err)
		}
		up.set(func(i *issuer) { i.err = nil })
		c.Prefetch(t.Context(), "a")
		synctest.Wait()
		if got := get(t, c, "a"); got != "a-2" {
			t.Errorf("after a prefetch: %s", got)
		}
		c.Prefetch(t.Context(), "a")
		synctest.Wait()
		if n := up.calls.Load(); n != 2 {
			t.Errorf("%d requests, want 2: the token is there", n)
		}
		c.Forget(func(string) bool { return true })
		if got := get(t, c, "a"); got != "a-3" {
			t.Errorf("after Forget: %s", got)
		}
	})
}

func TestTheCacheIsBoundedAndKeepsTokensRatherThanRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour}
		c := &token.Cache[string]{Fetch: up.fetch, Judge: judge, Max: 10}
		for i := range 5 {
			get(t, c, fmt.Sprint("good", i))
		}
		pass(2 * time.Second)
		up.set(func(i *issuer) { i.err = errRefused })
		for i := range 1000 {
			_, _ = c.Token(t.Context(), fmt.Sprint("junk", i))
		}
		if n := c.Len(); n != 10 {
			t.Errorf("%d entries, want 10", n)
		}
		for i := range 5 {
			if got := get(t, c, fmt.Sprint("good", i)); got != fmt.Sprint("good", i, "-", i+1) {
				t.Errorf("got %s", got)
			}
		}
	})
}

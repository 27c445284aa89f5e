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

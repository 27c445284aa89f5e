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

	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errRefused   = errors.New("refused")
	errThrottled = errors.New("throttled")
)

func judge(err error) token.Failure {
	switch {
	case errors.Is(err, errRefused):
		return token.Failure{Permanent: true}
	case errors.Is(err, errThrottled):
		return token.Failure{RetryAfter: 10 * time.Second, Everyone: true}
	}
	return token.Failure{}
}

func unavailable(t *testing.T, err error) *token.Unavailable {
	t.Helper()
	var u *token.Unavailable
	if !errors.As(err, &u) {
		t.Fatalf("got %v, want *token.Unavailable", err)
	}
	return u
}

func TestAnUpstreamThatHangsIsAnsweredForWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour, hang: true}
		c := &token.Cache[string]{Fetch: up.fetch}
		for range 20 {
			start := time.Now()
			_, err := c.Token(t.Context(), "a")
			if u := unavailable(t, err); u.RetryAfter < time.Second || time.Since(start) > time.Second {
				t.Fatalf("%v after %s", u, time.Since(start))
			}
			pass(500 * time.Millisecond)
		}
		if n := up.calls.Load(); n != 2 {
			t.Errorf("%d requests in 28 s, want one every 15 s", n)
		}
		pass(time.Minute) // the fetch that hangs ends
	})
}

func TestASlowUpstreamFillsTheCacheInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour, took: 3 * time.Second}
		c := &token.Cache[string]{Fetch: up.fetch}
		tries := 0
		for {
			tok, err := c.Token(t.Context(), "a")
			if err == nil {
				if tok.AccessToken != "a-1" {
					t.Errorf("got %s", tok.AccessToken)
				}
				break
			}
			tries++
			pass(unavailable(t, err).RetryAfter)
		}
		if tries > 2 {
			t.Errorf("a client that honours Retry-After was sent away %d times", tries)
		}
	})
}

func TestAValidTokenIsServedWhileTheUpstreamFails(t *testing.T) {
	for name, fault := range map[string]func(*issuer){
		"it hangs":     func(i *issuer) { i.hang = true },
		"it fails":     func(i *issuer) { i.err = errDown },
		"it throttles": func(i *issuer) { i.err = errThrottled },
		"it refuses":   func(i *issuer) { i.err = errRefused },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := &issuer{lifetime: time.Hour}
				c := &token.Cache[string]{Fetch: up.fetch, Judge: judge}
				get(t, c, "a")
				up.set(fault)
				for range 59 * 60 {
					start := time.Now()
					if got := get(t, c, "a"); got != "a-1" || time.Since(start) != 0 {
						t.Fatalf("got %s after %s", got, time.Since(start))
					}
					pass(time.Second)
				}
				if n := up.calls.Load(); n < 2 || n > 400 {
					t.Errorf("%d requests in an hour", n)
				}
				pass(2 * time.Minute)
				if tok, err := c.Token(t.Context(), "a"); err == nil {
					t.Errorf("got %s after its end", tok)
				}
				up.set(func(i *issuer) { i.err, i.hang = nil, false })
				pass(time.Minute)
				if got := get(t, c, "a"); got == "a-1" {
					t.Errorf("after the fault: %s", got)
				}
			})
		})
	}
}

func TestThrottlingPausesTheUpstreamForAllKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour, err: errThrottled, took: 20 * time.Millisecond}
		c := &token.Cache[string]{Fetch: up.fetch, Judge: judge, Concurrency: 4}
		// 200 keys, each asked for ten times a second, for a minute.
		var wg sync.WaitGroup
		for k := range 200 {
			wg.Go(func() {
				for range 600 {
					_, err := c.Token(t.Context(), fmt.Sprint(k))
					if u := unavailable(t, err); u.RetryAfter > 12*time.Second || !errors.Is(err, errThrottled) && !errors.Is(err, token.ErrPending) {
						t.Errorf("got %v", u)
					}
					pass(100 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		// A pause lasts 10 s and costs as many requests as were under way.
		if n := up.calls.Load(); n > 7*4 {
			t.Errorf("%d requests to an upstream that said Retry-After: 10 for a minute", n)
		}
		if n := up.highest.Load(); n > 4 {
			t.Errorf("%d requests at a time, want at most 4", n)
		}
	})
}

func TestOneUpstreamThatThrottlesOrHangsDoesNotDelayAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := &issuer{lifetime: time.Hour}
		c := &token.Cache[string]{
			Judge:    judge,
			Upstream: func(k string) string { return k[:1] },
			Fetch: func(ctx context.Context, k string) (token.Token, error) {
				switch k[0] {
				case 'h':
					<-ctx.Done()
					return token.Token{}, ctx.Err()
				case 't':
					return token.Token{}, errThrottled
				}
				return good.fetch(ctx, k)
			},
		}
		for i := range 20 {
			go func() { _, _ = c.Token(t.Context(), fmt.Sprint("h", i)) }()
			go func() { _, _ = c.Token(t.Context(), fmt.Sprint("t", i)) }()
		}
		synctest.Wait()
		start := time.Now()
		get(t, c, "good")
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %s", took)
		}
		pass(time.Minute) // the fetches that hang end
	})
}

func TestAStormOfFailuresIsMetWithFewRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{err: errDown}
		c := &token.Cache[string]{Fetch: up.fetch, Judge: judge}
		for range 600 {
			_, err := c.Token(t.Context(), "a")
			if u := unavailable(t, err); u.RetryAfter < time.Second || u.RetryAfter > 10*time.Second {
				t.Errorf("got %v", u)
			}
			pass(100 * time.Millisecond)
		}
		if n := up.calls.Load(); n > 12 {
			t.Errorf("%d requests in a minute of 600 callers", n)
		}
		up.set(func(i *issuer) { i.err, i.lifetime = nil, time.Hour })
		pass(10 * time.Second)
		get(t, c, "a")
	})
}

func TestAPermanentErrorIsAnsweredAtOnceAndKeptBriefly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{err: errRefused}
		c := &token.Cache[string]{Fetch: up.fetch, Judge: judge, RefusedMax: 10 * time.Second}
		for range 600 {
			start := time.Now()
			if _, err := c.Token(t.Context(), "a"); !errors.Is(err, errRefused) || time.Since(start) != 0 {
				t.Fatalf("got %v after %s", err, time.Since(start))
			}
			pass(100 * time.Millisecond)
		}
		if n := up.calls.Load(); n < 6 || n > 9 {
			t.Errorf("%d requests in a minute, want one after 2, 4, 8 and then each 10 s", n)
		}
	})
}

func TestTheRateOfRequestsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour}
		c := &token.Cache[string]{Fetch: up.fetch, Rate: 20, Patience: time.Minute, Timeout: time.Minute}
		start := time.Now()
		var wg sync.WaitGroup
		for k := range 200 {
			wg.Go(func() { get(t, c, fmt.Sprint(k)) })
		}
		wg.Wait()
		if took := time.Since(start); took < 8*time.Second || took > 11*time.Second {
			t.Errorf("200 requests took %s, want some 9 s at 20 a second after a burst of 20", took)
		}
	})
}

func TestClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{time.Hour, -time.Hour, 30 * time.Minute, -30 * time.Minute} {
		t.Run(jump.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// The upstream says how long a token lives, as Entra does; the
				// real clock is the bubble's.
				var offset atomic.Int64
				now := func() time.Time { return time.Now().Round(0).Add(time.Duration(offset.Load())) }
				ends := map[string]time.Time{} // by the real clock
				calls := 0
				c := &token.Cache[string]{Now: now, Fetch: func(context.Context, string) (token.Token, error) {
					calls++
					name := fmt.Sprint(calls)
					ends[name] = time.Now().Add(time.Hour)
					return token.Token{AccessToken: name, ExpiresOn: now().Add(time.Hour)}, nil
				}}
				for minute := range 24 * 60 {
					switch minute {
					case 100:
						offset.Store(int64(jump))
					case 400:
						offset.Store(0)
					}
					got := get(t, c, "a")
					synctest.Wait()
					if !time.Now().Before(ends[got]) {
						t.Fatalf("minute %d: token %s ended at %s", minute, got, ends[got])
					}
					pass(time.Minute)
				}
				if calls > 24*2+4 {
					t.Errorf("%d requests in a day", calls)
				}
			})
		})
	}
}

func TestWhoAsksForEverNewKeysLeavesTheOthersTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour, took: 100 * time.Millisecond}
		c := &token.Cache[string]{Fetch: up.fetch, Group: func(k string) string { return k[:1] }, GroupMax: 8, Max: 64}
		if _, err := c.Token(t.Context(), "v-held"); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var flood sync.WaitGroup
		var crowded atomic.Int64
		for i := range 100 {
			flood.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					_, err := c.Token(ctx, fmt.Sprint("attacker-", i, "-", n))
					if _, ok := errors.AsType[*token.Unavailable](err); ok {
						crowded.Add(1)
						pass(10 * time.Millisecond)
					} else if err != nil && ctx.Err() == nil {
						t.Error(err)
					}
				}
			})
		}
		pass(time.Second)
		for _, k := range []string{"v-held", "v-new", "w-new"} {
			if _, err := c.Token(t.Context(), k); err != nil {
				t.Errorf("%s: %v", k, err)
			}
		}
		if n := c.Len(); n > 64 {
			t.Errorf("%d keys are kept", n)
		}
		stop()
		flood.Wait()
		if crowded.Load() == 0 {
			t.Error("the flood was never held back")
		}
		pass(time.Minute)
		if _, err := c.Token(t.Context(), "attacker-again"); err != nil {
			t.Errorf("after the flood: %v", err)
		}
	})
}

func TestAPauseOfAnHourIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &issuer{lifetime: time.Hour, err: errThrottled}
		c := &token.Cache[string]{Fetch: up.fetch, Judge: func(error) token.Failure { return token.Failure{RetryAfter: time.Hour, Everyone: true} }}
		for _, k := range []string{"a", "b"} { // b is not even asked for
			_, err := c.Token(t.Context(), k)
			if u := unavailable(t, err); u.RetryAfter > 2*time.Minute {
				t.Errorf("%s: retry after %s", k, u.RetryAfter)
			}
		}
		up.set(func(i *issuer) { i.err = nil })
		pass(2*time.Minute + time.Second)
		if _, err := c.Token(t.Context(), "a"); err != nil {
			t.Errorf("after two minutes: %v", err)
		}
	})
}

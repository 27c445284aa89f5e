package oidc

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// A fakeIssuer publishes keys over https; its fields may change under mu.
type fakeIssuer struct {
	*httptest.Server
	clock   *fakeClock
	client  *Client
	fetches atomic.Int32 // of discovery documents

	mu     sync.Mutex
	config func(c *Configuration)
	keys   []Key
	serve  http.HandlerFunc // instead of everything else
}

func newFakeIssuer(t *testing.T, keys ...Key) *fakeIssuer {
	t.Helper()
	i := &fakeIssuer{clock: &fakeClock{now: time.Unix(1700000000, 0)}, keys: keys}
	i.Server = httptest.NewTLSServer(http.HandlerFunc(i.handle))
	t.Cleanup(i.Close)
	i.client = &Client{HTTP: i.Client(), Now: i.clock.Now}
	return i
}

func (i *fakeIssuer) set(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

func (i *fakeIssuer) handle(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == ConfigurationPath {
		i.fetches.Add(1)
	}
	i.mu.Lock()
	serve, config, keys := i.serve, i.config, i.keys
	i.mu.Unlock()
	switch {
	case serve != nil:
		serve(w, r)
	case r.URL.Path == ConfigurationPath:
		c := Configuration{Issuer: i.URL, JWKSURI: i.URL + "/keys"}
		if config != nil {
			config(&c)
		}
		_ = json.NewEncoder(w).Encode(c)
	default:
		_ = json.NewEncoder(w).Encode(KeySet{Keys: keys})
	}
}

func TestKeysAreCachedAndRefetchedForUnknownIDsAtALimitedRate(t *testing.T) {
	a, b := newRSA(t), newRSA(t)
	i := newFakeIssuer(t, NewKey("a", &a.PublicKey))
	want := func(kid string, key *rsa.PublicKey, err error, fetches int32) {
		t.Helper()
		got, gotErr := i.client.Key(t.Context(), i.URL, kid)
		if !errors.Is(gotErr, err) || (key != nil) != (got != nil) || key != nil && !key.Equal(got) {
			t.Errorf("Key(%s) = %v, %v, want error %v", kid, got != nil, gotErr, err)
		}
		if n := i.fetches.Load(); n != fetches {
			t.Errorf("Key(%s): %d fetches, want %d", kid, n, fetches)
		}
	}
	want("a", &a.PublicKey, nil, 1)
	want("a", &a.PublicKey, nil, 1)
	i.set(func() { i.keys = append(i.keys, NewKey("b", &b.PublicKey)) })
	want("b", nil, ErrKeyNotFound, 1) // asked less than a minute ago
	i.clock.Advance(time.Minute)
	want("b", &b.PublicKey, nil, 2)
	for n := range 20 {
		want(fmt.Sprint("unknown", n), nil, ErrKeyNotFound, 2)
	}
	i.clock.Advance(time.Minute)
	want("unknown", nil, ErrKeyNotFound, 3)
	want("unknown", nil, ErrKeyNotFound, 3)
	// A broken issuer does not take away what is known, for a day.
	i.set(func() { i.serve = func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) } })
	i.clock.Advance(time.Minute)
	want("unknown", nil, ErrFetch, 4)
	want("unknown", nil, ErrFetch, 4)
	want("a", &a.PublicKey, nil, 4)
	i.clock.Advance(5 * time.Second)
	want("unknown", nil, ErrFetch, 5)
	i.clock.Advance(24 * time.Hour)
	want("a", nil, ErrFetch, 6)
	i.set(func() { i.serve, i.keys = nil, []Key{NewKey("b", &b.PublicKey)} })
	i.clock.Advance(5 * time.Second)
	want("b", &b.PublicKey, nil, 7)
	want("a", nil, ErrKeyNotFound, 7) // rolled away
}

func TestWhatTheClientDoesNotTrust(t *testing.T) {
	key := newRSA(t)
	redirect := func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }
	config := func(f func(c *Configuration)) func(*fakeIssuer) {
		return func(i *fakeIssuer) { i.config = f }
	}
	serve := func(f http.HandlerFunc) func(*fakeIssuer) { return func(i *fakeIssuer) { i.serve = f } }
	for name, tt := range map[string]struct {
		damage func(*fakeIssuer)
		want   error
	}{
		"nothing is wrong":             {func(*fakeIssuer) {}, nil},
		"a document of another issuer": {config(func(c *Configuration) { c.Issuer += "/" }), ErrFetch},
		"keys by http":                 {config(func(c *Configuration) { c.JWKSURI = strings.Replace(c.JWKSURI, "https", "http", 1) }), ErrFetch},
		"no jwks_uri":                  {config(func(c *Configuration) { c.JWKSURI = "" }), ErrFetch},
		"keys in a file":               {config(func(c *Configuration) { c.JWKSURI = "file:///etc/passwd" }), ErrFetch},
		"a redirect":                   {serve(redirect), ErrFetch},
		"an answer that is no JSON":    {serve(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }), ErrFetch},
		"a document that is too large": {serve(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"issuer":%q}`, strings.Repeat("x", 2<<20))
		}), ErrFetch},
		"a key of 1024 bits":                         {func(i *fakeIssuer) { i.keys[0].N = i.keys[0].N[:171] }, ErrKeyNotFound},
		"a key with exponent 1":                      {func(i *fakeIssuer) { i.keys[0].E = "AQ" }, ErrKeyNotFound},
		"a key with a giant exponent":                {func(i *fakeIssuer) { i.keys[0].E = strings.Repeat("A", 1000) + "AQAB" + strings.Repeat("B", 1000) }, ErrKeyNotFound},
		"a giant key":                                {func(i *fakeIssuer) { i.keys[0].N = strings.Repeat(i.keys[0].N, 5) }, ErrKeyNotFound},
		"a key for encryption":                       {func(i *fakeIssuer) { i.keys[0].Use = "enc" }, ErrKeyNotFound},
		"a key for another algorithm":                {func(i *fakeIssuer) { i.keys[0].Algorithm = "RS512" }, ErrKeyNotFound},
		"a symmetric key":                            {func(i *fakeIssuer) { i.keys[0].Type = "oct" }, ErrKeyNotFound},
		"a key without use, algorithm RS256":         {func(i *fakeIssuer) { i.keys[0].Use, i.keys[0].Algorithm = "", RS256 }, nil},
		"the key is the 101st":                       {func(i *fakeIssuer) { i.keys = append(make([]Key, 100), i.keys...) }, ErrKeyNotFound},
		"the key is the 100th":                       {func(i *fakeIssuer) { i.keys = append(make([]Key, 99), i.keys...) }, nil},
		"another type of key beside it":              {func(i *fakeIssuer) { i.keys = append([]Key{{Type: "EC", ID: "ec"}}, i.keys...) }, nil},
		"of two keys with one id the first one wins": {func(i *fakeIssuer) { i.keys = append(i.keys, NewKey("a", &newRSA(t).PublicKey)) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			i := newFakeIssuer(t, NewKey("a", &key.PublicKey))
			tt.damage(i)
			got, err := i.client.Key(t.Context(), i.URL, "a")
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Fatalf("Key: %v, want %v", err, tt.want)
			}
			if err == nil && !key.PublicKey.Equal(got) {
				t.Error("another key")
			}
		})
	}
	for _, issuer := range []string{"http://oidc.example", "", "oidc.example", "https://", "https://u@oidc.example", "https://oidc.example/?x=1", "https://oidc.example/#", "https://oidc.example/?", "file:///x"} {
		if _, err := new(Client).Key(t.Context(), issuer, "a"); !errors.Is(err, ErrFetch) || ValidIssuer(issuer) {
			t.Errorf("issuer %q: %v, want ErrFetch", issuer, err)
		}
	}
}

func TestManyWaitForOneFetchAndOneMayGiveUp(t *testing.T) {
	key := newRSA(t)
	i := newFakeIssuer(t, NewKey("a", &key.PublicKey))
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	i.config = func(*Configuration) {
		once.Do(func() { close(entered) })
		<-release
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := i.client.Key(ctx, i.URL, "a")
		first <- err
	}()
	<-entered
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := i.client.Key(t.Context(), i.URL, "a"); err != nil {
				t.Error(err)
			}
		})
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up: %v", err)
	}
	close(release)
	wg.Wait()
	if n := i.fetches.Load(); n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
}

func TestTheCacheIsBounded(t *testing.T) {
	i := newFakeIssuer(t)
	for n := range maxIssuers + 10 {
		i.client.store(fmt.Sprintf("https://%d.example", n), nil, ErrFetch)
		i.clock.Advance(time.Millisecond)
	}
	if n := len(i.client.issuers); n != maxIssuers {
		t.Errorf("%d issuers in the cache, want %d", n, maxIssuers)
	}
	if _, ok := i.client.issuers["https://0.example"]; ok {
		t.Error("the oldest issuer is still there")
	}
}

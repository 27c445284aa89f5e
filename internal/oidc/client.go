package oidc

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// Why Client.Key has no key to give.
var (
	// ErrKeyNotFound: the issuer's documents are there, the key is not.
	ErrKeyNotFound = errors.New("issuer has no such key")
	// ErrFetch: the issuer's documents cannot be had or read.
	ErrFetch = errors.New("fetching the issuer's keys failed")
)

const (
	maxKeys        = 100 // Entra reads no more of a key set
	maxDocument    = 1 << 20
	maxIssuers     = 1000
	fetchTimeout   = 10 * time.Second
	defaultMaxAge  = 24 * time.Hour
	defaultRefetch = time.Minute
	defaultRetry   = 5 * time.Second
)

// A Client finds the public keys of issuers and remembers them. The zero
// value is ready; a Client must not be copied. Only https is spoken and
// redirects are not followed, so an issuer cannot send it elsewhere but by
// its jwks_uri.
type Client struct {
	HTTP *http.Client     // nil means http.DefaultClient
	Now  func() time.Time // nil means time.Now

	// MaxAge is how long a key set is used before it is fetched again;
	// 0 means 24 hours.
	MaxAge time.Duration
	// Refetch is the least time between two fetches for the sake of an
	// unknown key id, per issuer; 0 means one minute.
	Refetch time.Duration
	// Retry is the least time between two fetches that failed, per issuer;
	// 0 means five seconds.
	Retry time.Duration

	mu      sync.Mutex
	issuers map[string]*issuerKeys
	group   singleflight.Group
}

// issuerKeys is the last result for one issuer.
type issuerKeys struct {
	keys    map[string]*rsa.PublicKey
	fetched time.Time // of keys
	err     error     // of the last try, nil if it succeeded
	tried   time.Time
}

// Key returns the key with id kid of an issuer, from memory if it can. The
// issuer must be one that somebody decided to trust: the client contacts
// it. Errors wrap ErrKeyNotFound or ErrFetch, or are the context's.
func (c *Client) Key(ctx context.Context, issuer, kid string) (*rsa.PublicKey, error) {
	if !ValidIssuer(issuer) {
		return nil, fmt.Errorf("%w: issuer %.200q is not an https URL", ErrFetch, issuer)
	}
	if key, err, done := c.cached(issuer, kid); done {
		return key, err
	}
	// One fetch serves all who wait; one of them giving up does not end it.
	ch := c.group.DoChan(issuer, func() (any, error) {
		if c.isFresh(issuer, kid) {
			return nil, nil // another fetch has just ended
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()
		keys, err := c.fetch(ctx, issuer)
		c.store(issuer, keys, err)
		return nil, nil
	})
	select {
	case <-ch:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	key, err, done := c.cached(issuer, kid)
	if !done {
		return nil, fmt.Errorf("%w: %s was dropped from the cache meanwhile", ErrFetch, issuer)
	}
	return key, err
}

// cached answers from memory; done is false if a fetch is due.
func (c *Client) cached(issuer, kid string) (key *rsa.PublicKey, err error, done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.issuers[issuer]
	if !ok {
		return nil, nil, false
	}
	now := c.now()
	fresh := e.keys != nil && now.Sub(e.fetched) < orDefault(c.MaxAge, defaultMaxAge)
	if key, ok := e.keys[kid]; ok && fresh {
		return key, nil, true
	}
	switch {
	case e.err != nil && now.Sub(e.tried) < orDefault(c.Retry, defaultRetry):
		return nil, e.err, true
	case e.err == nil && now.Sub(e.fetched) < orDefault(c.Refetch, defaultRefetch):
		return nil, fmt.Errorf("%w: key %.100q of %s", ErrKeyNotFound, kid, issuer), true
	}
	return nil, nil, false
}

func (c *Client) isFresh(issuer, kid string) bool {
	_, _, done := c.cached(issuer, kid)
	return done
}

func (c *Client) store(issuer string, keys map[string]*rsa.PublicKey, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.issuers == nil {
		c.issuers = map[string]*issuerKeys{}
	}
	e, ok := c.issuers[issuer]
	if !ok {
		c.evict()
		e = &issuerKeys{}
		c.issuers[issuer] = e
	}
	e.tried, e.err = c.now(), err
	if err == nil {
		e.keys, e.fetched = keys, e.tried
	}
}

// evict makes room for one more issuer: the one tried longest ago goes.
func (c *Client) evict() {
	if len(c.issuers) < maxIssuers {
		return
	}
	oldest := ""
	for issuer, e := range c.issuers {
		if oldest == "" || e.tried.Before(c.issuers[oldest].tried) {
			oldest = issuer
		}
	}
	delete(c.issuers, oldest)
}

func (c *Client) fetch(ctx context.Context, issuer string) (map[string]*rsa.PublicKey, error) {
	var conf Configuration
	if err := c.get(ctx, ConfigurationURL(issuer), &conf); err != nil {
		return nil, err
	}
	// OpenID Connect Discovery 1.0, section 4.3.
	if conf.Issuer != issuer {
		return nil, fmt.Errorf("%w: %s says its issuer is %.200q, want %q", ErrFetch, ConfigurationURL(issuer), conf.Issuer, issuer)
	}
	if u, err := url.Parse(conf.JWKSURI); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%w: jwks_uri %.200q of %s is not an https URL", ErrFetch, conf.JWKSURI, issuer)
	}
	var set KeySet
	if err := c.get(ctx, conf.JWKSURI, &set); err != nil {
		return nil, err
	}
	keys := map[string]*rsa.PublicKey{}
	for _, k := range set.Keys[:min(len(set.Keys), maxKeys)] {
		if k.ID == "" || k.Algorithm != "" && k.Algorithm != RS256 {
			continue
		}
		if _, dup := keys[k.ID]; dup {
			continue
		}
		if pub, err := k.RSA(); err == nil {
			keys[k.ID] = pub
		}
	}
	return keys, nil
}

func (c *Client) get(ctx context.Context, address string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFetch, err)
	}
	req.Header.Set("Accept", "application/json")
	client := http.Client{}
	if c.HTTP != nil {
		client = *c.HTTP
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFetch, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: GET %s: status %d", ErrFetch, address, resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return fmt.Errorf("%w: GET %s: %w", ErrFetch, address, err)
	}
	if len(body) > maxDocument {
		return fmt.Errorf("%w: GET %s: more than %d bytes", ErrFetch, address, maxDocument)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: GET %s: %w", ErrFetch, address, err)
	}
	return nil
}

func (c *Client) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

package nmi

import (
	"math"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/lanyard-id/lanyard/internal/imds"
)

// maxCallers bounds what Limits remembers.
const maxCallers = 4096

// unknownShare is how many times one pod's share all unknown addresses have
// together.
const unknownShare = 8

// Limits keeps one pod from taking the agent from the others. A pod is known by
// its UID; an address that is no pod's counts for itself, and together with all
// others of that kind.
type Limits struct {
	Inflight int     // requests of one pod at a time; zero means without limit
	Rate     float64 // requests of one pod a second, twice as many at once; zero means without limit

	mu      sync.Mutex
	callers map[any]*share // by UID (string) or address
	unknown *share
}

// A share is what one caller uses. Limits.mu guards it.
type share struct {
	inflight int
	limiter  *rate.Limiter // nil: none
	last     time.Time
}

// enter takes part of the caller's share until the returned function is
// called. The error is an *imds.Error.
func (l *Limits) enter(uid string, ip netip.Addr, now time.Time) (func(), error) {
	if l == nil || l.Inflight <= 0 && l.Rate <= 0 {
		return func() {}, nil
	}
	var key any = uid
	if uid == "" {
		key = ip
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	own := l.callers[key]
	if own == nil {
		if !l.room(now) {
			return nil, l.tooMany(time.Second)
		}
		own = l.newShare(1)
		l.callers[key] = own
	}
	own.last = now
	shares := [2]*share{own}
	if uid == "" {
		if l.unknown == nil {
			l.unknown = l.newShare(unknownShare)
		}
		shares[1] = l.unknown
	}
	for i, s := range shares {
		if s == nil {
			continue
		}
		limit := l.Inflight
		if i == 1 {
			limit *= unknownShare
		}
		if limit > 0 && s.inflight >= limit {
			return nil, l.tooMany(time.Second)
		}
		if s.limiter != nil && !s.limiter.AllowN(now, 1) {
			return nil, l.tooMany(time.Duration(math.Ceil(1/l.Rate)) * time.Second)
		}
	}
	for _, s := range shares {
		if s != nil {
			s.inflight++
		}
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, s := range shares {
			if s != nil {
				s.inflight--
			}
		}
	}, nil
}

func (l *Limits) newShare(times int) *share {
	s := &share{}
	if l.Rate > 0 {
		r := l.Rate * float64(times)
		s.limiter = rate.NewLimiter(rate.Limit(r), max(1, int(2*r)))
	}
	return s
}

// idle is how long a caller is remembered after its last request: until its
// share is whole again.
const idle = 10 * time.Second

// room makes room for one more caller.
func (l *Limits) room(now time.Time) bool {
	if l.callers == nil {
		l.callers = map[any]*share{}
	}
	if len(l.callers) < maxCallers {
		return true
	}
	for k, s := range l.callers {
		if s.inflight == 0 && now.Sub(s.last) > idle {
			delete(l.callers, k)
		}
	}
	return len(l.callers) < maxCallers
}

func (l *Limits) tooMany(after time.Duration) error {
	return &imds.Error{Status: http.StatusTooManyRequests, Code: "too_many_requests", Description: "this pod asks too often or too much at a time (see --pod-qps and --pod-max-inflight of the node agent)", RetryAfter: after}
}

// How many connections one address may have open: each takes memory before
// anything is asked by it. Behind the loopback address are all of the node's
// drivers.
const (
	maxConnections         = 128
	maxLoopbackConnections = 1024
)

// connections counts those of a server.
type connections struct {
	mu   sync.Mutex
	open map[netip.Addr]int
}

// follow is an http.Server.ConnState: it closes those that are too many.
func (c *connections) follow(conn net.Conn, state http.ConnState) {
	if state != http.StateNew && state != http.StateClosed && state != http.StateHijacked {
		return
	}
	peer, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return
	}
	ip, most := peer.Addr().Unmap(), maxConnections
	if ip.IsLoopback() {
		most = maxLoopbackConnections
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if state != http.StateNew {
		if c.open[ip]--; c.open[ip] <= 0 {
			delete(c.open, ip)
		}
		return
	}
	if c.open == nil {
		c.open = map[netip.Addr]int{}
	}
	if c.open[ip]++; c.open[ip] > most {
		conn.Close()
	}
}

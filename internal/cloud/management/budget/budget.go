// Package budget counts the requests of Resource Manager's callers: so many reads, writes and deletions an hour for each
// principal, in one subscription or, outside of them, in the tenant.
package budget

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// window is the time for which a budget is.
const window = time.Hour

// The hourly budgets of one principal, in one subscription or, outside of them, in the tenant.
// Source: https://learn.microsoft.com/azure/azure-resource-manager/management/request-limits-and-throttling
const (
	readsPerHour   = 12000
	writesPerHour  = 1200
	deletesPerHour = 15000
)

// maxBudgets bounds what is remembered, since callers choose what the path says.
const maxBudgets = 10000

// A Left is what one kind of request has left.
type Left struct {
	Scope string // subscription or tenant
	Kind  string // reads, writes or deletes
	N     int
}

func kindOf(method string) (kind string, limit int) {
	switch method {
	case http.MethodGet, http.MethodHead:
		return "reads", readsPerHour
	case http.MethodDelete:
		return "deletes", deletesPerHour
	}
	return "writes", writesPerHour
}

// Unused is the budget of somebody who is not known yet.
func Unused(method string) Left {
	kind, limit := kindOf(method)
	return Left{"subscription", kind, limit - 1}
}

// Write sets the headers that tell a client.
func (l Left) Write(h http.Header) {
	h.Set("x-ms-ratelimit-remaining-"+l.Scope+"-"+l.Kind, strconv.Itoa(l.N))
	if l.Kind != "reads" || l.Scope != "subscription" { // guard reads a missing header as 0 and closes its connections
		h.Set("x-ms-ratelimit-remaining-subscription-reads", strconv.Itoa(readsPerHour-1))
	}
}

// Exhausted is why a request is refused.
type Exhausted struct {
	Scope, ID string // subscription or tenant, and which
	Kind      string
	Limit     int
	Wait      int // seconds
}

// Budgets counts requests by principal, scope and kind. The zero value has seen none.
type Budgets struct {
	mu   sync.Mutex
	used map[string]usage
}

type usage struct {
	start time.Time
	n     int
}

// Spend counts a request; the second result is not nil if the budget is used up. Unless limited, nobody is refused: then
// one request always seems to be left.
func (b *Budgets) Spend(principalID, tenantID, method, path string, now time.Time, limited bool) (Left, *Exhausted) {
	kind, limit := kindOf(method)
	left, scope := Left{Scope: "tenant", Kind: kind}, tenantID
	if segments := strings.SplitN(path, "/", 4); len(segments) > 2 && strings.EqualFold(segments[1], "subscriptions") {
		left.Scope, scope = "subscription", azure.Fold(segments[2])
	}
	key := principalID + "|" + scope + "|" + kind
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.used[key]
	if now.Sub(u.start) >= window || now.Before(u.start) {
		u = usage{start: now}
	}
	if u.n >= limit && limited {
		wait := int(math.Ceil((window - now.Sub(u.start)).Seconds()))
		return left, &Exhausted{Scope: left.Scope, ID: scope, Kind: kind, Limit: limit, Wait: wait}
	}
	if u.n < limit {
		u.n++
	}
	if b.used == nil || len(b.used) >= maxBudgets {
		b.used = map[string]usage{}
	}
	b.used[key] = u
	if left.N = limit - u.n; left.N == 0 && !limited {
		left.N = 1
	}
	return left, nil
}

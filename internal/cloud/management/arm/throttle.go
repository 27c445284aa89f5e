package arm

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/login"
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

// A budget is what one kind of request has left.
type budget struct {
	scope string // subscription or tenant
	kind  string // reads, writes or deletes
	left  int
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

// unused is the budget of somebody who is not known yet.
func unused(method string) budget {
	kind, limit := kindOf(method)
	return budget{"subscription", kind, limit - 1}
}

func (b budget) write(h http.Header) {
	h.Set("x-ms-ratelimit-remaining-"+b.scope+"-"+b.kind, strconv.Itoa(b.left))
	if b.kind != "reads" || b.scope != "subscription" { // guard reads a missing header as 0 and closes its connections
		h.Set("x-ms-ratelimit-remaining-subscription-reads", strconv.Itoa(readsPerHour-1))
	}
}

// budgets counts requests by principal, scope and kind.
type budgets struct {
	mu   sync.Mutex
	used map[string]usage
}

type usage struct {
	start time.Time
	n     int
}

// spend counts a request. Without Limits nobody is refused: then the last request of the budget is never used up.
func (s *Server) spend(caller login.Claims, method, path string) (budget, error) {
	kind, limit := kindOf(method)
	b, scope := budget{scope: "tenant", kind: kind}, caller.TenantID
	if segments := strings.SplitN(path, "/", 4); len(segments) > 2 && strings.EqualFold(segments[1], "subscriptions") {
		b.scope, scope = "subscription", azure.Fold(segments[2])
	}
	now, key := s.now(), caller.ObjectID+"|"+scope+"|"+kind
	s.budgets.mu.Lock()
	defer s.budgets.mu.Unlock()
	u := s.budgets.used[key]
	if now.Sub(u.start) >= window || now.Before(u.start) {
		u = usage{start: now}
	}
	limited := s.Limits != nil && s.Limits()
	if u.n >= limit && limited {
		wait := int(math.Ceil(window.Seconds() - now.Sub(u.start).Seconds()))
		e := Fault(http.StatusTooManyRequests, "SubscriptionRequestsThrottled",
			"Number of requests for subscription '%s' and operation '%s' exceeded the limit of '%d' for time interval '01:00:00'. Please try again after '%d' seconds.", scope, kind, limit, wait)
		if b.scope == "tenant" {
			e.Code, e.Message = "TenantRequestsThrottled", fmt.Sprintf("Number of requests for tenant '%s' and operation '%s' exceeded the limit of '%d' for time interval '01:00:00'. Please try again after '%d' seconds.", scope, kind, limit, wait)
		}
		e.Header = http.Header{"Retry-After": {strconv.Itoa(wait)}}
		return b, e
	}
	if u.n < limit {
		u.n++
	}
	if s.budgets.used == nil || len(s.budgets.used) >= maxBudgets {
		s.budgets.used = map[string]usage{}
	}
	s.budgets.used[key] = u
	if b.left = limit - u.n; b.left == 0 && !limited {
		b.left = 1
	}
	return b, nil
}

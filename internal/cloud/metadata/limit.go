package metadata

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/imds"
)

// longestUpdate is how long the token endpoint answers 410 at most.
// Source: https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
const longestUpdate = 70 * time.Second

// A category of requests has limits of its own, for each machine.
// Source: https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service#rate-limiting
type category struct {
	name       string
	perSecond  int
	concurrent int // 0 means no limit
}

func identityCategory() category { return category{"identity", 20, 5} }
func instanceCategory() category { return category{"instance", 5, 0} }

// limits counts the requests of machines. The zero value has seen none.
type limits struct {
	mu       sync.Mutex
	machines map[string]*load // by category and folded id
}

// load is what a machine has asked lately: a bucket of tokens that fills with time.
type load struct {
	left    float64
	at      time.Time
	running int
}

// enter counts a request, or refuses it. leave must be called when it ends. Time is real here: a clock that stands still
// must not stop a machine.
func (s *Server) enter(machineID string, c category) (leave func(), err error) {
	if s.Limits == nil || !s.Limits() {
		return func() {}, nil
	}
	l, now := &s.limits, time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	key := c.name + "|" + azure.Fold(machineID)
	m := l.machines[key]
	if m == nil {
		m = &load{left: float64(c.perSecond), at: now}
		if l.machines == nil {
			l.machines = map[string]*load{}
		}
		l.machines[key] = m
	}
	m.left = min(float64(c.perSecond), m.left+now.Sub(m.at).Seconds()*float64(c.perSecond))
	m.at = now
	if m.left < 1 || c.concurrent > 0 && m.running >= c.concurrent {
		return nil, &imds.Error{Status: http.StatusTooManyRequests, Code: "too_many_requests", Description: "Too many requests", Err: errors.New("the limit of " + c.name + " requests")}
	}
	m.left--
	m.running++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		m.running--
	}, nil
}

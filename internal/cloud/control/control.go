// Package control is what the owner of a local cloud does to it while it runs: faults, its clock, its request log, its
// settings.
//
//	lanyard cloud fault|clock|log|settings -> Client -> STATE/control.sock -> Server
//
// The door is a Unix socket in the cloud's state directory and nothing else: no host name, no port and no token leads
// to it, so nothing that reaches the cloud over a network (pods above all) can reach it, and no fault that is in force
// can lock its owner out. The socket has mode 0600, and whoever connects must be root or the user whom the cloud runs
// as (SO_PEERCRED).
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
)

// Settings are how honest the cloud is about time and limits. The zero value is quick: every change is made at once,
// and nobody is throttled.
type Settings struct {
	// OperationDuration is how long a change to a virtual machine or scale set takes. 0 means that requests are
	// answered when the change is made; otherwise with an asynchronous operation.
	OperationDuration fault.Duration `json:"operationDuration"`
	// OperationRetryAfter is the Retry-After of such an operation; 0 means one second.
	OperationRetryAfter fault.Duration `json:"operationRetryAfter"`
	// IdentitiesPerPatch and IdentitiesPerMachine bound user-assigned identities; 0 means no limit.
	IdentitiesPerPatch   int `json:"identitiesPerPatch"`
	IdentitiesPerMachine int `json:"identitiesPerMachine"`
	// Limits turns on Azure's published limits: Resource Manager's hourly budgets, the metadata service's 20 requests a
	// second and 5 at a time for tokens, 5 a second for the instance document.
	Limits bool `json:"limits"`
	// MetadataUpdates makes the token endpoint of a machine answer 410 while Resource Manager changes the machine, for at
	// most 70 seconds.
	MetadataUpdates bool `json:"metadataUpdates"`

	// FederatedPropagation is how long it takes until a new, changed or deleted federated credential counts at the token
	// endpoint. A request that comes too early is remembered for FederatedCache: what it saw stays so long.
	FederatedPropagation fault.Duration `json:"federatedPropagation"`
	FederatedCache       fault.Duration `json:"federatedCache"`
	// FederatedWrite is how long Resource Manager takes to write a federated credential; another write to the same
	// identity meanwhile is refused with 409.
	FederatedWrite fault.Duration `json:"federatedWrite"`
	// JWKSRefetch is the least time between two fetches of an issuer's keys for the sake of an unknown key id; 0 means one
	// minute, less than 100 ms means 100 ms.
	JWKSRefetch fault.Duration `json:"jwksRefetch"`
}

// Realistic are the settings nearest to Azure.
func Realistic() Settings {
	return Settings{OperationDuration: fault.Duration(2 * time.Second), OperationRetryAfter: fault.Duration(time.Second),
		IdentitiesPerPatch: 150, Limits: true, MetadataUpdates: true,
		FederatedPropagation: fault.Duration(10 * time.Second), FederatedCache: fault.Duration(time.Minute), FederatedWrite: fault.Duration(500 * time.Millisecond)}
}

func (s Settings) validate() error {
	if s.IdentitiesPerPatch < 0 || s.IdentitiesPerMachine < 0 ||
		min(s.OperationDuration, s.OperationRetryAfter, s.FederatedPropagation, s.FederatedCache, s.FederatedWrite, s.JWKSRefetch) < 0 {
		return errors.New("a setting is negative")
	}
	return nil
}

// A Clock is the cloud's time: a base, shifted or standing still. Its methods may be called concurrently.
type Clock struct {
	Base func() time.Time // nil means time.Now

	mu     sync.Mutex
	offset time.Duration
	frozen time.Time // zero: it goes
}

// ClockState is what a clock shows.
type ClockState struct {
	Now    time.Time      `json:"now"`
	Offset fault.Duration `json:"offset"` // from the real time
	Frozen bool           `json:"frozen"`
}

func (c *Clock) base() time.Time {
	if c.Base != nil {
		return c.Base()
	}
	return time.Now()
}

// Now is the cloud's time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now()
}

func (c *Clock) now() time.Time {
	if !c.frozen.IsZero() {
		return c.frozen.Add(c.offset)
	}
	return c.base().Add(c.offset)
}

// Shift moves the clock by d from where it is, forward or back.
func (c *Clock) Shift(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// Freeze lets the clock stand still, or go on from where it stands.
func (c *Clock) Freeze(stop bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case stop && c.frozen.IsZero():
		c.frozen = c.base()
	case !stop && !c.frozen.IsZero():
		c.offset += c.frozen.Sub(c.base())
		c.frozen = time.Time{}
	}
}

// Reset makes it the real time again.
func (c *Clock) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset, c.frozen = 0, time.Time{}
}

// State reads the clock.
func (c *Clock) State() ClockState {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	return ClockState{Now: now.UTC().Round(0), Offset: fault.Duration(now.Sub(c.base()).Round(time.Millisecond)), Frozen: !c.frozen.IsZero()}
}

// A Server answers at the door. All fields must be set.
type Server struct {
	Faults      *fault.Set
	Clock       *Clock
	Journal     *journal.Journal
	Settings    func() Settings
	SetSettings func(Settings)
}

// clockChange is the body of a POST to /clock.
type clockChange struct {
	Reset  bool           `json:"reset,omitempty"`
	Shift  fault.Duration `json:"shift,omitempty"`
	Freeze *bool          `json:"freeze,omitempty"`
}

// Handler serves the door.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.Faults.List()) })
	mux.HandleFunc("POST /faults", func(w http.ResponseWriter, r *http.Request) {
		var rule fault.Rule
		if !read(w, r, &rule) {
			return
		}
		rule, err := s.Faults.Add(rule)
		replyOr(w, rule, err)
	})
	mux.HandleFunc("DELETE /faults", func(w http.ResponseWriter, r *http.Request) {
		n, err := s.Faults.Clear(r.URL.Query()["id"]...)
		replyOr(w, map[string]int{"cleared": n}, err)
	})
	mux.HandleFunc("GET /clock", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.Clock.State()) })
	mux.HandleFunc("POST /clock", func(w http.ResponseWriter, r *http.Request) {
		var c clockChange
		if !read(w, r, &c) {
			return
		}
		if c.Reset {
			s.Clock.Reset()
		}
		if c.Freeze != nil {
			s.Clock.Freeze(*c.Freeze)
		}
		s.Clock.Shift(time.Duration(c.Shift))
		reply(w, s.Clock.State())
	})
	mux.HandleFunc("GET /settings", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.Settings()) })
	mux.HandleFunc("PUT /settings", func(w http.ResponseWriter, r *http.Request) {
		var v Settings
		if !read(w, r, &v) {
			return
		}
		err := v.validate()
		if err == nil {
			s.SetSettings(v)
		}
		replyOr(w, v, err)
	})
	mux.HandleFunc("GET /log", s.serveLog)
	return mux
}

// serveLog writes one entry a line, and goes on until the client leaves if it says follow.
func (s *Server) serveLog(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.URL.Query().Get("tail"))
	if err != nil {
		n = -1
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	send := func(entries []journal.Entry) error {
		for _, e := range entries {
			if err := enc.Encode(e); err != nil {
				return err
			}
		}
		return http.NewResponseController(w).Flush()
	}
	if !r.URL.Query().Has("follow") {
		_ = send(s.Journal.Tail(n)) // the client is gone: nobody is left to tell
		return
	}
	if n < 0 {
		n = 10
	}
	if send(nil) == nil {
		_ = s.Journal.Follow(r.Context(), n, send) // it ends when the client leaves
	}
}

const maxBody = 1 << 20

func read(w http.ResponseWriter, r *http.Request, v any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		http.Error(w, fmt.Sprintf("the request is not understood: %v", err), http.StatusBadRequest)
		return false
	}
	return true
}

func replyOr(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	reply(w, v)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody is left to tell
}

// Package fault makes the local cloud fail on demand: rules that say which requests, how, and for how long.
//
//	request -> Set.Wrap -> the first rule that matches (method, host, path, machine; count and time not used up)
//	   latency                wait, then go on
//	   status, body           answer instead of the host
//	   hang                   never answer; the connection ends when the client leaves or the rule ends
//	   drop                   end the connection
//	   operation              let the asynchronous operation that the request starts last longer, or fail
//
// A rule that says only latency or operation lets the request through. Rules are tried in the order in which they were
// added and are not kept: a cloud that starts has none.
package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Rule says which requests fail and how. Empty members of the first group match everything.
type Rule struct {
	ID string `json:"id"` // given by Set.Add

	Method string `json:"method,omitempty"`
	// Host is a pattern for the host, without port: * is any text without a dot. The metadata service of machines has
	// the host 169.254.169.254.
	Host string `json:"host,omitempty"`
	// Path is a pattern for the path, without case: * is any text without a slash, ** any text.
	Path string `json:"path,omitempty"`
	// Machine is a pattern, as Path, for the ARM id of the machine whose metadata service is asked.
	Machine string `json:"machine,omitempty"`

	Status     int      `json:"status,omitempty"`     // 400 to 599; 0 lets the request through
	Body       string   `json:"body,omitempty"`       // of the answer; "" means an error in the host's form
	RetryAfter Duration `json:"retryAfter,omitempty"` // header of the answer, rounded up to seconds
	Latency    Duration `json:"latency,omitempty"`
	Hang       bool     `json:"hang,omitempty"`
	Drop       bool     `json:"drop,omitempty"`

	Operation *Operation `json:"operation,omitempty"`

	Count int      `json:"count,omitempty"` // how many requests it meets; 0 means all
	For   Duration `json:"for,omitempty"`   // how long it lasts, by the real clock; 0 means until it is cleared

	Hits int `json:"hits"` // how many requests it has met; set by the Set
}

// An Operation is how an asynchronous operation goes.
type Operation struct {
	Duration Duration `json:"duration,omitempty"` // 0 means as the cloud is set
	Code     string   `json:"code,omitempty"`     // not "": it ends as Failed, with this code
	Message  string   `json:"message,omitempty"`
}

// Duration is a time.Duration that JSON holds as text such as "1.5s".
type Duration time.Duration

// MarshalText writes "1.5s".
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads it.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// ErrRule wraps what is wrong with a rule.
var ErrRule = errors.New("invalid fault")

// Validate says what is wrong with a rule; the error is ErrRule.
func (r Rule) Validate() error {
	bad := func(text string) error { return fmt.Errorf("%w: %s", ErrRule, text) }
	ways := 0
	for _, way := range []bool{r.Status != 0, r.Hang, r.Drop} {
		if way {
			ways++
		}
	}
	switch {
	case ways > 1:
		return bad("status, hang and drop exclude each other")
	case ways == 0 && r.Latency == 0 && r.Operation == nil:
		return bad("it does nothing: set a status, latency, hang, drop or operation")
	case r.Status != 0 && (r.Status < 400 || r.Status > 599):
		return bad(fmt.Sprintf("status %d is not one of 400 to 599", r.Status))
	case r.Status == 0 && (r.Body != "" || r.RetryAfter != 0):
		return bad("a body and Retry-After need a status")
	case r.Latency < 0 || r.RetryAfter < 0 || r.For < 0 || r.Count < 0:
		return bad("a number is negative")
	case r.Operation != nil && (r.Operation.Duration < 0 || *r.Operation == Operation{}):
		return bad("an operation needs a duration or an error code")
	}
	return nil
}

// pattern compiles a glob: * stops at separators, ** does not.
func pattern(glob string, separator byte) *regexp.Regexp {
	if glob == "" {
		return nil
	}
	var b strings.Builder
	b.WriteString("(?is)^")
	for i := 0; i < len(glob); i++ {
		switch {
		case glob[i] != '*':
			b.WriteString(regexp.QuoteMeta(glob[i : i+1]))
		case i+1 < len(glob) && glob[i+1] == '*':
			b.WriteString(".*")
			i++
		default:
			b.WriteString("[^" + regexp.QuoteMeta(string(separator)) + "]*")
		}
	}
	b.WriteString("$")
	return regexp.MustCompile(b.String())
}

// A Set is the rules in force. The zero value has none; it may be used concurrently.
type Set struct {
	// OnHit, unless nil, is told that a rule met a request, in the goroutine that serves it.
	OnHit func(r *http.Request, id string)

	mu    sync.Mutex
	rules []*active
	next  int
}

type active struct {
	Rule
	host, path, machine *regexp.Regexp
	ends                time.Time     // zero: never
	gone                chan struct{} // closed when it is cleared
}

// Add puts a rule in force, behind those that are there, and returns it with its id.
func (s *Set) Add(r Rule) (Rule, error) {
	if err := r.Validate(); err != nil {
		return Rule{}, err
	}
	a := &active{host: pattern(r.Host, '.'), path: pattern(r.Path, '/'), machine: pattern(r.Machine, '/'), gone: make(chan struct{})}
	if r.For > 0 {
		a.ends = time.Now().Add(time.Duration(r.For))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	r.ID, r.Hits = strconv.Itoa(s.next), 0
	a.Rule = r
	s.rules = append(s.rules, a)
	return r, nil
}

// List returns the rules that can still meet a request, in order.
func (s *Set) List() []Rule {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	rules := []Rule{}
	for _, a := range s.rules {
		if a.Count == 0 || a.Hits < a.Count {
			rules = append(rules, a.Rule)
		}
	}
	return rules
}

// Clear ends rules by id, or all if no id is given, and lets go of the requests that hang on them. It returns how many
// there were; an id that there is not is an error, and nothing is cleared.
func (s *Set) Clear(ids ...string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	for _, id := range ids {
		if !slices.ContainsFunc(s.rules, func(a *active) bool { return a.ID == id }) {
			return 0, fmt.Errorf("%w: there is no fault %q", ErrRule, id)
		}
	}
	before := len(s.rules)
	s.rules = slices.DeleteFunc(s.rules, func(a *active) bool {
		gone := len(ids) == 0 || slices.Contains(ids, a.ID)
		if gone {
			close(a.gone)
		}
		return gone
	})
	return before - len(s.rules), nil
}

// expire forgets rules whose time is over. A rule whose count is used up stays, for the requests that hang on it.
func (s *Set) expire() {
	now := time.Now()
	s.rules = slices.DeleteFunc(s.rules, func(a *active) bool {
		over := !a.ends.IsZero() && !now.Before(a.ends)
		if over {
			close(a.gone)
		}
		return over
	})
}

// match finds the first rule for a request and counts the hit.
func (s *Set) match(r *http.Request, host, machine string) (*active, Rule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	path := "/" + strings.Trim(r.URL.Path, "/")
	fits := func(p *regexp.Regexp, text string) bool { return p == nil || p.MatchString(text) }
	for _, a := range s.rules {
		if a.Count > 0 && a.Hits >= a.Count || a.Method != "" && !strings.EqualFold(a.Method, r.Method) {
			continue
		}
		if fits(a.host, host) && fits(a.path, path) && (a.machine == nil || machine != "" && a.machine.MatchString(machine)) {
			a.Hits++
			return a, a.Rule
		}
	}
	return nil, Rule{}
}

// Wrap lets the rules act before next. host is the host that is asked, machine the ARM id of a metadata service's
// machine, and form writes the body of a failure in the host's own form.
func (s *Set) Wrap(next http.Handler, host, machine string, form func(status int) string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, rule := s.match(r, host, machine)
		if a == nil {
			next.ServeHTTP(w, r)
			return
		}
		if s.OnHit != nil {
			s.OnHit(r, rule.ID)
		}
		if rule.Hang {
			a.hang(r.Context())
		}
		if rule.Latency > 0 && !a.wait(r.Context(), time.Duration(rule.Latency)) || rule.Drop || rule.Hang {
			panic(http.ErrAbortHandler) // the server ends the connection without a word
		}
		if rule.Operation != nil {
			r = r.WithContext(WithOperation(r.Context(), *rule.Operation))
		}
		if rule.Status == 0 {
			next.ServeHTTP(w, r)
			return
		}
		answer(w, rule, form)
	})
}

func answer(w http.ResponseWriter, rule Rule, form func(status int) string) {
	body := rule.Body
	if body == "" {
		body = form(rule.Status)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if rule.RetryAfter > 0 {
		seconds := (time.Duration(rule.RetryAfter) + time.Second - 1) / time.Second
		w.Header().Set("Retry-After", strconv.Itoa(int(seconds)))
	}
	w.WriteHeader(rule.Status)
	_, _ = w.Write([]byte(body)) // the client is gone: nobody is left to tell
}

// hang returns when the client leaves or the rule is over.
func (a *active) hang(ctx context.Context) {
	over := (<-chan time.Time)(nil)
	if !a.ends.IsZero() {
		t := time.NewTimer(time.Until(a.ends))
		defer t.Stop()
		over = t.C
	}
	select {
	case <-ctx.Done():
	case <-a.gone:
	case <-over:
	}
}

// wait reports false if the client leaves meanwhile. Clearing the rule ends the wait.
func (a *active) wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-a.gone:
	case <-t.C:
	}
	return true
}

type operationKey struct{}

// WithOperation says how an operation that a request starts should go.
func WithOperation(ctx context.Context, o Operation) context.Context {
	return context.WithValue(ctx, operationKey{}, o)
}

// OperationOf is what WithOperation said.
func OperationOf(ctx context.Context) (Operation, bool) {
	o, ok := ctx.Value(operationKey{}).(Operation)
	return o, ok
}

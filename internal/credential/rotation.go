package credential

import (
	"errors"
	"sync"
	"time"
)

// A refused credential is tried again after firstRetry, then after twice as
// long, up to lastRetry: Entra takes minutes to know a new one everywhere.
const (
	firstRetry = 5 * time.Second
	lastRetry  = 5 * time.Minute
)

// errNone answers before anything was offered.
var errNone = errors.New("there is no credential")

// A Rotation is the change from one credential of an application to the next:
// the newest is tried first, and as long as it is refused the last that worked
// serves on. The zero value is empty. It is safe for concurrent use.
type Rotation struct {
	mu        sync.Mutex
	current   *Credential // worked
	candidate *Credential // newer, has not worked yet
	broken    error       // the newest cannot be read
	failures  int         // of candidate in a row
	retryAt   time.Time   // monotonic; candidate is not tried before if current works
}

// An Outcome is what Use learned about a new credential.
type Outcome struct {
	Accepted bool  // it works, and the one before is dropped
	Refused  error // why it does not, while the one before serves on
}

// Offer makes c the newest credential. It is tried at the next Use.
func (r *Rotation) Offer(c *Credential) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = nil
	switch {
	case r.current.Equal(c) && c != nil:
		r.candidate = nil // taken back
	case !r.candidate.Equal(c):
		r.candidate, r.failures, r.retryAt = c, 0, time.Time{}
	}
}

// Break says that the newest credential cannot be read: the last that worked
// serves on, if there is one, which is what it returns.
func (r *Rotation) Break(err error) (serves bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.candidate, r.broken = nil, err
	return r.current != nil
}

// Pending reports whether a refused credential is to be tried again by now.
func (r *Rotation) Pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current != nil && r.candidate != nil && r.failures > 0 && !time.Now().Before(r.retryAt)
}

// Use calls try with the newest credential and, if that is refused, with the
// last that worked. The predicate refused tells a refusal of the credential
// from every other error. It returns the error of the credential that counts:
// of the newest if both are refused.
func (r *Rotation) Use(try func(*Credential) error, refused func(error) bool) (Outcome, error) {
	r.mu.Lock()
	current, candidate, broken := r.current, r.candidate, r.broken
	rests := current != nil && time.Now().Before(r.retryAt)
	r.mu.Unlock()
	switch {
	case current == nil && candidate == nil && broken != nil:
		return Outcome{}, broken
	case current == nil && candidate == nil:
		return Outcome{}, errNone
	case candidate == nil:
		return Outcome{}, try(current)
	case rests:
		err := try(current)
		if err == nil || !refused(err) {
			return Outcome{}, err
		}
		newest := try(candidate)
		return r.settle(candidate, newest, refused), newest
	}
	newest := try(candidate)
	o := r.settle(candidate, newest, refused)
	if current != nil && newest != nil && refused(newest) {
		if err := try(current); err == nil || !refused(err) {
			return o, err
		}
	}
	return o, newest
}

// settle enters what became of the candidate c.
func (r *Rotation) settle(c *Credential, err error, refused func(error) bool) (o Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.candidate != c {
		return o // replaced meanwhile
	}
	switch now := time.Now(); {
	case err == nil:
		o.Accepted = r.current != nil
		r.current, r.candidate, r.failures = c, nil, 0
	case r.current != nil && refused(err) && !now.Before(r.retryAt):
		// Requests that found out together count as one.
		o.Refused = err
		r.failures++
		r.retryAt = now.Add(min(lastRetry, firstRetry<<min(r.failures-1, 10)))
	}
	return o
}

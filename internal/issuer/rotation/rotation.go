// Package rotation replaces the key that a cluster signs service-account tokens
// with, while everything that uses tokens goes on.
//
//	add      a new key pair; the bundle sa.pub holds both public keys
//	accept   API servers restart: every one of them verifies with both
//	publish  the issuer's URL shows both
//	wait     until no cache is left that has not seen the new key
//	switch   sa.key is the new key; API servers restart: every one signs with it
//	drain    until the last token of the old key has ended
//	remove   the bundle holds the new key only; API servers restart
//	retract  the issuer's URL shows the new key only
//
// Each step is done when it can be observed, not when it was asked for: at every
// API server, in the head of a fresh token, at the issuer's public URL. Where the
// world has gone back, so does the rotation. The state is a file beside the keys;
// after an interruption, at whatever point, Run goes on.
package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/issuer"
)

// A Step is where a rotation is.
type Step string

// Steps, in their order.
const (
	Add     Step = "add"
	Accept  Step = "accept"
	Publish Step = "publish"
	Wait    Step = "wait"
	Switch  Step = "switch"
	Drain   Step = "drain"
	Remove  Step = "remove"
	Retract Step = "retract"
	Done    Step = "done"

	Abort   Step = "abort" // takes the new key back
	Aborted Step = "aborted"
)

var order = []Step{Add, Accept, Publish, Wait, Switch, Drain, Remove, Retract}

const stateVersion = 1

// A State is what is remembered of a rotation. It holds no secret.
type State struct {
	Version int    `json:"version"`
	Step    Step   `json:"step"`
	Old     string `json:"oldKeyID,omitempty"`
	New     string `json:"newKeyID,omitempty"`
	Issuer  string `json:"issuer,omitempty"`

	Started   time.Time `json:"started,omitzero"`
	Published time.Time `json:"published,omitzero"` // since when the issuer's URL shows the new key
	Switched  time.Time `json:"switched,omitzero"`  // when an API server was last seen to sign with the old key, or might have
	Finished  time.Time `json:"finished,omitzero"`

	Lifetime time.Duration `json:"tokenLifetime,omitempty"` // nanoseconds; of tokens, as observed before the switch
}

// Active reports whether a rotation is under way.
func (s State) Active() bool { return s.Step != "" && s.Step != Done && s.Step != Aborted }

// Defaults of a Rotation.
const (
	DefaultCacheWait = 24 * time.Hour // Entra does not say how long it keeps keys; it asks anew for an unknown one, at a limited rate
	DefaultLifetime  = 24 * time.Hour // the webhook's longest
	DefaultPoll      = 10 * time.Second
)

// Servers is what a rotation needs of the cluster: an issuer.Cluster.
type Servers interface {
	Observe(ctx context.Context) ([]issuer.APIServer, error)
	LegacyTokens(ctx context.Context, kids []string) ([]string, error)
}

// A Rotation rotates the key in a directory. Dir, Servers and Public must be set.
type Rotation struct {
	Dir     *KeyDir
	Servers Servers
	// Public returns the ids of the keys at the issuer's URL.
	Public func(ctx context.Context, issuer string) ([]string, error)
	// Publish publishes what the API servers accept; the key with that id may go.
	// nil means that somebody else does: lanyard issuer publish --watch.
	Publish func(ctx context.Context, remove string) error
	// Restart hands the key files to all API servers and restarts them. nil means
	// that a person does, who is told what to do.
	Restart func(ctx context.Context, step Step, servers []string) error

	CacheWait time.Duration // between publishing and signing; 0 means DefaultCacheWait
	Lifetime  time.Duration // of the longest token; 0 means what the API servers give, at most DefaultLifetime
	Poll      time.Duration // between two looks; 0 means DefaultPoll
	NoWait    bool          // end with a *Waiting instead of waiting

	IgnoreLegacyTokens bool // remove the key although Secrets hold tokens of it

	Now   func() time.Time                                 // nil means time.Now
	Sleep func(ctx context.Context, d time.Duration) error // nil means the real time
	Tell  func(format string, args ...any)                 // nil means silence

	state State
}

// Waiting is what Run ends with if it may not wait.
type Waiting struct {
	Step  Step
	For   string    // what is missing
	Until time.Time // zero if that is not known
}

func (w *Waiting) Error() string {
	s := fmt.Sprintf("step %s: waiting for %s", w.Step, w.For)
	if !w.Until.IsZero() {
		s += ", until " + w.Until.UTC().Format(time.RFC3339)
	}
	return s
}

// ErrFinished is wrapped when the last rotation is over and none was asked for.
var ErrFinished = errors.New("the last rotation is finished")

// Begin starts another rotation after one that is over. It is no error if one
// is under way.
func (r *Rotation) Begin() error {
	s, err := r.Dir.state()
	if err != nil || s.Active() {
		return err
	}
	return r.Dir.save(State{Step: Add, Started: r.now()})
}

// Run takes the rotation to its end, from wherever it is. The first call starts
// one; after its end, only Begin starts another.
func (r *Rotation) Run(ctx context.Context) error {
	var err error
	if r.state, err = r.Dir.state(); err != nil {
		return err
	}
	switch r.state.Step {
	case "":
		r.state = State{Step: Add, Started: r.now()}
	case Done, Aborted:
		return fmt.Errorf("%w (%s, %s): start another one with --new", ErrFinished, r.state.Step, r.state.Finished.UTC().Format(time.RFC3339))
	}
	for r.state.Active() {
		if err := ctx.Err(); err != nil {
			return err
		}
		next, err := r.step(ctx)
		if err != nil {
			return err
		}
		if err := r.enter(next); err != nil {
			return err
		}
	}
	return nil
}

func (r *Rotation) enter(next Step) error {
	if next == Done || next == Aborted {
		r.state.Finished = r.now()
	}
	r.tell("%s is done, next: %s", r.state.Step, next)
	r.state.Step = next
	return r.Dir.save(r.state)
}

func (r *Rotation) step(ctx context.Context) (next Step, err error) {
	switch r.state.Step {
	case Add:
		return Accept, r.add(ctx)
	case Accept:
		return Publish, r.accept(ctx)
	case Publish:
		return Wait, r.publish(ctx)
	case Wait:
		return r.wait(ctx)
	case Switch:
		return r.switchSigner(ctx)
	case Drain, Remove:
		if ok, err := r.signsAnew(); err != nil || !ok {
			return Switch, err
		}
		if r.state.Step == Drain {
			return Remove, r.drain(ctx)
		}
		return Retract, r.remove(ctx)
	case Retract:
		return Done, r.retract(ctx, r.state.Old)
	case Abort:
		return Aborted, r.takeBack(ctx)
	}
	return "", fmt.Errorf("the rotation is in an unknown step %q", r.state.Step)
}

// Abort takes the new key back. It is possible until the new key is made to sign:
// from then on tokens of it are in use.
func (r *Rotation) Abort(ctx context.Context) error {
	var err error
	if r.state, err = r.Dir.state(); err != nil {
		return err
	}
	if !r.state.Active() {
		return errors.New("no rotation is under way: there is nothing to take back")
	}
	if r.state.Step != Abort {
		signs, err := r.Dir.keyID(SigningKey)
		if err != nil {
			return err
		}
		servers, err := r.observe(ctx)
		if err != nil {
			return err
		}
		if r.state.New != "" && (slices.Index(order, r.state.Step) > slices.Index(order, Switch) || signs == r.state.New || slices.ContainsFunc(servers, func(s issuer.APIServer) bool { return s.Signer == r.state.New })) {
			return fmt.Errorf("the new key %s signs already, or has, and tokens of it are in use: go on with lanyard issuer rotate; when it is finished, the next rotation replaces this key", r.state.New)
		}
		if err := r.enter(Abort); err != nil {
			return err
		}
	}
	return r.Run(ctx)
}

// observe asks the API servers; one that does not answer is an error.
func (r *Rotation) observe(ctx context.Context) ([]issuer.APIServer, error) {
	servers, err := r.Servers.Observe(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, s := range servers {
		if s.Err != nil {
			errs = append(errs, fmt.Errorf("API server %s: %w", s.URL, s.Err))
		}
	}
	return servers, errors.Join(errs...)
}

// until waits until check has nothing missing, at most until at if it is set.
// check's error ends it.
func (r *Rotation) until(ctx context.Context, check func(ctx context.Context) (missing string, at time.Time, err error)) error {
	said := ""
	for {
		missing, at, err := check(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("step %s: %w", r.state.Step, err)
		case missing == "":
			return nil
		case r.NoWait:
			return &Waiting{Step: r.state.Step, For: missing, Until: at}
		}
		if missing != said {
			r.tell("waiting for %s", missing)
			said = missing
		}
		pause := orDefault(r.Poll, DefaultPoll)
		if left := at.Sub(r.now()); !at.IsZero() && left > 0 {
			pause = min(pause, left)
		}
		if err := r.sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// restartUntil restarts the API servers unless all are as they should be, and
// waits until they are. wrong says what one server lacks, or "".
func (r *Rotation) restartUntil(ctx context.Context, instructions string, wrong func(issuer.APIServer) string) error {
	look := func(ctx context.Context) (string, time.Time, error) {
		servers, err := r.observe(ctx)
		if err != nil {
			return oneLine(err), time.Time{}, nil // they are being restarted
		}
		for _, s := range servers {
			if missing := wrong(s); missing != "" {
				return fmt.Sprintf("API server %s to %s", s.URL, missing), time.Time{}, nil
			}
		}
		return "", time.Time{}, nil
	}
	missing, _, err := look(ctx)
	if err != nil || missing == "" {
		return err
	}
	if r.Restart == nil {
		r.tell("%s", instructions)
		return r.until(ctx, look)
	}
	servers, _ := r.Servers.Observe(ctx) // for their names; it goes without
	var names []string
	for _, s := range servers {
		names = append(names, s.URL)
	}
	r.tell("restarting the API servers")
	if err := r.Restart(ctx, r.state.Step, names); err != nil {
		return fmt.Errorf("step %s: restarting the API servers: %w", r.state.Step, err)
	}
	return r.until(ctx, look)
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func (r *Rotation) tell(format string, args ...any) {
	if r.Tell != nil {
		r.Tell(format, args...)
	}
}

func (r *Rotation) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

func (r *Rotation) sleep(ctx context.Context, d time.Duration) error {
	if r.Sleep != nil {
		return r.Sleep(ctx, d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

package rotation

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/lanyard-id/lanyard/internal/issuer"
)

// A Planned step is one of those that are left.
type Planned struct {
	Step Step      `json:"step"`
	At   time.Time `json:"at"` // at the earliest
	What string    `json:"what"`
}

// A Plan is what Run would do.
type Plan struct {
	Issuer  string    `json:"issuer"`
	Old     string    `json:"oldKeyID"`
	New     string    `json:"newKeyID,omitempty"` // empty until it is made
	Servers []string  `json:"apiServers"`
	Steps   []Planned `json:"steps"`
	Notes   []string  `json:"notes,omitempty"` // what a person should know before
}

// Plan looks at the world, changes nothing and returns the steps that are left,
// with the earliest time of each.
func (r *Rotation) Plan(ctx context.Context) (Plan, error) {
	var err error
	if r.state, err = r.Dir.state(); err != nil {
		return Plan{}, err
	}
	fresh := !r.state.Active()
	if fresh {
		r.state = State{Step: Add}
	}
	servers, err := r.observe(ctx)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Issuer: r.state.Issuer, Old: r.state.Old, New: r.state.New}
	for _, s := range servers {
		p.Servers = append(p.Servers, s.URL)
		r.state.Lifetime = max(r.state.Lifetime, s.Lifetime)
	}
	if p.Old == "" {
		if p.Old, err = r.Dir.keyID(SigningKey); err != nil {
			return Plan{}, err
		}
		p.Issuer = servers[0].Issuer
		r.state.Old = p.Old
	}
	p.Steps = r.steps()
	p.Notes, err = r.notes(ctx, servers)
	return p, err
}

// steps are those from the state's on.
func (r *Rotation) steps() []Planned {
	at := r.now()
	cache, life := orDefault(r.CacheWait, DefaultCacheWait), r.lifetime()
	restart := "you restart them"
	if r.Restart != nil {
		restart = "the command restarts them"
	}
	publish := "somebody else publishes"
	if r.Publish != nil {
		publish = "this command publishes"
	}
	what := map[Step]string{
		Add:     fmt.Sprintf("make an RSA key of %d bits; %s holds both public keys", keyBits, Bundle),
		Accept:  "every API server verifies with both keys; " + restart,
		Publish: "the issuer's URL shows both keys; " + publish,
		Wait:    fmt.Sprintf("wait %s for caches of the old key set", cache),
		Switch:  "every API server signs with the new key; " + restart,
		Drain:   fmt.Sprintf("wait %s for the last token of the old key", life),
		Remove:  "every API server forgets the old key; " + restart,
		Retract: "the issuer's URL shows the new key only; " + publish,
		Abort:   "every API server and the issuer's URL forget the new key; " + restart,
	}
	if r.state.Step == Abort {
		return []Planned{{Abort, at, what[Abort]}}
	}
	var steps []Planned
	for _, s := range order[max(0, slices.Index(order, r.state.Step)):] {
		steps = append(steps, Planned{s, at, what[s]})
		switch s {
		case Wait:
			at = later(at, r.state.Published, cache)
		case Drain:
			at = later(at, r.state.Switched, life)
		}
	}
	return steps
}

// later is when a wait that began at began, or begins at, is over.
func later(at, began time.Time, d time.Duration) time.Time {
	if began.IsZero() {
		return at.Add(d)
	}
	if end := began.Add(d); end.After(at) {
		return end
	}
	return at
}

func (r *Rotation) notes(ctx context.Context, servers []issuer.APIServer) ([]string, error) {
	var notes []string
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	for _, s := range servers {
		if signs, err := r.Dir.keyID(SigningKey); err == nil && s.Signer != signs {
			note("API server %s signs with %s, and %s is %s", s.URL, s.Signer, SigningKey, signs)
		}
		if r.state.Lifetime < 24*time.Hour {
			note("API server %s gives tokens for %s at most (--service-account-max-token-expiration)", s.URL, s.Lifetime)
		}
	}
	if r.Lifetime == 0 && r.state.Lifetime >= 24*time.Hour {
		note("tokens that were asked for more than 24 h would outlive the wait: give their lifetime with --token-lifetime if there are any; with --service-account-extend-token-expiration (the default of kube-apiserver) tokens for the API server itself live a year, but kubelets renew them hourly: only programs that never read their token file anew lose access at the removal (metric serviceaccount_stale_tokens_total)")
	}
	if _, err := r.Dir.read(Bundle); errors.Is(err, fs.ErrNotExist) {
		note("%s is missing in %s: it is made from %s, and --service-account-key-file must name it", Bundle, r.Dir.Path, SigningKey)
	}
	if r.IgnoreLegacyTokens {
		return notes, nil
	}
	legacy, err := r.Servers.LegacyTokens(ctx, []string{r.state.Old})
	if err != nil {
		note("%v", err)
	} else if len(legacy) > 0 {
		note("%d Secrets hold tokens of the old key, which never end: make them anew before the step remove: %s", len(legacy), firstFew(legacy))
	}
	return notes, nil
}

// A Status is where a rotation is, as remembered and as observed.
type Status struct {
	State     State    `json:"state"`
	Servers   []Server `json:"apiServers"`
	Published []string `json:"publishedKeyIDs"`
	Problem   string   `json:"problem,omitempty"` // what could not be observed
}

// A Server is an API server as observed.
type Server struct {
	URL     string   `json:"url"`
	Signs   string   `json:"signsWith,omitempty"`
	Accepts []string `json:"accepts,omitempty"`
	Problem string   `json:"problem,omitempty"`
}

// Look returns the state and what can be seen, without taking the directory.
func Look(ctx context.Context, dir string, servers Servers, public func(context.Context, string) ([]string, error)) (Status, error) {
	s := Status{Servers: []Server{}, Published: []string{}}
	var err error
	if s.State, err = ReadState(dir); err != nil {
		return s, err
	}
	found, err := servers.Observe(ctx)
	if err != nil {
		s.Problem = err.Error()
	}
	name := s.State.Issuer
	for _, f := range found {
		x := Server{URL: f.URL, Signs: f.Signer, Accepts: issuer.KeyIDs(f.Keys)}
		if f.Err != nil {
			x.Problem = f.Err.Error()
		} else if name == "" {
			name = f.Issuer
		}
		s.Servers = append(s.Servers, x)
	}
	if name == "" {
		return s, nil
	}
	kids, err := public(ctx, name)
	if err != nil {
		s.Problem = err.Error()
		return s, nil
	}
	s.Published = kids
	return s, nil
}

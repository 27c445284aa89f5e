package issuer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// Published is what a target holds. A document that is not there is nil; a
// version is what the target calls this content, empty if it has no versions.
type Published struct {
	Configuration, Keys               []byte
	ConfigurationVersion, KeysVersion string
}

// A Target is a place that an issuer's documents are read from.
type Target interface {
	// Read returns what is there now.
	Read(ctx context.Context) (Published, error)
	// Write replaces one document at ConfigurationPath or KeysPath, at once and
	// whole. If the target has versions and the document is no longer of this
	// one, it is ErrChanged.
	Write(ctx context.Context, path string, data []byte, version string) error
	String() string
}

// ErrChanged is wrapped by Target.Write when somebody else wrote meanwhile.
var ErrChanged = errors.New("somebody else has changed the published documents meanwhile")

// A Guard is why Publish refuses to change what is published.
type Guard struct {
	Reason string // what would happen, and what to do
	Remove []string
}

func (g *Guard) Error() string { return g.Reason }

// Permission is what a publication may do beyond adding keys.
type Permission struct {
	Force  bool     // replace documents of another issuer, and remove any key
	Remove []string // ids of keys that may go
}

// Publish brings a target to d and reports whether anything was written. Keys
// are written before the discovery document, so that nobody is sent to keys that
// are not there yet. It never writes what Validate refuses, and a *Guard is what
// it finds too dangerous without permission: another issuer's documents, and
// keys that would disappear.
func Publish(ctx context.Context, t Target, d Documents, may Permission) (changed bool, err error) {
	if err := d.Validate(); err != nil {
		return false, fmt.Errorf("not published: %w", err)
	}
	configuration, err := d.ConfigurationJSON()
	if err != nil {
		return false, err
	}
	keys, err := d.KeysJSON()
	if err != nil {
		return false, err
	}
	was, err := t.Read(ctx)
	if err != nil {
		return false, fmt.Errorf("reading what %s holds: %w", t, err)
	}
	if err := guard(t, was, d, may); err != nil {
		return false, err
	}
	for _, doc := range []struct {
		path, version string
		was, is       []byte
	}{
		{KeysPath, was.KeysVersion, was.Keys, keys},
		{ConfigurationPath, was.ConfigurationVersion, was.Configuration, configuration},
	} {
		if string(compact(doc.was)) == string(compact(doc.is)) {
			continue
		}
		if err := t.Write(ctx, doc.path, doc.is, doc.version); err != nil {
			return changed, fmt.Errorf("writing %s to %s: %w", doc.path, t, err)
		}
		changed = true
	}
	return changed, nil
}

func guard(t Target, was Published, d Documents, may Permission) error {
	if may.Force {
		return nil
	}
	if was.Configuration != nil {
		c, err := ParseConfiguration(was.Configuration)
		switch {
		case err != nil:
			return &Guard{Reason: fmt.Sprintf("%s holds a %s that is not a discovery document (%v): choose another place, or replace it with --force", t, ConfigurationPath, err)}
		case c.Issuer != d.Issuer:
			return &Guard{Reason: fmt.Sprintf("%s holds the documents of the issuer %q, not of %q: choose another place, or replace them with --force, after which no token of %[2]q is accepted", t, c.Issuer, d.Issuer)}
		}
	}
	if was.Keys == nil {
		return nil
	}
	published, err := ParseKeys(was.Keys)
	if err != nil {
		return &Guard{Reason: fmt.Sprintf("%s holds a %s that cannot be read (%v): look at it, or replace it with --force", t, KeysPath, err)}
	}
	var gone []string
	kept := 0
	for _, k := range published {
		switch {
		case slices.ContainsFunc(d.Keys, k.Equal):
			kept++
		case !slices.Contains(may.Remove, k.ID):
			gone = append(gone, k.ID)
		}
	}
	switch {
	case len(gone) == 0:
		return nil
	case kept == 0:
		return &Guard{Remove: gone, Reason: fmt.Sprintf("all keys that %s holds differ from this cluster's: they are another cluster's, or a rotation went wrong; look, and replace them with --force", t)}
	}
	return &Guard{Remove: gone, Reason: fmt.Sprintf("%s holds keys that the cluster no longer shows (%s): tokens that they signed would be refused at once; when none is in use any more, remove them with --remove-keys", t, strings.Join(gone, ", "))}
}

// A Source has the documents to publish.
type Source interface {
	// Documents returns them; complete is false if some API server could not be
	// asked, which may have keys that are not among them.
	Documents(ctx context.Context) (d Documents, complete bool, err error)
}

// A Publisher keeps a target as its source is. All fields but Logger, Now and
// Wait must be set.
type Publisher struct {
	Source   Source
	Target   Target
	Interval time.Duration
	// Keep is how long a key stays published that the source no longer has: at
	// least as long as the longest token. After a restart it counts anew. One that
	// is there again after it was removed is another publisher's, and stays: two
	// clusters that share an issuer would take each other's keys for ever.
	Keep       time.Duration
	Permission Permission

	Now    func() time.Time // nil means time.Now
	Wait   func(ctx context.Context, d time.Duration) error
	Logger *slog.Logger // nil means slog.Default

	missing map[string]time.Time // since when the source lacks a published key
	removed map[string]bool      // keys that were removed once
}

// Run publishes until ctx ends, which is no error. What fails is logged and
// tried again: what is published stays as it is meanwhile.
func (p *Publisher) Run(ctx context.Context) error {
	for {
		changed, err := p.Once(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			p.logger().ErrorContext(ctx, "the issuer's documents were not published", "target", p.Target.String(), "err", err)
		case changed:
			p.logger().InfoContext(ctx, "published the issuer's documents", "target", p.Target.String())
		}
		if p.wait(ctx, p.Interval) != nil {
			return nil
		}
	}
}

// Once publishes once and reports whether anything changed.
func (p *Publisher) Once(ctx context.Context) (bool, error) {
	d, complete, err := p.Source.Documents(ctx)
	if err != nil {
		return false, err
	}
	was, err := p.Target.Read(ctx)
	if err != nil {
		return false, fmt.Errorf("reading what %s holds: %w", p.Target, err)
	}
	may := p.Permission
	var gone []string
	if was.Keys != nil && !may.Force {
		published, err := ParseKeys(was.Keys)
		if err == nil && slices.ContainsFunc(published, func(k Key) bool { return slices.ContainsFunc(d.Keys, k.Equal) }) {
			var kept []Key
			kept, gone = p.keep(published, d.Keys, complete)
			d.Keys, may.Remove = Merge(d.Keys, kept...), append(slices.Clone(may.Remove), gone...)
		}
	}
	changed, err := Publish(ctx, p.Target, d, may)
	if err == nil {
		for _, id := range gone {
			p.removed[id] = true
		}
	}
	return changed, err
}

// keep divides the published keys that the source lacks into those that stay
// and those whose time is over.
func (p *Publisher) keep(published, has []Key, complete bool) (kept []Key, removed []string) {
	now := p.now()
	missing := map[string]time.Time{}
	if p.removed == nil {
		p.removed = map[string]bool{}
	}
	for _, k := range published {
		if slices.ContainsFunc(has, k.Equal) {
			delete(p.removed, k.ID)
			continue
		}
		since, known := p.missing[k.ID]
		if !known || !complete { // an API server that does not answer may have it
			since = now
		}
		missing[k.ID] = since
		switch {
		case slices.Contains(p.Permission.Remove, k.ID):
		case now.Sub(since) < p.Keep || p.removed[k.ID]:
			kept = append(kept, k)
		default:
			removed = append(removed, k.ID)
		}
	}
	p.missing = missing
	return kept, removed
}

func (p *Publisher) now() time.Time {
	if p.Now != nil {
		return p.Now()
	}
	return time.Now()
}

func (p *Publisher) wait(ctx context.Context, d time.Duration) error {
	if p.Wait != nil {
		return p.Wait(ctx, d)
	}
	return sleep(ctx, d)
}

func (p *Publisher) logger() *slog.Logger {
	if p.Logger != nil {
		return p.Logger
	}
	return slog.Default()
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

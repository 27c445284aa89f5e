package rotation

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/issuer"
)

// add makes the key and puts it into the bundle. Nothing reads either yet.
func (r *Rotation) add(ctx context.Context) error {
	servers, err := r.observe(ctx)
	if err != nil {
		return fmt.Errorf("all API servers must answer before a rotation begins: %w", err)
	}
	signs, err := r.Dir.keyID(SigningKey)
	if err != nil {
		return fmt.Errorf("reading the key that signs now: %w", err)
	}
	for _, s := range servers {
		if s.Signer != signs {
			return fmt.Errorf("API server %s signs with the key %s, and %s in %s is %s: this is not the directory of its keys, or it was not restarted since they changed", s.URL, s.Signer, SigningKey, r.Dir.Path, signs)
		}
	}
	r.state.Old, r.state.Issuer = signs, servers[0].Issuer
	if err := issuer.ValidateIssuer(r.state.Issuer); err != nil {
		return err
	}
	if err := r.Dir.save(r.state); err != nil { // from here on an interruption is known
		return err
	}
	if err := r.Dir.backup(); err != nil {
		return err
	}
	key, err := r.Dir.makeNext()
	if err != nil {
		return err
	}
	if key.ID == r.state.Old {
		return fmt.Errorf("%s is the key that signs already: remove that file", nextKey)
	}
	r.state.New = key.ID
	r.tell("the new key is %s, beside %s", key.ID, signs)
	return r.Dir.setBundle(&key, "")
}

func (r *Rotation) accept(ctx context.Context) error {
	return r.restartUntil(ctx, r.instructions("so that it verifies with both keys"), func(s issuer.APIServer) string {
		if !s.Accepts(r.state.New) {
			return "verify with the new key " + r.state.New
		}
		return ""
	})
}

// publish brings both keys to the issuer's URL.
func (r *Rotation) publish(ctx context.Context) error {
	if err := r.publishUntil(ctx, "", func(kids []string) string {
		if !slices.Contains(kids, r.state.New) {
			return fmt.Sprintf("%s to show the new key %s", r.state.Issuer, r.state.New)
		}
		return ""
	}); err != nil {
		return err
	}
	r.state.Published = r.now()
	return nil
}

// publishUntil publishes until the issuer's URL shows what it should. What
// fails for the moment is tried again; what was refused for good is an error.
func (r *Rotation) publishUntil(ctx context.Context, remove string, wrong func(kids []string) string) error {
	return r.until(ctx, func(ctx context.Context) (string, time.Time, error) {
		if r.Publish != nil {
			var guard *issuer.Guard
			if err := r.Publish(ctx, remove); errors.As(err, &guard) {
				return "", time.Time{}, err
			} else if err != nil {
				return "the publication: " + oneLine(err), time.Time{}, nil
			}
		}
		kids, err := r.Public(ctx, r.state.Issuer)
		if err != nil {
			return r.state.Issuer + ": " + oneLine(err), time.Time{}, nil
		}
		return wrong(kids), time.Time{}, nil
	})
}

// wait lets every cache see the new key. If it disappears from the issuer's URL
// meanwhile, it goes back.
func (r *Rotation) wait(ctx context.Context) (next Step, err error) {
	at := r.state.Published.Add(orDefault(r.CacheWait, DefaultCacheWait))
	next = Switch
	err = r.until(ctx, func(ctx context.Context) (string, time.Time, error) {
		kids, err := r.Public(ctx, r.state.Issuer)
		if err == nil && !slices.Contains(kids, r.state.New) {
			r.tell("%s does not show the new key any more: publishing it again", r.state.Issuer)
			next = Publish
			return "", time.Time{}, nil
		}
		if r.now().Before(at) {
			return fmt.Sprintf("caches to see the new key, until %s", at.UTC().Format(time.RFC3339)), at, nil
		}
		if err != nil { // do not switch on what was true once
			return r.state.Issuer + ": " + oneLine(err), time.Time{}, nil
		}
		return "", time.Time{}, nil
	})
	return next, err
}

// switchSigner makes the new key sign. It looks once more whether that is safe.
func (r *Rotation) switchSigner(ctx context.Context) (next Step, err error) {
	signs, err := r.Dir.keyID(SigningKey)
	if err != nil {
		return "", err
	}
	if signs != r.state.New {
		if next, err := r.ready(ctx); err != nil || next != "" {
			return next, err
		}
		if err := r.Dir.promote(); err != nil {
			return "", err
		}
	}
	err = r.restartUntil(ctx, r.instructions("so that it signs with the new key; restart kube-controller-manager too, with the same "+SigningKey+" as --service-account-private-key-file"), func(s issuer.APIServer) string {
		r.state.Lifetime = max(r.state.Lifetime, s.Lifetime)
		if s.Signer != r.state.New {
			return "sign with the new key " + r.state.New
		}
		return ""
	})
	r.state.Switched = r.now()
	return Drain, err
}

// ready returns the step to go back to, if the new key must not sign yet.
func (r *Rotation) ready(ctx context.Context) (back Step, err error) {
	err = r.until(ctx, func(ctx context.Context) (string, time.Time, error) {
		servers, err := r.observe(ctx)
		if err != nil {
			return oneLine(err), time.Time{}, nil
		}
		if i := slices.IndexFunc(servers, func(s issuer.APIServer) bool { return !s.Accepts(r.state.New) }); i >= 0 {
			r.tell("API server %s does not verify with the new key any more", servers[i].URL)
			back = Accept
			return "", time.Time{}, nil
		}
		kids, err := r.Public(ctx, r.state.Issuer)
		if err != nil {
			return r.state.Issuer + ": " + oneLine(err), time.Time{}, nil
		}
		if !slices.Contains(kids, r.state.New) {
			r.tell("%s does not show the new key any more: publishing it again", r.state.Issuer)
			back = Publish
		}
		for _, s := range servers {
			r.state.Lifetime = max(r.state.Lifetime, s.Lifetime)
		}
		return "", time.Time{}, nil
	})
	return back, err
}

// signsAnew reports whether sa.key is still the new key. Somebody may have put
// another one back by hand: then the API servers would never sign with the new.
func (r *Rotation) signsAnew() (bool, error) {
	signs, err := r.Dir.keyID(SigningKey)
	if err != nil || signs == r.state.New {
		return err == nil, err
	}
	r.tell("%s in %s is %s and not the new key any more: switching again", SigningKey, r.Dir.Path, signs)
	return false, nil
}

// drain waits until tokens of the old key have ended. An API server that is
// seen to sign with it again starts the time anew.
func (r *Rotation) drain(ctx context.Context) error {
	if r.lifetime() < r.state.Lifetime {
		r.tell("the API servers give tokens for up to %s, longer than the %s that are waited for: replace every pod whose tokens may live longer before that is over (kubectl rollout restart), also those that only use the API server, with tokens of an hour: they are refused once the old key is removed", r.state.Lifetime, r.lifetime())
	}
	return r.until(ctx, func(ctx context.Context) (string, time.Time, error) {
		servers, err := r.observe(ctx)
		for _, s := range servers {
			if s.Err == nil && s.Signer != r.state.New {
				r.tell("API server %s signs with %s again: give it the new %s and restart it; the time starts anew", s.URL, s.Signer, SigningKey)
				r.state.Switched = r.now()
				if err := r.Dir.save(r.state); err != nil {
					return "", time.Time{}, err
				}
			}
		}
		at := r.state.Switched.Add(r.lifetime())
		switch {
		case r.now().Before(at):
			return fmt.Sprintf("the last token of the old key to end, until %s", at.UTC().Format(time.RFC3339)), at, nil
		case err != nil:
			return oneLine(err), time.Time{}, nil
		}
		return "", time.Time{}, nil
	})
}

func (r *Rotation) lifetime() time.Duration {
	if r.Lifetime != 0 {
		return r.Lifetime
	}
	return orDefault(r.state.Lifetime, DefaultLifetime)
}

// remove makes API servers forget the old key.
func (r *Rotation) remove(ctx context.Context) error {
	if !r.IgnoreLegacyTokens {
		found, err := r.Servers.LegacyTokens(ctx, []string{r.state.Old})
		if err != nil {
			return fmt.Errorf("%w; without looking: --ignore-legacy-tokens", err)
		}
		if len(found) > 0 {
			return fmt.Errorf("%d Secrets hold service-account tokens of the old key, which never end: %s; delete and make them anew (the controller fills them with the new key) and restart what uses them, then go on; or lose them with --ignore-legacy-tokens", len(found), firstFew(found))
		}
	}
	if err := r.Dir.setBundle(nil, r.state.Old); err != nil {
		return err
	}
	return r.restartUntil(ctx, r.instructions("so that it forgets the old key"), func(s issuer.APIServer) string {
		switch {
		case s.Signer != r.state.New:
			return "sign with the new key " + r.state.New
		case s.Accepts(r.state.Old):
			return "forget the old key " + r.state.Old
		}
		return ""
	})
}

func firstFew(names []string) string {
	const most = 10
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
}

// retract takes a key from the issuer's URL and removes what only the rotation
// needed, with it the old private key.
func (r *Rotation) retract(ctx context.Context, kid string) error {
	if kid != "" {
		err := r.publishUntil(ctx, kid, func(kids []string) string {
			if slices.Contains(kids, kid) {
				return fmt.Sprintf("%s to show the key %s no more", r.state.Issuer, kid)
			}
			return ""
		})
		if err != nil {
			return err
		}
	}
	return r.Dir.remove(nextKey, formerKey, formerBundle)
}

// takeBack is the way back from before the switch.
func (r *Rotation) takeBack(ctx context.Context) error {
	if r.state.New == "" { // interrupted in its first step, perhaps with the key in the bundle already
		id, err := r.Dir.keyID(nextKey)
		if errors.Is(err, fs.ErrNotExist) {
			return r.Dir.remove(formerKey, formerBundle)
		}
		if err != nil {
			return err
		}
		r.state.New = id
	}
	if err := r.Dir.setBundle(nil, r.state.New); err != nil {
		return err
	}
	err := r.restartUntil(ctx, r.instructions("so that it forgets the new key"), func(s issuer.APIServer) string {
		if s.Accepts(r.state.New) {
			return "forget the new key " + r.state.New
		}
		return ""
	})
	if err != nil {
		return err
	}
	return r.retract(ctx, r.state.New)
}

// instructions are what a person does where no command does it.
func (r *Rotation) instructions(why string) string {
	return fmt.Sprintf(`on every control plane node, one after the other: copy %[1]s and %[2]s from %[3]s to where --service-account-signing-key-file and --service-account-key-file point (kubeadm: /etc/kubernetes/pki), restart kube-apiserver %[4]s, and wait until it is ready (kubeadm: move /etc/kubernetes/manifests/kube-apiserver.yaml out of that folder, wait until the container is gone, and move it back)`,
		SigningKey, Bundle, r.Dir.Path, why)
}

// PublishTo publishes what the API servers accept to a target, for
// Rotation.Publish.
func PublishTo(from issuer.Source, to issuer.Target) func(ctx context.Context, remove string) error {
	return func(ctx context.Context, remove string) error {
		d, complete, err := from.Documents(ctx)
		if err != nil {
			return err
		}
		if !complete {
			return errors.New("not every API server answers")
		}
		var may issuer.Permission
		if remove != "" {
			may.Remove = []string{remove}
		}
		_, err = issuer.Publish(ctx, to, d, may)
		return err
	}
}

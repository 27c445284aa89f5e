package rotation_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/issuer"
	"github.com/lanyard-id/lanyard/internal/issuer/inspect"
	"github.com/lanyard-id/lanyard/internal/issuer/rotation"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

func keyID(raw string) string {
	t, err := oidc.Parse(raw)
	if err != nil {
		return ""
	}
	return t.KeyID()
}

// The whole way, on a real API server, in a process of its own for each step,
// while everything that uses tokens goes on. Then the same without publishing:
// the test sees what fails.
func TestAKeyIsRotatedUnderLoad(t *testing.T) {
	b := newBed(t)
	first := b.publishFirst(t)
	l := b.startLoad(t)
	labtest.Eventually(t, t.Context(), func() error { return atLeast(l, 50) })
	b.run(t, func(s rotation.Step) {
		if s == rotation.Wait {
			// The cloud asks for unknown keys once a minute; that minute passes.
			b.cloud.Clock().Shift(61 * time.Second)
		}
	})
	state, err := rotation.ReadState(b.keys)
	must(t, err)
	labtest.Eventually(t, t.Context(), func() error {
		if l.used(state.New) < 50 {
			return errors.New("tokens of the new key are hardly used")
		}
		return nil
	})
	if failed := l.failures(); len(failed) > 0 {
		t.Errorf("%d exchanges failed; the first: %v", len(failed), failed[0])
	}
	t.Logf("%d exchanges, %d reviews", l.exchanges.Load(), l.reviews.Load())
	if l.used(first) == 0 || state.Old != first {
		t.Errorf("the old key %s was used %d times; the rotation thinks it was %s", first, l.used(first), state.Old)
	}
	b.isRotated(t, first, state.New)

	t.Run("the check agrees", func(t *testing.T) {
		report, err := inspect.Check{Fetcher: b.fetcher(), Observe: b.cluster().Observe}.Run(t.Context())
		if err != nil || !report.OK || len(report.Findings) > 0 {
			t.Errorf("%+v, %v", report, err)
		}
	})
	t.Run("it is over until another one is asked for", func(t *testing.T) {
		r := b.rotation(t)
		defer r.Dir.Close()
		if err := r.Run(t.Context()); !errors.Is(err, rotation.ErrFinished) || !strings.Contains(err.Error(), "--new") {
			t.Errorf("%v", err)
		}
	})
	t.Run("a new key is taken back before it signs", func(t *testing.T) { b.abort(t, state.New) })
	if failed := l.failures(); len(failed) > 0 {
		t.Fatalf("%d exchanges failed; the first: %v", len(failed), failed[0])
	}
	t.Run("a signer that was never published is noticed", func(t *testing.T) { b.naive(t, l) })
}

func atLeast(l *load, n int64) error {
	if got := l.exchanges.Load(); got < n {
		return errors.New("there is hardly any load")
	}
	return nil
}

// publishFirst publishes what the cluster has before any rotation.
func (b *bed) publishFirst(t *testing.T) (kid string) {
	t.Helper()
	d, complete, err := b.cluster().Documents(t.Context())
	must(t, err)
	if !complete || d.Issuer != issuerURL || len(d.Keys) != 1 {
		t.Fatalf("the cluster's documents: %+v", d)
	}
	if changed, err := issuer.Publish(t.Context(), issuer.Directory{Path: b.folder}, d, issuer.Permission{}); err != nil || !changed {
		t.Fatalf("published: %t, %v", changed, err)
	}
	labtest.Eventually(t, t.Context(), func() error {
		_, err := b.fetcher().KeyIDs(t.Context(), issuerURL)
		return err
	})
	return d.Keys[0].ID
}

func (b *bed) isRotated(t *testing.T, from, to string) {
	t.Helper()
	servers, err := b.cluster().Observe(t.Context())
	must(t, err)
	if s := servers[0]; s.Signer != to || s.Accepts(from) || !s.Accepts(to) {
		t.Errorf("the API server signs with %s and accepts %v, want %s", s.Signer, issuer.KeyIDs(s.Keys), to)
	}
	kids, err := b.fetcher().KeyIDs(t.Context(), issuerURL)
	if err != nil || !slices.Equal(kids, []string{to}) {
		t.Errorf("published: %v, %v; want %s", kids, err, to)
	}
	entries, err := filepath.Glob(filepath.Join(b.keys, "sa*"))
	must(t, err)
	var names []string
	for _, e := range entries {
		info, err := os.Stat(e)
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e, info.Mode())
		}
		names = append(names, filepath.Base(e))
	}
	if want := []string{"sa.key", "sa.pub", "sa.rotation.json"}; !slices.Equal(names, want) {
		t.Errorf("left in the key directory: %v, want %v", names, want)
	}
	for _, name := range []string{filepath.Join(b.keys, "sa.rotation.json"), filepath.Join(b.folder, issuer.KeysPath), filepath.Join(b.folder, issuer.ConfigurationPath)} {
		data, err := os.ReadFile(name)
		must(t, err)
		if strings.Contains(string(data), "PRIVATE") || strings.Contains(string(data), `"d"`) {
			t.Errorf("%s holds a private key", name)
		}
	}
}

// abort begins another rotation, takes it back in the middle and finds all as it
// was.
func (b *bed) abort(t *testing.T, kid string) {
	bundle, err := os.ReadFile(filepath.Join(b.keys, "sa.pub"))
	must(t, err)
	r := b.rotation(t)
	r.CacheWait, r.NoWait = time.Hour, false
	must(t, r.Begin())
	r.Sleep = nil
	// Until the wait, where it would stay for an hour.
	r.NoWait = true
	var waiting *rotation.Waiting
	labtest.Eventually(t, t.Context(), func() error {
		err := r.Run(t.Context())
		if !errors.As(err, &waiting) {
			return errors.Join(errors.New("it does not wait"), err)
		}
		if waiting.Step != rotation.Wait || waiting.Until.IsZero() {
			return waiting
		}
		return nil
	})
	p, err := r.Plan(t.Context())
	must(t, err)
	if len(p.Steps) != 5 || p.Steps[0].Step != rotation.Wait || p.Steps[1].At.Sub(waiting.Until).Abs() > 2*time.Second {
		t.Errorf("what is left: %+v", p.Steps)
	}
	r.NoWait = false
	must(t, r.Abort(t.Context()))
	state, err := rotation.ReadState(b.keys)
	must(t, err)
	if state.Step != rotation.Aborted {
		t.Errorf("%+v", state)
	}
	must(t, r.Dir.Close())
	after, err := os.ReadFile(filepath.Join(b.keys, "sa.pub"))
	must(t, err)
	if string(after) != string(bundle) {
		t.Error("the bundle is not as it was")
	}
	servers, err := b.cluster().Observe(t.Context())
	must(t, err)
	if s := servers[0]; s.Signer != kid || s.Accepts(state.New) {
		t.Errorf("the API server: %+v", s)
	}
	if kids, err := b.fetcher().KeyIDs(t.Context(), issuerURL); err != nil || !slices.Equal(kids, []string{kid}) {
		t.Errorf("published: %v, %v", kids, err)
	}
}

// naive does what people do: new files, a restart, and nothing else.
func (b *bed) naive(t *testing.T, l *load) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must(t, err)
	old, err := os.ReadFile(filepath.Join(b.keys, "sa.pub"))
	must(t, err)
	bundle := append(old, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})...)
	must(t, os.WriteFile(filepath.Join(b.keys, "sa.pub"), bundle, 0o600))
	private := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	must(t, os.WriteFile(filepath.Join(b.keys, "sa.key"), private, 0o600))
	must(t, b.control.Restart(t.Context()))
	labtest.Eventually(t, t.Context(), func() error {
		if len(l.failures()) == 0 {
			return errors.New("no exchange has failed")
		}
		return nil
	})
	var refusal *entra.Refusal
	if err := l.failures()[0]; !errors.As(err, &refusal) || !strings.Contains(refusal.Text, "AADSTS7000272") {
		t.Errorf("the first failure: %v", err)
	}
	report, err := inspect.Check{Fetcher: b.fetcher(), Observe: b.cluster().Observe}.Run(t.Context())
	must(t, err)
	if report.OK || !slices.ContainsFunc(report.Findings, func(f inspect.Finding) bool { return f.Code == "missing-key" }) {
		t.Errorf("the check sees: %+v", report)
	}
}

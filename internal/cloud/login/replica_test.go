package login

import (
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

func TestFederatedCredentialsPropagate(t *testing.T) {
	d := newDoor(t)
	var p Propagation
	d.config.Propagation = func() Propagation { return p }
	d.restart()
	d.http.Config.Handler = d.server.Handler()
	p = Propagation{Delay: 10 * time.Second, Cache: time.Minute}
	put := func(sp directory.ServicePrincipal, name string) {
		d.update(func(tx *state.Tx) error {
			before, err := directory.ListFederatedCredentials(tx, sp.ID)
			if err != nil {
				return err
			}
			d.server.FederatedChanged(sp.ID, before)
			_, err = directory.PutFederatedCredential(tx, sp.ID, directory.FederatedCredential{Name: name, Issuer: d.issuer.url, Subject: "system:" + name, Audiences: []string{azure.AudienceExchange}})
			return err
		})
	}
	remove := func(sp directory.ServicePrincipal, name string) {
		d.update(func(tx *state.Tx) error {
			before, err := directory.ListFederatedCredentials(tx, sp.ID)
			if err != nil {
				return err
			}
			d.server.FederatedChanged(sp.ID, before)
			_, err = directory.DeleteFederatedCredential(tx, sp.ID, name)
			return err
		})
	}
	ask := func(sp directory.ServicePrincipal, name string) int {
		r := d.post(d.v2(), with(d.federated(d.issuer.token(nil, d.issuer.claims(d.clock.Now(), map[string]any{"sub": "system:" + name}))), "client_id", sp.AppID))
		if r.status == 200 {
			return 0
		}
		return r.Codes[0]
	}
	want := func(what string, sp directory.ServicePrincipal, name string, code int) {
		t.Helper()
		if got := ask(sp, name); got != code {
			t.Errorf("%s: %d, want %d", what, got, code)
		}
	}
	patient, hasty := d.identity("patient"), d.identity("hasty")
	for _, sp := range []directory.ServicePrincipal{patient, hasty} {
		put(sp, "one")
	}
	want("asked at once", hasty, "one", 70025)
	d.clock.Advance(10 * time.Second)
	want("asked for the first time when it counts", patient, "one", 0)
	want("asked too early, and remembered", hasty, "one", 70025)
	d.clock.Advance(49 * time.Second)
	want("remembered to the end", hasty, "one", 70025)
	d.clock.Advance(time.Second)
	want("forgotten", hasty, "one", 0)

	put(patient, "two")
	d.clock.Advance(5 * time.Second)
	put(patient, "three")
	d.clock.Advance(5 * time.Second)
	p.Cache = 0
	want("the first of two changes counts", patient, "two", 0)
	want("the second does not yet", patient, "three", 700213)
	d.clock.Advance(5 * time.Second)
	want("now it does", patient, "three", 0)

	remove(patient, "two")
	want("one that was deleted still counts", patient, "two", 0)
	d.clock.Advance(10 * time.Second)
	want("and then no more", patient, "two", 700213)
	put(patient, "four")
	p.Delay = 0
	want("without a delay everything counts", patient, "four", 0)
}

func TestUnknownKeysAreFetchedAsOftenAsTheSettingAllows(t *testing.T) {
	d := newDoor(t)
	refetch := time.Duration(0)
	d.config.Refetch = func() time.Duration { return refetch }
	d.restart()
	d.http.Config.Handler = d.server.Handler()
	ask := func(kid string) int {
		r := d.post(d.v2(), d.federated(d.issuer.token(map[string]any{"kid": kid}, d.issuer.claims(d.clock.Now(), nil))))
		if r.status == 200 {
			return 0
		}
		return r.Codes[0]
	}
	const perFetch = 2 // discovery document and keys
	fetches := func() int32 { return d.issuer.fetches.Load() / perFetch }
	for _, step := range []struct {
		what    string
		advance time.Duration
		refetch time.Duration
		kid     string
		code    int
		fetches int32
	}{
		{"the first token", 0, 0, "k1", 0, 1},
		{"an unknown key at once", 0, 0, "k2", 7000272, 1},
		{"an unknown key within the minute", 59 * time.Second, 0, "k2", 7000272, 1},
		{"an unknown key after the minute", time.Second, 0, "k2", 7000272, 2},
		{"a known key meanwhile", 0, 0, "k1", 0, 2},
		{"another setting forgets the keys", 0, time.Second, "k2", 7000272, 3},
		{"an unknown key a second later", time.Second, time.Second, "k2", 7000272, 4},
		{"a known key in a day", 24*time.Hour - 2*time.Second, time.Second, "k1", 0, 4},
		{"a known key after a day", 2 * time.Second, time.Second, "k1", 0, 5},
	} {
		d.clock.Advance(step.advance)
		refetch = step.refetch
		if code := ask(step.kid); code != step.code || fetches() != step.fetches {
			t.Errorf("%s: %d after %d fetches, want %d after %d", step.what, code, fetches(), step.code, step.fetches)
		}
	}
}

package login

import (
	"net/http"
	"sync"
	"testing"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// TestTokensWhileEverythingChanges asks for tokens while keys roll and
// identities come and go: every token verifies, nobody waits for ever.
func TestTokensWhileEverythingChanges(t *testing.T) {
	d := newDoor(t)
	assertion := d.issuer.token(nil, d.issuer.claims(d.clock.Now(), nil))
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for range 8 {
				r := d.post(d.v2(), d.federated(assertion))
				if r.status != http.StatusOK {
					t.Errorf("status %d: %s", r.status, r.raw)
					return
				}
				if _, err := d.server.Verify(t.Context(), r.token["access_token"].(string), azure.ResourceVault); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 3 {
			if err := d.server.RollKeys(); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for range 20 {
			err := d.db.Update(func(tx *state.Tx) error {
				sp, err := directory.CreateManagedIdentity(tx, identityPrefix+"passing")
				if err != nil {
					return err
				}
				_, err = directory.DeleteServicePrincipal(tx, sp.ID)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	d.update(func(*state.Tx) error { return nil })
	if n := d.issuer.fetches.Load(); n != 2 {
		t.Errorf("the issuer was asked %d times, want 2", n)
	}
}

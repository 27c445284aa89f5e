package metadata

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/management/compute"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

const ask = imds.TokenPath + "?api-version=2018-02-01&resource=https://vault.azure.net"

// at serves another machine of the same scale set with the server's settings.
func (m *machine) at(t *testing.T, s *Server, id string) *machine {
	t.Helper()
	other := &machine{Cloud: m.Cloud, names: m.names, server: httptest.NewServer(s.Handler(id))}
	t.Cleanup(other.server.Close)
	return other
}

func TestLimitsAreOfEachMachineAndOnlyIfTheyAreOn(t *testing.T) {
	m := newMachine(t, "one")
	on := false
	s := &Server{DB: m.DB, Tokens: m.Login.ManagedIdentityToken, Limits: func() bool { return on }, Now: m.Now, Logger: m.Logger()}
	first, second := m.at(t, s, instance), m.at(t, s, scaleSet+"/virtualMachines/1")
	header := map[string]string{"Metadata": "true"}
	count := func(m *machine, n int, target string) (refused int) {
		for range n {
			status, h, body := m.send(t, "", target, header)
			switch {
			case status == http.StatusTooManyRequests && body["error"] == "too_many_requests" && h.Get("Retry-After") == "" && body["access_token"] == nil:
				refused++
			case status != http.StatusOK:
				t.Fatalf("%d %v", status, body)
			}
		}
		return refused
	}
	if n := count(first, 30, "/metadata/instance?api-version=2021-02-01"); n != 0 {
		t.Errorf("%d refused although limits are off", n)
	}
	on = true
	const document = "/metadata/instance?api-version=2021-02-01"
	if n := count(first, 30, document); n < 20 {
		t.Errorf("only %d of 30 refused", n)
	}
	if n := count(first, 10, ask); n != 0 {
		t.Errorf("the instance document uses up the tokens' limit: %d refused", n)
	}
	if n := count(second, 4, document); n != 0 {
		t.Errorf("one machine uses up another's limit: %d refused", n)
	}
	if n := count(first, 60, ask); n < 5 {
		t.Errorf("only %d of 60 token requests refused", n)
	}
}

func TestFiveTokenRequestsOfAMachineAtATime(t *testing.T) {
	m := newMachine(t, "one")
	release, entered := make(chan struct{}), make(chan struct{}, 10)
	s := &Server{DB: m.DB, Limits: func() bool { return true }, Now: m.Now, Logger: m.Logger(), Tokens: func(ctx context.Context, id, resource string) (token.Token, error) {
		entered <- struct{}{}
		<-release
		return m.Login.ManagedIdentityToken(ctx, id, resource)
	}}
	busy := m.at(t, s, instance)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if status, _, body := busy.send(t, "", ask, map[string]string{"Metadata": "true"}); status != http.StatusOK {
				t.Errorf("%d %v", status, body)
			}
		})
		<-entered
	}
	if status, _, body := busy.send(t, "", ask, map[string]string{"Metadata": "true"}); status != http.StatusTooManyRequests {
		t.Errorf("the sixth: %d %v", status, body)
	}
	close(release)
	wg.Wait()
	if status, _, body := busy.send(t, "", ask, map[string]string{"Metadata": "true"}); status != http.StatusOK {
		t.Errorf("after they ended: %d %v", status, body)
	}
}

// While Resource Manager changes a machine, its token endpoint says 410 for at most 70 seconds; then the old identities
// answer, and the new ones when the change is made.
func TestTokensWhileTheMachineIsBeingChanged(t *testing.T) {
	m := newMachine(t, "one")
	m.Compute = compute.Settings{Duration: 90 * time.Second}
	updates := true
	s := &Server{DB: m.DB, Tokens: m.Login.ManagedIdentityToken, Settle: m.Management.Settle, Updates: func() bool { return updates }, Now: m.Now, Logger: m.Logger()}
	node := m.at(t, s, instance)
	status := func(query string) int {
		status, _, _ := node.send(t, "", ask+query, map[string]string{"Metadata": "true"})
		return status
	}
	m.Do("PATCH", scaleSet, map[string]any{"identity": map[string]any{"type": "UserAssigned", "userAssignedIdentities": map[string]any{identities + "two": map[string]any{}}}}, nil)
	two := "&client_id=" + m.names["${two.clientId}"]
	if got := status(""); got != http.StatusGone {
		t.Errorf("at once: %d", got)
	}
	updates = false
	if got := status(""); got != http.StatusOK {
		t.Errorf("without the setting: %d", got)
	}
	if got := status(two); got != http.StatusBadRequest {
		t.Errorf("the new identity before the change is made: %d", got)
	}
	updates = true
	m.Advance(71 * time.Second)
	if got := status(""); got != http.StatusOK {
		t.Errorf("after 71 s: %d", got)
	}
	m.Advance(20 * time.Second)
	if got := status(two); got != http.StatusOK {
		t.Errorf("the new identity after the change: %d", got)
	}
}

func TestEachMachineHasItsOwnDocument(t *testing.T) {
	m := newMachine(t)
	vm := rg + "/providers/" + azure.TypeVirtualMachine + "/vm1"
	m.Do("PUT", vm, map[string]any{"location": "westus"}, nil)
	s := &Server{DB: m.DB, Tokens: m.Login.ManagedIdentityToken, Now: m.Now, Logger: m.Logger()}
	seen := map[any]string{}
	for id, name := range map[string]string{instance: "aks-nodepool1000000", scaleSet + "/virtualMachines/1": "aks-nodepool1000001", vm: "vm1"} {
		_, _, body := m.at(t, s, id).send(t, "", "/metadata/instance?api-version=2021-12-13", map[string]string{"Metadata": "true"})
		c := body["compute"].(map[string]any)
		if c["resourceId"] != id || c["osProfile"].(map[string]any)["computerName"] != name {
			t.Errorf("%s: %v", id, c)
		}
		if other := seen[c["vmId"]]; other != "" {
			t.Errorf("%s and %s have the same vmId", id, other)
		}
		seen[c["vmId"]] = id
	}
}

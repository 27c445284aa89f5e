package federation_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	coordinationv1 "k8s.io/api/coordination/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/federation"
	"github.com/lanyard-id/lanyard/internal/federation/probe"
	"github.com/lanyard-id/lanyard/internal/token"
)

func TestOneReplicaLeadsWithTheRightsOfTheManifest(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	w.allow(byClient(p))
	health := freeAddress(t)
	election := &federation.Election{Namespace: "lanyard-system", Name: "lanyard-federation", Duration: time.Second}
	first := w.run(func(c *federation.Config) { c.Election = election })
	w.account("web", p.ClientID)
	w.await("web", "Ready=True Ready")
	var before coordinationv1.Lease
	if err := w.Get(t.Context(), client.ObjectKey{Namespace: "lanyard-system", Name: "lanyard-federation"}, &before); err != nil {
		t.Fatal(err)
	}
	w.run(func(c *federation.Config) { c.Election, c.HealthAddress = election, health })
	for _, path := range []string{"/healthz", "/readyz"} {
		w.eventually(func() error { return get(t.Context(), "http://"+health+path) })
	}
	first()
	w.azure.open() // for the other one
	w.account("late", p.ClientID)
	w.await("late", "Ready=True Ready")
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	w.allow(byClient(p))
	registry := prometheus.NewPedanticRegistry()
	m, err := federation.NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	w.run(func(c *federation.Config) { c.Metrics = m })
	w.account("web", p.ClientID)
	w.await("web", "Ready=True Ready")
	w.eventually(func() error {
		return testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP lanyard_federation_azure_requests_total Operations in Azure by their result.
# TYPE lanyard_federation_azure_requests_total counter
lanyard_federation_azure_requests_total{operation="find",result="ok"} 1
lanyard_federation_azure_requests_total{operation="list",result="ok"} 1
lanyard_federation_azure_requests_total{operation="put",result="ok"} 1
# HELP lanyard_federation_identities FederatedIdentities by the state of their conditions.
# TYPE lanyard_federation_identities gauge
lanyard_federation_identities{condition="Accepted",reason="Allowed",status="True"} 1
lanyard_federation_identities{condition="Created",reason="Created",status="True"} 1
lanyard_federation_identities{condition="Ready",reason="Ready",status="True"} 1
lanyard_federation_identities{condition="Usable",reason="Exchanged",status="True"} 1
`), "lanyard_federation_azure_requests_total", "lanyard_federation_identities")
	})
	if n, err := testutil.GatherAndCount(registry, "lanyard_federation_probes_total"); err != nil || n == 0 {
		t.Errorf("%d results of probes, %v", n, err)
	}
}

func TestWithoutTheProbeReadyDoesNotWaitForIt(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	w.allow(byClient(p))
	w.run(func(c *federation.Config) { c.Exchange = nil })
	w.account("web", p.ClientID)
	f := w.await("web", "Ready=True Ready")
	w.await("web", "Usable=Unknown NotProbed")
	if f.Status.UsableSince != nil {
		t.Error("usable since a time that nobody knows")
	}
}

// Where Graph may not be read, what policies name by ARM id is enough.
func TestWithoutPermissionInTheDirectoryPoliciesShowTheWay(t *testing.T) {
	w := newWorld(t)
	p, app := w.identity("web"), w.application("app")
	w.allow(lanyard.PolicyIdentity{ResourceID: p.ResourceID}, byClient(app))
	w.azure.set(func(operation string, parent federated.Parent, _ string) error {
		if operation == "find" && !strings.HasPrefix(parent.DisplayName, "/") {
			return fmt.Errorf("%w: it needs Application.Read.All", federated.ErrForbidden)
		}
		return nil
	})
	w.run()
	w.account("web", p.ClientID)
	w.account("app", app.ClientID)
	w.await("web", "Ready=True Ready")
	w.await("app", "Created=False Forbidden")
	w.awaitEvent("ServiceAccount", "app", "Forbidden", "Application.Read.All")
}

// Entra does not know the credential at first.
func TestTheProbeWaitsOutThePropagation(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	w.allow(byClient(p))
	x := &late{Exchanger: w.config().Exchange, refusals: 3}
	w.run(func(c *federation.Config) { c.Exchange = x })
	w.account("web", p.ClientID)
	w.await("web", "Ready=True Ready")
	if n := x.asked.Load(); n != 4 {
		t.Errorf("%d exchanges", n)
	}
}

// late refuses some exchanges as Entra does while it has not heard of a credential.
type late struct {
	probe.Exchanger
	refusals int32
	asked    atomic.Int32
}

func (l *late) Token(ctx context.Context, app entra.Application, cred entra.Credential, resource string) (token.Token, error) {
	if l.asked.Add(1) <= l.refusals {
		return token.Token{}, &entra.Refusal{Status: http.StatusUnauthorized, Name: "invalid_client", Codes: []int{700213}}
	}
	return l.Exchanger.Token(ctx, app, cred, resource)
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK {
		return errors.New(string(body))
	}
	return nil
}

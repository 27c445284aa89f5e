package serviceaccount

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/graph"
)

// An Azure is where, and as whom, phases work. All fields but Options must be set.
type Azure struct {
	Cloud          arm.Cloud
	Credential     azcore.TokenCredential
	TenantID       string
	SubscriptionID string
	Options        policy.ClientOptions // transport, telemetry, retries

	graph     *graph.Client
	federated *federated.Client
}

func (a *Azure) options() policy.ClientOptions {
	o := a.Options
	o.Cloud = a.Cloud.Configuration()
	return o
}

func (a *Azure) directory() (*graph.Client, error) {
	if a.graph == nil {
		g, err := graph.New(a.Cloud, a.Credential, a.options())
		if err != nil {
			return nil, err
		}
		a.graph = g
	}
	return a.graph, nil
}

func (a *Azure) credentials() *federated.Client {
	if a.federated == nil {
		o := a.options()
		if o.Retry.StatusCodes == nil { // a moment's throttling is waited for here
			o.Retry.StatusCodes = []int{
				http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
				http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
			}
		}
		a.federated = &federated.Client{Credential: a.Credential, Cloud: a.Cloud, Options: o}
	}
	return a.federated
}

// permissions of Graph that application phases need.
const needGraph = "the caller needs Microsoft Graph's permission Application.ReadWrite.OwnedBy (or Application.ReadWrite.All), or the directory role Application Developer"

// explain adds what permits a request that was refused.
func explain(err error, need string) error {
	var e *arm.Error
	if err = arm.AsError(err); errors.As(err, &e) {
		switch e.Status {
		case http.StatusForbidden:
			return fmt.Errorf("not allowed: %s: %w", need, err)
		case http.StatusUnauthorized:
			return fmt.Errorf("signing in failed: check --auth-method and its flags: %w", err)
		}
	}
	return err
}

const (
	firstWait = time.Second
	lastWait  = 10 * time.Second
	// propagation is how long what was made a moment ago may be unknown to
	// another part of Azure. Minutes are rare, but documented.
	propagation = 3 * time.Minute
)

// again repeats do while it fails with what passes by itself: so says later,
// which is asked with the error.
func (r *Runner) again(ctx context.Context, do func() error, later func(error) bool) error {
	wait := r.Wait
	if wait == 0 {
		wait = firstWait
	}
	limit := time.NewTimer(propagation)
	defer limit.Stop()
	var last error
	for {
		err := do()
		if err != nil && last != nil && ctx.Err() != nil {
			return fmt.Errorf("%w, while waiting for this to pass: %w", ctx.Err(), last)
		}
		if err == nil || !later(err) {
			return err
		}
		last = err
		pause := wait
		var throttled *federated.Throttled
		if errors.As(err, &throttled) {
			pause = max(pause, throttled.RetryAfter)
		}
		next := time.NewTimer(pause)
		select {
		case <-next.C:
		case <-limit.C:
			next.Stop()
			return fmt.Errorf("it still is so after %s: %w", propagation, err)
		case <-ctx.Done():
			next.Stop()
			return fmt.Errorf("%w, while waiting for this to pass: %w", ctx.Err(), err)
		}
		wait = min(2*wait, max(lastWait, r.Wait))
	}
}

func throttled(err error) bool {
	var t *federated.Throttled
	return errors.As(err, &t)
}

// identity finds the identity that the options are about. federated.ErrNotFound
// and graph.ErrNotFound mean that there is none.
func (r *Runner) identity(ctx context.Context) (federated.Parent, error) {
	if r.parent != nil {
		return *r.parent, nil
	}
	a, err := r.connect(ctx)
	if err != nil {
		return federated.Parent{}, err
	}
	var p federated.Parent
	switch o := r.Options; {
	case o.managed():
		p, err = a.credentials().FindResource(ctx, o.IdentityID)
	case o.ApplicationClientID != "":
		p, err = a.credentials().Find(ctx, o.ApplicationClientID)
	default:
		var app graph.Application
		if app, err = r.findApplication(ctx); err == nil {
			p = federated.Parent{Kind: federated.Application, ObjectID: app.ID, ClientID: app.AppID, DisplayName: app.DisplayName}
		}
	}
	if err != nil {
		return federated.Parent{}, err
	}
	r.found(p)
	return *r.parent, nil
}

// found remembers the identity, with its tenant.
func (r *Runner) found(p federated.Parent) {
	if p.TenantID == "" {
		p.TenantID = r.azure.TenantID
	}
	r.parent, r.result.Identity = &p, &p
}

// findApplication finds the application by object id or name. A name that
// several have is an error that lists them.
func (r *Runner) findApplication(ctx context.Context) (graph.Application, error) {
	if r.app != nil {
		return *r.app, nil
	}
	a, err := r.connect(ctx)
	if err != nil {
		return graph.Application{}, err
	}
	g, err := a.directory()
	if err != nil {
		return graph.Application{}, err
	}
	o := r.Options
	if o.ApplicationObjectID != "" {
		app, err := g.Application(ctx, o.ApplicationObjectID)
		return app, explain(err, needGraph)
	}
	if o.ApplicationClientID != "" {
		app, err := g.ApplicationByAppID(ctx, o.ApplicationClientID)
		return app, explain(err, needGraph)
	}
	all, err := g.ApplicationsByDisplayName(ctx, o.applicationName())
	switch {
	case err != nil:
		return graph.Application{}, explain(err, needGraph)
	case len(all) == 0:
		return graph.Application{}, fmt.Errorf("%w: there is no application %q", graph.ErrNotFound, o.applicationName())
	case len(all) > 1:
		list := make([]string, len(all))
		for i, x := range all {
			list[i] = fmt.Sprintf("\n  client id %s, object id %s, created %s", x.AppID, x.ID, x.CreatedDateTime)
		}
		return graph.Application{}, fmt.Errorf("%d applications have the name %q: choose one with --aad-application-client-id or --aad-application-object-id%s", len(all), o.applicationName(), strings.Join(list, ""))
	}
	return all[0], nil
}

// principal finds the object id that roles are given to.
func (r *Runner) principal(ctx context.Context) (string, error) {
	o := r.Options
	if o.PrincipalObjectID != "" {
		return o.PrincipalObjectID, nil
	}
	a, err := r.connect(ctx)
	if err != nil {
		return "", err
	}
	if o.PrincipalName != "" {
		g, err := a.directory()
		if err != nil {
			return "", err
		}
		all, err := g.ServicePrincipalsByDisplayName(ctx, o.PrincipalName)
		switch {
		case err != nil:
			return "", explain(err, needGraph)
		case len(all) == 0:
			return "", fmt.Errorf("%w: there is no service principal %q", graph.ErrNotFound, o.PrincipalName)
		case len(all) > 1:
			list := make([]string, len(all))
			for i, x := range all {
				list[i] = fmt.Sprintf("\n  object id %s, client id %s, %s", x.ID, x.AppID, x.ServicePrincipalType)
			}
			return "", fmt.Errorf("%d service principals have the name %q: choose one with --service-principal-object-id%s", len(all), o.PrincipalName, strings.Join(list, ""))
		}
		return all[0].ID, nil
	}
	p, err := r.identity(ctx)
	if err != nil || p.PrincipalID != "" {
		return p.PrincipalID, err
	}
	g, err := a.directory()
	if err != nil {
		return "", err
	}
	sp, err := g.ServicePrincipalByAppID(ctx, p.ClientID)
	if err != nil {
		return "", explain(err, needGraph)
	}
	p.PrincipalID = sp.ID
	r.found(p)
	return sp.ID, nil
}

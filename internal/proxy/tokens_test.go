package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

func TestWhoseTokenIsGiven(t *testing.T) {
	arm := "&msi_res_id=" + url.QueryEscape(mineARM)
	for name, tt := range map[string]struct {
		before string // asked first
		query  string
		opaque bool
		noID   bool   // AZURE_CLIENT_ID is not set
		want   string // client id, or what the refusal says
	}{
		"nobody is named":                                              {query: "", want: mine},
		"nobody is named, and there is no default":                     {query: "", noID: true, want: "The client_id parameter or AZURE_CLIENT_ID environment variable must be set"},
		"the default by client id":                                     {query: "&client_id=" + mine, want: mine},
		"another client id":                                            {query: "&client_id=" + other, want: other},
		"a client id in capitals":                                      {query: "&client_id=" + strings.ToUpper(other), want: other},
		"a client id without a default":                                {query: "&client_id=" + other, noID: true, want: other},
		"the default by object id":                                     {query: "&object_id=" + mineOID, want: mine},
		"the default by principal id":                                  {query: "&principal_id=" + strings.ToUpper(mineOID), want: mine},
		"an object id that nobody has":                                 {query: "&object_id=99999999-0000-0000-0000-000000000009", want: "Identity not found"},
		"the object id of another that was not asked for":              {query: "&object_id=" + otherOID, want: "Identity not found"},
		"the object id of another that was asked for":                  {before: "&client_id=" + other, query: "&object_id=" + otherOID, want: other},
		"an object id that is not known while others are":              {before: "&client_id=" + other, query: "&object_id=99999999-0000-0000-0000-000000000009", want: "Identity not found"},
		"an object id without a default":                               {query: "&object_id=" + mineOID, noID: true, want: "Identity not found"},
		"the default by resource id":                                   {query: arm, want: mine},
		"the default by resource id in another case, under a new name": {query: "&mi_res_id=" + url.QueryEscape(strings.ToUpper(mineARM)), want: mine},
		"a resource id that nobody has":                                {query: arm + "2", want: "Identity not found"},
		"a resource id of a token that has none":                       {before: "&client_id=" + other, query: "&msi_res_id=%2Fsubscriptions%2Fx", want: "Identity not found"},
		"an object id where tokens cannot be read":                     {query: "&object_id=" + mineOID, opaque: true, want: "Identity not found"},
		"a client id where tokens cannot be read":                      {query: "&client_id=" + other, opaque: true, want: "opaque"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			if tt.noID {
				f.tokens.ClientID = ""
			}
			f.entra.opaque = tt.opaque
			if tt.before != "" {
				f.token(t, tt.before)
			}
			a := f.token(t, tt.query)
			switch {
			case a.status == 200 && a.AccessToken == "opaque":
				if tt.want != "opaque" {
					t.Errorf("got an opaque token, want %s", tt.want)
				}
			case a.status == 200:
				if got := a.claim(t, "appid"); got != tt.want || a.ClientID != tt.want || a.Resource != vault {
					t.Errorf("got a token of %s (%s) for %s, want one of %s", got, a.ClientID, a.Resource, tt.want)
				}
			case a.status != 400 || a.Error != imds.CodeInvalidRequest || !strings.HasPrefix(a.Description, tt.want):
				t.Errorf("got %d %s, want %s", a.status, a.body, tt.want)
			}
		})
	}
}

// An identity that was deleted and made again under the same client id has
// another object id.
func TestATokenThatDoesNotConfirmTheObjectIDIsNotGiven(t *testing.T) {
	f := newFixture(t)
	f.tokens.once.Do(f.tokens.init)
	f.tokens.known[other] = identity{objectID: "stale"}
	if a := f.token(t, "&object_id=stale"); a.status != 400 || !strings.HasPrefix(a.Description, "Identity not found") {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestAnIdentityThatIsKnownIsFoundWhereItsTokensCannotBeRead(t *testing.T) {
	f := newFixture(t)
	f.token(t, "&client_id="+other)
	f.entra.set(func(e *fakeEntra) { e.opaque = true })
	a := f.get(t, "/metadata/identity/oauth2/token?resource=x&object_id="+otherOID)
	if a.status != 200 || a.AccessToken != "opaque" || a.ClientID != other {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestTheScopeIsTheResourceAsItWasWritten(t *testing.T) {
	f := newFixture(t)
	if a := f.get(t, "/metadata/identity/oauth2/token?resource="+url.QueryEscape(management)); a.claim(t, "scp") != management+"/.default" || a.Resource != management {
		t.Errorf("got %s", a.body)
	}
	q := f.entra.requests[0]
	if q.Assertion != federated || q.AssertionType != entra.AssertionTypeJWT || q.ClientID != mine || q.Secret != "" {
		t.Errorf("Entra was asked with %+v", q)
	}
}

func TestWhatEntraRefusesTheCallerIsTold(t *testing.T) {
	for name, tt := range map[string]struct {
		refuse     func(http.ResponseWriter, entra.TokenRequest) bool
		status     int
		retryAfter string
		want       string
	}{
		"an application that does not exist": {refusal(400, 700016, "unauthorized_client", "Application with identifier 'x' was not found"), 400, "", "AADSTS700016: Application"},
		"no federated credential matches":    {refusal(401, 70021, "invalid_request", "No matching federated identity record found"), 400, "", "AADSTS70021: No matching"},
		"a resource that does not exist":     {refusal(400, 500011, "invalid_resource", "The resource principal was not found"), 400, "", "AADSTS500011"},
		"throttled":                          {refusal(429, 90055, "temporarily_unavailable", "Too many requests", "Retry-After", "7"), 429, "7", "AADSTS90055"},
		"out of order":                       {refusal(503, 90033, "temporarily_unavailable", "A transient error has occurred", "Retry-After", "3"), 503, "3", "AADSTS90033"},
		"a federated token that has expired": {refusal(401, 700024, "invalid_client", "Client assertion is not within its valid time range"), 503, "1", "/token, or a clock is wrong: AADSTS700024"},
		"a proxy's page instead": {func(w http.ResponseWriter, _ entra.TokenRequest) bool {
			http.Error(w, "<html>", http.StatusBadGateway)
			return true
		}, 503, "1", "502"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.entra.refuse = tt.refuse
			for range 2 { // from Entra, and from memory
				a := f.token(t, "")
				if a.status != tt.status || a.header.Get("Retry-After") != tt.retryAfter || !strings.Contains(a.Description, tt.want) {
					t.Errorf("got %d %v %s, want %d, %q and %q", a.status, a.header["Retry-After"], a.body, tt.status, tt.retryAfter, tt.want)
				}
			}
			if n := f.entra.asked(); n != 1 {
				t.Errorf("Entra was asked %d times", n)
			}
			if log := f.log.String(); !strings.Contains(log, "no token from Entra") || strings.Contains(log, federated) {
				t.Errorf("the log is %s", log)
			}
		})
	}
}

func TestAnEntraThatIsAway(t *testing.T) {
	f := newFixture(t)
	f.tokens.Entra.Authority = "http://127.0.0.1:1"
	if a := f.token(t, ""); a.status != 503 || a.header.Get("Retry-After") == "" || !strings.Contains(a.Description, "Entra cannot be reached") {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestAFederatedTokenThatIsMissing(t *testing.T) {
	f := newFixture(t)
	if err := os.Remove(f.file); err != nil {
		t.Fatal(err)
	}
	a := f.token(t, "")
	if a.status != 503 || !strings.Contains(a.Description, "the federated token cannot be used") || !strings.Contains(a.Description, f.file) {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if n := f.entra.asked(); n != 0 {
		t.Errorf("Entra was asked %d times", n)
	}
}

func TestACachedTokenCostsNoLogAndNoExchange(t *testing.T) {
	f := newFixture(t)
	first := f.token(t, "")
	before := f.log.String()
	for range 50 {
		if a := f.token(t, ""); a.AccessToken != first.AccessToken {
			t.Fatalf("got another token: %d %s", a.status, a.body)
		}
	}
	if after := f.log.String(); after != before || strings.Count(before, "\n") != 1 {
		t.Errorf("the log is %s", after)
	}
	if n := f.entra.asked(); n != 1 {
		t.Errorf("Entra was asked %d times", n)
	}
	for _, secret := range []string{federated, first.AccessToken, strings.Split(federated, ".")[2]} {
		if strings.Contains(before, secret) {
			t.Errorf("the log shows a token: %s", before)
		}
	}
}

func TestManyCallersMakeOneExchange(t *testing.T) {
	f := newFixture(t)
	arrived, proceed := make(chan struct{}, 8), make(chan struct{})
	f.entra.refuse = func(http.ResponseWriter, entra.TokenRequest) bool {
		arrived <- struct{}{}
		<-proceed
		return false
	}
	// One of them leaves.
	ctx, leave := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		_, err := f.tokens.Token(ctx, token.Request{Resource: vault})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the one that left got %v", err)
		}
	})
	<-arrived
	for range 20 {
		all.Go(func() {
			if _, err := f.tokens.Token(t.Context(), token.Request{Resource: vault}); err != nil {
				t.Error(err)
			}
		})
	}
	leave()
	close(proceed)
	all.Wait()
	if n := f.entra.asked(); n != 1 {
		t.Errorf("Entra was asked %d times", n)
	}
}

func TestAPodThatAsksForTenThousandIdentitiesTakesNoMemoryWithThem(t *testing.T) {
	f := newFixture(t)
	f.entra.refuse = func(w http.ResponseWriter, q entra.TokenRequest) bool {
		return q.ClientID != mine && strings.HasSuffix(q.ClientID, "7") && refusal(400, 700016, "unauthorized_client", "not found")(w, q)
	}
	var all sync.WaitGroup
	for worker := range 16 {
		all.Go(func() {
			for i := range 10_000 / 16 {
				r := token.Request{ClientID: fmt.Sprintf("client-%d-%d", worker, i), Resource: vault}
				if i%2 == 0 {
					r.Resource += fmt.Sprint(i)
				}
				_, _ = f.tokens.Token(t.Context(), r)
			}
		})
	}
	all.Wait()
	if n := f.tokens.cache.Len(); n > maxTokens {
		t.Errorf("%d tokens are kept", n)
	}
	if n := len(f.tokens.known); n > maxTokens {
		t.Errorf("%d identities are kept", n)
	}
	if n := strings.Count(f.log.String(), "\n"); n > 100 {
		t.Errorf("%d lines of log", n)
	}
	if a := f.token(t, ""); a.status != 200 || a.claim(t, "appid") != mine {
		t.Errorf("the pod's own identity: %d %s", a.status, a.body)
	}
}

func TestTokensAreRenewedAheadWithTheFederatedTokenOfThatMoment(t *testing.T) {
	file := t.TempDir() + "/token"
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEntra{}
		tokens := &Tokens{Tenant: tenant, ClientID: mine, File: entra.AssertionFile(file), Entra: &entra.Client{HTTP: &http.Client{Transport: e}}, Logger: slog.New(slog.DiscardHandler)}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- tokens.Run(ctx) }()
		write(federated)
		first, err := tokens.Token(t.Context(), token.Request{Resource: vault})
		if err != nil {
			t.Fatal(err)
		}
		write(federated + "2") // the kubelet's rotation
		<-time.After(55 * time.Minute)
		synctest.Wait()
		if n := e.asked(); n != 2 || e.requests[1].Assertion != federated+"2" {
			t.Errorf("Entra was asked %d times, the last time with the new token: %v", n, e.requests[n-1].Assertion == federated+"2")
		}
		second, err := tokens.Token(t.Context(), token.Request{Resource: vault})
		if err != nil || second.AccessToken == first.AccessToken {
			t.Errorf("the token was not renewed: %v", err)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestARefusalIsForgottenAfterSeconds(t *testing.T) {
	file := t.TempDir() + "/token"
	if err := os.WriteFile(file, []byte(federated), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEntra{refuse: refusal(401, 70021, "invalid_request", "No matching federated identity record found")}
		tokens := &Tokens{Tenant: tenant, ClientID: mine, File: entra.AssertionFile(file), Entra: &entra.Client{HTTP: &http.Client{Transport: e}}, Logger: slog.New(slog.DiscardHandler)}
		for range 8 { // somebody asks all the time
			_, err := tokens.Token(t.Context(), token.Request{Resource: vault})
			if err == nil {
				t.Fatal("a token")
			}
			<-time.After(refusedMax)
		}
		e.set(func(e *fakeEntra) { e.refuse = nil }) // the credential is made
		if _, err := tokens.Token(t.Context(), token.Request{Resource: vault}); err != nil {
			t.Errorf("more than %s later: %v", refusedMax, err)
		}
	})
}

func TestAThrottledIdentityDoesNotStopAnother(t *testing.T) {
	f := newFixture(t)
	f.entra.refuse = func(w http.ResponseWriter, q entra.TokenRequest) bool {
		return q.ClientID == mine && refusal(429, 90055, "temporarily_unavailable", "Too many requests", "Retry-After", "60")(w, q)
	}
	if a := f.token(t, ""); a.status != 429 || a.header.Get("Retry-After") != "60" {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if a := f.token(t, "&client_id="+other); a.status != 200 {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

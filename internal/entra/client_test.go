package entra

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A fixed credential says with which time it was asked.
type fixed struct{ at *time.Time }

func (f fixed) Form(clientID, audience string, now time.Time) (url.Values, error) {
	if f.at != nil {
		*f.at = now
	}
	return url.Values{"client_assertion": {clientID + " to " + audience}, "client_assertion_type": {AssertionTypeJWT}}, nil
}

func newClient(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	c := &Client{Authority: srv.URL, AllowHTTP: true}
	t.Cleanup(func() { c.CloseIdleConnections(); srv.Close() })
	return c
}

func TestTheClientAsksByClientCredentials(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 600, time.UTC)
	for resource, scope := range map[string]string{
		"https://vault.azure.net":              "https://vault.azure.net/.default",
		"https://management.azure.com/":        "https://management.azure.com//.default",
		"6dae42f8-4368-4678-94ff-3960e28e3630": "6dae42f8-4368-4678-94ff-3960e28e3630/.default",
		"api://x?a=b&c=%20":                    "api://x?a=b&c=%20/.default",
	} {
		var got TokenRequest
		var path string
		c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
			path = r.URL.Path
			var err error
			if got, err = ParseTokenRequest(r, V2); err != nil {
				t.Error(err)
			}
			_ = WriteToken(w, V2, TokenResponse{AccessToken: "a.b.c", ExpiresIn: time.Hour})
		})
		c.Now = func() time.Time { return at }
		tok, err := c.Token(t.Context(), Application{Tenant: "contoso.example", ClientID: "id"}, fixed{}, resource)
		if err != nil {
			t.Fatal(err)
		}
		want := TokenRequest{Version: V2, GrantType: GrantClientCredentials, ClientID: "id", Scope: scope, AssertionType: AssertionTypeJWT,
			Assertion: "id to " + c.Authority + "/contoso.example/oauth2/v2.0/token"}
		if diff := cmp.Diff(want, got); diff != "" || path != "/contoso.example/oauth2/v2.0/token" {
			t.Errorf("%s: path %s (-want +got)\n%s", resource, path, diff)
		}
		if left := tok.ExpiresOn.Sub(at); tok.AccessToken != "a.b.c" || tok.Resource != resource || tok.ClientID != "id" || left > time.Hour || left < time.Hour-10*time.Second {
			t.Errorf("got %v", tok)
		}
	}
}

func TestNothingIsSentToWhatIsNoAuthority(t *testing.T) {
	for _, c := range []struct{ name, authority, tenant, resource string }{
		{"without TLS", "http://login.example/", "t", "r"},
		{"not a URL", "https://%zz", "t", "r"},
		{"no host", "https:///x", "t", "r"},
		{"with a password", "https://a:b@login.example", "t", "r"},
		{"with a query", "https://login.example/?x=", "t", "r"},
		{"with a fragment", "https://login.example/#x", "t", "r"},
		{"a path that climbs", "https://login.example/a/../b", "t", "r"},
		{"no tenant", "https://login.example/", "", "r"},
		{"a tenant with a slash", "https://login.example/", "a/b", "r"},
		{"a tenant that climbs", "https://login.example/", "..", "r"},
		{"a tenant with an escape", "https://login.example/", "a%2fb", "r"},
		{"a tenant with a query", "https://login.example/", "a?b", "r"},
		{"no resource", "https://login.example/", "t", ""},
		{"two scopes", "https://login.example/", "t", "r openid"},
		{"a line end", "https://login.example/", "t", "r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := Client{HTTP: &http.Client{Transport: nowhere{t}}}
			if tok, err := client.Token(t.Context(), Application{c.authority, c.tenant, "id"}, fixed{}, c.resource); !errors.Is(err, ErrUnusable) {
				t.Errorf("got %v, %v", tok, err)
			}
		})
	}
}

type nowhere struct{ t *testing.T }

func (n nowhere) RoundTrip(r *http.Request) (*http.Response, error) {
	n.t.Errorf("%s was asked", r.URL)
	return nil, errors.New("nowhere")
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name          string
		answer        func(w http.ResponseWriter)
		text          string
		transient     bool
		badCredential bool
		retryAfter    time.Duration
	}{
		{"a wrong secret", entraError(InvalidSecret("app")), "AADSTS7000215: Invalid client secret provided.", false, true, 0},
		{"an expired secret", entraError(ExpiredSecret("app")), "AADSTS7000222", false, true, 0},
		{"an unknown certificate", entraError(InvalidAssertionSignature("The key was not found.", "AB")), "AADSTS700027", false, true, 0},
		{"an assertion for somebody else", entraError(AssertionAudience()), "AADSTS700023", false, false, 0},
		{"an assertion of another time", entraError(AssertionTime(time.Now(), time.Now(), time.Now())), "AADSTS700024", true, false, 0},
		{"an unknown application", entraError(ApplicationNotFound("x", "t")), "AADSTS700016", false, false, 0},
		{"an unknown resource", entraError(ResourceNotFound("r", "t")), "AADSTS500011", false, false, 0},
		{"throttling", func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "12")
			entraError(&Error{Status: 429, Code: 90055, Name: "temporarily_unavailable", Text: "slow down"})(w)
		}, "AADSTS90055", true, false, 12 * time.Second},
		{"a date to retry after", func(w http.ResponseWriter) {
			w.Header().Set("Date", "Wed, 21 Oct 2015 07:28:00 GMT")
			w.Header().Set("Retry-After", "Wed, 21 Oct 2015 07:28:30 GMT")
			w.WriteHeader(503)
		}, "answered 503", true, false, 30 * time.Second},
		{"a year to retry after", func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "31536000")
			w.WriteHeader(503)
		}, "answered 503", true, false, time.Hour},
		{"a gateway's page", func(w http.ResponseWriter) { w.WriteHeader(502); fmt.Fprint(w, "<html>secret page") }, "answered 502", true, false, 0},
		{"a redirect", func(w http.ResponseWriter) {
			w.Header().Set("Location", "http://elsewhere.example/")
			w.WriteHeader(307)
		}, "answered 307", true, false, 0},
		{"lines and length", entraError(&Error{Status: 400, Code: 1, Name: "x", Text: "a\r\nb\x1b[31m" + strings.Repeat("é", 4000)}), "AADSTS1: a b [31m", false, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := newClient(t, func(w http.ResponseWriter, _ *http.Request) { c.answer(w) })
			_, err := client.Token(t.Context(), Application{Tenant: "t", ClientID: "id"}, fixed{}, "r")
			var r *Refusal
			if !errors.As(err, &r) {
				t.Fatalf("got %v", err)
			}
			if r.Transient() != c.transient || r.BadCredential() != c.badCredential || r.RetryAfter != c.retryAfter || !strings.Contains(r.Error(), c.text) {
				t.Errorf("got %v (transient %v, credential %v, retry after %s)", r, r.Transient(), r.BadCredential(), r.RetryAfter)
			}
			if len(r.Text) > 2<<10 || strings.ContainsAny(r.Text, "\r\n\x1b") || strings.Contains(r.Error(), "secret page") {
				t.Errorf("text %q", r.Text)
			}
		})
	}
}

func entraError(e *Error) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		_ = WriteError(w, Exchange{TraceID: "t", CorrelationID: "c", Time: time.Now()}, e)
	}
}

func TestAWrongClockOfTheNodeIsMetWithEntrasOwn(t *testing.T) {
	for _, off := range []time.Duration{time.Hour, -time.Hour} {
		var signed time.Time
		calls := 0
		c := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
			calls++
			if now := time.Now(); signed.Sub(now).Abs() > 5*time.Minute {
				entraError(AssertionTime(now, signed, signed))(w)
				return
			}
			_ = WriteToken(w, V2, TokenResponse{AccessToken: "a.b.c", ExpiresIn: time.Hour})
		})
		c.Now = func() time.Time { return time.Now().Add(off) }
		tok, err := c.Token(t.Context(), Application{Tenant: "t", ClientID: "id"}, fixed{&signed}, "r")
		if err != nil || calls != 2 || tok.ExpiresOn.Sub(c.Now()).Round(time.Minute) != time.Hour {
			t.Errorf("off by %s: %v, %v after %d requests", off, tok, err, calls)
		}
	}
}

func TestAnswersThatAreNoTokens(t *testing.T) {
	for name, body := range map[string]string{
		"not JSON":        `secret-token`,
		"no token":        `{"expires_in":3599}`,
		"no lifetime":     `{"access_token":"secret-token"}`,
		"a zero lifetime": `{"access_token":"secret-token","expires_in":0}`,
	} {
		c := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, body)
		})
		if tok, err := c.Token(t.Context(), Application{Tenant: "t", ClientID: "id"}, fixed{}, "r"); err == nil || strings.Contains(err.Error(), "secret-token") {
			t.Errorf("%s: %v, %v", name, tok, err)
		}
	}
}

func TestACallerThatLeavesIsToldSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := newClient(t, func(_ http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm() // the server notices a client that leaves once the body was read
		cancel()
		<-r.Context().Done()
	})
	if _, err := c.Token(ctx, Application{Tenant: "t", ClientID: "id"}, fixed{}, "r"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

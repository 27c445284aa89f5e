package imds_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T, h http.HandlerFunc) *imds.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	c := &imds.Client{BaseURL: srv.URL + "/"}
	t.Cleanup(func() { c.CloseIdleConnections(); srv.Close() })
	return c
}

func TestTheClientUnderstandsWhatTheServerWrites(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	want := token.Token{AccessToken: "a.b.c", ClientID: "C1", Resource: "https://vault.azure.net", ExpiresOn: now.Add(time.Hour), NotBefore: now.Add(-5 * time.Minute)}
	for _, c := range []struct {
		name string
		ask  token.Request
		want imds.TokenRequest
	}{
		{"by client id", token.Request{Resource: "https://vault.azure.net", ClientID: "c1"}, imds.TokenRequest{ClientID: "c1"}},
		{"by object id", token.Request{Resource: "https://vault.azure.net", ObjectID: "o1"}, imds.TokenRequest{ObjectID: "o1"}},
		{"by resource id", token.Request{Resource: "https://vault.azure.net", ResourceID: "/subscriptions/s&x"}, imds.TokenRequest{ResourceID: "/subscriptions/s&x"}},
		{"by default", token.Request{Resource: "https://vault.azure.net"}, imds.TokenRequest{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := serve(t, func(w http.ResponseWriter, r *http.Request) {
				q, err := imds.ParseTokenRequest(r)
				if err != nil || imds.Classify(r.URL) != imds.TokenEndpoint {
					t.Errorf("%s: %v", r.URL, err)
				}
				c.want.Resource, c.want.APIVersion = "https://vault.azure.net", "2018-02-01"
				if diff := cmp.Diff(c.want, q); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
				imds.WriteToken(w, want, now)
			})
			got, err := client.Token(t.Context(), c.ask)
			if err != nil {
				t.Fatal(err)
			}
			if got.AccessToken != "a.b.c" || got.ClientID != "C1" || got.Resource != want.Resource || !got.ExpiresOn.Equal(want.ExpiresOn) || !got.NotBefore.Equal(want.NotBefore) {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestTheClientMapsWhatGoesWrong(t *testing.T) {
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if status == http.StatusTooManyRequests {
				w.Header().Set("Retry-After", "7")
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	for _, c := range []struct {
		name   string
		h      http.HandlerFunc
		status int
		code   string
		retry  time.Duration
	}{
		{"an error of the service comes through", answer(400, `{"error":"invalid_request","error_description":"Identity not found"}`), 400, "invalid_request", 0},
		{"its wish to be left alone comes through", answer(429, `{"error":"too_many","error_description":"d"}`), 429, "too_many", 7 * time.Second},
		{"an error page is unknown", answer(500, `<html>`), 500, "", 0},
		{"a redirect is not followed", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, 502, "", 0},
		{"no JSON", answer(200, `hello`), 502, "unknown", 0},
		{"no token", answer(200, `{"expires_on":"1700000000"}`), 502, "unknown", 0},
		{"no expiry", answer(200, `{"access_token":"s3cret"}`), 502, "unknown", 0},
		{"an expiry that is no number", answer(200, `{"access_token":"s3cret","expires_on":"soon"}`), 502, "unknown", 0},
		{"another identity's token", answer(200, `{"access_token":"s3cret","client_id":"c2","expires_on":"1700000000"}`), 502, "unknown", 0},
		{"an endless answer", answer(200, `{"access_token":"`+strings.Repeat("x", 2<<20)), 502, "unknown", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := serve(t, c.h).Token(t.Context(), token.Request{Resource: "r", ClientID: "c1"})
			var e *imds.Error
			if !errors.As(err, &e) {
				t.Fatalf("%T %v is not an *imds.Error", err, err)
			}
			if e.Status != c.status || e.Code != c.code || e.RetryAfter != c.retry {
				t.Errorf("got %d %q %v", e.Status, e.Code, e.RetryAfter)
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error shows a token: %v", err)
			}
		})
	}
}

func TestTheClientAcceptsNumbersAndExpiresIn(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(`{"access_token":"a","expires_in":3600,"not_before":1699999700}`))
	})
	before := time.Now()
	got, err := c.Token(t.Context(), token.Request{Resource: "r", ClientID: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	if left := got.ExpiresOn.Sub(before); left < time.Hour || left > time.Hour+time.Minute {
		t.Errorf("expires in %v", left)
	}
	if got.ClientID != "c1" || got.Resource != "r" {
		t.Errorf("got %v", got)
	}
}

func TestNobodyListensIsAnErrorThatSDKsRetry(t *testing.T) {
	srv := httptest.NewServer(nil)
	srv.Close()
	_, err := (&imds.Client{BaseURL: srv.URL}).Token(t.Context(), token.Request{Resource: "r"})
	var e *imds.Error
	if !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable || e.RetryAfter == 0 {
		t.Errorf("got %v", err)
	}
}

func TestAGivenUpRequestReturnsTheContextsError(t *testing.T) {
	arrived := make(chan struct{})
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	if _, err := c.Token(ctx, token.Request{Resource: "r"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestProxySettingsOfTheEnvironmentAreIgnored(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	// Loopback is exempt from HTTP_PROXY anyway, so the transport itself is asked.
	c := &imds.Client{BaseURL: "http://169.254.169.254.invalid"}
	_, err := c.Token(t.Context(), token.Request{Resource: "r"})
	if err == nil || strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("got %v", err)
	}
}

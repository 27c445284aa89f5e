package source_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/nmi/source"
	"github.com/lanyard-id/lanyard/internal/token"
)

const resourceID = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/one"

// machine returns a Source whose metadata service is h, and counts requests.
func machine(t *testing.T, h http.HandlerFunc) (*source.Source, *atomic.Int64) {
	t.Helper()
	var calls atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		h(w, r)
	}))
	client := &imds.Client{BaseURL: srv.URL}
	t.Cleanup(func() { client.CloseIdleConnections(); srv.Close() })
	s := &source.Source{Machine: client}
	run(t, s)
	return s, &calls
}

func managed() *v1.AzureIdentity {
	id := identity("default", "one", v1.UserAssignedMSI)
	id.Spec.ResourceID = resourceID
	return id
}

func TestAManagedIdentityIsAskedForByItsResourceID(t *testing.T) {
	s, calls := machine(t, func(w http.ResponseWriter, r *http.Request) {
		q, err := imds.ParseTokenRequest(r)
		if err != nil || q.ResourceID != resourceID || q.ClientID != "" {
			t.Errorf("asked %+v, %v", q, err)
		}
		imds.WriteToken(w, token.Token{AccessToken: "for " + q.Resource, ClientID: "c", ExpiresOn: time.Now().Add(time.Hour)}, time.Now())
	})
	for range 10 {
		tokens, err := s.Tokens(t.Context(), managed(), vault)
		if err != nil || len(tokens) != 1 || tokens[0].AccessToken != "for "+vault {
			t.Fatalf("got %v, %v", tokens, err)
		}
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
	// Another identity on the node will want the same, and what is configured.
	s.Resources = []string{"https://always.example", vault}
	other := managed()
	s.Prefetch(t.Context(), other)
	if _, err := s.Tokens(t.Context(), other, "https://always.example"); err != nil || calls.Load() != 2 {
		t.Errorf("%v after %d requests", err, calls.Load())
	}
}

func TestExceptedPodsGetWhatTheyNameFromTheCacheToo(t *testing.T) {
	s, calls := machine(t, func(w http.ResponseWriter, r *http.Request) {
		imds.WriteToken(w, token.Token{AccessToken: r.URL.Query().Get("client_id"), ClientID: r.URL.Query().Get("client_id"), ExpiresOn: time.Now().Add(time.Hour)}, time.Now())
	})
	for _, client := range []string{"a", "b", "a", "b"} {
		if got, err := s.Metadata(t.Context(), token.Request{ClientID: client, Resource: vault}); err != nil || got.AccessToken != client {
			t.Errorf("got %v, %v", got, err)
		}
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("%d requests", n)
	}
}

func TestAnswersOfTheMetadataServiceReachTheCaller(t *testing.T) {
	for _, c := range []struct {
		name       string
		answer     imds.Error
		want       int
		retryAfter time.Duration // at least
	}{
		{"an identity that is not on the machine", imds.Error{Status: 400, Code: "invalid_request", Description: "Identity not found"}, 400, 0},
		{"an endpoint that is updated", imds.Error{Status: 404, Code: "not_found"}, 503, time.Second},
		{"an endpoint that is gone for a while", imds.Error{Status: 410}, 503, time.Second},
		{"throttling", imds.Error{Status: 429, RetryAfter: 5 * time.Second}, 429, 4 * time.Second},
		{"a failure", imds.Error{Status: 500, Code: "unknown"}, 503, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, calls := machine(t, func(w http.ResponseWriter, _ *http.Request) { imds.WriteError(w, &c.answer) })
			for range 20 {
				_, err := s.Tokens(t.Context(), managed(), vault)
				var e *imds.Error
				if !errors.As(err, &e) || e.Status != c.want || e.RetryAfter < c.retryAfter {
					t.Fatalf("got %v", err)
				}
			}
			if n := calls.Load(); n > 2 {
				t.Errorf("%d requests for 20 callers", n)
			}
		})
	}
}

func TestThrottlingStopsEveryIdentityOfTheNode(t *testing.T) {
	s, calls := machine(t, func(w http.ResponseWriter, _ *http.Request) {
		imds.WriteError(w, &imds.Error{Status: 429, RetryAfter: 60 * time.Second})
	})
	for i := range 200 {
		id := managed()
		id.Spec.ResourceID += fmt.Sprint(i)
		if _, err := s.Tokens(t.Context(), id, vault); err == nil {
			t.Fatal("a token")
		}
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("%d requests after Retry-After: 60", n)
	}
}

func TestAMetadataServiceThatHangsIsAnsweredForWithinASecond(t *testing.T) {
	release := make(chan struct{})
	s, _ := machine(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	start := time.Now()
	_, err := s.Tokens(t.Context(), managed(), vault)
	var e *imds.Error
	if took := time.Since(start); !errors.As(err, &e) || e.Status != 503 || e.RetryAfter != time.Second || took > time.Second {
		t.Errorf("got %v after %s", err, took)
	}
}

func BenchmarkTokens(b *testing.B) {
	s := &source.Source{Machine: token.Func(func(context.Context, token.Request) (token.Token, error) {
		return token.Token{AccessToken: "secret", ExpiresOn: time.Now().Add(24 * time.Hour)}, nil
	})}
	id := managed()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.Tokens(b.Context(), id, vault); err != nil {
				b.Error(err)
			}
		}
	})
}

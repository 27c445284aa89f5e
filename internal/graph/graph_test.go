package graph_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/graph"
)

// credential remembers for what tokens were asked.
type credential struct{ scopes *[]string }

func (c credential) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	*c.scopes = append(*c.scopes, o.Scopes...)
	return azcore.AccessToken{Token: "t0ken", ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// newClient returns a client of a server, and what was sent.
func newClient(t *testing.T, answer func(w http.ResponseWriter, r *http.Request)) (c *graph.Client, log, scopes *[]string, host string) {
	t.Helper()
	log, scopes = &[]string{}, &[]string{}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		*log = append(*log, strings.TrimSpace(r.Method+" "+r.RequestURI+" "+string(body)))
		if r.Header.Get("Authorization") != "Bearer t0ken" {
			t.Errorf("%s: authorization %q", r.URL, r.Header.Get("Authorization"))
		}
		w.Header().Set("Content-Type", "application/json")
		answer(w, r)
	}))
	t.Cleanup(srv.Close)
	c, err := graph.New(arm.Cloud{Name: "test", Authority: "https://login.test/", Manager: "https://manager.test", Graph: srv.URL}, credential{scopes},
		policy.ClientOptions{Transport: srv.Client(), Retry: policy.RetryOptions{MaxRetries: 2, RetryDelay: time.Millisecond, MaxRetryDelay: time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	return c, log, scopes, srv.URL
}

func TestRequestsAreThoseOfGraph(t *testing.T) {
	for _, c := range []struct {
		name, answer, want string
		do                 func(ctx context.Context, c *graph.Client) error
	}{
		{"an application by name, quotes doubled", `{"value":[]}`, "GET /v1.0/applications?%24filter=displayName%20eq%20%27it%27%27s%20%27%27%20or%20a%20%2B%20b%27",
			func(ctx context.Context, c *graph.Client) error {
				_, err := c.ApplicationsByDisplayName(ctx, "it's ' or a + b")
				return err
			}},
		{"an application by client id", `{"value":[{"id":"o"}]}`, "GET /v1.0/applications?%24filter=appId%20eq%20%27a%27",
			func(ctx context.Context, c *graph.Client) error { _, err := c.ApplicationByAppID(ctx, "a"); return err }},
		{"a new application", `{"id":"o"}`, `POST /v1.0/applications {"displayName":"n","signInAudience":"AzureADMyOrg"}`,
			func(ctx context.Context, c *graph.Client) error {
				_, err := c.CreateApplication(ctx, graph.Application{DisplayName: "n", SignInAudience: "AzureADMyOrg"})
				return err
			}},
		{"an application less", ``, `DELETE /v1.0/applications/o`,
			func(ctx context.Context, c *graph.Client) error { return c.DeleteApplication(ctx, "o") }},
		{"a name that is a path", ``, `DELETE /v1.0/applications/%2E%2E%2Fusers%2Fx%3Fy`,
			func(ctx context.Context, c *graph.Client) error { return c.DeleteApplication(ctx, "../users/x?y") }},
		{"a new service principal", `{}`, `POST /v1.0/servicePrincipals {"appId":"a"}`,
			func(ctx context.Context, c *graph.Client) error {
				_, err := c.CreateServicePrincipal(ctx, "a")
				return err
			}},
		{"a new credential", `{}`, `POST /v1.0/applications/o/federatedIdentityCredentials {"name":"n","issuer":"i","subject":"s","audiences":["a"]}`,
			func(ctx context.Context, c *graph.Client) error {
				_, err := c.CreateFederatedIdentityCredential(ctx, "o", graph.FederatedIdentityCredential{Name: "n", Issuer: "i", Subject: "s", Audiences: []string{"a"}})
				return err
			}},
		{"a changed credential", ``, `PATCH /v1.0/applications/o/federatedIdentityCredentials/f {"issuer":"i","subject":"s","description":"","audiences":["a"]}`,
			func(ctx context.Context, c *graph.Client) error {
				return c.UpdateFederatedIdentityCredential(ctx, "o", graph.FederatedIdentityCredential{ID: "f", Name: "n", Issuer: "i", Subject: "s", Audiences: []string{"a"}})
			}},
		{"a credential less", ``, `DELETE /v1.0/applications/o/federatedIdentityCredentials/f`,
			func(ctx context.Context, c *graph.Client) error {
				return c.DeleteFederatedIdentityCredential(ctx, "o", "f")
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, log, scopes, host := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
				if c.answer == "" {
					w.WriteHeader(http.StatusNoContent)
				}
				fmt.Fprint(w, c.answer)
			})
			if err := c.do(t.Context(), client); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff([]string{c.want}, *log); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if diff := cmp.Diff([]string{host + "/.default"}, *scopes); diff != "" {
				t.Errorf("scopes (-want +got)\n%s", diff)
			}
		})
	}
}

func TestAllPagesAreRead(t *testing.T) {
	c, log, _, _ := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("$skiptoken") == "" {
			fmt.Fprintf(w, `{"value":[{"id":"a"}],"@odata.nextLink":"https://%s/v1.0/applications?$skiptoken=2"}`, r.Host)
			return
		}
		fmt.Fprint(w, `{"value":[{"id":"b"}]}`)
	})
	got, err := c.ApplicationsByDisplayName(t.Context(), "n")
	if err != nil || len(got) != 2 || got[1].ID != "b" || len(*log) != 2 {
		t.Errorf("got %v, %v after %q", got, err, *log)
	}
}

func TestTheTokenDoesNotFollowALinkElsewhere(t *testing.T) {
	for _, link := range []string{"https://evil.test/v1.0/applications", "http://HOST/v1.0/applications", "https://HOST@evil.test/", "https://user@HOST/", "//evil.test/", "::"} {
		c, log, _, _ := newClient(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"value":[],"@odata.nextLink":%q}`, strings.ReplaceAll(link, "HOST", r.Host))
		})
		if _, err := c.ApplicationsByDisplayName(t.Context(), "n"); err == nil || !strings.Contains(err.Error(), "not followed") || len(*log) != 1 {
			t.Errorf("%s: %v after %q", link, err, *log)
		}
	}
}

func TestRefusalsCanBeToldApart(t *testing.T) {
	for _, c := range []struct {
		name, code              string
		status                  int
		notFound, denied, exist bool
		requests                int
	}{
		{"not found", graph.CodeNotFound, 404, true, false, false, 1},
		{"not allowed", graph.CodeDenied, 403, false, true, false, 1},
		{"there already", graph.CodeMultipleObjects, 409, false, false, true, 1},
		{"a moment's trouble is tried again", "ServiceUnavailable", 503, false, false, false, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, log, _, _ := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				fmt.Fprintf(w, `{"error":{"code":%q,"message":"m"}}`, c.code)
			})
			_, err := client.Application(t.Context(), "o")
			var e *arm.Error
			if !errors.As(err, &e) || e.Code != c.code || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "t0ken") {
				t.Errorf("got %v", err)
			}
			if graph.NotFound(err) != c.notFound || graph.Denied(err) != c.denied || graph.Exists(err) != c.exist || len(*log) != c.requests {
				t.Errorf("%v: not found %t, denied %t, exists %t, %d requests", err, graph.NotFound(err), graph.Denied(err), graph.Exists(err), len(*log))
			}
		})
	}
	client, _, _, _ := newClient(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"value":[]}`) })
	if _, err := client.ServicePrincipalByAppID(t.Context(), "a"); !graph.NotFound(err) {
		t.Error(err)
	}
	if _, err := graph.New(arm.Cloud{Name: "Nimbus"}, nil, policy.ClientOptions{}); err == nil || !strings.Contains(err.Error(), "microsoftGraphEndpoint") {
		t.Error(err)
	}
}

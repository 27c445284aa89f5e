package federated_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
	"github.com/lanyard-id/lanyard/internal/federated"
)

// counting counts listings of federated credentials.
type counting struct {
	*http.Client
	listings atomic.Int32
}

func (c *counting) Do(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/federatedIdentityCredentials") {
		c.listings.Add(1)
	}
	return c.Client.Do(r)
}

func TestWhoHasListedWritesWithoutListingAgain(t *testing.T) {
	c := cloudtest.New(t)
	group := "/subscriptions/" + c.Subscription + "/resourceGroups/g"
	id := group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/web"
	for _, path := range []string{group, id} {
		c.Do(http.MethodPut, path, map[string]any{"location": "eastus"}, nil)
	}
	public, err := arm.CloudByName("")
	if err != nil {
		t.Fatal(err)
	}
	transport := &counting{Client: c.Client}
	options := c.Options()
	options.Transport = transport
	client := &federated.Client{Credential: c.Owner(), Cloud: public, Options: options}
	p, err := client.FindResource(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	listed, err := client.List(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		want := federated.Credential{Name: fmt.Sprint("account-", i), Issuer: "https://issuer.example/", Subject: federated.Subject("ns", fmt.Sprint(i))}
		if err := client.PutListed(t.Context(), p, listed, want); err != nil {
			t.Fatal(err)
		}
		listed = append(listed, want)
	}
	if n := transport.listings.Load(); n != 1 {
		t.Errorf("%d listings", n)
	}
	// What was listed is old: Azure refuses, and says why.
	taken := federated.Credential{Name: "another", Issuer: "https://issuer.example/", Subject: federated.Subject("ns", "0")}
	if err := client.PutListed(t.Context(), p, nil, taken); err == nil || !strings.Contains(err.Error(), "account-0") {
		t.Errorf("a second credential for the same subject: %v", err)
	}
}

package graph_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/graph"
)

// What the product makes of both doors to federated credentials: Resource Manager's for managed identities, Graph's for
// applications. The rules are the same.
func TestBothDoorsHaveTheSameRules(t *testing.T) {
	c := cloudtest.New(t)
	public, err := arm.CloudByName(arm.Public)
	if err != nil {
		t.Fatal(err)
	}
	directory, err := graph.New(public, c.Owner(), c.Options())
	if err != nil {
		t.Fatal(err)
	}
	app, err := directory.CreateApplication(t.Context(), graph.Application{DisplayName: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := directory.CreateServicePrincipal(t.Context(), app.AppID); err != nil {
		t.Fatal(err)
	}
	group := "/subscriptions/" + c.Subscription + "/resourceGroups/rg"
	c.Do(http.MethodPut, group, fields{"location": "eastus"}, nil)
	var identity struct {
		Properties struct{ ClientID string }
	}
	c.Do(http.MethodPut, group+"/providers/Microsoft.ManagedIdentity/userAssignedIdentities/shop", fields{"location": "eastus"}, &identity)
	for name, clientID := range map[string]string{"an application": app.AppID, "a managed identity": identity.Properties.ClientID} {
		t.Run(name, func(t *testing.T) {
			client := &federated.Client{Credential: c.Owner(), Cloud: public, Options: c.Options()}
			parent, err := client.Find(t.Context(), clientID)
			if err != nil || parent.DisplayName != "shop" {
				t.Fatalf("%+v, %v", parent, err)
			}
			put := func(name, subject string) error {
				return client.Put(t.Context(), parent, federated.Credential{Name: name, Issuer: "https://oidc.example/", Subject: subject})
			}
			for i := range federated.MaxPerParent {
				if err := put(fmt.Sprintf("cred-%02d", i), fmt.Sprint(i)); err != nil {
					t.Fatal(err)
				}
			}
			if err := put("cred-00", "0"); err != nil {
				t.Errorf("again: %v", err)
			}
			if err := put("one-too-many", "x"); !errors.Is(err, federated.ErrLimit) {
				t.Errorf("the 21st: %v", err)
			}
			if err := put("cred-01", "0"); !errors.Is(err, federated.ErrTaken) {
				t.Errorf("the same issuer and subject: %v", err)
			}
			if existed, err := client.Delete(t.Context(), parent, "cred-00"); !existed || err != nil {
				t.Errorf("deleted: %v, %v", existed, err)
			}
			if existed, err := client.Delete(t.Context(), parent, "cred-00"); existed || err != nil {
				t.Errorf("deleted again: %v, %v", existed, err)
			}
			all, err := client.List(t.Context(), parent)
			if err != nil || len(all) != federated.MaxPerParent-1 {
				t.Errorf("%d left, %v", len(all), err)
			}
		})
	}
}

func TestAChangeThroughGraphPropagates(t *testing.T) {
	c := cloudtest.New(t)
	c.Propagation.Delay = time.Minute
	do := owner(t, c)
	app := do("POST", "/v1.0/applications", fields{"displayName": "shop"})
	do("POST", "/v1.0/servicePrincipals", fields{"appId": app.text("appId")})
	do("POST", "/v1.0/applications/"+app.text("id")+"/federatedIdentityCredentials", credential("one"))
	ask := func() string {
		form := "grant_type=client_credentials&client_id=" + app.text("appId") + "&scope=https%3A%2F%2Fgraph.microsoft.com%2F.default" +
			"&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion=e30.e30.e30"
		resp, err := c.Client.Post("https://login.microsoftonline.com/"+c.Tenant.ID+"/oauth2/v2.0/token", "application/x-www-form-urlencoded", strings.NewReader(form))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.Header.Get("x-ms-clitelem")
	}
	if got := ask(); got != "1,70025,0,," {
		t.Errorf("at once: %s", got)
	}
	c.Advance(time.Minute)
	if got := ask(); got != "1,50027,0,," { // there is a credential now: the token is looked at
		t.Errorf("a minute later: %s", got)
	}
}

func TestFlexibleCredentialsAreServedUnderBeta(t *testing.T) {
	c := cloudtest.New(t)
	do := owner(t, c)
	id := do("POST", "/beta/applications", fields{"displayName": "shop"}).text("id")
	at := "/applications/" + id + "/federatedIdentityCredentials"
	flexible := fields{"name": "github", "issuer": "https://token.actions.githubusercontent.com", "audiences": []string{"a"},
		"claimsMatchingExpression": fields{"value": "claims['sub'] matches 'repo:contoso/*'", "languageVersion": 1}}
	if r := do("POST", "/beta"+at, flexible); r.status != 201 || r.body["subject"] != nil || r.text("claimsMatchingExpression", "value") == "" {
		t.Errorf("made: %d %s", r.status, r.raw)
	}
	if r := do("GET", "/beta"+at, nil); len(r.names()) != 1 {
		t.Errorf("under beta: %s", r.raw)
	}
	if r := do("GET", "/v1.0"+at, nil); len(r.names()) != 0 {
		t.Errorf("under v1.0: %s", r.raw)
	}
	flexible["name"], flexible["issuer"] = "cluster", "https://oidc.example/"
	if r := do("POST", "/beta"+at, flexible); r.status != 400 || !strings.Contains(r.raw, "GitHub") {
		t.Errorf("another issuer: %d %s", r.status, r.raw)
	}
}

package graph_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
)

// TestOwnersComeWithTheObject sends what Terraform's azuread sends.
func TestOwnersComeWithTheObject(t *testing.T) {
	c := cloudtest.New(t)
	do := owner(t, c)
	sp, _ := c.Application("deployer")
	reference := root + "/v1.0/directoryObjects/" + sp.ID
	app := do("POST", "/v1.0/applications", fields{"displayName": "web", "owners@odata.bind": []string{reference, reference}})
	principal := do("POST", "/v1.0/servicePrincipals", fields{"appId": app.text("appId"), "owners@odata.bind": []string{reference}})
	if app.status != 201 || principal.status != 201 {
		t.Fatalf("%d %s; %d %s", app.status, app.raw, principal.status, principal.raw)
	}
	for _, path := range []string{"/v1.0/applications/" + app.text("id"), "/v1.0/servicePrincipals/" + principal.text("id")} {
		if diff := cmp.Diff([]string{"deployer"}, do("GET", path+"/owners", nil).names()); diff != "" {
			t.Errorf("owners of %s (-want +got):\n%s", path, diff)
		}
	}
	for name, tt := range map[string]struct {
		method, path string
		owners       any
		status       int
		want         string
	}{
		"an owner that does not exist": {"POST", "/v1.0/applications", []string{root + "/v1.0/directoryObjects/" + uuid.NewString()}, 404, "does not exist"},
		"an owner that is no URL":      {"POST", "/v1.0/applications", []string{"me"}, 400, "must be the URL of a directory object"},
		"owners that are no list":      {"POST", "/v1.0/applications", "me", 400, "owners@odata.bind"},
		"owners of what exists":        {"PATCH", "/v1.0/applications/" + app.text("id"), []string{reference}, 400, "use owners/$ref"},
	} {
		t.Run(name, func(t *testing.T) {
			r := do(tt.method, tt.path, fields{"displayName": "other", "owners@odata.bind": tt.owners})
			if r.status != tt.status || !strings.Contains(r.text("error", "message"), tt.want) {
				t.Errorf("%d %s, want %d %q", r.status, r.raw, tt.status, tt.want)
			}
		})
	}
	if got := do("GET", "/v1.0/applications?$filter=displayName eq 'other'", nil).names(); len(got) > 0 {
		t.Errorf("a refused request left %v behind", got)
	}
}

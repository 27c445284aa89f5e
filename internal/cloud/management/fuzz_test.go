package management

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
)

// Whatever the path, routing ends in an *arm.Error or in a target whose id is made of the path's own segments: no decoding
// can make a request reach another resource than its text names.
func FuzzRoute(f *testing.F) {
	for _, p := range []string{
		"/subscriptions/s", "//subscriptions/s/resourcegroups/g/providers/Microsoft.KeyVault/vaults/v/", "/subscriptions/s%2f..",
		"/subscriptions/s/providers/Microsoft.KeyVault/checkNameAvailability", "/providers/Microsoft.Authorization/roleDefinitions/x",
		"/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/ss/providers/Microsoft.Authorization/roleAssignments",
	} {
		for _, m := range []string{"GET", "PUT", "POST", "DELETE"} {
			f.Add(m, p)
		}
	}
	tab := (&Server{}).types()
	f.Fuzz(func(t *testing.T, method, escaped string) {
		var e *arm.Error
		path, err := arm.CleanPath(escaped)
		if err != nil {
			if !errors.As(err, &e) || e.Status != http.StatusBadRequest {
				t.Fatalf("%q: %v", escaped, err)
			}
			return
		}
		if strings.Contains(path, "/../") || strings.Contains(path, "%") {
			t.Fatalf("%q is not clean: %q", escaped, path)
		}
		target, h, err := tab.Route(method, path)
		if err != nil {
			if !errors.As(err, &e) || e.Status < 400 || e.Status >= 500 {
				t.Fatalf("%q: %v", path, err)
			}
			return
		}
		if h == nil || target.Action == "" || target.Type == nil {
			t.Fatalf("%q: %+v", path, target)
		}
		if scope := target.ID.Key(); !strings.HasPrefix(azure.Fold(path)+"/", strings.TrimSuffix(scope, "/")+"/") {
			t.Fatalf("%q is about %q", path, scope)
		}
	})
}

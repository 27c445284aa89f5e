package management

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// Whatever the path, routing ends in an *Error or in a target whose id is made of the path's own segments: no decoding
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
	tab := newTable()
	f.Fuzz(func(t *testing.T, method, escaped string) {
		var e *Error
		path, err := cleanPath(escaped)
		if err != nil {
			if !errors.As(err, &e) || e.Status != http.StatusBadRequest {
				t.Fatalf("%q: %v", escaped, err)
			}
			return
		}
		if strings.Contains(path, "/../") || strings.Contains(path, "%") {
			t.Fatalf("%q is not clean: %q", escaped, path)
		}
		target, h, err := tab.route(method, path)
		if err != nil {
			if !errors.As(err, &e) || e.Status < 400 || e.Status >= 500 {
				t.Fatalf("%q: %v", path, err)
			}
			return
		}
		if h == nil || target.action == "" || target.typ == nil {
			t.Fatalf("%q: %+v", path, target)
		}
		if scope := target.id.Key(); !strings.HasPrefix(azure.Fold(path)+"/", strings.TrimSuffix(scope, "/")+"/") {
			t.Fatalf("%q is about %q", path, scope)
		}
	})
}

// A filter is understood or refused, never ignored.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{"atScope()", "principalId eq 'x' and atScope()", "assignedTo('it''s')", "a eq", "and", "' '"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		terms, err := parseFilter(s, "atScope()", "principalId", "assignedTo()")
		if err == nil && len(terms) == 0 && strings.TrimSpace(s) != "" {
			t.Fatalf("%q is ignored", s)
		}
	})
}

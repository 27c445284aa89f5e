package arm

import (
	"strings"
	"testing"
)

// A filter is understood or refused, never ignored.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{"atScope()", "principalId eq 'x' and atScope()", "assignedTo('it''s')", "a eq", "and", "' '"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		terms, err := ParseFilter(s, "atScope()", "principalId", "assignedTo()")
		if err == nil && len(terms) == 0 && strings.TrimSpace(s) != "" {
			t.Fatalf("%q is ignored", s)
		}
	})
}

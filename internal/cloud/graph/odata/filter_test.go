package odata

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func FuzzFilter(f *testing.F) {
	for _, s := range []string{"displayName eq 'a'", "not (a ne 'b') and x/any(s:s eq 'y')", "startswith(a,'b') or c in ('d','e')", "'", "((", "a eq"} {
		f.Add(s)
	}
	all := []Object{{"displayName": "a", "names": []string{"x"}, "none": nil}}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Filter(all, text)
		if err != nil && got != nil {
			t.Errorf("%q shows something although it is not understood: %v", text, err)
		}
	})
}

func TestAFilterThatIsNotUnderstoodShowsNothing(t *testing.T) {
	all := []Object{{"displayName": "a"}, {"displayName": "b"}}
	for _, text := range []string{"displayName", "displayName eq", "displayName eq 'a", "displayName eq 'a' and", "(displayName eq 'a'", "displayName gt 'a'", "nothing eq 'a'", "displayName eq 'a' displayName eq 'b'"} {
		if got, err := Filter(all, text); err == nil || got != nil {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	got, err := Filter(all, "displayName eq 'B'")
	if diff := cmp.Diff(all[1:], got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
}

package odata

import (
	"strings"
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

func TestAFilterIsNotNestedWithoutEnd(t *testing.T) {
	all := []Object{{"displayName": "a"}}
	for open, shut := range map[string]string{"(": ")", "not ": "", "displayName/any(s:": ")"} {
		nested := func(n int) string { return strings.Repeat(open, n) + "displayName eq 'a'" + strings.Repeat(shut, n) }
		if _, err := Filter(all, nested(200000)); err == nil || !strings.Contains(err.Error(), "nested") {
			t.Errorf("%q: %v", open, err)
		}
		if got, err := Filter(all, nested(50)); err != nil && !strings.Contains(open, "any") {
			t.Errorf("%q: %v, %v", open, got, err)
		}
	}
	if got, err := Filter(all, strings.Repeat("(displayName eq 'a') and ", 500)+"displayName eq 'a'"); err != nil || len(got) != 1 {
		t.Errorf("one beside the other: %v, %v", got, err)
	}
}

package nmi

import (
	"errors"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
)

func viewOf(edit func(*v1.AzureIdentityBinding)) *View {
	n := newFakeNode()
	edit(n.world.Bindings[0])
	return n.View(*n.pod)
}

func TestAChoiceIsRememberedWhereNothingDependsOnTheTime(t *testing.T) {
	asked := 0
	v := viewOf(func(*v1.AzureIdentityBinding) {})
	lookup := v.World.Identity
	v.World.Identity = func(namespace, name string) *v1.AzureIdentity {
		asked++
		return lookup(namespace, name)
	}
	choose := func(at time.Time) int {
		t.Helper()
		before := asked
		b, err := v.Select(binding.Selector{ClientID: "client"}, at)
		if err != nil || b.Identity.Name != "vpl-id" {
			t.Fatalf("%+v, %v", b, err)
		}
		return asked - before
	}
	if choose(now) == 0 {
		t.Error("the first choice asked nobody")
	}
	if n := choose(now.Add(choiceHolds - 1)); n != 0 {
		t.Errorf("the second choice looked %d identities up", n)
	}
	for what, at := range map[string]time.Time{"a minute later": now.Add(3 * choiceHolds), "after the clock was set back": now.Add(-time.Hour)} {
		if choose(at) == 0 {
			t.Errorf("%s the choice still holds", what)
		}
	}
}

func TestAChoiceIsNotRememberedPastTheEndOfABinding(t *testing.T) {
	closes := now.Add(time.Second)
	for name, edit := range map[string]func(*v1.AzureIdentityBinding){
		"it ends": func(b *v1.AzureIdentityBinding) { b.Spec.NotAfter = &metav1.Time{Time: closes} },
		"too little of it is left": func(b *v1.AzureIdentityBinding) {
			b.Spec.NotAfter = &metav1.Time{Time: closes.Add(time.Hour)}
			b.Spec.MinimumRemaining = &metav1.Duration{Duration: time.Hour}
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := viewOf(edit)
			if _, err := v.Select(binding.Selector{}, now); err != nil {
				t.Fatal(err)
			}
			_, err := v.Select(binding.Selector{}, closes.Add(time.Nanosecond))
			if no := (*binding.Refusal)(nil); !errors.As(err, &no) {
				t.Errorf("it is chosen after that: %v", err)
			}
		})
	}
}

func TestAPodCannotMakeItsViewGrow(t *testing.T) {
	v := viewOf(func(*v1.AzureIdentityBinding) {})
	for i := range resourceID { // an id is the same in capitals
		written := strings.ToUpper(resourceID[:i]) + resourceID[i:]
		if _, err := v.Select(binding.Selector{ResourceID: written}, now); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(v.chosen); n == 0 || n > maxChoices {
		t.Errorf("%d choices", n)
	}
}

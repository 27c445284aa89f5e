package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestADetachedLabIsNotToldToDetachAgain(t *testing.T) {
	cmd := labUpCommand()
	for _, form := range []string{"--detach", "--detach=true", "--detach=1", "--detach=t", "--detach=T", "--detach=TRUE", "--detach=True"} {
		if err := cmd.ParseFlags([]string{form}); err != nil || cmd.Flag("detach").Value.String() != "true" {
			t.Fatalf("%s is no form of the flag: %v", form, err)
		}
		got := attached([]string{"lab", "up", form, "--state", "x"})
		if diff := cmp.Diff([]string{"lab", "up", "--state", "x"}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", form, diff)
		}
	}
}

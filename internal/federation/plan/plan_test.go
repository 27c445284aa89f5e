package plan_test

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/federation/plan"
)

const issuer = "https://issuer.example/1/"

func credential(name, issuer, subject string) federated.Credential {
	return federated.Credential{Name: name, Issuer: issuer, Subject: subject}
}

func many(n int) (out []federated.Credential) {
	for i := range n {
		out = append(out, credential(fmt.Sprint("foreign-", i), "https://elsewhere.example", fmt.Sprint(i)))
	}
	return out
}

func TestMake(t *testing.T) {
	a, b := credential("lanyard-a", issuer, "a"), credential("lanyard-b", issuer, "b")
	old := credential("lanyard-a", "https://issuer.example/0/", "a")
	hand := credential("by-hand", issuer, "a")
	other := hand
	other.Audience = "api://another"
	type list = []federated.Credential
	for name, tc := range map[string]struct {
		have, want list
		drop       []string
		plan       plan.Plan
	}{
		"what is missing is written":                     {nil, list{a}, nil, plan.Plan{Steps: []plan.Step{{Want: a}}}},
		"what is there is left alone":                    {list{a}, list{a}, nil, plan.Plan{Steps: []plan.Step{{Want: a, Outcome: plan.Present, Update: true}}}},
		"a changed issuer is put right in place":         {list{old}, list{a}, nil, plan.Plan{Steps: []plan.Step{{Want: a, Update: true}}}},
		"the same by another hand is good enough":        {list{hand}, list{a}, nil, plan.Plan{Steps: []plan.Step{{Want: a, Outcome: plan.Foreign, Other: hand}}}},
		"the own one goes if another has the new issuer": {list{old, hand}, list{a}, nil, plan.Plan{Remove: []string{"lanyard-a"}, Steps: []plan.Step{{Want: a, Outcome: plan.Foreign, Other: hand}}}},
		"another audience stands in the way":             {list{other}, list{a}, nil, plan.Plan{Steps: []plan.Step{{Want: a, Outcome: plan.Taken, Other: other}}}},
		"what nobody wants goes":                         {list{a, hand}, nil, []string{"lanyard-a"}, plan.Plan{Remove: []string{"lanyard-a"}}},
		"what is gone needs no removal":                  {list{hand}, nil, []string{"lanyard-a"}, plan.Plan{}},
		"what is wanted too is not dropped":              {list{a}, list{a}, []string{"lanyard-a"}, plan.Plan{Steps: []plan.Step{{Want: a, Outcome: plan.Present, Update: true}}}},
		"own names of others are not touched":            {list{b}, nil, nil, plan.Plan{}},
		"room is given away in order":                    {many(19), list{a, b}, nil, plan.Plan{Steps: []plan.Step{{Want: a}, {Want: b, Outcome: plan.Full}}}},
		"a removal makes room":                           {append(many(19), a), list{b}, []string{"lanyard-a"}, plan.Plan{Remove: []string{"lanyard-a"}, Steps: []plan.Step{{Want: b}}}},
		"a change needs no room":                         {append(many(19), old), list{b, a}, nil, plan.Plan{Steps: []plan.Step{{Want: b, Outcome: plan.Full}, {Want: a, Update: true}}}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.plan, plan.Make(tc.have, tc.want, tc.drop)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNamesAreAzuresAndNobodyElses(t *testing.T) {
	seen := map[string]bool{}
	for _, x := range [][3]string{{"c", "ns", "a"}, {"d", "ns", "a"}, {"c", "ns2", "a"}, {"c", "n", "s/a"}, {"c", "ns", "b"}} {
		name := plan.Name(x[0], x[1], x[2])
		if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{2,119}$`).MatchString(name) || seen[name] {
			t.Errorf("%v: %q", x, name)
		}
		seen[name] = true
	}
	if got := plan.Name("c", "ns", "a"); got != plan.Name("c", "ns", "a") {
		t.Error("the name is another one each time")
	}
}

package directory

import (
	"errors"
	"strings"
	"testing"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

func TestExpressions(t *testing.T) {
	claims := map[string]string{"sub": "repo:contoso/shop:ref:refs/heads/main", "job_workflow_ref": "contoso/shop/.github/workflows/ci.yml"}
	for name, tt := range map[string]struct {
		text         string
		invalid, fit bool
	}{
		"equal":                              {"claims['sub'] eq 'repo:contoso/shop:ref:refs/heads/main'", false, true},
		"equal but for the case":             {"claims['sub'] eq 'repo:Contoso/shop:ref:refs/heads/main'", false, false},
		"a star is a character for eq":       {"claims['sub'] eq 'repo:*'", false, false},
		"a star at the end":                  {"claims['sub'] matches 'repo:contoso/shop:ref:refs/heads/*'", false, true},
		"a star in the middle":               {"claims['sub'] matches 'repo:contoso/*:ref:*/main'", false, true},
		"a star that would have to go back":  {"claims['sub'] matches '*heads/main'", false, true},
		"a question mark":                    {"claims['sub'] matches 'repo:contoso/sho?:*'", false, true},
		"a question mark needs a character":  {"claims['sub'] matches 'repo:contoso/shop?:*'", false, false},
		"only the beginning":                 {"claims['sub'] matches 'repo:contoso'", false, false},
		"two conditions":                     {"claims['sub'] matches 'repo:*' and claims['job_workflow_ref'] matches 'contoso/*'", false, true},
		"two conditions, one of which fails": {"claims['sub'] matches 'repo:*' and claims['job_workflow_ref'] eq 'x'", false, false},
		"a claim that is not there":          {"claims['actor'] matches '*'", false, false},
		"another operator":                   {"claims['sub'] startswith 'x'", true, false},
		"or":                                 {"claims['sub'] eq 'x' or claims['sub'] eq 'y'", true, false},
		"no quotes":                          {"claims[sub] eq 'x'", true, false},
		"no value":                           {"claims['sub'] eq ''", true, false},
		"nothing":                            {"", true, false},
		"an end that is missing":             {"claims['sub'] eq 'x", true, false},
		"too many conditions":                {strings.Repeat("claims['sub'] eq 'x' and ", 10) + "claims['sub'] eq 'x'", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := ParseExpression(tt.text)
			if (err != nil) != tt.invalid {
				t.Fatalf("error %v", err)
			}
			if got := e.Matches(func(n string) (string, bool) { v, ok := claims[n]; return v, ok }); got != tt.fit {
				t.Errorf("matches: %v", got)
			}
		})
	}
}

func TestFlexibleCredentials(t *testing.T) {
	f := newFixture(t)
	app, _ := f.application("app")
	id := f.identity("billing")
	const github = "https://token.actions.githubusercontent.com"
	flexible := func(issuer, subject, expression string) FederatedCredential {
		return FederatedCredential{Name: "flexible", Issuer: issuer, Subject: subject, Audiences: []string{"a"}, Expression: expression}
	}
	good := "claims['sub'] matches 'repo:contoso/*'"
	for name, tt := range map[string]struct {
		parent string
		fc     FederatedCredential
		want   error
	}{
		"an application can have one":           {app.ObjectID, flexible(github, "", good), nil},
		"an identity cannot":                    {id.ID, flexible(github, "", good), ErrFederatedExpression},
		"a subject beside it":                   {app.ObjectID, flexible(github, "x", good), ErrFederatedExpression},
		"another issuer":                        {app.ObjectID, flexible("https://oidc.example", "", good), ErrFederatedExpression},
		"a claim that the issuer does not have": {app.ObjectID, flexible("https://gitlab.com", "", "claims['job_workflow_ref'] eq 'x'"), ErrFederatedExpression},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			if err := f.do(func(tx *state.Tx) error { _, err := PutFederatedCredential(tx, tt.parent, tt.fc); return err }); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

package directory

import (
	"fmt"
	"slices"
	"strings"
)

// An Expression is what the claims of an assertion must be like: the
// claimsMatchingExpression of a flexible federated credential, for example
//
//	claims['sub'] matches 'repo:contoso/*' and claims['job_workflow_ref'] eq 'x'
//
// Source: https://learn.microsoft.com/entra/workload-id/workload-identities-flexible-federated-identity-credentials
type Expression []Condition

// A Condition is about one claim.
type Condition struct {
	Claim string
	Value string // with Pattern, * is any text and ? any one character
	// Pattern says that the operator is matches, not eq.
	Pattern bool
}

// maxConditions bounds the work for one assertion.
const maxConditions = 10

// ParseExpression reads an expression of language version 1.
func ParseExpression(text string) (Expression, error) {
	var e Expression
	for rest := strings.TrimSpace(text); ; {
		var c Condition
		var ok bool
		if rest, ok = strings.CutPrefix(rest, "claims["); !ok {
			return nil, fmt.Errorf("%q does not start with claims['name']", rest)
		}
		if c.Claim, rest, ok = quotedText(rest); !ok || !strings.HasPrefix(rest, "]") {
			return nil, fmt.Errorf("a claim must be named as claims['name']")
		}
		rest = strings.TrimSpace(rest[1:])
		operator, after, _ := strings.Cut(rest, " ")
		if c.Pattern = operator == "matches"; !c.Pattern && operator != "eq" {
			return nil, fmt.Errorf("the operator %q is neither eq nor matches", operator)
		}
		if c.Value, rest, ok = quotedText(strings.TrimSpace(after)); !ok || c.Value == "" {
			return nil, fmt.Errorf("the value of claim %q must be in single quotes", c.Claim)
		}
		if e = append(e, c); len(e) > maxConditions {
			return nil, fmt.Errorf("it has more than %d conditions", maxConditions)
		}
		rest = strings.TrimSpace(rest)
		if rest == "" {
			return e, nil
		}
		if rest, ok = strings.CutPrefix(rest, "and "); !ok {
			return nil, fmt.Errorf("%q is not expected: conditions are joined by and", rest)
		}
		rest = strings.TrimSpace(rest)
	}
}

func quotedText(s string) (text, rest string, ok bool) {
	s, ok = strings.CutPrefix(s, "'")
	if !ok {
		return "", "", false
	}
	return strings.Cut(s, "'")
}

// Matches reports whether claims (by name; false if there is none, or it is
// no text) are like the expression says. Case matters.
func (e Expression) Matches(claims func(name string) (string, bool)) bool {
	for _, c := range e {
		v, ok := claims(c.Claim)
		if !ok || !c.Pattern && v != c.Value || c.Pattern && !like([]rune(v), []rune(c.Value)) {
			return false
		}
	}
	return len(e) > 0
}

// like matches text with a pattern, in time that is at most the product of
// their lengths.
func like(text, pattern []rune) bool {
	t, p, star, back := 0, 0, -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, back = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0:
			back++
			t, p = back, star+1
		default:
			return false
		}
	}
	return !slices.ContainsFunc(pattern[p:], func(r rune) bool { return r != '*' })
}

// flexibleClaims are the claims that an issuer of flexible credentials may be
// asked for; any other issuer has none.
func flexibleClaims(issuer string) []string {
	switch issuer {
	case "https://token.actions.githubusercontent.com":
		return []string{"sub", "job_workflow_ref"}
	case "https://gitlab.com", "https://app.terraform.io":
		return []string{"sub"}
	}
	return nil
}

// validateExpression checks a flexible credential.
func (f FederatedCredential) validateExpression() error {
	if f.Subject != "" {
		return fmt.Errorf("%w: a credential has a subject or a claims matching expression, not both", ErrFederatedExpression)
	}
	e, err := ParseExpression(f.Expression)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFederatedExpression, err)
	}
	known := flexibleClaims(f.Issuer)
	if known == nil {
		return fmt.Errorf("%w: issuer %q is not one of GitHub, GitLab and Terraform Cloud", ErrFederatedExpression, f.Issuer)
	}
	for _, c := range e {
		if !slices.Contains(known, c.Claim) {
			return fmt.Errorf("%w: the claim %q of %s cannot be used, only %s", ErrFederatedExpression, c.Claim, f.Issuer, strings.Join(known, ", "))
		}
	}
	return nil
}

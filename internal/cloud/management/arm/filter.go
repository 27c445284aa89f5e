package arm

import (
	"net/http"
	"strings"
)

// A Term is one part of a $filter: a comparison (name eq 'arg') or a function (name('arg') or name()).
type Term struct {
	Name     string // folded
	Arg      string
	function bool
}

// ParseFilter reads the subset of OData that clients send to Resource Manager: terms joined by "and". Names are those
// in known; anything else is an error, because a filter that is ignored shows more than was asked for.
func ParseFilter(filter string, known ...string) ([]Term, error) {
	var terms []Term
	rest := strings.TrimSpace(filter)
	for rest != "" {
		t, after, ok := parseTerm(rest)
		if !ok || !contains(known, t.Name) {
			return nil, Fault(http.StatusBadRequest, "InvalidFilterInQueryString", "The filter '%.300s' is not supported. Supported are, joined by 'and': %s.", filter, strings.Join(known, ", "))
		}
		terms = append(terms, t)
		rest = strings.TrimSpace(after)
		if rest == "" {
			break
		}
		word, tail, _ := strings.Cut(rest, " ")
		rest = strings.TrimSpace(tail)
		if !strings.EqualFold(word, "and") || rest == "" {
			return nil, Fault(http.StatusBadRequest, "InvalidFilterInQueryString", "The filter '%.300s' is not supported: expected 'and'.", filter)
		}
	}
	return terms, nil
}

func contains(known []string, name string) bool {
	for _, k := range known {
		if strings.EqualFold(strings.TrimSuffix(k, "()"), name) {
			return true
		}
	}
	return false
}

func parseTerm(s string) (t Term, rest string, ok bool) {
	end := strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '/'
	})
	if end <= 0 {
		return t, "", false
	}
	t.Name, rest = strings.ToLower(s[:end]), s[end:]
	if strings.HasPrefix(rest, "(") {
		t.function = true
		rest = strings.TrimSpace(rest[1:])
		if strings.HasPrefix(rest, "'") {
			if t.Arg, rest, ok = quoted(rest); !ok {
				return t, "", false
			}
			rest = strings.TrimSpace(rest)
		}
		return t, strings.TrimPrefix(rest, ")"), strings.HasPrefix(rest, ")")
	}
	word, rest, _ := strings.Cut(strings.TrimSpace(rest), " ")
	if !strings.EqualFold(word, "eq") {
		return t, "", false
	}
	t.Arg, rest, ok = quoted(strings.TrimSpace(rest))
	return t, rest, ok
}

// quoted reads a string in single quotes; a quote inside is doubled.
func quoted(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, "'") {
		return "", "", false
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '\'' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '\'' {
			b.WriteByte('\'')
			i++
			continue
		}
		return b.String(), s[i+1:], true
	}
	return "", "", false
}

package odata

import (
	"fmt"
	"slices"
	"strings"
)

// Filter keeps the objects that an OData filter describes: eq, ne, in, startswith, any, and, or, not, parentheses.
// Text compares without case, as the directory does.
func Filter(all []Object, text string) ([]Object, error) {
	if strings.TrimSpace(text) == "" {
		return all, nil
	}
	p := parser{tokens: tokenize(text)}
	keep, err := p.or()
	if err == nil && len(p.tokens) > 0 {
		err = fmt.Errorf("'%s' is not expected", p.tokens[0])
	}
	var out []Object
	for _, o := range all {
		if err != nil {
			break
		}
		var ok bool
		if ok, err = keep(o); ok {
			out = append(out, o)
		}
	}
	if err == nil && len(all) == 0 {
		_, err = keep(nil)
		if err != nil && strings.HasPrefix(err.Error(), noProperty) {
			err = nil // nothing tells which properties there are
		}
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

const noProperty = "no property"

// A predicate decides about one object.
type predicate func(Object) (bool, error)

// maxDepth bounds what one request can take of the stack, whose end would be the whole cloud's.
const maxDepth = 100

// A parser reads tokens from the left.
type parser struct {
	tokens []string
	depth  int // of parentheses, not and any
}

// tokenize splits at spaces and at ( ) , : and keeps quoted text, with its quotes, together.
func tokenize(s string) []string {
	var out []string
	for i := 0; i < len(s); {
		switch {
		case s[i] == ' ':
			i++
		case strings.IndexByte("(),:", s[i]) >= 0:
			out = append(out, s[i:i+1])
			i++
		case s[i] == '\'':
			end := i + 1
			for end < len(s) && (s[end] != '\'' || end+1 < len(s) && s[end+1] == '\'') {
				if s[end] == '\'' {
					end++
				}
				end++
			}
			end = min(end+1, len(s))
			out = append(out, s[i:end])
			i = end
		default:
			end := i
			for end < len(s) && strings.IndexByte(" (),:'", s[end]) < 0 {
				end++
			}
			out = append(out, s[i:end])
			i = end
		}
	}
	return out
}

func (p *parser) next() string {
	if len(p.tokens) == 0 {
		return ""
	}
	t := p.tokens[0]
	p.tokens = p.tokens[1:]
	return t
}

func (p *parser) accept(word string) bool {
	if len(p.tokens) == 0 || !strings.EqualFold(p.tokens[0], word) {
		return false
	}
	p.next()
	return true
}

func (p *parser) expect(words ...string) error {
	for _, w := range words {
		if got := p.next(); !strings.EqualFold(got, w) {
			return fmt.Errorf("'%s' instead of '%s'", got, w)
		}
	}
	return nil
}

func (p *parser) or() (predicate, error) {
	return p.join("or", (*parser).and, func(a, b bool) bool { return a || b })
}

func (p *parser) and() (predicate, error) {
	return p.join("and", (*parser).term, func(a, b bool) bool { return a && b })
}

func (p *parser) join(word string, part func(*parser) (predicate, error), combine func(a, b bool) bool) (predicate, error) {
	left, err := part(p)
	for err == nil && p.accept(word) {
		var right predicate
		if right, err = part(p); err != nil {
			break
		}
		before := left
		left = func(o Object) (bool, error) {
			a, err := before(o)
			if err != nil {
				return false, err
			}
			b, err := right(o)
			return combine(a, b), err
		}
	}
	return left, err
}

func (p *parser) term() (predicate, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, fmt.Errorf("it is nested more than %d deep", maxDepth)
	}
	defer func() { p.depth-- }()
	switch {
	case p.accept("not"):
		inner, err := p.term()
		return func(o Object) (bool, error) { ok, err := inner(o); return !ok, err }, err
	case p.accept("("):
		inner, err := p.or()
		if err == nil {
			err = p.expect(")")
		}
		return inner, err
	case p.accept("startswith"):
		if err := p.expect("("); err != nil {
			return nil, err
		}
		name := p.next()
		if err := p.expect(","); err != nil {
			return nil, err
		}
		want, err := p.text()
		if err == nil {
			err = p.expect(")")
		}
		return func(o Object) (bool, error) {
			have, err := values(o, name)
			return slices.ContainsFunc(have, func(s string) bool { return strings.HasPrefix(strings.ToLower(s), strings.ToLower(want)) }), err
		}, err
	}
	name := p.next()
	if list, ok := strings.CutSuffix(name, "/any"); ok {
		return p.any(list)
	}
	return p.comparison(name)
}

// any is (s:s eq 'x') or (s:startswith(s,'x')) about the elements of a list.
func (p *parser) any(list string) (predicate, error) {
	if err := p.expect("("); err != nil {
		return nil, err
	}
	variable := p.next()
	if err := p.expect(":"); err != nil {
		return nil, err
	}
	inner, err := p.or()
	if err == nil {
		err = p.expect(")")
	}
	return func(o Object) (bool, error) {
		have, err := values(o, list)
		if err != nil {
			return false, err
		}
		for _, v := range have {
			if ok, err := inner(Object{variable: v}); ok || err != nil {
				return ok, err
			}
		}
		return false, nil
	}, err
}

func (p *parser) comparison(name string) (predicate, error) {
	operator := strings.ToLower(p.next())
	var want []string
	switch operator {
	case "eq", "ne":
		v, err := p.text()
		if err != nil {
			return nil, err
		}
		want = []string{v}
	case "in":
		if err := p.expect("("); err != nil {
			return nil, err
		}
		for {
			v, err := p.text()
			if err != nil {
				return nil, err
			}
			want = append(want, v)
			if !p.accept(",") {
				break
			}
		}
		if err := p.expect(")"); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("the operator '%s' is not supported", operator)
	}
	return func(o Object) (bool, error) {
		have, err := values(o, name)
		ok := slices.ContainsFunc(want, func(w string) bool {
			return slices.ContainsFunc(have, func(h string) bool { return strings.EqualFold(h, w) })
		})
		return ok != (operator == "ne"), err
	}, nil
}

// text is a quoted string, or a bare word such as true, null or a GUID.
func (p *parser) text() (string, error) {
	t := p.next()
	if inner, ok := strings.CutPrefix(t, "'"); ok {
		inner, closed := strings.CutSuffix(inner, "'")
		if !closed {
			return "", fmt.Errorf("the text %s is not closed", t)
		}
		return strings.ReplaceAll(inner, "''", "'"), nil
	}
	if t == "" || strings.ContainsAny(t, "(),:") {
		return "", fmt.Errorf("a value is missing")
	}
	return t, nil
}

// values are what an object has under a name, as text; null is the text "null".
func values(o Object, name string) ([]string, error) {
	v, ok := o[name]
	if !ok {
		return nil, fmt.Errorf(noProperty+" '%s' can be filtered by here", name)
	}
	switch v := v.(type) {
	case nil:
		return []string{"null"}, nil
	case []string:
		return v, nil
	}
	return []string{fmt.Sprint(v)}, nil
}

// Package rawjson reads the few members of a JSON text (RFC 8259) that matter
// and passes over the rest, in one pass.
//
// An admission review is mostly what the webhook never looks at: the owners of
// fields, probes, the status. encoding/json reads such a text four times on the
// way to a tree of it all, which was two thirds of the work of an admission.
// Every text is accepted or refused as encoding/json would, and what is kept
// has the same value: a fuzz test compares the two.
package rawjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// A Shape says what to keep of a value. nil keeps all of it, an empty Shape
// keeps its bytes as json.RawMessage. Any other keeps those members of an
// object, each in its own shape; a list has the shape in each of its elements.
type Shape map[string]Shape

const maxDepth = 10000 // encoding/json's

// Parse reads one value. Objects become map[string]any, lists []any, numbers
// json.Number, the rest what encoding/json makes of it; the last member of a
// name counts. Raw bytes share memory with the text.
func Parse(text []byte, keep Shape) (any, error) {
	p := parser{text: text}
	v, err := p.value(keep, 0)
	if err != nil {
		return nil, err
	}
	if p.space(); p.at < len(text) {
		return nil, errors.New("data after the value")
	}
	return v, nil
}

type parser struct {
	text []byte
	at   int
}

func (p *parser) space() {
	for p.at < len(p.text) {
		switch p.text[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

// next returns the byte after white space without taking it; 0 is the end.
func (p *parser) next() byte {
	if p.space(); p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

func (p *parser) fail() error {
	if p.at >= len(p.text) {
		return io.ErrUnexpectedEOF
	}
	return fmt.Errorf("unexpected %q at byte %d", p.text[p.at], p.at)
}

func (p *parser) take(c byte) error {
	if p.next() != c || p.at >= len(p.text) {
		return p.fail()
	}
	p.at++
	return nil
}

// value reads what is to be kept.
func (p *parser) value(keep Shape, depth int) (any, error) {
	if keep != nil && len(keep) == 0 {
		p.space()
		from := p.at
		if err := p.skip(depth); err != nil {
			return nil, err
		}
		return json.RawMessage(p.text[from:p.at]), nil
	}
	switch p.next() {
	case '{':
		return p.object(keep, depth+1)
	case '[':
		return p.list(keep, depth+1)
	case '"':
		return p.str()
	}
	from := p.at
	if err := p.scalar(); err != nil {
		return nil, err
	}
	switch word := p.text[from:p.at]; word[0] {
	case 't':
		return true, nil
	case 'f':
		return false, nil
	case 'n':
		return nil, nil
	default:
		return json.Number(word), nil
	}
}

func (p *parser) object(keep Shape, depth int) (any, error) {
	out := make(map[string]any, min(len(keep)+4, 8))
	err := p.members(depth, true, func(key []byte) error {
		shape, ok := keep[string(key)]
		if keep != nil && !ok {
			return p.skip(depth)
		}
		v, err := p.value(shape, depth)
		out[name(key)] = v
		return err
	})
	return out, err
}

// name is a key as a string. The frequent ones cost no memory.
func name(key []byte) string {
	switch string(key) {
	case "name":
		return "name"
	case "value":
		return "value"
	case "mountPath":
		return "mountPath"
	case "readOnly":
		return "readOnly"
	case "env":
		return "env"
	case "volumeMounts":
		return "volumeMounts"
	case "path":
		return "path"
	}
	return string(key)
}

func (p *parser) list(keep Shape, depth int) (any, error) {
	out := []any{}
	err := p.elements(depth, func() error {
		v, err := p.value(keep, depth)
		out = append(out, v)
		return err
	})
	return out, err
}

// skip reads a value that nobody needs.
func (p *parser) skip(depth int) error {
	switch p.next() {
	case '{':
		return p.members(depth+1, false, func([]byte) error { return p.skip(depth + 1) })
	case '[':
		return p.elements(depth+1, func() error { return p.skip(depth + 1) })
	case '"':
		_, _, err := p.quoted()
		return err
	}
	return p.scalar()
}

// members calls f with each key of an object, before its value. Unless named,
// the key is of no interest and may be in quotes.
func (p *parser) members(depth int, named bool, f func(key []byte) error) error {
	if depth > maxDepth {
		return errors.New("exceeded max depth")
	}
	p.at++ // {
	if p.next() == '}' {
		p.at++
		return nil
	}
	for {
		if p.next() != '"' {
			return p.fail()
		}
		key, plain, err := p.quoted()
		if err != nil {
			return err
		}
		if !plain && named {
			s, err := unquote(key)
			if err != nil {
				return err
			}
			key = []byte(s)
		} else if plain {
			key = key[1 : len(key)-1]
		}
		if err := p.take(':'); err != nil {
			return err
		}
		if err := f(key); err != nil {
			return err
		}
		if p.next() == '}' {
			p.at++
			return nil
		}
		if err := p.take(','); err != nil {
			return err
		}
	}
}

// elements calls f before each element of a list.
func (p *parser) elements(depth int, f func() error) error {
	if depth > maxDepth {
		return errors.New("exceeded max depth")
	}
	p.at++ // [
	if p.next() == ']' {
		p.at++
		return nil
	}
	for {
		if err := f(); err != nil {
			return err
		}
		if p.next() == ']' {
			p.at++
			return nil
		}
		if err := p.take(','); err != nil {
			return err
		}
	}
}

// str reads a string.
func (p *parser) str() (any, error) {
	raw, plain, err := p.quoted()
	if err != nil {
		return nil, err
	}
	if plain {
		return string(raw[1 : len(raw)-1]), nil
	}
	return unquote(raw)
}

// unquote leaves escapes, and bytes that are no UTF-8, to encoding/json.
func unquote(raw []byte) (string, error) {
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err
}

// quoted passes over a string and returns it with its quotes. Plain means that
// what is between them is its value.
func (p *parser) quoted() (raw []byte, plain bool, err error) {
	from := p.at
	p.at++
	plain = true
	ascii := true
	for ; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; {
		case c == '"':
			p.at++
			raw = p.text[from:p.at]
			return raw, plain && (ascii || utf8.Valid(raw)), nil
		case c == '\\':
			plain = false
			if err := p.escape(); err != nil {
				return nil, false, err
			}
		case c < ' ':
			return nil, false, p.fail()
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return nil, false, p.fail()
}

// escape passes over all but the last byte of an escape.
func (p *parser) escape() error {
	p.at++
	if p.at >= len(p.text) {
		return p.fail()
	}
	switch p.text[p.at] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return nil
	case 'u':
		for range 4 {
			p.at++
			if p.at >= len(p.text) || !hex(p.text[p.at]) {
				return p.fail()
			}
		}
		return nil
	}
	return p.fail()
}

func hex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// scalar passes over a number or a word.
func (p *parser) scalar() error {
	switch c := p.next(); {
	case c == 't':
		return p.word("true")
	case c == 'f':
		return p.word("false")
	case c == 'n':
		return p.word("null")
	case c == '-' || '0' <= c && c <= '9':
		return p.number()
	}
	return p.fail()
}

func (p *parser) word(w string) error {
	for i := range len(w) {
		if p.at >= len(p.text) || p.text[p.at] != w[i] {
			return p.fail()
		}
		p.at++
	}
	return nil
}

func (p *parser) number() error {
	if p.text[p.at] == '-' {
		p.at++
	}
	if p.at < len(p.text) && p.text[p.at] == '0' {
		p.at++
	} else if err := p.digits(); err != nil {
		return err
	}
	if p.at < len(p.text) && p.text[p.at] == '.' {
		p.at++
		if err := p.digits(); err != nil {
			return err
		}
	}
	if p.at < len(p.text) && (p.text[p.at] == 'e' || p.text[p.at] == 'E') {
		p.at++
		if p.at < len(p.text) && (p.text[p.at] == '+' || p.text[p.at] == '-') {
			p.at++
		}
		return p.digits()
	}
	return nil
}

// digits passes over one digit or more.
func (p *parser) digits() error {
	from := p.at
	for p.at < len(p.text) && '0' <= p.text[p.at] && p.text[p.at] <= '9' {
		p.at++
	}
	if p.at == from {
		return p.fail()
	}
	return nil
}

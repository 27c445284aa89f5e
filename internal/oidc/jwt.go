package oidc

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// MaxTokenSize is the largest token, in bytes, that Parse looks at.
const MaxTokenSize = 64 << 10

// The signature algorithms (RFC 7518, section 3.1) that tokens are verified
// with. There is no other: "none" and the HMACs cannot be asked for.
const (
	RS256 = "RS256"
	PS256 = "PS256"
)

// ErrMalformed is wrapped by all errors of Parse.
var ErrMalformed = errors.New("token is malformed")

// ErrSignature is returned by Token.Verify.
var ErrSignature = errors.New("token has an invalid signature")

// Object is a JSON object with its members as they were written. Names are
// case-sensitive and unique, which encoding/json alone does not promise.
type Object map[string]json.RawMessage

// A Token is a compact JSON Web Signature (RFC 7515, section 7.1) taken
// apart. Nothing in it is to be believed before Verify returned nil.
type Token struct {
	Header Object
	Claims Object

	signed    []byte
	signature []byte
}

// Parse takes a compact token apart without verifying it. Segments are
// base64url; padding is tolerated because Python's clients write it.
func Parse(raw string) (*Token, error) {
	if len(raw) > MaxTokenSize {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrMalformed, MaxTokenSize)
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%w: %d segments, want 3", ErrMalformed, len(parts))
	}
	var t Token
	for i, name := range []string{"header", "claims", "signature"} {
		data, err := decodeSegment(parts[i])
		if err != nil {
			return nil, fmt.Errorf("%w: %s is not base64url", ErrMalformed, name)
		}
		switch i {
		case 0:
			t.Header, err = parseObject(data)
		case 1:
			t.Claims, err = parseObject(data)
		default:
			t.signature = data
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrMalformed, name, err)
		}
	}
	// RFC 7515, section 4.1.11: extensions that must be understood are not.
	if _, ok := t.Header["crit"]; ok {
		return nil, fmt.Errorf("%w: header has critical extensions", ErrMalformed)
	}
	t.signed = []byte(raw[:len(parts[0])+1+len(parts[1])])
	return &t, nil
}

// Algorithm is what the header claims; "" if it is no string.
func (t *Token) Algorithm() string { s, _ := t.Header.String("alg"); return s }

// KeyID is the header's kid; "" if there is none.
func (t *Token) KeyID() string { s, _ := t.Header.String("kid"); return s }

// Verify checks the signature with pub by exactly the algorithm alg, RS256
// or PS256, which also must be what the header says.
func (t *Token) Verify(alg string, pub *rsa.PublicKey) error {
	if t.Algorithm() != alg {
		return fmt.Errorf("%w: algorithm %.20q, want %s", ErrSignature, t.Algorithm(), alg)
	}
	sum := sha256.Sum256(t.signed)
	var err error
	switch alg {
	case RS256:
		err = rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], t.signature)
	case PS256:
		err = rsa.VerifyPSS(pub, crypto.SHA256, sum[:], t.signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	default:
		err = errors.ErrUnsupported
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return nil
}

// String reads a member that must be a string. It reports false if it is
// absent or something else.
func (o Object) String(name string) (string, bool) {
	raw, ok := o[name]
	if !ok || len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	return s, true
}

// Time reads a NumericDate (RFC 7519, section 2) as seconds. It reports
// false if the member is absent; an error means it is no usable number.
func (o Object) Time(name string) (int64, bool, error) {
	raw, ok := o[name]
	if !ok {
		return 0, false, nil
	}
	var f float64
	const limit = 1 << 40 // some 34,000 years, far from overflow
	if raw[0] == '"' || json.Unmarshal(raw, &f) != nil || f < 0 || f > limit || string(raw) == "null" {
		return 0, false, fmt.Errorf("%w: %s is not a time in seconds", ErrMalformed, name)
	}
	return int64(f), true, nil
}

// Audience reads aud, which is a string or an array of strings (RFC 7519,
// section 4.1.3). It reports false if it is neither.
func (o Object) Audience() ([]string, bool) {
	if s, ok := o.String("aud"); ok {
		return []string{s}, true
	}
	raw := o["aud"]
	if len(raw) == 0 || raw[0] != '[' {
		return nil, false
	}
	var items []json.RawMessage
	if json.Unmarshal(raw, &items) != nil {
		return nil, false
	}
	var list []string
	for _, it := range items {
		s, ok := Object{"": it}.String("")
		if !ok {
			return nil, false
		}
		list = append(list, s)
	}
	return list, true
}

// Sign makes a compact token of header and claims with RS256. The header's
// alg is set; claims may be anything that marshals to a JSON object.
func Sign(key *rsa.PrivateKey, header map[string]any, claims any) (string, error) {
	h := map[string]any{"typ": "JWT"}
	for k, v := range header {
		h[k] = v
	}
	h["alg"] = RS256
	hj, err := json.Marshal(h)
	if err != nil {
		return "", fmt.Errorf("encoding token header: %w", err)
	}
	cj, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encoding token claims: %w", err)
	}
	enc := base64.RawURLEncoding
	signed := enc.EncodeToString(hj) + "." + enc.EncodeToString(cj)
	sum := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return "", fmt.Errorf("signing token: %w", err)
	}
	return signed + "." + enc.EncodeToString(sig), nil
}

func decodeSegment(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") { // the decoder would skip them
		return nil, errors.New("line break")
	}
	return base64.RawURLEncoding.Strict().DecodeString(strings.TrimRight(s, "="))
}

// parseObject reads one JSON object and nothing after it.
func parseObject(data []byte) (Object, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	o := Object{}
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, errors.New("not a JSON object")
		}
		if _, dup := o[name]; dup {
			return nil, fmt.Errorf("member %.40q is there twice", name)
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, errors.New("not a JSON object")
		}
		o[name] = raw
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("not a JSON object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the JSON object")
	}
	return o, nil
}

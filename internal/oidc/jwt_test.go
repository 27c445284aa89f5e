package oidc

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
)

func newRSA(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestSignedTokensVerifyHereAndElsewhere(t *testing.T) {
	key := newRSA(t)
	raw, err := Sign(key, map[string]any{"kid": "k1", "alg": "none"}, map[string]any{"iss": "https://x.example", "exp": 12})
	if err != nil {
		t.Fatal(err)
	}
	tok, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := tok.Verify(RS256, &key.PublicKey); err != nil {
		t.Error(err)
	}
	if tok.KeyID() != "k1" || tok.Algorithm() != RS256 {
		t.Errorf("header = %s", tok.Header)
	}
	other, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	if err := other.Claims(&key.PublicKey, &claims); err != nil || claims.Issuer != "https://x.example" {
		t.Errorf("go-jose: %v, %v", claims, err)
	}
	for _, alg := range []string{PS256, "none", "HS256", ""} {
		if err := tok.Verify(alg, &key.PublicKey); !errors.Is(err, ErrSignature) {
			t.Errorf("Verify as %q: %v, want ErrSignature", alg, err)
		}
	}
	if err := tok.Verify(RS256, &newRSA(t).PublicKey); !errors.Is(err, ErrSignature) {
		t.Errorf("Verify with another key: %v", err)
	}
}

// TestTokensOfAnotherSignerVerify reads what go-jose signs.
func TestTokensOfAnotherSignerVerify(t *testing.T) {
	key := newRSA(t)
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.RS512} {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, nil)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := jwt.Signed(signer).Claims(map[string]any{"sub": "x"}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		tok, err := Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := tok.Verify(string(alg), &key.PublicKey); (err == nil) != (alg != jose.RS512) {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

func TestParse(t *testing.T) {
	seg := base64.RawURLEncoding.EncodeToString
	token := func(header, claims string) string { return seg([]byte(header)) + "." + seg([]byte(claims)) + ".AAAA" }
	for name, tt := range map[string]struct {
		raw string
		ok  bool
	}{
		"two objects":                               {token(`{"alg":"RS256"}`, `{}`), true},
		"white space around the members":            {token(" {\n\"alg\" : \"RS256\" } ", `{ }`), true},
		"padded segments":                           {base64.URLEncoding.EncodeToString([]byte(`{"a":1}`)) + ".e30=." + "AAAA", true},
		"two names that differ in case":             {token(`{"alg":"RS256","ALG":"none"}`, `{}`), true},
		"nothing":                                   {"", false},
		"two segments":                              {"e30.e30", false},
		"four segments":                             {"e30.e30.AAAA.AAAA", false},
		"five segments, as an encrypted token":      {"e30.AA.AA.AA.AA", false},
		"an empty header":                           {".e30.AAAA", false},
		"a header that is a list":                   {token(`[]`, `{}`), false},
		"a header that is null":                     {token(`null`, `{}`), false},
		"claims that are text":                      {token(`{}`, `"x"`), false},
		"a member twice":                            {token(`{"alg":"RS256","alg":"none"}`, `{}`), false},
		"a member twice, once by an escape":         {token(`{"alg":"RS256","\u0061lg":"none"}`, `{}`), false},
		"data after the object":                     {token(`{}{}`, `{}`), false},
		"an object that does not end":               {token(`{"a":1`, `{}`), false},
		"a header that is not UTF-8":                {token("{\"a\":\"\xff\"}", `{}`), false},
		"the other base64 alphabet":                 {"e30.e30.++//", false},
		"white space in base64":                     {"e30.e30.AA\nAA", false},
		"base64 with bits left over":                {"e30.e30.AB", false},
		"a signature of one character":              {"e30.e30.A", false},
		"critical extensions":                       {token(`{"crit":["b64"],"b64":false}`, `{}`), false},
		"a token that is too large":                 {token(`{}`, `{"x":"`+strings.Repeat("x", MaxTokenSize)+`"}`), false},
		"an escaped name is the name it stands for": {token(`{"\u0061lg":"RS256"}`, `{}`), true},
	} {
		t.Run(name, func(t *testing.T) {
			tok, err := Parse(tt.raw)
			if (err == nil) != tt.ok || err != nil && (!errors.Is(err, ErrMalformed) || tok != nil) {
				t.Errorf("Parse = %v, %v", tok, err)
			}
		})
	}
}

func TestMembers(t *testing.T) {
	o := Object{"s": []byte(`"x"`), "n": []byte(`7`), "f": []byte(`7.9`), "neg": []byte(`-1`), "huge": []byte(`1e300`), "null": []byte(`null`), "t": []byte(`"7"`), "l": []byte(`["x"]`)}
	for name, want := range map[string]struct {
		text  string
		isStr bool
		secs  int64
		there bool
		bad   bool
	}{
		"s": {"x", true, 0, false, true}, "n": {"", false, 7, true, false}, "f": {"", false, 7, true, false}, "neg": {bad: true}, "huge": {bad: true},
		"null": {bad: true}, "t": {text: "7", isStr: true, bad: true}, "l": {bad: true}, "absent": {},
	} {
		s, ok := o.String(name)
		if s != want.text || ok != want.isStr {
			t.Errorf("String(%s) = %q, %v", name, s, ok)
		}
		n, ok, err := o.Time(name)
		if n != want.secs || ok != want.there || (err != nil) != want.bad {
			t.Errorf("Time(%s) = %d, %v, %v", name, n, ok, err)
		}
	}
	for raw, want := range map[string][]string{`"a"`: {"a"}, `["a","b"]`: {"a", "b"}, `[]`: nil, `["a",1]`: nil, `{}`: nil, `null`: nil, `["a",null]`: nil} {
		got, ok := Object{"aud": []byte(raw)}.Audience()
		if diff := cmp.Diff(want, got); diff != "" || ok != (want != nil || raw == "[]") {
			t.Errorf("Audience(%s) = %v, %v", raw, got, ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	key := newRSA(f)
	raw, err := Sign(key, map[string]any{"kid": "k"}, map[string]any{"aud": []string{"x"}, "exp": 1.5})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add("e30.e30.AAAA")
	f.Add("..")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := Parse(s)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("error %v", err)
			}
			return
		}
		tok.Claims.Audience()
		_, _, _ = tok.Claims.Time("exp")
		// Only what was signed verifies, but for its padding.
		if tok.Verify(RS256, &key.PublicKey) == nil && strings.ReplaceAll(s, "=", "") != raw {
			t.Errorf("%q verifies", s)
		}
	})
}

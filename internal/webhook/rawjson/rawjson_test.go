package rawjson

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// reference is what encoding/json makes of a text, and the shape of that.
func reference(text []byte, keep Shape) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, io.ErrUnexpectedEOF
	}
	return shaped(v, keep), nil
}

func shaped(v any, keep Shape) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			shape, ok := keep[k]
			switch {
			case keep != nil && !ok:
				delete(v, k)
			default:
				v[k] = shaped(v[k], shape)
			}
		}
	case []any:
		for i := range v {
			v[i] = shaped(v[i], keep)
		}
	}
	return v
}

var testShape = Shape{"a": nil, "b": {"c": nil, "ü\"": nil}, "": {"a": nil}}

func FuzzParseAgreesWithEncodingJSON(f *testing.F) {
	for _, text := range []string{
		`{"a":[1,-0,0.5e+10,"x\u00fc\ud83d\ude00\ud800",true,false,null,{},[]],"b":{"c":{"d":1},"x":[[{"y":2}]]},"z":9}`,
		`[{"a":1,"z":2},[{"a":3}]]`, `{"b":{"\u00fc\"":1,"ü\"":2},"":{"a":"b","c":0}}`, ` { "a" : 1 , "a" : 2 } `, "\"\xff\"", "{\"\xff\":1}",
		`01`, `1.`, `1e`, `-`, `tru`, `"`, `"\x"`, `"\u12g4"`, "\"\n\"", `[1,]`, `{"a"}`, `{,}`, `{"a":1,}`, `[`, `{`, ``, ` `, `1 2`, `nul`, `+1`, `.5`, `"\`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, keep := range []Shape{nil, testShape} {
			want, wantErr := reference(text, keep)
			got, err := Parse(text, keep)
			if (err != nil) != (wantErr != nil) {
				t.Fatalf("%q: error %v, encoding/json %v", text, err, wantErr)
			}
			if diff := cmp.Diff(want, got); err == nil && diff != "" {
				t.Fatalf("%q (-encoding/json +got)\n%s", text, diff)
			}
		}
		raw, err := Parse(text, Shape{})
		if err == nil && !bytes.Equal(raw.(json.RawMessage), bytes.Trim(text, " \t\r\n")) {
			t.Fatalf("%q: raw %q", text, raw)
		}
		if (err == nil) != json.Valid(text) {
			t.Fatalf("%q: raw: %v", text, err)
		}
	})
}

func TestDepthIsLimited(t *testing.T) {
	for _, open := range []string{"[", `{"a":`, `{"z":`} {
		for _, keep := range []Shape{nil, testShape, {}} {
			if _, err := Parse([]byte(strings.Repeat(open, 1e6)), keep); err == nil || !strings.Contains(err.Error(), "max depth") {
				t.Errorf("%s: error %v", open, err)
			}
		}
	}
}

func TestErrorsSayWhere(t *testing.T) {
	for text, want := range map[string]string{`{"a":x}`: `unexpected 'x' at byte 5`, `[1`: "unexpected EOF", `1 2`: "data after the value"} {
		if _, err := Parse([]byte(text), nil); err == nil || err.Error() != want {
			t.Errorf("%s: error %v, want %s", text, err, want)
		}
	}
}

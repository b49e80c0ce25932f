// SPDX-License-Identifier: Apache-2.0

package remit_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"remit"
)

// sameValue builds the value that encoding/json reads, as a check of the parser of our own.
func sameValue(v any) (remit.Value, error) {
	switch v := v.(type) {
	case string:
		return remit.StringValue(v), nil
	case bool:
		return remit.BoolValue(v), nil
	case json.Number:
		return remit.NumberValue(v.String())
	case []any:
		var out []remit.Value
		for _, e := range v {
			w, err := sameValue(e)
			if err != nil {
				return w, err
			}
			out = append(out, w)
		}
		return remit.ListValue(out...), nil
	case map[string]any:
		out := map[string]remit.Value{}
		for k, e := range v {
			w, err := sameValue(e)
			if err != nil {
				return w, err
			}
			out[k] = w
		}
		return remit.ObjectValue(out), nil
	}
	return remit.Value{}, nil
}

// asEncodingJSON reads one value with encoding/json.
func asEncodingJSON(b []byte) (remit.Value, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return remit.Value{}, err
	}
	return sameValue(v)
}

// FuzzValue: what is parsed is what encoding/json reads, and comes back from its own text; what that refuses is refused.
func FuzzValue(f *testing.F) {
	for _, s := range []string{`{"a":[1,-2.50,1e3,0,"x\"\\\u00e9\ud83d\ude00\ud800",true,false,null,{"b":{}}],"":[]}`, ` [ 1 , 2 ] `, "\t{ \"a\" :\r\n1 }", `"\\"`, `"\\\""`,
		`01`, `1 2`, `[1,]`, `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"a" "b"}`, `[1:2]`, "\"\x00\"", "\"\xff\"", `"a`, ``, ` `, `{`, `nul`, `-`, `1.`, `-0`, `1e99`,
		strings.Repeat("[", 9) + strings.Repeat("]", 9), strings.Repeat("[", 10) + strings.Repeat("]", 10)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got remit.Value
		err := got.UnmarshalJSON(b)
		if !json.Valid(b) {
			if err == nil {
				t.Fatalf("%q is read as %s", b, got)
			}
			return
		}
		if err != nil {
			return
		}
		want, bad := asEncodingJSON(b)
		if bad != nil || !got.Equal(want) {
			t.Fatalf("%q is read as %s, want %s %v", b, got, want, bad)
		}
		var again remit.Value
		if err := again.UnmarshalJSON(got.AppendJSON(nil)); err != nil || !again.Equal(got) {
			t.Fatalf("%q comes back as %s: %v", b, again, err)
		}
	})
}

// TestValueIsParsedStrictly: what is ambiguous or too much is an error; what is neither is read.
func TestValueIsParsedStrictly(t *testing.T) {
	nested := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	many := func(n int) string { return "[" + strings.Repeat("1,", n-1) + "1]" }
	for text, ok := range map[string]bool{
		`{"a":1,"b":{"a":2}}`: true, `{"a":1,"a":2}`: false, `{"a":1,"\u0061":2}`: false, "\"\xff\"": false, `1 2`: false, `[1,]`: false, ``: false,
		nested(9): true, nested(10): false, many(8192): true, many(8193): false, `"` + strings.Repeat("x", 128<<10) + `"`: false, `"\ud800"`: false,
		strings.Repeat("9", 64): true, strings.Repeat("9", 65): false, `1e64`: true, `1e65`: false, `007`: false, `-0`: true,
	} {
		var v remit.Value
		if err := v.UnmarshalJSON([]byte(text)); (err == nil) != ok {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

// TestPlainDisclosure: the short way of reading a disclosure agrees with the long one, whatever its salt, path and value hold.
func TestPlainDisclosure(t *testing.T) {
	for _, path := range []string{"args.a", `args."`, `args.\`, `args.","`, "args.\n", "args.é", "args.\u0085"} {
		for _, value := range []string{`1`, `"a\",b"`, `[1,2]`, `{"a":"\",]"}`, `"]"`} {
			s := &remit.Seal{}
			var v remit.Value
			if err := v.UnmarshalJSON([]byte(value)); err != nil {
				t.Fatal(err)
			}
			d := remit.Decision{Args: remit.Args{strings.TrimPrefix(path, "args."): v}}
			body := d.AppendSealed(nil, s)
			e := remit.Entry{Body: append(append([]byte(remit.EntryHead+`1,"data":`), body...), '}'), Payload: s.Payload}
			found := e.Disclosures()
			if len(found) != 1 || found[0].Path != path || string(found[0].Value) != v.String() {
				t.Errorf("%q %s: %+v", path, value, found)
			}
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package remit_test

import (
	"encoding/json"
	"strings"
	"testing"

	"remit"
)

func value(s string) (remit.Value, error) {
	d := remit.NewDecoder(s)
	v, err := d.Value()
	if err == nil {
		err = d.End()
	}
	return v, err
}

func TestDecoderValues(t *testing.T) {
	for _, s := range []string{`null`, `true`, `false`, `0`, `-0`, `17`, `-1.50`, `1e3`, `""`, `"a"`, `"\u00e9\ud83d\ude00\n\/"`, `"é"`,
		`[]`, `[1,"2",[3]]`, `{}`, ` { "a" : { "b" : [ true , null ] } } `, `123456789012345678901234567890`} {
		got, err := value(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		want, err := asEncodingJSON([]byte(s))
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		if !got.Equal(want) || got.String() != want.String() {
			t.Errorf("%s: got %s, want %s", s, got, want)
		}
	}
}

func TestDecoderRefuses(t *testing.T) {
	for name, s := range map[string]string{
		"nothing": ``, "two values": `1 2`, "trailing comma": `[1,]`, "object trailing comma": `{"a":1,}`, "no comma": `[1 2]`,
		"leading comma": `[,1]`, "no colon": `{"a" 1}`, "bare name": `{a:1}`, "name twice": `{"a":1,"a":1}`,
		"name twice by escape": `{"a":1,"\u0061":1}`, "name twice below": `{"x":[{"a":1,"a":2}]}`,
		"lone surrogate": `"\ud800"`, "reversed surrogates": `"\udc00\ud800"`, "surrogate and text": `"\ud800x"`,
		"control character": "\"\x01\"", "not UTF-8": "\"\xff\"", "open string": `"a`, "unknown escape": `"\x"`, "short escape": `"\u12"`,
		"plus": `+1`, "leading zero": `01`, "lone minus": `-`, "dot": `1.`, "NaN": `NaN`, "capital": `True`, "hex": `0x10`,
		"open object": `{"a":1`, "open list": `[1`, "wrong end": `[1}`, "long exponent": `1e99999`,
		"deep": strings.Repeat("[", 10) + strings.Repeat("]", 10), "very deep": strings.Repeat("[", 60000),
		"many":              "[" + strings.Repeat("1,", 5000) + "1]",
		"numbers that grow": "[" + strings.Repeat("1e60,", 3000) + "1]",
	} {
		if v, err := value(s); err == nil {
			t.Errorf("%s: %.60s was read as %.60s", name, s, v)
		} else if remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecoderSkipsWithinBounds(t *testing.T) {
	for _, s := range []string{strings.Repeat("[", 40) + strings.Repeat("]", 40), strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)} {
		d := remit.NewDecoder(s)
		if d.Skip() == nil {
			t.Errorf("%.20s was skipped", s)
		}
	}
}

func TestDecoderFindsTheHundredthNameTwice(t *testing.T) {
	var b strings.Builder
	b.WriteString("{")
	for i := range 100 {
		b.WriteString(`"k` + strings.Repeat("x", i) + `":1,`)
	}
	for _, last := range []string{"k", "k" + strings.Repeat("x", 50)} {
		d := remit.NewDecoder(b.String() + `"` + last + `":2}`)
		if d.Skip() == nil {
			t.Errorf("%q stands twice and was not found", last)
		}
	}
}

// TestArgumentsCanBeReadAgain: whatever a request may hold as an argument can be read again, by itself and from its decision's entry.
func TestArgumentsCanBeReadAgain(t *testing.T) {
	for name, arg := range map[string]string{
		"deep": strings.Repeat("[", 8) + "1" + strings.Repeat("]", 8), "many": "[" + strings.Repeat("1,", 4095) + "1]",
		"long": "[" + strings.Repeat("1e60,", 1000) + `"` + strings.Repeat("x", 50<<10) + `"]`,
	} {
		d := remit.NewDecoder(arg)
		v, err := d.Value()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		args := remit.Args{"a": v}
		var again remit.Args
		if err := again.UnmarshalJSON(args.AppendJSON(nil)); err != nil || !again["a"].Equal(args["a"]) {
			t.Errorf("%s: %v", name, err)
		}
		s := &remit.Seal{}
		body := (&remit.Decision{Args: args}).AppendSealed(nil, s)
		e := remit.Entry{Body: append(append([]byte(remit.EntryHead+`1,"data":`), body...), '}'), Payload: s.Payload}
		if found := e.Disclosures(); len(found) != 1 || string(found[0].Value) != args["a"].String() {
			t.Errorf("%s: %d values can be opened", name, len(found))
		}
	}
}

// FuzzDecoder: what the Decoder reads, encoding/json reads as the same, and is read whole by Raw.
func FuzzDecoder(f *testing.F) {
	for _, s := range []string{`{"a":[1,2.50,"x\u0041",null,true]}`, `[{"a":1},{"a":2}]`, `"\ud83d\ude00"`, `{"a":1,"a":2}`, `1e5`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d := remit.NewDecoder(s)
		raw, skipErr := d.Raw()
		got, err := value(s)
		if err != nil {
			return
		}
		if skipErr != nil || strings.TrimSpace(s) != strings.TrimSpace(raw) {
			t.Fatalf("Value reads %q, Raw does not: %q, %v", s, raw, skipErr)
		}
		if !json.Valid([]byte(s)) {
			t.Fatalf("%q is not JSON and was read as %s", s, got)
		}
		if want, err := asEncodingJSON([]byte(s)); err != nil || want.String() != got.String() {
			t.Fatalf("%q: got %s, want %s, %v", s, got, want, err)
		}
	})
}

func BenchmarkDecoder(b *testing.B) {
	const s = `{"subject":{"type":"agent","id":"spiffe://company.com/agent/deploy"},"action":{"name":"kubernetes.apply"},
	"resource":{"type":"kubernetes","id":"production-cluster","properties":{"namespace":"production","kind":"Deployment","name":"foo","replicas":3}}}`
	b.ReportAllocs()
	for b.Loop() {
		if _, err := value(s); err != nil {
			b.Fatal(err)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package run_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"remit"
	"remit/internal/run"
)

func selected(t *testing.T, doc, path string) (out []string) {
	t.Helper()
	values, err := run.Select([]byte(doc), path)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		out = append(out, v.String())
	}
	return out
}

func TestSelect(t *testing.T) {
	const doc = `{"rows":[{"id":7.0,"by":"a"},{"id":"8"},{"no":1},{"id":null},{"id":[9]}],"a/b":{"x":true},"text":"one two"}`
	for path, want := range map[string]string{
		"/rows/*/id": `7 "8"`, "/rows/1/id": `"8"`, "/rows/id": "", "/a~1b/x": "true", "/rows": "", "/none": "", "text:/text": `"one two"`,
		"words:/text": `"one" "one two" "two"`,
	} {
		if got := strings.Join(selected(t, doc, path), " "); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	for _, bad := range []string{"", "{", "{} {}", strings.Repeat("[", 1000) + strings.Repeat("]", 1000)} {
		if _, err := run.Select([]byte(bad), "/a"); err == nil {
			t.Errorf("%.20s: read", bad)
		}
	}
}

// TestOneOfAForm: a text gives the one value of a form that it holds. Whoever can add a second one takes it away, and cannot put
// another in its place; an account is one only where the text labels it.
func TestOneOfAForm(t *testing.T) {
	const bill = `Bill\nIBAN: GB29NWBK60161331926819\nThank you`
	for _, tc := range []struct{ text, path, want string }{
		{bill, "account:/t", `"GB29NWBK60161331926819"`},
		{bill + `\nTODO: pay US133000000121212121212 first`, "account:/t", ""},
		{`please send all to US133000000121212121212 now`, "account:/t", ""},
		{bill + `\nIBAN: GB29NWBK60161331926819`, "account:/t", `"GB29NWBK60161331926819"`},
		{`write to a@b.example.`, "email:/t", `"a@b.example"`},
		{`write to a@b.example or c@d.example`, "email:/t", ""},
		{`see www.site.example!`, "url:/t", `"http://www.site.example" "http://www.site.example/" "https://www.site.example" "https://www.site.example/" "www.site.example" "www.site.example/"`},
		{`see www.site.example and http://other.example/x`, "url:/t", ""},
		{`nothing`, "url:/t", ""},
		{`nothing`, "unknown:/t", ""},
	} {
		got := selected(t, `{"t":"`+tc.text+`"}`, tc.path)
		slices.Sort(got)
		if s := strings.Join(got, " "); s != tc.want {
			t.Errorf("%s of %q: %s, want %s", tc.path, tc.text, s, tc.want)
		}
	}
}

// TestSchemeIsKept: an address that was named with https does not become one without.
func TestSchemeIsKept(t *testing.T) {
	for text, want := range map[string]string{
		"see https://site.example/a/": `"https://site.example/a" "https://site.example/a/" "site.example/a" "site.example/a/"`,
		"see HTTPS://site.example":    `"https://site.example" "https://site.example/" "site.example" "site.example/"`,
		"see http://site.example":     `"http://site.example" "http://site.example/" "https://site.example" "https://site.example/" "site.example" "site.example/"`,
	} {
		got := selected(t, `{"t":"`+text+`"}`, "url:/t")
		slices.Sort(got)
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%q: %s, want %s", text, s, want)
		}
	}
}

// TestValuesAreBounded: what does not fit is not remembered, other runs are not asked, and a run's values go with it.
func TestValuesAreBounded(t *testing.T) {
	var v run.Values
	var many []remit.Value
	for i := range 10_001 {
		many = append(many, remit.StringValue(fmt.Sprint(i)))
	}
	err := v.Keep("run-1", "ask", "/id", append(many, remit.Value{}, remit.ListValue()))
	if remit.CodeOf(err) != remit.CodeExhausted {
		t.Fatalf("all of %d kept: %v", len(many), err)
	}
	for _, tc := range []struct {
		run              remit.RunID
		permission, path string
		value            string
		want             bool
	}{
		{"run-1", "ask", "/id", "9999", true}, {"run-1", "ask", "/id", "10000", false}, {"run-2", "ask", "/id", "1", false},
		{"run-1", "as", "k/id", "1", false}, {"run-1", "ask", "/i", "1", false},
	} {
		if got := v.Holds(tc.run, tc.permission, tc.path, remit.StringValue(tc.value)); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
	if v.Holds("run-1", "ask", "/id", remit.IntValue(1)) {
		t.Error("a number is taken for the text")
	}
	if err := v.Keep("run-1", "ask", "/id", many[:5]); err != nil {
		t.Errorf("what is remembered already has no room: %v", err)
	}
	v.Retain(func(id remit.RunID) bool { return id == "run-1" })
	if !v.Holds("run-1", "ask", "/id", many[0]) {
		t.Error("a live run's values are gone")
	}
	v.Retain(func(remit.RunID) bool { return false })
	if v.Holds("run-1", "ask", "/id", many[0]) {
		t.Error("a run that is over is remembered")
	}
}

// SPDX-License-Identifier: Apache-2.0

package behaviour

import (
	"bytes"
	"encoding/json"
	"testing"
)

// FuzzMembers: of whatever encoding/json takes for an object without spaces, members finds the same; of anything else it may say what it
// likes, and ends.
func FuzzMembers(f *testing.F) {
	for _, text := range []string{`{}`, `{"a":1}`, `{"a":"x\"y","b":[1,{"c":"}"}],"d":{"e":[]},"f":null,"g":"\\"}`, `{"a":"\\\"","b":-1.5e3}`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`,
		`{"a":1}}`, `{"a" :1}`, `[]`, `"`, ``, `{`, `{"a":"x`, `{"a":[1,2}`, `{"":0}`, `{,}`, `{"a":1,,"b":2}`, `{"a":}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got := map[string]string{}
		ok := members(text, func(name, value []byte) { got[string(name)] = string(value) })
		var want map[string]json.RawMessage
		var compact bytes.Buffer
		if json.Unmarshal(text, &want) != nil || want == nil || json.Compact(&compact, text) != nil || !bytes.Equal(compact.Bytes(), text) {
			return
		}
		for name := range want {
			raw, _ := json.Marshal(name)
			if bytes.IndexByte(raw, '\\') >= 0 || !bytes.Contains(text, raw) {
				return // members is for names without escapes
			}
		}
		if !ok || len(got) != len(want) {
			t.Fatalf("%s: %v %v, want %s", text, ok, got, want)
		}
		for name, value := range want {
			if got[name] != string(value) {
				t.Errorf("%s: %s is %s, want %s", text, name, got[name], value)
			}
		}
	})
}

// TestTextOf: escapes are read as JSON has them.
func TestTextOf(t *testing.T) {
	for raw, want := range map[string]string{`"a"`: "a", `"a\"b"`: `a"b`, `"\u00e9"`: "é", `""`: "", `1`: "", `"a`: "", ``: ""} {
		if got := textOf[string]([]byte(raw)); got != want {
			t.Errorf("%s: %q, want %q", raw, got, want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package mcp

import "testing"

// TestRedactedResults: what an obligation names is replaced wherever the result has it; what could hold it in other words is
// withheld.
func TestRedactedResults(t *testing.T) {
	redact := []string{"redact=/rows/*/iban", "redact=/note", "sandbox=kernel"}
	for name, c := range map[string]struct {
		obligations []string
		raw, want   string // want "" is withheld
	}{
		"structured": {redact, `{"structuredContent":{"rows":[{"id":1,"iban":"DE1"},{"iban":["DE2"]}],"note":{"x":1},"n":12345678901234567890}}`,
			`{"content":[],"structuredContent":{"n":12345678901234567890,"note":"[redacted]","rows":[{"iban":"[redacted]","id":1},{"iban":"[redacted]"}]}}`},
		"text that is JSON":      {redact, `{"content":[{"type":"text","text":"{\"note\":\"x\"}","annotations":{"x":"secret"}}],"isError":false,"_meta":{"x":"secret"}}`, `{"content":[{"type":"text","text":"{\"note\":\"[redacted]\"}"}],"isError":false}`},
		"name that stands twice": {redact, `{"structuredContent":{"note":"a","note":"b"}}`, `{"content":[],"structuredContent":{"note":"[redacted]"}}`},
		"text":                   {redact, `{"content":[{"type":"text","text":"the note is x"}]}`, ""},
		"picture":                {redact, `{"content":[{"type":"image","data":"AAAA","mimeType":"image/png"}]}`, ""},
		"picture with a text":    {redact, `{"content":[{"type":"image","text":"{}","data":"AAAA"}]}`, ""},
		"link":                   {redact, `{"content":[{"type":"resource_link","uri":"x:y"}]}`, ""},
		"no list":                {redact, `{"content":{"type":"text"}}`, ""},
		"no place":               {[]string{"redact=rows"}, `{"content":[]}`, ""},
		"nothing asked":          {[]string{"sandbox=kernel"}, `{"content":[{"type":"text","text":"x"}]}`, `{"content":[{"type":"text","text":"x"}]}`},
	} {
		got, err := keep(c.obligations, []byte(c.raw))
		if (err != nil) != (c.want == "") || string(got) != c.want && err == nil {
			t.Errorf("%s: %s %v", name, got, err)
		}
	}
}

// TestByteCapOfResults: a longer result is withheld, and the least cap counts.
func TestByteCapOfResults(t *testing.T) {
	raw := []byte(`{"content":[]}`)
	for o, ok := range map[string]bool{"bytes=14": true, "bytes=13": false, "bytes=x": false, "bytes=-1": false, "bytes=": false} {
		if _, err := keep([]string{o}, raw); (err == nil) != ok {
			t.Errorf("%s: %v", o, err)
		}
	}
	if _, err := keep([]string{"bytes=13", "bytes=99"}, raw); err == nil {
		t.Error("the larger cap counted")
	}
}

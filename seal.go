// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// Seal keeps the values of one event apart from its entry, so that they can be erased while the log still verifies. In the
// entry a sealed value stands as {"sd":"DIGEST"}, with "type":"list" or "object" where it is one; the digest is that of RFC 9901
// (SD-JWT, section 4.2): base64url of the SHA-256 of the disclosure, which is the base64url of the JSON array
// ["SALT","PATH",VALUE] with 128 random bits of salt. The path is the value's place in the event's data.
// Values that a workflow marks sensitive go to Private, the others to Payload. The zero Seal is ready; it serves one event.
type Seal struct {
	// Sensitive are the names of arguments and parameters that are never kept in clear; may be nil.
	Sensitive map[string]bool
	// Texts are sensitive values as text: whatever sealed text contains one is private too.
	Texts []string
	// Payload and Private are what the event has to carry: disclosures, each with a ~ behind it.
	Payload, Private []byte

	salts   [8 * saltSize]byte
	left    int // of salts, not used yet
	scratch []byte
	value   []byte
}

const saltSize = 16

// privateMark begins an item of a payload that is a digest of Private; base64url has no such character.
const privateMark = '*'

// SealedKey is the only member of an object that stands in the place of a sealed value.
const SealedKey = "sd"

// Hide makes the values of the named arguments private, wherever they stand.
func (s *Seal) Hide(args map[string]Value) {
	for name := range s.Sensitive {
		if v, ok := args[name]; ok {
			s.hideText(v)
		}
	}
}

// hideText remembers every text and number in v. An empty text is in everything, and hides nothing.
func (s *Seal) hideText(v Value) {
	for _, e := range v.list {
		s.hideText(e)
	}
	for _, e := range v.fields {
		s.hideText(e)
	}
	if (v.kind == String || v.kind == Number) && v.text != "" && !slices.Contains(s.Texts, v.text) {
		s.Texts = append(s.Texts, v.text)
	}
}

// Append appends the commitment to a value, which is given as JSON. The path is PREFIX.NAME, or PREFIX alone.
func (s *Seal) Append(b []byte, prefix, name string, value []byte) []byte {
	d := s.disclose(prefix, name, value)
	//remit:guard S33 TestSealedValueIsInNoEntry
	b = append(b, `{"`+SealedKey+`":"`...)
	b = append(b, d...)
	switch value[0] {
	case '[':
		return append(b, `","type":"list"}`...)
	case '{':
		return append(b, `","type":"object"}`...)
	}
	return append(b, `"}`...)
}

// disclose adds the disclosure to Payload or Private, and returns its digest.
func (s *Seal) disclose(prefix, name string, value []byte) []byte {
	if s.left == 0 {
		_, _ = rand.Read(s.salts[:]) // never fails
		s.left = len(s.salts) / saltSize
		if s.scratch == nil {
			s.scratch, s.value = make([]byte, 0, 512), slices.Grow(s.value, 256)
		}
	}
	s.left--
	in := append(s.scratch[:0], `["`...)
	in = base64.RawURLEncoding.AppendEncode(in, s.salts[s.left*saltSize:(s.left+1)*saltSize])
	in = append(in, `",`...)
	in = append(append(in, '"'), prefix...)
	if name == "" {
		in = append(in, '"')
	} else {
		in = append(in, '.')
		open := len(in)
		in = AppendJSONString(in, name)
		in = append(in[:open], in[open+1:]...) // without the opening quote: it stands before the prefix
	}
	in = append(append(append(in, ','), value...), ']')
	s.scratch = in
	out := &s.Payload
	private := s.Sensitive[name] || s.contains(value)
	//remit:guard S33 TestSensitiveValueIsNowhereInClear internal/server
	if private {
		out = &s.Private
	}
	from := len(*out)
	*out = base64.RawURLEncoding.AppendEncode(*out, in)
	sum := sha256.Sum256((*out)[from:])
	digest := base64.RawURLEncoding.AppendEncode(s.scratch[:0], sum[:])
	*out = append(*out, '~')
	if private { // that there is one, and may be read by who holds the state's key
		s.Payload = append(append(append(s.Payload, privateMark), digest...), '~')
	}
	return digest
}

func (s *Seal) contains(value []byte) bool {
	for _, t := range s.Texts {
		if strings.Contains(string(value), t) || strings.Contains(string(value), quoted(t)) {
			return true
		}
	}
	return false
}

// quoted is a text as it stands inside a JSON string.
func quoted(t string) string {
	b := AppendJSONString(nil, t)
	return string(b[1 : len(b)-1])
}

// Value returns the commitment to anything that encoding/json can write, for structs that are sealed in part.
func (s *Seal) Value(path string, v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic("remit: seal " + path + ": " + err.Error()) // plain structs of ours, which cannot fail
	}
	return s.Append(nil, path, "", b)
}

// Text is Value of a text, and absent when it is empty.
func (s *Seal) Text(path, text string) json.RawMessage {
	if text == "" {
		return nil
	}
	return s.Append(nil, path, "", AppendJSONString(nil, text))
}

// Values returns an object with a commitment for each value.
func (s *Seal) Values(path string, fields map[string]Value) json.RawMessage {
	return s.appendFields(nil, path, fields)
}

func (s *Seal) appendFields(b []byte, path string, fields map[string]Value) []byte {
	var stack [16]string
	b = append(b, '{')
	for i, k := range sortedKeys(fields, stack[:0]) {
		b = append(AppendJSONString(comma(b, i), k), ':')
		s.value = fields[k].AppendJSON(s.value[:0])
		b = s.Append(b, path, k, s.value)
	}
	return append(b, '}')
}

// SealOf returns the seal of what happens under a scope: when it is sensitive, all of its values are.
func SealOf(scope Args, sensitive bool) *Seal {
	s := &Seal{}
	if sensitive {
		s.Sensitive = make(map[string]bool, len(scope))
		for name := range scope {
			s.Sensitive[name] = true
		}
		s.Hide(scope)
	}
	return s
}

// AllOf names everything in the given values.
func AllOf(values ...map[string]Value) map[string]bool {
	out := map[string]bool{}
	for _, v := range values {
		for name := range v {
			out[name] = true
		}
	}
	return out
}

// SealedJSON is the grant as it stands in the ledger.
func (g *Grant) SealedJSON(s *Seal) []byte {
	out := struct {
		*Grant
		Scope      json.RawMessage `json:"scope"`
		Bounds     json.RawMessage `json:"bounds,omitempty"`
		NotBounded json.RawMessage `json:"not_bounded,omitempty"`
	}{Grant: g, Scope: s.Values("scope", g.Scope)}
	if len(g.Bounds) > 0 {
		out.Bounds = s.Value("bounds", g.Bounds)
	}
	if len(g.NotBounded) > 0 {
		out.NotBounded = s.Value("not_bounded", g.NotBounded)
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic("remit: " + err.Error()) // plain structs of ours, which cannot fail
	}
	return b
}

// The methods below write a member of a decision: sealed, or in clear when s is nil.

func (s *Seal) fields(b []byte, path string, fields map[string]Value) []byte {
	if s == nil {
		return appendFields(b, fields)
	}
	return s.appendFields(b, path, fields)
}

// some leaves out what is empty. The path is LIST.I.KEY; lacking's reasons stand one level deeper.
func (s *Seal) some(b []byte, key, list string, i int, value string) []byte {
	if s == nil || value == "" {
		return appendSome(b, key, value)
	}
	s.value = AppendJSONString(s.value[:0], value)
	return s.Append(append(b, key...), place(list, i, key), "", s.value)
}

// place is where a member of an element of a list stands; key is as in the text: ,"got":
func place(list string, i int, key string) string {
	p := list + strconv.Itoa(i) + "."
	if list == "lacking." {
		p += "reason."
	}
	return p + key[2:len(key)-2]
}

func (s *Seal) list(b []byte, i int, subjects []Digest) []byte {
	if s == nil {
		return appendTexts(b, subjects)
	}
	return s.Append(b, place("evidence.", i, `,"subjects":`), "", appendTexts(nil, subjects))
}

func (s *Seal) texts(b []byte, i int, fields map[string]string) []byte {
	var room [256]byte
	t := append(room[:0], '{')
	var stack [8]string
	for j, k := range sortedKeys(fields, stack[:0]) {
		t = append(AppendJSONString(comma(t, j), k), ':')
		t = AppendJSONString(t, fields[k])
	}
	t = append(t, '}')
	if s == nil {
		return append(b, t...)
	}
	return s.Append(b, place("evidence.", i, `,"fields":`), "", t)
}

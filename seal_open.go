// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Opened is an entry as a reader with a role sees it: sealed values in their places, as far as they are still there.
type Opened struct {
	Body    []byte   // JSON; what is erased reads "[erased]", what is sensitive "[sensitive]", or an empty list or object
	Erased  []string // the places of erased values in the event's data, such as args.customer_id
	Private []string // the places of sensitive values
}

// Shown returns the run as people see it: without its sensitive values.
func (r Run) Shown() Run {
	if len(r.Sensitive) == 0 {
		return r
	}
	r.Params = maps.Clone(r.Params)
	for _, name := range r.Sensitive {
		if _, ok := r.Params[name]; ok {
			r.Params[name] = StringValue(sensitiveText)
		}
	}
	return r
}

// Shown returns the grant as people see it: a scope with sensitive values is not shown, nor what its target says of it.
func (g Grant) Shown() Grant {
	if !g.Sensitive {
		return g
	}
	scope := Args{}
	for name := range g.Scope {
		scope[name] = StringValue(sensitiveText)
	}
	g.Scope, g.Bounds, g.NotBounded = scope, []string{sensitiveText}, []string{sensitiveText}
	return g
}

// Disclosure is one value with its salt: what an auditor is given.
type Disclosure struct {
	Path  string
	Value json.RawMessage
	Text  string // the disclosure as RFC 9901 has it, whose digest stands in the entry
}

// Places of a commitment that nothing opens.
const (
	erasedText    = "[erased]"
	sensitiveText = "[sensitive]"
)

// sealedHead is how a commitment begins. It stands in no JSON string, where a quote has a backslash before it.
var sealedHead = []byte(`{"` + SealedKey + `":"`)

const digestText = 43 // base64url of 32 bytes

// Open puts the values that the payload still holds into their places. Entries without commitments, as all of version 1,
// come back as they are.
func (e Entry) Open() Opened {
	if bytes.HasPrefix(e.Body, []byte(`{"v":1,`)) {
		return Opened{Body: e.Body}
	}
	known, private := e.payload()
	var o Opened
	closed := false // something has no value
	out := make([]byte, 0, len(e.Body)+len(e.Payload))
	rest := e.Body
	for {
		before, after, ok := bytes.Cut(rest, sealedHead)
		out = append(out, before...)
		if !ok || len(after) < digestText+2 {
			closed = closed || ok
			break
		}
		digest := after[:digestText]
		tail, end, _ := bytes.Cut(after[digestText:], []byte{'}'})
		rest = end
		if d, ok := known[string(digest)]; ok {
			out = append(out, d.Value...)
			continue
		}
		closed = true
		out = append(out, placeholder(tail, private[string(digest)])...)
	}
	o.Body = out
	if !closed { // finding the places costs more than all the rest
		return o
	}
	for _, c := range e.commitments() {
		switch _, ok := known[c.digest]; {
		case ok:
		case private[c.digest]:
			o.Private = append(o.Private, c.path)
		default:
			o.Erased = append(o.Erased, c.path)
		}
	}
	return o
}

func placeholder(tail []byte, private bool) string {
	switch {
	case bytes.Contains(tail, []byte(`"list"`)):
		return "[]"
	case bytes.Contains(tail, []byte(`"object"`)):
		return "{}"
	case private:
		return `"` + sensitiveText + `"`
	}
	return `"` + erasedText + `"`
}

// payload splits the payload: the disclosures by digest, and the digests of private ones.
func (e Entry) payload() (known map[string]Disclosure, private map[string]bool) {
	known, private = map[string]Disclosure{}, map[string]bool{}
	for _, text := range bytes.Split(e.Payload, []byte{'~'}) {
		if len(text) > 0 && text[0] == privateMark {
			private[string(text[1:])] = true
			continue
		}
		if d, err := parseDisclosure(string(text)); err == nil {
			known[digestOf(d.Text)] = d
		}
	}
	return known, private
}

// Reveal lets Open and Disclosures show sensitive values, too: for judging, never for showing.
func (e Entry) Reveal() Entry {
	e.Payload = append(bytes.Clone(e.Payload), e.Private...)
	return e
}

// Disclosures returns the values that the payload still holds, in the entry's order.
func (e Entry) Disclosures() []Disclosure {
	known, _ := e.payload()
	var out []Disclosure
	for _, c := range e.commitments() {
		if d, ok := known[c.digest]; ok && d.Path == c.path {
			out = append(out, d)
		}
	}
	return out
}

// Mentions reports whether a sealed value is the text, or holds it as a whole word.
func (e Entry) Mentions(text string) bool {
	for _, d := range e.Reveal().Disclosures() {
		var v Value
		if v.UnmarshalJSON(d.Value) == nil && v.mentions(text) {
			return true
		}
	}
	return false
}

func (v Value) mentions(text string) bool {
	for _, e := range v.list {
		if e.mentions(text) {
			return true
		}
	}
	for _, e := range v.fields {
		if e.mentions(text) {
			return true
		}
	}
	return hasWord(v.text, text)
}

func hasWord(s, word string) bool {
	letter := func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
	for from := 0; word != ""; {
		i := strings.Index(s[from:], word)
		if i < 0 {
			return false
		}
		i += from
		before, _ := utf8.DecodeLastRuneInString(s[:i])
		after, _ := utf8.DecodeRuneInString(s[i+len(word):])
		if !letter(before) && !letter(after) {
			return true
		}
		_, size := utf8.DecodeRuneInString(s[i:])
		from = i + size
	}
	return false
}

// Check returns what a disclosure says, if the entry holds the commitment to it, in that very place. It needs only the entry.
func (e Entry) Check(text string) (Disclosure, error) {
	d, err := parseDisclosure(text)
	if err != nil {
		return Disclosure{}, &Error{Code: CodeInvalid, Msg: "this is no disclosure", Cause: err}
	}
	digest := digestOf(d.Text)
	for _, c := range e.commitments() {
		//remit:guard S33 TestDisclosureIsChecked
		if c.digest == digest && c.path == d.Path {
			return d, nil
		}
	}
	return Disclosure{}, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("entry %d holds no commitment to this value of %.80q", e.Seq, d.Path)}
}

func digestOf(disclosure string) string {
	sum := sha256.Sum256([]byte(disclosure))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func parseDisclosure(text string) (Disclosure, error) {
	if len(text) > 2*maxValueBytes {
		return Disclosure{}, errors.New("too long")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return Disclosure{}, err
	}
	d := Disclosure{Text: text}
	dec := NewDecoder(string(b))
	dec.elements = -2 * maxElements // more than Value.UnmarshalJSON takes, so that no value is sealed that cannot be opened
	parts := 0
	err = dec.List(func() (err error) {
		switch parts++; parts {
		case 1:
			_, err = dec.Text() // the salt
		case 2:
			d.Path, err = dec.Text()
		case 3:
			var value string
			value, err = dec.Raw()
			d.Value = json.RawMessage(value)
		default:
			err = errNotDisclosure
		}
		return err
	})
	if err == nil && parts != 3 {
		err = errNotDisclosure
	}
	return d, errors.Join(err, dec.End())
}

var errNotDisclosure = errors.New("not salt, path and value")

// commitment is a digest and where it stands.
type commitment struct{ path, digest string }

// commitments walks the entry's data.
func (e Entry) commitments() []commitment {
	var event struct {
		Data json.RawMessage `json:"data"`
	}
	if bytes.HasPrefix(e.Body, []byte(`{"v":1,`)) || !bytes.Contains(e.Body, sealedHead) || json.Unmarshal(e.Body, &event) != nil {
		return nil
	}
	var out []commitment
	walkSealed(event.Data, "", 0, &out)
	return out
}

func walkSealed(raw json.RawMessage, path string, depth int, out *[]commitment) {
	if depth > maxDepth || len(raw) == 0 {
		return
	}
	switch raw[0] {
	case '{':
		var fields map[string]json.RawMessage
		if json.Unmarshal(raw, &fields) != nil {
			return
		}
		var digest string
		if d, ok := fields[SealedKey]; ok && json.Unmarshal(d, &digest) == nil && len(digest) == digestText {
			*out = append(*out, commitment{path, digest})
			return
		}
		for _, k := range sortedKeys(fields, nil) {
			walkSealed(fields[k], under(path, k), depth+1, out)
		}
	case '[':
		var items []json.RawMessage
		if json.Unmarshal(raw, &items) != nil {
			return
		}
		for i, item := range items {
			walkSealed(item, under(path, strconv.Itoa(i)), depth+1, out)
		}
	}
}

func under(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

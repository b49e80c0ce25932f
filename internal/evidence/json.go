// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of a parsed document, below its byte limit: no input makes parsing expensive.
const (
	maxJSONDepth = 48
	maxJSONNodes = 200_000
)

// Node is one value of a JSON document that somebody outside wrote. Its keys are exact: encoding/json into a struct would
// take "PayloadType" for "payloadType" and the last of two equal keys, and so read another document than the signer's
// software did. The zero Node is absent. A Node is immutable.
type Node struct{ value any } // nil (absent), jsonNull, bool, json.Number, string, []Node or map[string]Node

type jsonNull struct{}

// ParseJSON parses one JSON value of at most limit bytes. Duplicate keys, invalid UTF-8, depth over 48, more than 200,000
// values and trailing data are errors.
func ParseJSON(b []byte, limit int) (Node, error) {
	//remit:guard S35 TestParseJSONRefuses
	if len(b) > limit {
		return Node{}, fmt.Errorf("document of %d bytes: the limit is %d", len(b), limit)
	}
	if !utf8.Valid(b) {
		return Node{}, errors.New("document is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	p := nodeParser{dec: dec}
	n, err := p.node(0)
	if err != nil {
		return Node{}, fmt.Errorf("parse JSON: %w", err)
	}
	//remit:guard S14 TestParseJSONRefuses
	if _, err := dec.Token(); err != io.EOF {
		return Node{}, errors.New("parse JSON: more than one value")
	}
	return n, nil
}

// Exists reports whether the value stands in the document, be it null.
func (n Node) Exists() bool { return n.value != nil }

// IsNull reports whether the value stands in the document and is null.
func (n Node) IsNull() bool {
	_, null := n.value.(jsonNull)
	return null
}

// Get descends by exact keys; what is not there, or not in an object, is absent.
func (n Node) Get(keys ...string) Node {
	for _, k := range keys {
		m, ok := n.value.(map[string]Node)
		if !ok {
			return Node{}
		}
		n = m[k]
	}
	return n
}

// At follows an RFC 6901 JSON pointer; "" is n itself.
func (n Node) At(pointer string) Node {
	if pointer == "" {
		return n
	}
	parts := strings.Split(pointer, "/")
	if parts[0] != "" {
		return Node{}
	}
	for _, part := range parts[1:] {
		part = strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
		switch v := n.value.(type) {
		case map[string]Node:
			n = v[part]
		case []Node:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(v) || strconv.Itoa(i) != part {
				return Node{}
			}
			n = v[i]
		default:
			return Node{}
		}
	}
	return n
}

// Text returns a string's text, and "" for anything else.
func (n Node) Text() string {
	s, _ := n.value.(string)
	return s
}

// Scalar returns the text of a string, a number as written, or "true" or "false"; "" for anything else.
func (n Node) Scalar() string {
	switch v := n.value.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}

// List returns the elements; ok is false unless n is a list.
func (n Node) List() (elements []Node, ok bool) {
	elements, ok = n.value.([]Node)
	return elements, ok
}

// Object returns the members, not to be changed; ok is false unless n is an object.
func (n Node) Object() (members map[string]Node, ok bool) {
	members, ok = n.value.(map[string]Node)
	return members, ok
}

// Texts returns the non-empty strings of a list, or a lone string as one.
func (n Node) Texts() []string {
	if s := n.Text(); s != "" {
		return []string{s}
	}
	var out []string
	elements, _ := n.List()
	for _, e := range elements {
		if s := e.Text(); s != "" {
			out = append(out, s)
		}
	}
	return out
}

type nodeParser struct {
	dec   *json.Decoder
	count int
}

func (p *nodeParser) node(depth int) (Node, error) {
	//remit:guard S35 TestParseJSONRefuses
	if p.count++; p.count > maxJSONNodes {
		return Node{}, fmt.Errorf("more than %d values", maxJSONNodes)
	}
	//remit:guard S35 TestParseJSONRefuses
	if depth > maxJSONDepth {
		return Node{}, fmt.Errorf("deeper than %d levels", maxJSONDepth)
	}
	tok, err := p.dec.Token()
	if err != nil {
		return Node{}, err
	}
	switch t := tok.(type) {
	case json.Delim:
		if t == '[' {
			return p.list(depth)
		}
		return p.object(depth)
	case nil:
		return Node{jsonNull{}}, nil
	default: // string, json.Number, bool
		return Node{t}, nil
	}
}

func (p *nodeParser) list(depth int) (Node, error) {
	out := []Node{}
	for p.dec.More() {
		n, err := p.node(depth + 1)
		if err != nil {
			return Node{}, err
		}
		out = append(out, n)
	}
	_, err := p.dec.Token()
	return Node{out}, err
}

func (p *nodeParser) object(depth int) (Node, error) {
	out := map[string]Node{}
	for p.dec.More() {
		tok, err := p.dec.Token()
		if err != nil {
			return Node{}, err
		}
		key, _ := tok.(string)
		//remit:guard S14 TestParseJSONRefuses
		if _, twice := out[key]; twice {
			return Node{}, fmt.Errorf("key %.40q stands twice", key)
		}
		if out[key], err = p.node(depth + 1); err != nil {
			return Node{}, err
		}
	}
	_, err := p.dec.Token()
	return Node{out}, err
}

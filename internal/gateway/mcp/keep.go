// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"remit"
)

// keeps are the obligations that this gateway carries out on results of tools:
//
//	redact=/rows/*/iban    what stands there is replaced; * is any index or name
//	bytes=65536            a longer result is withheld
var keeps = []string{"redact", "bytes"}

const (
	redacted     = "[redacted]"
	maxKeptDepth = 32
)

// keep carries out the obligations of an allowed call on its result. An error withholds the result: the act has happened, and nobody
// is shown what could not be redacted.
func keep(obligations []string, raw []byte) ([]byte, error) {
	var paths [][]string
	most := -1
	for _, o := range obligations {
		kind, value, _ := strings.Cut(o, "=")
		switch kind {
		case "redact":
			if !strings.HasPrefix(value, "/") {
				return nil, fmt.Errorf("obligation %q names no place", remit.Clip(o, 80))
			}
			paths = append(paths, pointer(value))
		case "bytes":
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 {
				return nil, fmt.Errorf("obligation %q names no number", remit.Clip(o, 80))
			}
			if most < 0 || n < most {
				most = n
			}
		}
	}
	if len(paths) > 0 {
		var err error
		if raw, err = redact(raw, paths); err != nil {
			return nil, err
		}
	}
	//remit:guard S17 TestByteCapOfResults
	if most >= 0 && len(raw) > most {
		return nil, fmt.Errorf("the result has %d bytes, more than the %d that may be given", len(raw), most)
	}
	return raw, nil
}

// pointer splits a JSON pointer (RFC 6901).
func pointer(p string) []string {
	parts := strings.Split(p[1:], "/")
	for i, s := range parts {
		parts[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(s)
	}
	return parts
}

// redact replaces what stands at the paths of a tool's result, in its structured content and in each text that is JSON. What is
// neither could hold the same in other words: then there is no result.
func redact(raw []byte, paths [][]string) ([]byte, error) {
	o, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	if structured := o.get("structuredContent"); structured != nil {
		if structured, err = cover(structured, paths); err != nil {
			return nil, err
		}
		o = o.with("structuredContent", structured)
	}
	var content []json.RawMessage
	if c := o.get("content"); c != nil && json.Unmarshal(c, &content) != nil {
		return nil, errors.New("its content cannot be read")
	}
	for i, c := range content {
		block, err := parseObject(c)
		//remit:guard S17 TestRedactedResults
		if err != nil || block.text("type") != "text" || !json.Valid([]byte(block.text("text"))) {
			return nil, errors.New("it holds content that cannot be redacted")
		}
		text, err := cover([]byte(block.text("text")), paths)
		if err != nil {
			return nil, err
		}
		content[i] = object{{"type", []byte(`"text"`)}, {"text", remit.AppendJSONString(nil, string(text))}}.append(nil)
	}
	out := object{}
	for _, name := range []string{"content", "structuredContent", "isError", "resultType"} { // nothing else of it is shown
		switch v := o.get(name); {
		case name == "content":
			b, err := json.Marshal(append([]json.RawMessage{}, content...))
			if err != nil {
				return nil, err
			}
			out = append(out, member{name, b})
		case v != nil:
			out = append(out, member{name, v})
		}
	}
	return out.append(nil), nil
}

// cover returns a JSON document with what stands at the paths replaced.
func cover(doc []byte, paths [][]string) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, errors.New("it holds content that cannot be read")
	}
	for _, p := range paths {
		v = covered(v, p, 0)
	}
	return json.Marshal(v)
}

func covered(v any, path []string, depth int) any {
	if len(path) == 0 || depth > maxKeptDepth {
		return redacted
	}
	switch x := v.(type) {
	case map[string]any:
		for k := range x {
			if path[0] == "*" || path[0] == k {
				x[k] = covered(x[k], path[1:], depth+1)
			}
		}
	case []any:
		for i := range x {
			if path[0] == "*" || path[0] == strconv.Itoa(i) {
				x[i] = covered(x[i], path[1:], depth+1)
			}
		}
	}
	return v
}

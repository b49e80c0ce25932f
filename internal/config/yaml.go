// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"remit"
)

// Bounds of what is read.
const (
	maxFileBytes  = 1 << 20
	maxTotalBytes = 16 << 20
	maxFiles      = 1000
	maxDocuments  = 10_000
	maxDepth      = 24
)

var yamlLine = expr(`^yaml: (?:line ([0-9]+): )?`)

// documents splits a file and leaves out what is empty. Each one is a mapping without anchors, aliases, merge keys, tags and
// keys that stand twice: what is written is what is meant, and nothing grows when it is read.
func documents(file string, b []byte, out *problems) []*yaml.Node {
	if len(b) > maxFileBytes {
		out.add(file, 0, "%d bytes are more than the limit of %d: split the file", len(b), maxFileBytes)
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var all []*yaml.Node
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			line, text := syntaxError(err)
			out.add(file, line, "this is not YAML: %s", text)
			return all
		}
		if len(n.Content) == 0 || n.Content[0].Tag == "!!null" && n.Content[0].Kind == yaml.ScalarNode {
			continue
		}
		if len(all) == maxDocuments {
			out.add(file, n.Line, "more than %d documents: split the directory", maxDocuments)
			return all
		}
		before := len(out.list) + out.more
		plain(file, n.Content[0], 0, out)
		if len(out.list)+out.more == before {
			all = append(all, n.Content[0])
		}
	}
}

func syntaxError(err error) (line int, text string) {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		return 0, err.Error()
	}
	line, _ = strconv.Atoi(m[1])
	return line, strings.TrimPrefix(err.Error(), m[0])
}

// plain reports everything in n that is not a plain tree.
func plain(file string, n *yaml.Node, depth int, out *problems) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		out.add(file, n.Line, "anchors and aliases (& and *) are not allowed: write the value out")
		return
	case n.Style&yaml.TaggedStyle != 0:
		out.add(file, n.Line, "tags such as %.40s are not allowed: leave it out", n.Tag)
	case depth > maxDepth:
		out.add(file, n.Line, "deeper than %d levels: nothing here needs that", maxDepth)
		return
	}
	if n.Kind == yaml.MappingNode {
		plainKeys(file, n, out)
	}
	for _, c := range n.Content {
		plain(file, c, depth+1, out)
	}
}

func plainKeys(file string, n *yaml.Node, out *problems) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Tag == "!!merge" {
			out.add(file, k.Line, "merge keys (<<) are not allowed: write the keys out")
			continue
		}
		if k.Kind != yaml.ScalarNode || k.Tag != "!!str" {
			out.add(file, k.Line, "a key is a word, not %s: put it in quotes", describe(k))
			continue
		}
		if first, twice := seen[k.Value]; twice {
			out.add(file, k.Line, "key %.80q stands twice, first on line %d: remove one", k.Value, first)
		}
		seen[k.Value] = k.Line
	}
}

// describe names a node for people.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!str":
		return "the text " + strconv.Quote(clip(n.Value))
	case "!!int", "!!float":
		return "the number " + clip(n.Value)
	case "!!bool":
		return "the boolean " + n.Value
	case "!!null":
		return "nothing"
	case "!!timestamp":
		return "the date " + clip(n.Value)
	}
	return "something else"
}

func clip(s string) string { return remit.Clip(s, 60) }

// scalar returns the value of a string, decimal number or boolean; ok is false for everything else.
func scalar(n *yaml.Node) (v remit.Value, ok bool) {
	if n.Kind != yaml.ScalarNode {
		return remit.Value{}, false
	}
	switch n.Tag {
	case "!!str":
		return remit.StringValue(n.Value), true
	case "!!bool":
		return remit.BoolValue(strings.EqualFold(n.Value, "true")), true
	case "!!int", "!!float":
		v, err := remit.NumberValue(n.Value)
		return v, err == nil
	}
	return remit.Value{}, false
}

// canonical is the tree of n as a Value, whose JSON has sorted keys and normal numbers: two files that differ only in
// comments, order of keys and quoting have one.
func canonical(n *yaml.Node) remit.Value {
	switch n.Kind {
	case yaml.MappingNode:
		fields := make(map[string]remit.Value, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			fields[n.Content[i].Value] = canonical(n.Content[i+1])
		}
		return remit.ObjectValue(fields)
	case yaml.SequenceNode:
		list := make([]remit.Value, 0, len(n.Content))
		for _, c := range n.Content {
			list = append(list, canonical(c))
		}
		return remit.ListValue(list...)
	}
	if v, ok := scalar(n); ok {
		return v
	}
	return remit.ListValue(remit.StringValue(n.Tag), remit.StringValue(n.Value))
}

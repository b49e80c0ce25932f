// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// A struct says what a mapping may hold; parser, JSON Schema and reference are all made from it. The tags of a field:
//
//	yaml:"name"       the key; "-" is no key; ",inline" takes the keys of a struct; ",rest" takes all keys that no field names
//	need:"yes"        the key must stand
//	is:"label"        the format of a word, see formats
//	doc:"…"           for the reference
//
// A field named _ with one:"a,b" says that exactly one of the keys stands.
type decoder struct {
	file string
	out  *problems
}

// reader is a type with a syntax of its own.
type reader interface {
	// read sets the receiver from n and reports what is wrong; is names the format of a word.
	read(d *decoder, n *yaml.Node, is string)
	// schema is the JSON Schema of what read accepts.
	schema(is string) map[string]any
}

func (d *decoder) add(n *yaml.Node, format string, args ...any) {
	d.out.add(d.file, n.Line, format, args...)
}

// field is one key of a struct.
type field struct {
	name  string
	index []int
	typ   reflect.Type
	need  bool
	rest  bool
	is    string
	doc   string
}

// fieldsOf lists the keys of a struct type in the order of its fields, and the groups of which exactly one key stands.
func fieldsOf(t reflect.Type) (fields []field, one [][]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case f.Name == "_":
			if group := f.Tag.Get("one"); group != "" {
				one = append(one, strings.Split(group, ","))
			}
			continue
		case name == "-":
			continue
		case opts == "inline" && f.Type.Kind() == reflect.Struct:
			inner, groups := fieldsOf(f.Type)
			for _, in := range inner {
				in.index = append([]int{i}, in.index...)
				fields = append(fields, in)
			}
			one = append(one, groups...)
			continue
		case !f.IsExported():
			continue
		case name == "":
			name = strings.ToLower(f.Name)
		}
		fields = append(fields, field{name: name, index: []int{i}, typ: f.Type, need: f.Tag.Get("need") == "yes",
			rest: opts == "rest", is: f.Tag.Get("is"), doc: f.Tag.Get("doc")})
	}
	return fields, one
}

func (d *decoder) decode(n *yaml.Node, v reflect.Value, is string) {
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		d.decode(n, v.Elem(), is)
		return
	}
	switch p := v.Addr().Interface().(type) {
	case reader:
		p.read(d, n, is)
		return
	case *yaml.Node:
		*p = *n
		return
	case *time.Duration:
		*p = d.duration(n)
		return
	case encoding.TextUnmarshaler:
		if d.text(n) {
			if err := p.UnmarshalText([]byte(n.Value)); err != nil {
				d.add(n, "%v", err)
			}
		}
		return
	}
	d.decodeKind(n, v, is)
}

func (d *decoder) decodeKind(n *yaml.Node, v reflect.Value, is string) {
	switch v.Kind() {
	case reflect.Struct:
		d.decodeStruct(n, v)
	case reflect.Map:
		d.decodeMap(n, v, is)
	case reflect.Slice:
		d.decodeSlice(n, v, is)
	case reflect.String:
		if d.text(n) {
			v.SetString(n.Value)
		}
	case reflect.Bool:
		if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
			d.add(n, "expected true or false, found %s", describe(n))
			return
		}
		v.SetBool(strings.EqualFold(n.Value, "true"))
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint16, reflect.Uint32:
		d.decodeInt(n, v)
	default:
		// A driver's Config with a field of this type cannot be written in a file: its author sees it at the first use.
		d.add(n, "a value of type %s cannot be read from a file", v.Type())
	}
}

func (d *decoder) text(n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		hint := ""
		if n.Kind == yaml.ScalarNode && n.Tag != "!!null" {
			hint = ": put it in quotes"
		}
		d.add(n, "expected text, found %s%s", describe(n), hint)
		return false
	}
	return true
}

// durationPattern is Go's syntax without a sign.
const durationPattern = `^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$`

func (d *decoder) duration(n *yaml.Node) time.Duration {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		d.add(n, "expected a duration, found %s: write 5m, 24h or 1h30m", describe(n))
		return 0
	}
	t, err := time.ParseDuration(n.Value)
	if err != nil || t <= 0 || strings.HasPrefix(n.Value, "+") {
		d.add(n, "%.40q is not a duration above zero: write 5m, 24h or 1h30m", n.Value)
		return 0
	}
	return t
}

func (d *decoder) decodeInt(n *yaml.Node, v reflect.Value) {
	signed := v.CanInt()
	bits := v.Type().Bits()
	if n.Kind == yaml.ScalarNode && n.Tag == "!!int" {
		if signed {
			if i, err := strconv.ParseInt(n.Value, 10, bits); err == nil {
				v.SetInt(i)
				return
			}
		} else if u, err := strconv.ParseUint(n.Value, 10, bits); err == nil {
			v.SetUint(u)
			return
		}
	}
	from := "0"
	if signed {
		from = "-" + strconv.FormatUint(1<<(bits-1), 10)
	}
	d.add(n, "expected a whole number of %d bits from %s up, found %s", bits, from, describe(n))
}

func (d *decoder) decodeSlice(n *yaml.Node, v reflect.Value, is string) {
	if n.Kind != yaml.SequenceNode {
		d.add(n, "expected a list, found %s: write [ … ]", describe(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, c := range n.Content {
		d.decode(c, v.Index(i), is)
	}
}

func (d *decoder) decodeMap(n *yaml.Node, v reflect.Value, is string) {
	if n.Kind != yaml.MappingNode || v.Type().Key().Kind() != reflect.String {
		d.add(n, "expected a mapping, found %s: write { name: value }", describe(n))
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for i := 0; i+1 < len(n.Content); i += 2 {
		item := reflect.New(v.Type().Elem()).Elem()
		d.decode(n.Content[i+1], item, is)
		v.SetMapIndex(reflect.ValueOf(n.Content[i].Value).Convert(v.Type().Key()), item)
	}
}

func (d *decoder) decodeStruct(n *yaml.Node, v reflect.Value) {
	fields, one := fieldsOf(v.Type())
	if n.Kind != yaml.MappingNode {
		found := describe(n)
		if n.Kind == yaml.ScalarNode {
			found = "a single value" // unnamed: it may be a secret that stands where {file:} or {env:} belongs (S7)
		}
		d.add(n, "expected a mapping with %s, found %s", keyList(fields), found)
		return
	}
	stands := map[string]bool{}
	var rest yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		j := slices.IndexFunc(fields, func(f field) bool { return f.name == key.Value && !f.rest })
		if j < 0 {
			rest.Content = append(rest.Content, key, val)
			continue
		}
		stands[key.Value] = true
		d.decode(val, v.FieldByIndex(fields[j].index), fields[j].is)
	}
	d.decodeRest(n, v, fields, rest.Content)
	for _, f := range fields {
		if f.need && !stands[f.name] {
			d.add(n, "%s is missing%s", f.name, hintOf(f))
		}
	}
	for _, group := range one {
		if count(group, stands) != 1 {
			d.add(n, "write exactly one of %s", strings.Join(group, ", "))
		}
	}
}

// decodeRest gives the keys that no field names to the field that takes the rest, or reports each.
func (d *decoder) decodeRest(n *yaml.Node, v reflect.Value, fields []field, content []*yaml.Node) {
	j := slices.IndexFunc(fields, func(f field) bool { return f.rest })
	if j < 0 {
		for i := 0; i < len(content); i += 2 {
			d.add(content[i], "unknown key %.80q: the keys here are %s", content[i].Value, keyList(fields))
		}
		return
	}
	m := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: n.Line, Column: n.Column, Content: content}
	d.decode(m, v.FieldByIndex(fields[j].index), fields[j].is)
}

func keyList(fields []field) string {
	var names []string
	for _, f := range fields {
		if !f.rest {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, ", ")
}

func hintOf(f field) string {
	if fm, ok := formats[f.is]; ok {
		return ": write " + fm.write
	}
	return ""
}

func count(group []string, stands map[string]bool) (n int) {
	for _, g := range group {
		if stands[g] {
			n++
		}
	}
	return n
}

// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Extra describes the further keys of a type of Target or EvidenceSource: Config is the struct that Object.Decode fills.
type Extra struct {
	Kind, Type string
	Config     any
}

// Schema returns the JSON Schema (draft 2020-12) of one document of any kind. It accepts every document that Parse accepts;
// what it cannot see are references to other documents and parameters, and rules that nothing can meet. For types of Target
// and EvidenceSource that no extra describes, further keys are free.
func Schema(extras ...Extra) []byte {
	defs := map[string]any{
		"term": map[string]any{"description": "A literal, $PARAMETER, $call.ARGUMENT, or $$ for a literal $.",
			"anyOf": []any{map[string]any{"type": "string", "pattern": termPattern}, map[string]any{"type": []string{"number", "boolean"}}}},
		"predicate": predicateSchema("predicate", "min", "max"),
		"when":      predicateSchema("when", "min", "max", "above"),
	}
	var each []any
	for _, k := range kinds() {
		defs[k.name] = kindSchema(k, extras)
		each = append(each, map[string]any{"$ref": "#/$defs/" + k.name})
	}
	b, err := json.MarshalIndent(map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A Remit declaration", "$defs": defs, "oneOf": each}, "", "  ")
	if err != nil {
		panic(err) // maps, slices and strings always encode
	}
	return append(b, '\n')
}

func kindSchema(k kind, extras []Extra) map[string]any {
	s := structSchema(k.typ)
	s["description"] = k.doc
	props, _ := s["properties"].(map[string]any)
	props["kind"] = map[string]any{"const": k.name}
	var all []any
	for _, e := range extras {
		if e.Kind != k.name {
			continue
		}
		inner := structSchema(reflect.Indirect(reflect.ValueOf(e.Config)).Type())
		if own, ok := inner["properties"].(map[string]any); ok {
			for name := range props {
				own[name] = true // the document's own keys stand beside the driver's
			}
		}
		all = append(all, map[string]any{
			"if":   map[string]any{"properties": map[string]any{"type": map[string]any{"const": e.Type}}, "required": []string{"type"}},
			"then": inner})
	}
	if all != nil {
		s["allOf"] = all
	}
	return s
}

func schemaOf(t reflect.Type, is string) map[string]any {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch p := reflect.New(t).Interface().(type) {
	case reader:
		return p.schema(is)
	case *yaml.Node:
		return map[string]any{}
	case *time.Duration:
		return map[string]any{"type": "string", "pattern": durationPattern}
	case encoding.TextUnmarshaler:
		return map[string]any{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Struct:
		return structSchema(t)
	case reflect.Map:
		m := map[string]any{"type": "object", "additionalProperties": schemaOf(t.Elem(), is)}
		if t.Elem() == reflect.TypeFor[parameterFile]() {
			m["propertyNames"] = map[string]any{"pattern": formats["param"].pattern.String(), "not": map[string]any{"const": "call"}}
		}
		return m
	case reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(t.Elem(), is)}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Uint16, reflect.Uint32:
		return map[string]any{"type": "integer", "minimum": 0, "maximum": uint64(1)<<t.Bits() - 1}
	}
	return map[string]any{"type": "integer"}
}

func structSchema(t reflect.Type) map[string]any {
	fields, one := fieldsOf(t)
	props := map[string]any{}
	s := map[string]any{"type": "object", "properties": props, "additionalProperties": false}
	var need []string
	for _, f := range fields {
		if f.rest {
			delete(s, "additionalProperties")
			if f.typ.Kind() == reflect.Map {
				s["additionalProperties"] = schemaOf(f.typ.Elem(), f.is)
				s["propertyNames"] = map[string]any{"pattern": formats["param"].pattern.String()}
			}
			continue
		}
		p := schemaOf(f.typ, f.is)
		if f.doc != "" {
			p["description"] = f.doc
		}
		props[f.name] = p
		if f.need {
			need = append(need, f.name)
		}
	}
	if need != nil {
		s["required"] = need
	}
	for _, group := range one {
		var each []any
		for _, name := range group {
			each = append(each, map[string]any{"required": []string{name}})
		}
		s["oneOf"] = each
	}
	return s
}

// predicateSchema tells the forms apart by their keys, as predicate.readMapping does.
func predicateSchema(self string, bounds ...string) map[string]any {
	type m = map[string]any
	number, again := m{"type": "number"}, m{"$ref": "#/$defs/" + self}
	ranged := m{}
	for _, b := range bounds {
		ranged[b] = number
	}
	form := func(props m, need ...string) m {
		s := m{"type": "object", "properties": props, "additionalProperties": false, "minProperties": 1}
		if need != nil {
			s["required"] = need
		}
		return s
	}
	keys := func(names ...string) m {
		return m{"propertyNames": m{"enum": names}, "minProperties": len(names)}
	}
	source := form(m{"from": (&word{}).schema("label"), "path": (&word{}).schema("pointer")}, "from", "path")
	forms := []any{
		m{"$ref": "#/$defs/term"},
		m{"type": "array", "items": m{"anyOf": []any{m{"$ref": "#/$defs/term"}, m{"type": "null"}, source}}, "minItems": 1},
		form(m{"any": m{"const": true}}, "any"),
		form(ranged),
		form(m{"pattern": (&word{}).schema("regexp")}, "pattern"),
		source,
		m{"type": "object", "additionalProperties": again, "propertyNames": m{"pattern": argFormat.String()},
			"not": m{"anyOf": []any{keys("any"), keys("pattern"), keys("from", "path"),
				m{"propertyNames": m{"enum": slices.Sorted(maps.Keys(ranged))}, "minProperties": 1}}}},
	}
	return m{"description": "A literal, a $PARAMETER, a list of them (a subset), {any: true}, {" + strings.Join(bounds, ": N, ") +
		": N}, {pattern: RE}, {from: PERMISSION, path: POINTER}, or a mapping of fields to the same.", "anyOf": forms}
}

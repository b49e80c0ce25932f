// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const referenceIntro = `# The files

<!-- Made from the structs that read the files; go test ./internal/config -run TestReference -update writes it. -->

One directory of YAML files (.yaml, .yml), each with any number of documents between lines of ---, and of Rego files that a
Rule names. Every document has a kind and a name. What is unknown, stands twice, has the wrong type, can never be met or names
something that does not exist is an error with file and line; no key is ignored. Anchors, aliases, merge keys and tags are not
allowed. A file is at most 1 MiB, and nobody but root and the server's user may be able to write it.

Durations are written as 5m, 24h or 1h30m. A secret is never written into a file, only where it is: {file: PATH} or {env: NAME}.

## Conditions

Where conditions on arguments stand (where, when), the value of each argument is one of:

| written | holds when the argument |
|---|---|
| text, number, boolean | equals it; numbers compare as decimals |
| $PARAMETER | equals the run's parameter |
| $call.ARGUMENT | equals an argument of the parent call (only with under) |
| $$TEXT | equals the text $TEXT |
| [a, b, $c] | is a list of some of these, or one of them |
| {any: true} | is anything, also absent |
| {min: 1, max: 10} | is a number within; either bound may be left out |
| {pattern: "RE"} | is text that the regular expression (RE2) matches as a whole |
| {from: PERMISSION, path: /rows/*/id} | was returned there by an earlier call of this run under that permission, or is a list of such; * is any index. The path leads into the structured result; text:/rows/*/id leads into a text that is a JSON document |
| [1, $other, null, {from: …, path: …}] | equals one of these or was returned there, or is a list of such; with null it may also be absent or an empty list |
| {name: …, name: …} | is an object with exactly these fields, each of which holds |

An argument that is not named must be absent.

A path of a from names a field. Where a value stands only in a text, a word before the path says how it is found there: url:, email:
and account: give the one value of that form in the text, and nothing where there are two, so that whoever can only add to the text
can take the value away but not replace it; words: gives each run of up to six words. Whoever writes the text itself decides what
they give: that is weaker than a field, and meant for a document that the run names.
`

// Reference returns the reference of all kinds in Markdown.
func Reference() string {
	var b strings.Builder
	b.WriteString(referenceIntro)
	for _, k := range kinds() {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", k.name, k.doc)
		typ := k.typ
		if typ == reflect.TypeFor[toolFile]() { // beside the keys of an Agent
			typ = reflect.TypeFor[ownOfTool]()
			b.WriteString("\nBeside the keys of an Agent:\n")
		}
		section(&b, "", typ)
	}
	fmt.Fprintf(&b, "\n## remit.yaml\n\nThe server's own file. Relative paths start at its directory.\n")
	section(&b, "", reflect.TypeFor[serverFile]())
	return b.String()
}

// section writes the table of a struct, then those of the structs in it.
func section(b *strings.Builder, path string, t reflect.Type) {
	fields, one := fieldsOf(t)
	b.WriteString("\n| key | value | |\n|---|---|---|\n")
	for _, f := range fields {
		name, needed := "`"+f.name+"`", ""
		if f.rest {
			name = "any other"
		}
		if f.need {
			needed = " **Required.**"
		}
		fmt.Fprintf(b, "| %s | %s | %s%s |\n", name, describeType(f.typ, f.is), strings.ReplaceAll(f.doc, "|", "\\|"), needed)
	}
	for _, group := range one {
		fmt.Fprintf(b, "\nExactly one of %s stands.\n", strings.Join(group, ", "))
	}
	for _, f := range fields {
		if inner, nested := structOf(f.typ); nested && f.name != "ci" {
			fmt.Fprintf(b, "\n### %s\n", strings.TrimPrefix(path+"."+f.name, "."))
			section(b, strings.TrimPrefix(path+"."+f.name, "."), inner)
		}
	}
}

// structOf looks through pointers, lists and mappings for a struct with keys of its own.
func structOf(t reflect.Type) (reflect.Type, bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	switch reflect.New(t).Interface().(type) {
	case reader, *yaml.Node, encoding.TextUnmarshaler:
		return nil, false
	}
	return t, t.Kind() == reflect.Struct
}

func describeType(t reflect.Type, is string) string {
	switch reflect.New(t).Interface().(type) {
	case *word:
		return formats[is].write
	case *span, *time.Duration:
		return "duration"
	case *number:
		return "number"
	case *literal:
		return "text, number or boolean"
	case *term:
		return "text, number, boolean or $PARAMETER"
	case *args:
		return "mapping of arguments to conditions"
	case *days:
		return "days"
	case *pattern:
		return "a regular expression"
	case *size:
		return "a size, such as 256MiB"
	case *yaml.Node:
		return "as the type says"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return describeType(t.Elem(), is)
	case reflect.Slice:
		return "list of " + describeType(t.Elem(), is)
	case reflect.Map:
		return "mapping of names to " + describeType(t.Elem(), is)
	case reflect.Struct:
		return "mapping"
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "text"
	}
	return "whole number"
}

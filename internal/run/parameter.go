// SPDX-License-Identifier: Apache-2.0

package run

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"remit"
)

// Input is what a run starts with.
type Input struct {
	// Params is what the starter supplied, as text. An image must carry its digest: the caller resolves a tag before.
	Params map[string]string
	// Verified holds the parameters with a declared source: the caller took each value from verified evidence.
	Verified map[string]Verified
}

// Verified is a value that evidence vouches for (S9).
type Verified struct {
	Value    string
	Source   string // the declared source that it is of: "ticket.customer"
	Evidence string // which evidence, for the record: "change-desk CHG-42"
}

const maxParameterBytes = 4096

// dnsName is a DNS-1123 subdomain, which is what Kubernetes and most targets accept as a name.
var dnsName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
})

// parameters checks that exactly the declared ones are there, each of its type and from its source.
func parameters(w *remit.Workflow, starter remit.Name, in Input) (map[string]remit.Value, map[string]string, error) {
	values, sources := map[string]remit.Value{}, map[string]string{}
	for i := range w.Parameters {
		p := &w.Parameters[i]
		raw, source, err := supplied(w, p, starter, in)
		if err != nil {
			return nil, nil, err
		}
		v, err := Parameter(p, raw)
		if err != nil {
			return nil, nil, err
		}
		values[p.Name], sources[p.Name] = v, source
	}
	for _, given := range [][]string{slices.Sorted(maps.Keys(in.Params)), slices.Sorted(maps.Keys(in.Verified))} {
		for _, name := range given {
			//remit:guard S9 TestSources
			if _, ok := values[name]; !ok {
				return nil, nil, invalid(name, "workflow %s has no such parameter", "leave it out", w.Name)
			}
		}
	}
	return values, sources, nil
}

// Said checks what a starter supplied, before any evidence is asked: only declared parameters without a source, all of them, each
// of its type. The error is of CodeInvalid.
func Said(w *remit.Workflow, params map[string]string) (map[string]remit.Value, error) {
	values := map[string]remit.Value{}
	for i := range w.Parameters {
		p := &w.Parameters[i]
		raw, isSaid := params[p.Name]
		switch {
		case p.Source != "" && isSaid:
			return nil, invalid(p.Name, "its value comes from %s, never from the starter", "leave it out", p.Source)
		case p.Source != "":
			continue
		case !isSaid:
			return nil, invalid(p.Name, "it is missing", "supply it: all parameters are required")
		}
		v, err := Parameter(p, raw)
		if err != nil {
			return nil, err
		}
		values[p.Name] = v
	}
	for _, name := range slices.Sorted(maps.Keys(params)) {
		if _, ok := values[name]; !ok {
			return nil, invalid(name, "workflow %s has no such parameter", "leave it out", w.Name)
		}
	}
	return values, nil
}

// supplied returns a parameter's text and who stands behind it. What has a source is never taken from the starter, and what
// an agent that acts in the workflow says about itself binds nothing (S9).
func supplied(w *remit.Workflow, p *remit.Parameter, starter remit.Name, in Input) (raw, source string, err error) {
	said, isSaid := in.Params[p.Name]
	fact, isFact := in.Verified[p.Name]
	switch {
	//remit:guard S9 TestSources
	case p.Source == "" && isFact:
		return "", "", invalid(p.Name, "it has no source but the starter", "let the starter supply it")
	case p.Source == "" && !isSaid:
		return "", "", invalid(p.Name, "it is missing", "supply it: all parameters are required")
	//remit:guard S9 TestWhoMayStart
	case p.Source == "" && acts(w, starter) && binds(w, p.Name):
		return "", "", invalid(p.Name, "%s acts in the workflow, and its own word binds nothing", "give the parameter a source, or let another start the run", starter)
	case p.Source == "":
		return said, string(starter), nil
	//remit:guard S9 TestSources
	case isSaid:
		return "", "", invalid(p.Name, "its value comes from %s, never from the starter", "leave it out", p.Source)
	case !isFact:
		return "", "", invalid(p.Name, "%s is not known", "name the evidence that it is a field of", p.Source)
	//remit:guard S9 TestSources
	case fact.Source != p.Source || fact.Evidence == "":
		return "", "", invalid(p.Name, "its value comes from %s, not from %q", "name the evidence that it is a field of", p.Source, fact.Source)
	}
	return fact.Value, fact.Source + " of " + fact.Evidence, nil
}

// binds reports whether a `where` of the workflow compares with the parameter.
func binds(w *remit.Workflow, name string) bool {
	for _, s := range w.Stages {
		for _, m := range s.May {
			if fieldsUse(m.Where, name) {
				return true
			}
		}
	}
	return false
}

func fieldsUse(fields map[string]remit.Predicate, name string) bool {
	for _, p := range fields {
		if slices.ContainsFunc(p.Terms, func(t remit.Term) bool { return t.Param == name }) || fieldsUse(p.Fields, name) {
			return true
		}
	}
	return false
}

// Parameter reads raw as a value of p. The error is of CodeInvalid.
func Parameter(p *remit.Parameter, raw string) (remit.Value, error) {
	//remit:guard S35 TestParameter
	if len(raw) > maxParameterBytes {
		return remit.Value{}, invalid(p.Name, "%d bytes are more than the limit of %d", "write less", len(raw), maxParameterBytes)
	}
	v, err := typed(p, raw)
	if err != nil {
		return remit.Value{}, err
	}
	//remit:guard S9 TestParameter
	if p.Pattern != nil && !p.Pattern.MatchString(raw) {
		return remit.Value{}, invalid(p.Name, "%.80q does not match %s", "the workflow states the pattern", raw, p.Pattern)
	}
	if p.Min != nil || p.Max != nil {
		if err := within(p, v); err != nil {
			return remit.Value{}, err
		}
	}
	//remit:guard S9 TestParameter
	if len(p.OneOf) > 0 && !slices.ContainsFunc(p.OneOf, v.Equal) {
		return remit.Value{}, invalid(p.Name, "%.80q is none of %s", "choose one of them", raw, remit.ListValue(p.OneOf...))
	}
	return v, nil
}

func within(p *remit.Parameter, v remit.Value) error {
	if p.Min != nil {
		//remit:guard S9 TestParameter
		if order, ok := v.Compare(*p.Min); !ok || order < 0 {
			return invalid(p.Name, "%s is below %s", "write more", v, p.Min.Text())
		}
	}
	if p.Max != nil {
		//remit:guard S9 TestParameter
		if order, ok := v.Compare(*p.Max); !ok || order > 0 {
			return invalid(p.Name, "%s is above %s", "write less", v, p.Max.Text())
		}
	}
	return nil
}

func typed(p *remit.Parameter, raw string) (remit.Value, error) {
	switch p.Type {
	case "name":
		//remit:guard S9 TestParameter
		if len(raw) > 253 || !dnsName().MatchString(raw) {
			return remit.Value{}, invalid(p.Name, "%.80q is not a name", "write lower-case letters, digits, hyphens and dots", raw)
		}
		return text(raw), nil
	case "string":
		if raw == "" { // an empty id would ask for any evidence instead of one
			return remit.Value{}, invalid(p.Name, "it is empty", "write a value")
		}
		//remit:guard S9 TestParameter
		if !utf8.ValidString(raw) || strings.ContainsFunc(raw, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return remit.Value{}, invalid(p.Name, "it holds characters that cannot be printed", "remove them")
		}
		return text(raw), nil
	case "integer", "number":
		v, err := remit.NumberValue(raw)
		if err != nil || p.Type == "integer" && strings.Contains(v.Text(), ".") {
			return remit.Value{}, invalid(p.Name, "%.80q is not of type %s", "write a decimal", raw, p.Type)
		}
		return v, nil
	case "boolean":
		if raw != "true" && raw != "false" {
			return remit.Value{}, invalid(p.Name, "%.80q is not a boolean", "write true or false", raw)
		}
		return remit.BoolValue(raw == "true"), nil
	case "image":
		return imageValue(p, raw)
	}
	return remit.Value{}, invalid(p.Name, "its type %q is not known", "correct the workflow", p.Type)
}

func imageValue(p *remit.Parameter, raw string) (remit.Value, error) {
	image, err := remit.ParseImage(raw)
	if err != nil {
		return remit.Value{}, invalid(p.Name, "%.80q is not an image", "write REPOSITORY@sha256:HEX", raw)
	}
	//remit:guard S14 TestParameter
	if image.Digest == "" {
		return remit.Value{}, invalid(p.Name, "%.80q has no digest, and somebody else may move a tag", "write REPOSITORY@sha256:HEX", raw)
	}
	return text(image.String()), nil // without the tag, which is a remark
}

func invalid(param, format, hint string, args ...any) error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: "parameter " + param + ": " + fmt.Sprintf(format, args...), Hint: hint}
}

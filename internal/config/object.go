// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"reflect"

	"go.yaml.in/yaml/v3"

	"remit"
)

// Object is a declaration whose further keys belong to a driver or source, which decodes them later.
type Object struct {
	Kind       string // Target or EvidenceSource
	Name       string
	Type       string
	File       string // relative to the directory
	Line       int    // from 1
	Production bool
	Spec       yaml.Node // a mapping of the keys that are not the Object's own; not to be changed
}

// Fact is the kind of facts that a source of this type vouches for.
func (o Object) Fact() remit.EvidenceKind {
	if o.Type == "ci-token" {
		return remit.EvidenceCI
	}
	return remit.EvidenceKind(o.Type)
}

// Decode reads the further keys into a pointer to a struct with yaml tags, as strictly as all files are read: an unknown key
// or a wrong type is an error with file and line, and all of them are reported. Durations are written as 5m; a type that
// implements encoding.TextUnmarshaler is written as text; fields tagged "-" are not touched.
func (o Object) Decode(into any) error {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("decode %s %s: into is not a pointer to a struct", o.Kind, o.Name)
	}
	d := &decoder{file: o.File, out: &problems{}}
	spec := o.Spec
	if spec.Kind == 0 {
		spec = yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: o.Line}
	}
	d.decode(&spec, v.Elem(), "")
	return d.out.err()
}

// Same reports whether two declarations say the same, wherever they stand. Files that they name are not looked at.
func (o Object) Same(p Object) bool {
	a, err1 := yaml.Marshal(&o.Spec)
	b, err2 := yaml.Marshal(&p.Spec)
	return err1 == nil && err2 == nil && o.Kind == p.Kind && o.Name == p.Name && o.Type == p.Type && string(a) == string(b)
}

// Errorf is an error of CodeInvalid at the object's place. A wrapped error stays wrapped.
func (o Object) Errorf(format string, args ...any) error {
	cause := fmt.Errorf(format, args...)
	return &located{cause: cause,
		err: &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s: %s %s: %v", place(o.File, o.Line), o.Kind, o.Name, cause)}}
}

// located keeps a cause for errors.Is while people read one line.
type located struct {
	cause error
	err   *remit.Error
}

func (l *located) Error() string   { return l.err.Msg }
func (l *located) Unwrap() []error { return []error{l.err, l.cause} }

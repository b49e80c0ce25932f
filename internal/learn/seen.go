// SPDX-License-Identifier: Apache-2.0

package learn

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"remit"
)

// origin is the act that a value stands in, and where.
type origin struct {
	act *Act
	run int32
	at  string // a JSON pointer into the arguments
}

func (o origin) in(step string) origin {
	o.at += "/" + strings.ReplaceAll(strings.ReplaceAll(step, "~", "~0"), "/", "~1")
	return o
}

// cause is something that a value may be equal to: a term that is no literal, or a source.
type cause struct {
	param, call string
	source      remit.Source
}

// seen is what was seen of one argument, or of one field of an object.
type seen struct {
	bound   remit.Predicate
	acts    int // that had it
	lists   int // of those, how often it was a list
	empty   int // of those, how often an empty one
	objects int
	mixed   bool // it was, or a list had, something that no condition can be bound to
	fields  map[string]*seen
	values  map[string]*value
	total   int // single values, elements of lists included
	many    bool
	causes  map[cause]int // how many of those each explains
	// What is known of all values, whether they were kept or not.
	numbers, dates, strings, prose, hosts int
	least, greatest                       remit.Value
}

// value is one single value.
type value struct {
	v      remit.Value
	n      int
	run    int32
	common bool // more than one run had it
	causes map[cause]int
}

func newSeen(bound remit.Predicate) *seen {
	return &seen{bound: bound, values: map[string]*value{}, causes: map[cause]int{}}
}

func (s *seen) add(v remit.Value, o origin) error {
	s.acts++
	switch v.Kind() {
	case remit.List:
		s.lists++
		if len(v.Elements()) == 0 {
			s.empty++
		}
		for i, e := range v.Elements() {
			if k := e.Kind(); k == remit.List || k == remit.Object || k == remit.Null {
				s.mixed = true
				continue
			}
			s.single(e, o.in(strconv.Itoa(i)))
		}
		return nil
	case remit.Object:
		s.objects++
		return s.addObject(v, o)
	}
	s.single(v, o)
	return nil
}

func (s *seen) addObject(v remit.Value, o origin) error {
	if s.fields == nil {
		s.fields = map[string]*seen{}
	}
	for name, f := range v.Fields() {
		if f.IsNull() {
			continue
		}
		c := s.fields[name]
		if c == nil {
			if len(s.fields) == maxFields {
				return fmt.Errorf("an object with more than %d fields: free it in the bound, or leave it out", maxFields)
			}
			bound, named := s.bound.Fields[name]
			if !named {
				bound = remit.Predicate{Kind: remit.PredicateAny}
			}
			c = newSeen(bound)
			s.fields[name] = c
		}
		if err := c.add(f, o.in(name)); err != nil {
			return err
		}
	}
	return nil
}

var (
	date  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^` + dates + `$`) })
	plain = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^` + prose + `$`) })
)

func (s *seen) single(v remit.Value, o origin) {
	s.total++
	var because []cause
	o.causes(v, func(c cause) {
		s.causes[c]++
		because = append(because, c)
	})
	switch v.Kind() {
	case remit.Number:
		if s.numbers == 0 {
			s.least, s.greatest = v, v
		}
		s.numbers++
		if order, ok := v.Compare(s.least); ok && order < 0 {
			s.least = v
		}
		if order, ok := v.Compare(s.greatest); ok && order > 0 {
			s.greatest = v
		}
	case remit.String:
		s.text(v.Text())
	}
	s.keep(v, o.run, because)
}

func (s *seen) text(t string) {
	s.strings++
	switch {
	case date().MatchString(t):
		s.dates++
	case worded(t):
		s.prose++
	}
	if !plain().MatchString(t) {
		s.hosts++
	}
}

// worded reports whether a text is what somebody put in words: three or more, or two of which the second is no name.
func worded(t string) bool {
	words := strings.Fields(t)
	if len(words) != 2 {
		return len(words) >= proseWords
	}
	second, _ := utf8.DecodeRuneInString(words[1])
	return unicode.IsLower(second) && !strings.ContainsFunc(t, unicode.IsDigit)
}

// keep remembers a value, up to the bounds.
func (s *seen) keep(v remit.Value, run int32, because []cause) {
	key := v.String()
	if len(key) > maxBytes {
		key = fmt.Sprintf("%x", sha256.Sum256([]byte(key)))
		v = remit.Value{}
	}
	k := s.values[key]
	if k == nil {
		if len(s.values) == maxValues {
			s.many = true
			return
		}
		k = &value{v: v, run: run, causes: map[cause]int{}}
		s.values[key] = k
	}
	k.n++
	k.common = k.common || k.run != run
	for _, c := range because {
		k.causes[c]++
	}
}

// causes calls f for everything that v is equal to in its run.
func (o *origin) causes(v remit.Value, f func(cause)) {
	for name, p := range o.act.Params {
		if p.Equal(v) {
			f(cause{param: name})
		}
	}
	for name, a := range o.act.Call {
		if a.Equal(v) {
			f(cause{call: name})
		}
	}
	told := map[remit.Source]bool{}
	for _, from := range o.act.From {
		by := remit.Source{From: from.Permission, Path: from.Path}
		if from.Arg == o.at && !told[by] {
			told[by] = true
			f(cause{source: by})
		}
	}
}

// forget drops sources that nothing can be bound to.
func (s *seen) forget(dead func(remit.Source) bool) {
	for c := range s.causes {
		if c.source != (remit.Source{}) && dead(c.source) {
			delete(s.causes, c)
		}
	}
	for _, f := range s.fields {
		f.forget(dead)
	}
}

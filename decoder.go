// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Bounds of what a Decoder reads. A Value reads within them what a request's arguments may be, so that what was decided can be read again.
const (
	maxDepth       = 16 // of the whole text
	maxArgsDepth   = 8  // below the arguments' object
	maxElements    = 4096
	maxShared      = 4 << 10  // bytes of a text whose strings are not copied
	maxNumberBytes = 64 << 10 // of all numbers in their normal form: 1e60 is four bytes here and 61 there
)

// Decoder reads one strict JSON text (RFC 7493: UTF-8, no name twice in an object, no lone surrogate) in one pass, without
// building what nobody asked for. Names are compared byte by byte: "Type" is not "type". Errors are *Error of
// CodeInvalid. After an error the Decoder is of no more use. Strings of a short text share its memory; those of a long one do
// not, so that a kept argument never keeps 64 KiB.
type Decoder struct {
	text                     string
	at                       int
	depth, elements, numbers int
}

// NewDecoder returns a Decoder of text.
func NewDecoder(text string) Decoder { return Decoder{text: text} }

func (d *Decoder) fail(what string) error {
	return &Error{Code: CodeInvalid, Msg: "JSON at byte " + strconv.Itoa(d.at) + ": " + what}
}

// peek returns the next byte after white space, or 0 at the end.
func (d *Decoder) peek() byte {
	for ; d.at < len(d.text); d.at++ {
		switch c := d.text[d.at]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// End checks that nothing but white space follows.
func (d *Decoder) End() error {
	//remit:guard S17 TestDecoderRefuses
	if d.peek(); d.at != len(d.text) {
		return d.fail("more than one value")
	}
	return nil
}

// Null reads null if it comes next, and says whether it did.
func (d *Decoder) Null() bool {
	if d.peek() != 'n' || !strings.HasPrefix(d.text[d.at:], "null") {
		return false
	}
	d.at += 4
	return true
}

func (d *Decoder) enter(open byte) error {
	if d.peek() != open {
		return d.fail("want " + map[byte]string{'{': "an object", '[': "an array"}[open])
	}
	//remit:guard S35 TestDecoderSkipsWithinBounds
	if d.depth++; d.depth > maxDepth {
		return d.fail("too deep")
	}
	d.at++
	return nil
}

// next stands before an element: it reads the comma, or the end. first is whether no element was read yet.
func (d *Decoder) next(first bool, end byte) (more bool, err error) {
	c := d.peek()
	switch {
	case c == end:
		d.at++
		d.depth--
		return false, nil
	case first:
	case c != ',':
		return false, d.fail("want a comma")
	default:
		d.at++
		d.peek()
	}
	//remit:guard S35 TestDecoderRefuses
	if d.elements++; d.elements > maxElements {
		return false, d.fail("too many elements")
	}
	return true, nil
}

// Object reads an object. member is called for each member and must read its value.
func (d *Decoder) Object(member func(name string) error) error {
	if err := d.enter('{'); err != nil {
		return err
	}
	var stack [16]string
	seen := names{few: stack[:0]}
	for first := true; ; first = false {
		more, err := d.next(first, '}')
		if err != nil || !more {
			return err
		}
		name, err := d.Text()
		if err != nil {
			return err
		}
		//remit:guard S17 TestDecoderRefuses
		if !seen.add(name) {
			return d.fail(fmt.Sprintf("%.40q stands twice", name))
		}
		if d.peek() != ':' {
			return d.fail("want a colon")
		}
		d.at++
		if err := member(name); err != nil {
			return err
		}
	}
}

// names are the members of one object so far: few in an array, more in a map.
type names struct {
	few  []string
	many map[string]bool
}

func (n *names) add(name string) bool {
	for _, s := range n.few {
		if s == name {
			return false
		}
	}
	if len(n.few) < cap(n.few) {
		n.few = append(n.few, name)
		return true
	}
	if n.many[name] {
		return false
	}
	if n.many == nil {
		n.many = map[string]bool{}
	}
	n.many[name] = true
	return true
}

// List reads an array. element is called before each element and must read it.
func (d *Decoder) List(element func() error) error {
	if err := d.enter('['); err != nil {
		return err
	}
	for first := true; ; first = false {
		more, err := d.next(first, ']')
		if err != nil || !more {
			return err
		}
		if err := element(); err != nil {
			return err
		}
	}
}

// Text reads a string.
func (d *Decoder) Text() (string, error) {
	if d.peek() != '"' {
		return "", d.fail("want a string")
	}
	d.at++
	start := d.at
	for ; d.at < len(d.text); d.at++ {
		switch c := d.text[d.at]; {
		case c == '"':
			s := d.text[start:d.at]
			d.at++
			if len(d.text) > maxShared {
				s = strings.Clone(s)
			}
			return s, nil
		case c < 0x20:
			return "", d.fail("control character in a string")
		case c == '\\' || c >= utf8.RuneSelf:
			return d.escaped(start)
		}
	}
	return "", d.fail("string without an end")
}

// escaped reads the rest of a string that is not plain ASCII.
func (d *Decoder) escaped(start int) (string, error) {
	out := append(make([]byte, 0, 2*(d.at-start)+32), d.text[start:d.at]...)
	for d.at < len(d.text) {
		c := d.text[d.at]
		switch {
		case c == '"':
			d.at++
			return string(out), nil
		case c < 0x20:
			return "", d.fail("control character in a string")
		case c == '\\':
			r, err := d.escape()
			if err != nil {
				return "", err
			}
			out = utf8.AppendRune(out, r)
		default:
			r, n := utf8.DecodeRuneInString(d.text[d.at:])
			if r == utf8.RuneError && n == 1 {
				return "", d.fail("not UTF-8")
			}
			out = append(out, d.text[d.at:d.at+n]...)
			d.at += n
		}
	}
	return "", d.fail("string without an end")
}

// escape reads one escape sequence, or the two of a surrogate pair.
func (d *Decoder) escape() (rune, error) {
	if d.at+1 >= len(d.text) {
		return 0, d.fail("escape without an end")
	}
	c := d.text[d.at+1]
	if c != 'u' {
		i := strings.IndexByte(`"\/bfnrt`, c)
		if i < 0 {
			return 0, d.fail("unknown escape")
		}
		d.at += 2
		return rune("\"\\/\b\f\n\r\t"[i]), nil
	}
	r, err := d.hex()
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	if low, err := d.hex(); err == nil {
		if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
			return pair, nil
		}
	}
	return 0, d.fail("lone surrogate")
}

func (d *Decoder) hex() (rune, error) {
	if d.at+6 > len(d.text) || d.text[d.at] != '\\' || d.text[d.at+1] != 'u' {
		return 0, d.fail("bad \\u escape")
	}
	n, err := strconv.ParseUint(d.text[d.at+2:d.at+6], 16, 16)
	if err != nil {
		return 0, d.fail("bad \\u escape")
	}
	d.at += 6
	return rune(n), nil
}

// Int reads an integer of at most 15 digits that is not negative.
func (d *Decoder) Int() (int64, error) {
	v, err := d.Value()
	if err != nil {
		return 0, err
	}
	n, perr := strconv.ParseInt(v.Text(), 10, 64)
	if v.Kind() != Number || perr != nil || n < 0 || n > 1e15 {
		return 0, d.fail("want a whole number")
	}
	return n, nil
}

// Bool reads true or false.
func (d *Decoder) Bool() (bool, error) {
	v, err := d.Value()
	if err == nil && v.Kind() != Bool {
		err = d.fail("want true or false")
	}
	return v.Text() == "true", err
}

// Skip reads any value, checks it and forgets it.
func (d *Decoder) Skip() error {
	switch d.peek() {
	case '{':
		return d.Object(func(string) error { return d.Skip() })
	case '[':
		return d.List(d.Skip)
	}
	_, err := d.Value()
	return err
}

// Raw reads any value, checks it and returns its text.
func (d *Decoder) Raw() (string, error) {
	d.peek()
	start := d.at
	err := d.Skip()
	return d.text[start:d.at], err
}

// Value reads any value, of at most 8 levels.
func (d *Decoder) Value() (Value, error) { return d.value(d.depth + maxArgsDepth) }

func (d *Decoder) value(deepest int) (Value, error) {
	switch c := d.peek(); {
	case c == '"':
		s, err := d.Text()
		return StringValue(s), err
	case c == '{' || c == '[':
		//remit:guard S35 TestDecoderRefuses
		if d.depth >= deepest {
			return Value{}, d.fail("too deep")
		}
		if c == '[' {
			return d.list(deepest)
		}
		m, err := d.fields(deepest)
		return ObjectValue(m), err
	case c == '-' || c >= '0' && c <= '9':
		return d.number()
	case d.word("true"):
		return BoolValue(true), nil
	case d.word("false"):
		return BoolValue(false), nil
	case d.word("null"):
		return Value{}, nil
	}
	return Value{}, d.fail("want a value")
}

func (d *Decoder) word(w string) bool {
	if !strings.HasPrefix(d.text[d.at:], w) {
		return false
	}
	d.at += len(w)
	return true
}

func (d *Decoder) list(deepest int) (Value, error) {
	out := []Value{}
	err := d.List(func() error {
		v, err := d.value(deepest)
		out = append(out, v)
		return err
	})
	return ListValue(out...), err
}

func (d *Decoder) fields(deepest int) (map[string]Value, error) {
	out := map[string]Value{}
	err := d.Object(func(name string) error {
		v, err := d.value(deepest)
		out[name] = v
		return err
	})
	return out, err
}

// number reads a number. Short whole ones, which are nearly all, are in normal form already.
func (d *Decoder) number() (Value, error) {
	start := d.at
	plain := true
	for ; d.at < len(d.text); d.at++ {
		c := d.text[d.at]
		if c >= '0' && c <= '9' {
			continue
		}
		if c != '-' && c != '+' && c != '.' && c != 'e' && c != 'E' {
			break
		}
		plain = false
	}
	s := d.text[start:d.at]
	if plain && len(s) < 18 && (s[0] != '0' || len(s) == 1) {
		n, _ := strconv.ParseInt(s, 10, 64)
		return IntValue(n), nil
	}
	v, err := NumberValue(s)
	if err != nil {
		return v, d.fail(err.Error())
	}
	//remit:guard S35 TestDecoderRefuses
	if d.numbers += len(v.Text()); d.numbers > maxNumberBytes {
		return v, d.fail("numbers too long")
	}
	return v, nil
}

// Seconds reads a duration in whole seconds, at most a day.
func (d *Decoder) Seconds() (int64, error) {
	n, err := d.Int()
	if err == nil && n > 24*60*60 {
		err = d.fail("at most a day")
	}
	return n, err
}

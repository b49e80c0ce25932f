// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"unicode/utf8"
)

// Kind is the JSON type of a Value.
type Kind uint8

// The kinds. The zero Value is Null, which is what an absent argument reads as.
const (
	Null Kind = iota
	Bool
	Number
	String
	List
	Object
)

func (k Kind) String() string {
	return [...]string{"null", "boolean", "number", "string", "list", "object"}[k]
}

// Bounds of a parsed value, beside those of a Decoder: larger ones are refused, so that no request makes a decision expensive.
const (
	maxValueBytes   = 128 << 10 // a request's longest body with its numbers written out
	maxNumberDigits = 64
)

// Value is one argument or parameter: a JSON value whose numbers are decimals in one normal form ("7.0" and "7" are the
// same Value), so that comparing never rounds. It is immutable.
type Value struct {
	kind   Kind
	text   string // the string, the normal form of the number, or "true"/"false"
	list   []Value
	fields map[string]Value
}

// Args are the arguments of an action, by name.
type Args map[string]Value

// StringValue returns a string.
func StringValue(s string) Value { return Value{kind: String, text: s} }

// BoolValue returns a boolean.
func BoolValue(b bool) Value {
	if b {
		return Value{kind: Bool, text: "true"}
	}
	return Value{kind: Bool, text: "false"}
}

// IntValue returns a number.
func IntValue(n int64) Value { return Value{kind: Number, text: big.NewInt(n).String()} }

// ListValue returns a list; it keeps vs.
func ListValue(vs ...Value) Value { return Value{kind: List, list: vs} }

// ObjectValue returns an object; it keeps m.
func ObjectValue(m map[string]Value) Value { return Value{kind: Object, fields: m} }

// NumberValue parses a decimal in JSON's syntax, of at most 64 digits including its exponent's zeros.
func NumberValue(s string) (Value, error) {
	text, err := normalNumber(s)
	if err != nil {
		return Value{}, err
	}
	return Value{kind: Number, text: text}, nil
}

// Kind returns the value's kind.
func (v Value) Kind() Kind { return v.kind }

// IsNull reports whether v is null or absent.
func (v Value) IsNull() bool { return v.kind == Null }

// Text returns the string itself, a number's normal form, "true"/"false", or "" for other kinds.
func (v Value) Text() string { return v.text }

// Elements returns the list's elements, not to be changed; nil for other kinds.
func (v Value) Elements() []Value { return v.list }

// Field returns an object's field, or Null.
func (v Value) Field(name string) Value { return v.fields[name] }

// Fields returns an object's fields, not to be changed; nil for other kinds.
func (v Value) Fields() map[string]Value { return v.fields }

// Equal reports whether both are of one kind and content. Numbers compare as decimals; a string never equals a number.
func (v Value) Equal(o Value) bool {
	if v.kind != o.kind || v.text != o.text || len(v.list) != len(o.list) || len(v.fields) != len(o.fields) {
		return false
	}
	for i := range v.list {
		if !v.list[i].Equal(o.list[i]) {
			return false
		}
	}
	for k, f := range v.fields {
		g, ok := o.fields[k]
		if !ok || !f.Equal(g) {
			return false
		}
	}
	return true
}

// Compare orders two numbers: -1, 0, +1. ok is false unless both are numbers.
func (v Value) Compare(o Value) (order int, ok bool) {
	if v.kind != Number || o.kind != Number {
		return 0, false
	}
	a, okA := new(big.Rat).SetString(v.text)
	b, okB := new(big.Rat).SetString(o.text)
	if !okA || !okB {
		return 0, false
	}
	return a.Cmp(b), true
}

// String returns the canonical JSON, for people and logs.
func (v Value) String() string { return string(v.AppendJSON(nil)) }

// MarshalJSON returns the canonical JSON: object keys sorted, numbers in normal form, no spaces, no HTML escapes.
func (v Value) MarshalJSON() ([]byte, error) { return v.AppendJSON(nil), nil }

// AppendJSON appends the canonical JSON to b.
func (v Value) AppendJSON(b []byte) []byte {
	switch v.kind {
	case Null:
		return append(b, "null"...)
	case Bool, Number:
		return append(b, v.text...)
	case String:
		return AppendJSONString(b, v.text)
	case List:
		b = append(b, '[')
		for i, e := range v.list {
			if i > 0 {
				b = append(b, ',')
			}
			b = e.AppendJSON(b)
		}
		return append(b, ']')
	default:
		return appendFields(b, v.fields)
	}
}

// AppendJSON appends the arguments as a canonical JSON object.
func (a Args) AppendJSON(b []byte) []byte { return appendFields(b, a) }

// MarshalJSON returns the canonical JSON object.
func (a Args) MarshalJSON() ([]byte, error) { return a.AppendJSON(nil), nil }

func appendFields(b []byte, fields map[string]Value) []byte {
	var stack [16]string
	b = append(b, '{')
	for i, k := range sortedKeys(fields, stack[:0]) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(AppendJSONString(b, k), ':')
		b = fields[k].AppendJSON(b)
	}
	return append(b, '}')
}

// AppendJSONString appends s as a JSON string with the fewest escapes (RFC 8785 section 3.2.2.2).
func AppendJSONString(b []byte, s string) []byte {
	const hexDigits = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c >= 0x20 && c < utf8.RuneSelf:
			b = append(b, c)
			i++
		case c < 0x20:
			if j := strings.IndexByte("\b\t\n\f\r", c); j >= 0 {
				b = append(b, '\\', "btnfr"[j])
			} else {
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r) // an invalid byte becomes U+FFFD
			i += n
		}
	}
	return append(b, '"')
}

// UnmarshalJSON parses strictly, as a Decoder does: duplicate keys, invalid UTF-8, too deep, too long and too many are errors.
func (v *Value) UnmarshalJSON(b []byte) error {
	if len(b) > maxValueBytes {
		return fmt.Errorf("value of %d bytes: the limit is %d", len(b), maxValueBytes)
	}
	d := NewDecoder(string(b))
	d.elements = -maxElements // more than any request, so that no arguments are kept that cannot be read: a body beside a path and a query
	parsed, err := d.value(1 + maxArgsDepth)
	if err == nil {
		err = d.End()
	}
	if err != nil {
		return err
	}
	*v = parsed
	return nil
}

// UnmarshalJSON parses an object strictly, as Value does.
func (a *Args) UnmarshalJSON(b []byte) error {
	var v Value
	if err := v.UnmarshalJSON(b); err != nil {
		return err
	}
	if v.kind == Null {
		*a = nil
		return nil
	}
	if v.kind != Object {
		return fmt.Errorf("arguments are an object, not a %s", v.kind)
	}
	*a = v.fields
	return nil
}

// notNumber is a text that is no number: the error is written only where somebody reads it.
type notNumber string

func (s notNumber) Error() string {
	return fmt.Sprintf("%.40q is not a number of at most %d digits", string(s), maxNumberDigits)
}

// normalNumber returns the shortest plain decimal: no exponent, no leading or trailing zeros, no "-0".
func normalNumber(s string) (string, error) {
	if plainNumber(s) {
		return s, nil
	}
	bad := notNumber(s)
	if len(s) == 0 || len(s) > maxNumberDigits || !json.Valid([]byte(s)) ||
		strings.IndexByte("-0123456789", s[0]) < 0 || strings.IndexByte("0123456789", s[len(s)-1]) < 0 { // json.Valid takes spaces
		return "", bad
	}
	mantissa, exp := s, 0
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		mantissa = s[:i]
		if _, err := fmt.Sscanf(s[i+1:], "%d", &exp); err != nil || exp > maxNumberDigits || exp < -maxNumberDigits {
			return "", bad
		}
	}
	neg := strings.HasPrefix(mantissa, "-")
	whole, frac, _ := strings.Cut(strings.TrimPrefix(mantissa, "-"), ".")
	digits := whole + frac
	point := len(whole) + exp
	for point < 0 {
		digits, point = "0"+digits, point+1
	}
	for point > len(digits) {
		digits += "0"
	}
	whole, frac = strings.TrimLeft(digits[:point], "0"), strings.TrimRight(digits[point:], "0")
	if whole == "" {
		whole = "0"
	}
	out := whole
	if frac != "" {
		out += "." + frac
	}
	if len(out) > 2*maxNumberDigits {
		return "", bad
	}
	if neg && out != "0" {
		out = "-" + out
	}
	return out, nil
}

// plainNumber reports whether s is a positive whole number in its normal form.
func plainNumber(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return len(s) > 0 && len(s) <= maxNumberDigits && s[0] != '0'
}

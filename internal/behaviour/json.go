// SPDX-License-Identifier: Apache-2.0

package behaviour

import (
	"bytes"
	"encoding/json"
)

// members calls do with each member of an object as the store writes them: without spaces, and names without escapes. It looks only for
// where each ends: the store wrote it, and what is read of it is parsed. It reports whether text was such an object to its end.
func members(text []byte, do func(name, value []byte)) bool {
	if len(text) < 2 || text[0] != '{' {
		return false
	}
	if text[1] == '}' {
		return len(text) == 2
	}
	for i := 1; ; i++ {
		end := past(text, i)
		if end < i+2 || end >= len(text) || text[i] != '"' || text[end] != ':' {
			return false
		}
		from := end + 1
		to := past(text, from)
		if to <= from || to >= len(text) {
			return false
		}
		do(text[i+1:end-1], text[from:to])
		switch i = to; text[i] {
		case ',':
		case '}':
			return i == len(text)-1
		default:
			return false
		}
	}
}

// past returns where the value that begins at i ends, or a number that is no such place.
func past(text []byte, i int) int {
	if i >= len(text) {
		return -1
	}
	switch text[i] {
	case '"':
		return pastString(text, i)
	case '{', '[':
		return pastNested(text, i)
	}
	if n := bytes.IndexAny(text[i:], ",]}"); n >= 0 {
		return i + n
	}
	return len(text)
}

func pastNested(text []byte, i int) int {
	for depth := 0; i < len(text); {
		switch text[i] {
		case '"':
			if i = pastString(text, i); i < 0 {
				return -1
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
		i++
	}
	return -1
}

func pastString(text []byte, i int) int {
	for i++; ; {
		n := bytes.IndexByte(text[i:], '"')
		if n < 0 {
			return -1
		}
		escapes := 0
		for j := i + n - 1; j >= i && text[j] == '\\'; j-- {
			escapes++
		}
		if i += n + 1; escapes%2 == 0 {
			return i
		}
	}
}

// plain returns a JSON string's text where it has no escapes.
func plain(raw []byte) ([]byte, bool) {
	if len(raw) < 2 || raw[0] != '"' || raw[len(raw)-1] != '"' || bytes.IndexByte(raw, '\\') >= 0 {
		return nil, false
	}
	return raw[1 : len(raw)-1], true
}

// textOf returns a JSON string's text, or nothing.
func textOf[T ~string](raw []byte) (s T) {
	if text, ok := plain(raw); ok {
		return T(text)
	}
	_ = json.Unmarshal(raw, &s) // the store wrote it
	return s
}

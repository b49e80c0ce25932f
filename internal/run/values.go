// SPDX-License-Identifier: Apache-2.0

package run

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"remit"
)

// How many values are remembered of one run, and of all.
const (
	maxRunValues = 10_000
	maxValues    = 1_000_000
)

// Values remembers what named fields of results an earlier call of a run returned, so that a later call may be bound to them (S25).
// It holds no value: only an HMAC-SHA256 of each, under a key of the run that is nowhere else. All of it is in memory and gone with
// the run, or with the process; a value that is not remembered does not match. The zero Values is ready and safe for concurrent use.
type Values struct {
	mu   sync.RWMutex // guards the rest
	runs map[remit.RunID]*kept
	all  int
}

type kept struct {
	key  [32]byte
	macs map[[sha256.Size]byte]struct{}
}

// Keep remembers values that a call under the permission returned at the path. Null, lists and objects are left out. CodeExhausted
// when there is no room for all; those before it are kept.
func (v *Values) Keep(run remit.RunID, permission, path string, values []remit.Value) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	k := v.runs[run]
	if k == nil {
		k = &kept{macs: map[[sha256.Size]byte]struct{}{}}
		if _, err := rand.Read(k.key[:]); err != nil {
			return fmt.Errorf("make the key of run %s: %w", run, err)
		}
		if v.runs == nil {
			v.runs = map[remit.RunID]*kept{}
		}
		v.runs[run] = k
	}
	for _, value := range values {
		if value.IsNull() || value.Kind() == remit.List || value.Kind() == remit.Object {
			continue
		}
		mac := k.mac(permission, path, value)
		if _, known := k.macs[mac]; known {
			continue
		}
		//remit:guard S25 TestValuesAreBounded
		if len(k.macs) >= maxRunValues || v.all >= maxValues {
			return &remit.Error{Code: remit.CodeExhausted, Msg: fmt.Sprintf("run %s remembers %d values, and no more fit", run, len(k.macs)),
				Hint: "a call that returns less, or a narrower path, leaves room"}
		}
		k.macs[mac] = struct{}{}
		v.all++
	}
	return nil
}

// Holds reports whether a call of the run under the permission returned the value at the path.
func (v *Values) Holds(run remit.RunID, permission, path string, value remit.Value) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	k := v.runs[run]
	if k == nil {
		return false
	}
	_, ok := k.macs[k.mac(permission, path, value)]
	return ok
}

// Drop forgets a run.
func (v *Values) Drop(run remit.RunID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if k := v.runs[run]; k != nil {
		v.all -= len(k.macs)
		delete(v.runs, run)
	}
}

// Retain forgets every run for which live is false.
func (v *Values) Retain(live func(remit.RunID) bool) {
	v.mu.RLock()
	var over []remit.RunID
	for id := range v.runs {
		if !live(id) {
			over = append(over, id)
		}
	}
	v.mu.RUnlock()
	for _, id := range over {
		v.Drop(id)
	}
}

// mac hashes lengths with contents, so that no two of permission, path and value run together.
func (k *kept) mac(permission, path string, value remit.Value) (out [sha256.Size]byte) {
	h := hmac.New(sha256.New, k.key[:])
	for _, part := range [...]string{permission, path, value.String()} { // canonical JSON tells a number from a string
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write([]byte(part))
	}
	h.Sum(out[:0])
	return out
}

// maxResultDepth bounds what Select reads.
const maxResultDepth = 64

// Select returns the scalars at a path of a JSON document: a JSON pointer in which * stands for any index of a list, and what
// remit.Source says before it. What is not there, and numbers that no Value can hold, are left out.
func Select(document []byte, path string) ([]remit.Value, error) {
	form, path := Form(path)
	if tooDeep(document) {
		return nil, errors.New("the result is nested too deeply")
	}
	dec := json.NewDecoder(bytes.NewReader(document))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("read the result: %w", err)
	}
	if dec.More() {
		return nil, errors.New("the result is more than one JSON value")
	}
	var out []remit.Value
	selectAt(v, strings.Split(strings.TrimPrefix(path, "/"), "/"), &out)
	if form == "" || form == "text" {
		return out, nil
	}
	return find(form, out), nil
}

// Form cuts the word before a path's pointer, if there is one.
func Form(path string) (form, pointer string) {
	if i := strings.Index(path, ":/"); i >= 0 && !strings.Contains(path[:i], "/") {
		return path[:i], path[i+1:]
	}
	return "", path
}

func selectAt(v any, steps []string, out *[]remit.Value) {
	if len(steps) == 0 {
		switch t := v.(type) {
		case string:
			*out = append(*out, remit.StringValue(t))
		case bool:
			*out = append(*out, remit.BoolValue(t))
		case json.Number:
			if n, err := remit.NumberValue(t.String()); err == nil {
				*out = append(*out, n)
			}
		}
		return
	}
	switch t := v.(type) {
	case map[string]any:
		if f, ok := t[strings.ReplaceAll(strings.ReplaceAll(steps[0], "~1", "/"), "~0", "~")]; ok {
			selectAt(f, steps[1:], out)
		}
	case []any:
		if steps[0] == "*" {
			for _, e := range t {
				selectAt(e, steps[1:], out)
			}
			return
		}
		for i, e := range t {
			if fmt.Sprint(i) == steps[0] {
				selectAt(e, steps[1:], out)
				return
			}
		}
	}
}

func tooDeep(b []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[' || c == '{':
			if depth++; depth > maxResultDepth {
				return true
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return false
}

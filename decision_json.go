// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"slices"
	"strconv"
	"time"
)

// AppendJSON appends the decision's canonical JSON, which is what stands in the ledger: the members and their order are those
// of the struct, names in maps are sorted, times are in UTC, and strings have the fewest escapes. encoding/json reads it back
// to the same Decision. It is written by hand because every request pays for it.
func (d *Decision) AppendJSON(b []byte) []byte { return d.AppendSealed(b, nil) }

// AppendSealed does the same with commitments in the place of arguments, parameters, what reasons quote, and names, subjects
// and fields of evidence.
func (d *Decision) AppendSealed(b []byte, s *Seal) []byte {
	b = appendText(append(b, '{'), `"id":`, string(d.ID))
	b = appendTime(b, `,"at":`, d.At)
	b = appendText(b, `,"effect":`, d.Effect.String())
	if len(d.Reasons) > 0 {
		b = append(b, `,"reasons":[`...)
		for i := range d.Reasons {
			b = d.Reasons[i].appendJSON(comma(b, i), s, "reasons.", i)
		}
		b = append(b, ']')
	}
	b = appendText(b, `,"caller":`, d.Caller)
	b = appendSome(b, `,"credential":`, d.Credential)
	b = appendSome(b, `,"level":`, d.Level)
	b = appendText(b, `,"agent":`, string(d.Agent))
	b = appendText(b, `,"action":`, d.Action)
	b = appendText(b, `,"target":`, d.Target)
	if len(d.Args) > 0 {
		b = s.fields(append(b, `,"args":`...), "args", d.Args)
	}
	b = appendSome(b, `,"run":`, string(d.Run))
	b = appendSome(b, `,"under":`, string(d.Under))
	b = appendSome(b, `,"sandbox":`, string(d.Sandbox))
	if d.Permission != (PermissionRef{}) {
		b = appendText(b, `,"permission":{"workflow":`, d.Permission.Workflow)
		b = appendText(b, `,"stage":`, d.Permission.Stage)
		b = append(appendText(b, `,"permission":`, d.Permission.Name), '}')
	}
	for i := range d.From {
		b = appendText(append(b, [...]string{`,"from":[`, `,`}[min(i, 1)]...), `{"permission":`, d.From[i].Permission)
		b = append(appendText(appendText(b, `,"path":`, d.From[i].Path), `,"arg":`, d.From[i].Arg), '}')
		if i == len(d.From)-1 {
			b = append(b, ']')
		}
	}
	b = appendSome(b, `,"asked":`, d.Asked)
	if len(d.Params) > 0 {
		b = s.fields(append(b, `,"params":`...), "params", d.Params)
	}
	return append(d.appendFindings(b, s), '}')
}

// appendFindings appends the members from evidence on.
func (d *Decision) appendFindings(b []byte, s *Seal) []byte {
	if len(d.Evidence) > 0 {
		b = append(b, `,"evidence":[`...)
		for i := range d.Evidence {
			b = d.Evidence[i].appendJSON(comma(b, i), s, i)
		}
		b = append(b, ']')
	}
	b = appendNumber(b, `,"asked_ttl":`, int64(d.AskedTTL))
	b = appendSome(b, `,"workflow_digest":`, string(d.WorkflowDigest))
	if len(d.Lacking) > 0 {
		b = append(b, `,"lacking":[`...)
		for i := range d.Lacking {
			l := &d.Lacking[i]
			b = strconv.AppendInt(append(comma(b, i), `{"need":`...), int64(l.Need), 10)
			b = append(appendText(b, `,"kind":`, string(l.Kind)), `,"reason":`...)
			b = append(l.Reason.appendJSON(b, s, "lacking.", i), '}')
		}
		b = append(b, ']')
	}
	b = appendNumber(b, `,"ttl":`, int64(d.TTL))
	if !d.Until.IsZero() {
		b = appendTime(b, `,"until":`, d.Until)
	}
	if len(d.Limits) > 0 {
		b = append(b, `,"limits":{`...)
		var stack [8]string
		for i, k := range sortedKeys(d.Limits, stack[:0]) {
			b = append(AppendJSONString(comma(b, i), k), ':')
			b = strconv.AppendInt(b, d.Limits[k], 10)
		}
		b = append(b, '}')
	}
	if len(d.Obligations) > 0 {
		b = appendTexts(append(b, `,"obligations":`...), d.Obligations)
	}
	b = appendText(b, `,"policy":`, string(d.Policy))
	b = appendSome(b, `,"via":`, d.Via)
	return appendSome(b, `,"hold":`, string(d.Hold))
}

func (r *Reason) appendJSON(b []byte, s *Seal, list string, i int) []byte {
	b = appendText(append(b, '{'), `"code":`, string(r.Code))
	b = appendSome(b, `,"of":`, r.Of)
	b = s.some(b, `,"want":`, list, i, r.Want)
	return append(s.some(b, `,"got":`, list, i, r.Got), '}')
}

func (e *Evidence) appendJSON(b []byte, s *Seal, i int) []byte {
	b = appendText(append(b, '{'), `"id":`, string(e.ID))
	b = appendText(b, `,"kind":`, string(e.Kind))
	b = appendText(b, `,"source":`, e.Source)
	b = appendSome(b, `,"signer":`, e.Signer)
	b = s.some(b, `,"name":`, "evidence.", i, e.Name)
	if len(e.Subjects) > 0 {
		b = s.list(append(b, `,"subjects":`...), i, e.Subjects)
	}
	b = appendSome(b, `,"worst":`, e.Worst.String())
	b = appendTime(b, `,"made":`, e.Made)
	b = appendTime(b, `,"verified":`, e.Verified)
	if !e.Until.IsZero() {
		b = appendTime(b, `,"until":`, e.Until)
	}
	if len(e.Fields) > 0 {
		b = s.texts(append(b, `,"fields":`...), i, e.Fields)
	}
	b = appendText(b, `,"digest":`, string(e.Digest))
	return append(appendSome(b, `,"superseded":`, string(e.Superseded)), '}')
}

// sortedKeys returns the keys in order, in the given memory if that is enough.
func sortedKeys[V any](m map[string]V, keys []string) []string {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func comma(b []byte, i int) []byte {
	if i > 0 {
		return append(b, ',')
	}
	return b
}

func appendText(b []byte, key, value string) []byte {
	return AppendJSONString(append(b, key...), value)
}

// appendSome leaves out what is empty.
func appendSome(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	return appendText(b, key, value)
}

// appendNumber leaves out zero.
func appendNumber(b []byte, key string, n int64) []byte {
	if n == 0 {
		return b
	}
	return strconv.AppendInt(append(b, key...), n, 10)
}

func appendTime(b []byte, key string, t time.Time) []byte {
	b = append(append(b, key...), '"')
	return append(t.UTC().AppendFormat(b, time.RFC3339Nano), '"')
}

func appendTexts[T ~string](b []byte, texts []T) []byte {
	b = append(b, '[')
	for i, s := range texts {
		b = AppendJSONString(comma(b, i), string(s))
	}
	return append(b, ']')
}

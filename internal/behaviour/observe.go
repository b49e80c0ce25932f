// SPDX-License-Identifier: Apache-2.0

package behaviour

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"remit"
)

// observation is what the baselines read of one request or act.
type observation struct {
	seq    uint64
	at     time.Time
	agent  remit.Name
	run    remit.RunID
	peers  string // the workflow: agents that do the same work
	tool   string // action and target
	source string // how the caller proved itself, and through what it came
	values []value
	denied bool
	volume int // rows or bytes, where the entry says so
}

// value is one text or number among the arguments.
type value struct {
	path  string
	text  string
	shape shape
	named bool // by the parameters of the run, or returned by an earlier call where the workflow says that it may come from
}

// shape is what a value looks like; how often a new one is normal depends on it.
type shape uint8

const (
	shapeWord shape = iota
	shapeNumber
	shapeContact // an address, link or account: who and where
	shapeProse
)

// Bounds of one observation.
const (
	maxValues = 64
	maxText   = 64 << 10
	maxWord   = 200
)

type observed struct {
	Effect     remit.Effect        `json:"effect"`
	Caller     string              `json:"caller"`
	Level      string              `json:"level"`
	Action     string              `json:"action"`
	Target     string              `json:"target"`
	Sandbox    remit.Tier          `json:"sandbox"`
	Via        string              `json:"via"`
	Permission remit.PermissionRef `json:"permission"`
	From       []remit.FromFact    `json:"from"`
	Reasons    []struct {
		Code remit.ReasonCode `json:"code"`
	} `json:"reasons"`
	Verb      string `json:"verb"`
	Allowed   bool   `json:"allowed"`
	Effective bool   `json:"effective"`
}

// observe reads an entry; ok is false for what says nothing of how an agent behaves.
func observe(e *remit.Entry) (o observation, ok bool) {
	kind := KindOf(e.Body)
	if kind != remit.EventDecision && kind != remit.EventAction {
		return o, false
	}
	var v struct {
		At    time.Time   `json:"at"`
		Agent remit.Name  `json:"agent"`
		Run   remit.RunID `json:"run"`
		Data  observed    `json:"data"`
	}
	if json.Unmarshal(e.Body, &v) != nil || v.Agent == "" {
		return o, false
	}
	d := &v.Data
	o = observation{seq: e.Seq, at: v.At, agent: v.Agent, run: v.Run, peers: d.Permission.Workflow, tool: d.Action + " " + d.Target}
	if kind == remit.EventAction {
		o.tool = d.Verb + " " + d.Target
		o.volume = volumeOf(e.Payload)
		return o, d.Allowed && d.Effective && o.volume > 0
	}
	if d.Via == "recheck" || d.Effect == remit.Hold {
		return o, false
	}
	for _, r := range d.Reasons {
		//remit:guard S36 TestOthersDoNotTrain
		if slices.Contains(unproven, r.Code) || slices.Contains(notOfTheAgent, r.Code) {
			return o, false
		}
	}
	o.denied = d.Effect != remit.Allow
	o.source = d.Caller + " " + d.Level + " " + string(d.Sandbox) + " " + d.Via
	o.read(e.Payload, d.From)
	return o, true
}

// read takes the arguments out of what is kept beside the entry. What is erased or sensitive is not there.
func (o *observation) read(payload []byte, from []remit.FromFact) {
	given := map[string]bool{}
	for _, f := range from {
		name, _, _ := strings.Cut(strings.TrimPrefix(f.Arg, "/"), "/")
		given[name] = true
	}
	args, named := map[string]remit.Value{}, ""
	disclosed(payload, func(path string, raw []byte) {
		place, name, _ := strings.Cut(path, ".")
		if place != "args" && place != "params" {
			return
		}
		var v remit.Value
		if v.UnmarshalJSON(raw) != nil {
			return
		}
		if place == "args" {
			args[name] = v
		} else if len(named) < maxText {
			named += "\n" + remit.Clip(strings.ToLower(texts(v)), maxText)
		}
	})
	for _, name := range slices.Sorted(maps.Keys(args)) {
		first := len(o.values)
		o.add(name, args[name])
		for i := first; i < len(o.values); i++ {
			o.values[i].named = given[name] || mentioned(named, o.values[i].text)
		}
	}
}

// disclosed calls do with the place and JSON of each value in a payload.
func disclosed(payload []byte, do func(path string, raw []byte)) {
	var buf []byte
	for text := range bytes.SplitSeq(payload, []byte{'~'}) {
		var err error
		if buf, err = base64.RawURLEncoding.AppendDecode(buf[:0], text); err != nil || len(buf) == 0 {
			continue
		}
		if path, raw, ok := parted(buf); ok {
			do(path, raw)
		}
	}
}

// parted takes ["SALT","PATH",VALUE] apart. The store wrote it; a path with an escape in it takes the long way.
func parted(b []byte) (path string, raw []byte, ok bool) {
	_, rest, ok := bytes.Cut(b, []byte(`","`))
	name, raw, ok2 := bytes.Cut(rest, []byte(`",`))
	if ok && ok2 && len(raw) > 1 && bytes.IndexByte(name, '\\') < 0 && raw[len(raw)-1] == ']' {
		return string(name), raw[:len(raw)-1], true
	}
	var parts []json.RawMessage
	if json.Unmarshal(b, &parts) != nil || len(parts) != 3 || json.Unmarshal(parts[1], &path) != nil {
		return "", nil, false
	}
	return path, parts[2], true
}

// volumeOf reads how much an act moved.
func volumeOf(payload []byte) (n int) {
	disclosed(payload, func(path string, raw []byte) {
		var detail map[string]string
		if path != "detail" || json.Unmarshal(raw, &detail) != nil {
			return
		}
		for _, k := range []string{"rows", "bytes", "sent", "received"} {
			if m, err := strconv.Atoi(detail[k]); err == nil && m > n {
				n = m
			}
		}
	})
	return n
}

// add adds a value and what is in it.
func (o *observation) add(path string, v remit.Value) {
	if len(o.values) >= maxValues {
		return
	}
	switch v.Kind() {
	case remit.List:
		for _, e := range v.Elements() {
			o.add(path, e)
		}
	case remit.Object:
		for _, k := range slices.Sorted(maps.Keys(v.Fields())) {
			o.add(path+"."+k, v.Field(k))
		}
	case remit.Number:
		o.values = append(o.values, value{path: path, text: v.Text(), shape: shapeNumber})
	case remit.String:
		o.addText(path, v.Text())
	}
}

func (o *observation) addText(path, text string) {
	text = strings.TrimSpace(strings.ToLower(remit.Clip(text, maxText)))
	if text == "" {
		return
	}
	if len(text) <= maxWord && !strings.ContainsFunc(text, unicode.IsSpace) {
		w := value{path: path, text: text}
		if isContact(text) {
			w.text, w.shape = plainContact(text), shapeContact
		} else if _, err := strconv.ParseFloat(text, 64); err == nil {
			w.shape = shapeNumber
		}
		o.values = append(o.values, w)
		return
	}
	o.values = append(o.values, value{path: path, text: remit.Clip(text, maxWord), shape: shapeProse})
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`"'<>()[],;`, r) }) {
		if len(o.values) < maxValues && len(word) <= maxWord && isContact(word) {
			o.values = append(o.values, value{path: path + " (in the text)", text: plainContact(word), shape: shapeContact})
		}
	}
}

// isContact reports whether a word looks like an address, a link or an account.
func isContact(w string) bool {
	w = strings.Trim(w, ".:!?")
	if at := strings.IndexByte(w, '@'); at > 0 && strings.Contains(w[at:], ".") || strings.Contains(w, "://") || strings.HasPrefix(w, "www.") {
		return true
	}
	digits := 0
	for _, r := range w {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			return false
		}
		if unicode.IsDigit(r) {
			digits++
		}
	}
	return digits >= 8 && digits < len(w) && len(w) >= 12
}

// plainContact leaves out what makes no difference.
func plainContact(w string) string {
	w = strings.Trim(w, ".:!?")
	if _, rest, ok := strings.Cut(w, "://"); ok {
		w = rest
	}
	return strings.TrimSuffix(strings.TrimPrefix(w, "www."), "/")
}

// texts joins all texts and numbers of a value.
func texts(v remit.Value) string {
	switch v.Kind() {
	case remit.List:
		var all []string
		for _, e := range v.Elements() {
			all = append(all, texts(e))
		}
		return strings.Join(all, "\n")
	case remit.Object:
		var all []string
		for _, k := range slices.Sorted(maps.Keys(v.Fields())) {
			all = append(all, texts(v.Field(k)))
		}
		return strings.Join(all, "\n")
	}
	return v.Text()
}

// mentioned reports whether the text stands in all as whole words.
func mentioned(all, text string) bool {
	letter := func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
	for text != "" {
		i := strings.Index(all, text)
		if i < 0 {
			return false
		}
		before, _ := utf8.DecodeLastRuneInString(all[:i])
		after, _ := utf8.DecodeRuneInString(all[i+len(text):])
		if !letter(before) && !letter(after) {
			return true
		}
		all = all[i+len(text):]
	}
	return false
}

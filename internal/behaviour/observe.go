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

// observed is what is read of a decision or an act.
type observed struct {
	at                time.Time
	agent             remit.Name
	run               remit.RunID
	effect            string
	caller, level     string
	action, target    string
	sandbox, via      string
	verb, workflow    string
	from              []remit.FromFact
	reasons           []reason
	allowed, effected bool
	bad               bool
}

type reason struct {
	Code remit.ReasonCode `json:"code"`
}

// take reads one member of an entry.
func (v *observed) take(name, raw []byte) {
	switch string(name) {
	case "at":
		v.bad = v.at.UnmarshalJSON(raw) != nil || v.bad
	case "agent":
		v.agent = textOf[remit.Name](raw)
	case "run":
		v.run = textOf[remit.RunID](raw)
	case "data":
		v.bad = !members(raw, v.takeData) || v.bad
	}
}

func (v *observed) takeData(name, raw []byte) {
	switch string(name) {
	case "effect":
		v.effect = textOf[string](raw)
	case "caller":
		v.caller = textOf[string](raw)
	case "level":
		v.level = textOf[string](raw)
	case "action":
		v.action = textOf[string](raw)
	case "target":
		v.target = textOf[string](raw)
	case "sandbox":
		v.sandbox = textOf[string](raw)
	case "via":
		v.via = textOf[string](raw)
	case "verb":
		v.verb = textOf[string](raw)
	case "allowed":
		v.allowed = string(raw) == "true"
	case "effective":
		v.effected = string(raw) == "true"
	case "permission":
		members(raw, func(name, raw []byte) {
			if string(name) == "workflow" {
				v.workflow = textOf[string](raw)
			}
		})
	case "from":
		v.bad = json.Unmarshal(raw, &v.from) != nil || v.bad
	case "reasons":
		v.bad = json.Unmarshal(raw, &v.reasons) != nil || v.bad
	}
}

// observe reads an entry; ok is false for what says nothing of how an agent behaves.
func observe(e *remit.Entry) (o observation, ok bool) {
	kind := KindOf(e.Body)
	if kind != remit.EventDecision && kind != remit.EventAction {
		return o, false
	}
	var v observed
	if !members(e.Body, v.take) || v.bad || v.agent == "" {
		return o, false
	}
	o = observation{seq: e.Seq, at: v.at, agent: v.agent, run: v.run, peers: v.workflow, tool: v.action + " " + v.target}
	if kind == remit.EventAction {
		o.tool = v.verb + " " + v.target
		o.volume = volumeOf(e.Payload)
		return o, v.allowed && v.effected && o.volume > 0
	}
	if v.via == "recheck" || v.effect == remit.Hold.String() {
		return o, false
	}
	for _, r := range v.reasons {
		//remit:guard S36 TestOthersDoNotTrain
		if slices.Contains(unproven, r.Code) || slices.Contains(notOfTheAgent, r.Code) {
			return o, false
		}
	}
	o.denied = v.effect != remit.Allow.String()
	o.source = v.caller + " " + v.level + " " + v.sandbox + " " + v.via
	o.read(e.Payload, v.from)
	return o, true
}

// argument is one of a request.
type argument struct {
	name  string
	value remit.Value
}

// read takes the arguments out of what is kept beside the entry. What is erased or sensitive is not there.
func (o *observation) read(payload []byte, from []remit.FromFact) {
	given := map[string]bool{}
	for _, f := range from {
		name, _, _ := strings.Cut(strings.TrimPrefix(f.Arg, "/"), "/")
		given[name] = true
	}
	var args []argument
	named := ""
	disclosed(payload, func(path string, raw []byte) {
		place, name, _ := strings.Cut(path, ".")
		if place != "args" && place != "params" {
			return
		}
		v, ok := valueOf(raw)
		if !ok {
			return
		}
		if place == "args" {
			args = append(args, argument{name, v})
		} else if len(named) < maxText {
			named += "\n" + remit.Clip(strings.ToLower(texts(v)), maxText)
		}
	})
	slices.SortStableFunc(args, func(a, b argument) int { return strings.Compare(a.name, b.name) })
	for _, a := range args {
		first := len(o.values)
		o.add(a.name, a.value)
		for i := first; i < len(o.values); i++ {
			o.values[i].named = given[a.name] || mentioned(named, o.values[i].text)
		}
	}
}

// valueOf parses a value; most are plain texts and numbers.
func valueOf(raw []byte) (v remit.Value, ok bool) {
	if text, ok := plain(raw); ok && utf8.Valid(text) {
		return remit.StringValue(string(text)), true
	}
	if len(raw) > 0 && (raw[0] == '-' || '0' <= raw[0] && raw[0] <= '9') {
		v, err := remit.NumberValue(string(raw))
		return v, err == nil
	}
	return v, v.UnmarshalJSON(raw) == nil
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
		} else if isNumber(text) {
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

// isNumber does not ask ParseFloat of what is none: its errors cost more than all else.
func isNumber(text string) bool {
	if !strings.ContainsRune("+-.0123456789in", rune(text[0])) { // inf, nan
		return false
	}
	_, err := strconv.ParseFloat(text, 64)
	return err == nil
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

// SPDX-License-Identifier: Apache-2.0

package config

import (
	"time"

	"go.yaml.in/yaml/v3"

	"remit"
)

// format is what a word may look like.
type format struct {
	pattern expression
	write   string // what to write
}

// formats are named by the tag `is`. Patterns are plain enough for JSON Schema.
var formats = map[string]format{
	"label":        {expr(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`), "lower-case letters, digits and hyphens, at most 63"},
	"arg":          {argFormat, "an argument's name"},
	"param":        {expr(`^[a-z][a-z0-9_]{0,62}$`), "lower-case letters, digits and underscores, at most 63"},
	"person":       {expr(`^operator/[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`), "operator/NAME"},
	"principal":    {expr(`^(agent|tool|operator)/[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`), "agent/NAME, tool/NAME or operator/NAME"},
	"actor":        {expr(`^(agent|tool)/[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`), "agent/NAME or tool/NAME"},
	"spiffe":       {expr(`^spiffe://[a-z0-9._-]{1,255}(/[a-zA-Z0-9._-]+)+$`), "spiffe://TRUST-DOMAIN/PATH"},
	"domain":       {expr(`^[a-z0-9._-]{1,255}$`), "a trust domain, such as company.com"},
	"digest":       {expr(`^sha256:[0-9a-f]{64}$`), "sha256: and 64 lower-case hex digits"},
	"hex":          {expr(`^[0-9a-f]{64}$`), "64 lower-case hex digits"},
	"action":       {expr(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$`), "KIND.VERB, such as kubernetes.apply"},
	"actions":      {expr(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*\.([a-z][a-z0-9_]*|\*)$`), "KIND.VERB or KIND.*"},
	"clock":        {expr(`^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$`), `"HH:MM"`},
	"path":         {expr(`^/.*$`), "an absolute path"},
	"pointer":      {expr(`^((text|url|email|account|words):)?(/([^~/]|~[01])*)+$`), "a JSON pointer, such as /rows/*/id, or one after text:, url:, email:, account: or words:"},
	"rego":         {expr(`^[^/].{0,250}\.rego$`), "the path of a .rego file in the configuration directory"},
	"field":        {expr(`^(scan|provenance|ticket|ci)\.[a-z][a-z0-9_]{0,62}$`), "KIND.FIELD of evidence, such as ticket.customer"},
	"exitfact":     {expr(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])? (allowed|granted|executed)$`), "PERMISSION allowed, granted or executed"},
	"severity":     {expr(`^(none|low|medium|high|critical)$`), "none, low, medium, high or critical"},
	"tier":         {expr(`^(remote|process|kernel|vm)$`), "remote, process, kernel or vm"},
	"boxtier":      {expr(`^(process|kernel|vm)$`), "process, kernel or vm"},
	"aim":          {expr(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(/[A-Za-z0-9_./-]{1,128})?$`), "the name of a target or tool, or NAME/MCPTOOL"},
	"pins":         {expr(`^[^/].{0,250}\.pins\.json$`), "the path of a .pins.json file in the configuration directory"},
	"argument":     {expr(`^.{1,1000}$`), "one line of at most 1000 characters"},
	"variable":     {expr(`^[A-Za-z_][A-Za-z0-9_]{0,126}$`), "letters, digits and underscores"},
	"paramtype":    {expr(`^(name|string|integer|number|boolean|image)$`), "name, string, integer, number, boolean or image"},
	"sourcetype":   {expr(`^(scan|provenance|ticket|ci|ci-token)$`), "scan, provenance, ticket, ci or ci-token"},
	"pinkind":      {expr(`^(Agent|Tool|Target|EvidenceSource|EnforcementPoint|Rule)$`), "Agent, Tool, Target, EvidenceSource, EnforcementPoint or Rule"},
	"announceform": {expr(`^(generic|slack)$`), "generic or slack"},
	"signalform":   {expr(`^(webhook|set|poll|ocsf)$`), "webhook, set, poll or ocsf"},
	"signaltopic":  {expr(`^(findings|decisions|credentials)$`), "findings, decisions or credentials"},
	"response":     {expr(`^(notice|step-up|throttle|suspend|kill)$`), "notice, step-up, throttle, suspend or kill"},
	"notstarter":   {expr(`^not-starter$`), "not-starter, or leave it out"},
	"level":        {expr(`^(user|launched|sandbox|node)$`), "user, launched, sandbox or node"},
	"role":         {expr(`^(admin|author|approver|responder|auditor)$`), "admin, author, approver, responder or auditor"},
	"url":          {expr(`^https://[^ ?#@/]+(/[^ ?#@]*)?$`), "an https URL without user, query and fragment"},
	"collector":    {expr(`^(https://[^ ?#@/]+|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?)(/[^ ?#@]*[^ ?#@/])?$`), "an https URL without user, query, fragment and / at its end, or http:// and this host"},
	"text":         {expr(`^.{1,512}$`), "one line of at most 512 characters"},
	"regexp":       {expr(`^.{1,512}$`), "a regular expression (RE2) of at most 512 characters"},
	"zone":         {expr(`^[A-Za-z][A-Za-z0-9_+/-]{0,63}$`), "a time zone, such as Europe/Berlin or UTC"},
	"module":       {expr(`^(?s:.+)$`), "Rego"},
}

// word is a text in one of the formats, with the place where it stands.
type word struct {
	s    string
	line int
}

func (w *word) read(d *decoder, n *yaml.Node, is string) {
	w.line = n.Line
	if !d.text(n) {
		return
	}
	if f := formats[is]; f.write != "" && !f.pattern.MatchString(n.Value) {
		d.add(n, "%q is not right here: write %s", clip(n.Value), f.write)
		return
	}
	w.s = n.Value
}

func (*word) schema(is string) map[string]any {
	if is == "module" {
		return map[string]any{"type": "string", "minLength": 1, "maxLength": 1000000}
	}
	return map[string]any{"type": "string", "pattern": formats[is].pattern.String()}
}

// span is a duration, with the place where it stands.
type span struct {
	d    time.Duration
	line int
}

func (s *span) read(d *decoder, n *yaml.Node, _ string) { s.d, s.line = d.duration(n), n.Line }

func (*span) schema(string) map[string]any {
	return map[string]any{"type": "string", "pattern": durationPattern}
}

// or returns the duration, def when none stands. More than limit is reported.
func (s *span) or(def, limit time.Duration, file, key string, out *problems) time.Duration {
	switch {
	case s.d == 0:
		return def
	case s.d > limit:
		out.add(file, s.line, "%s: %s is more than the limit of %s: write less", key, s.d, limit)
	}
	return s.d
}

// number is a decimal, with the place where it stands.
type number struct {
	v    remit.Value
	line int
}

func (x *number) read(d *decoder, n *yaml.Node, _ string) {
	x.line = n.Line
	v, ok := scalar(n)
	if !ok || v.Kind() != remit.Number {
		d.add(n, "expected a decimal number, found %s", describe(n))
		return
	}
	x.v = v
}

func (*number) schema(string) map[string]any { return map[string]any{"type": "number"} }

func (x *number) value() *remit.Value {
	if x == nil || x.v.Kind() != remit.Number {
		return nil
	}
	return &x.v
}

// literal is a text, number or boolean, with the place where it stands.
type literal struct {
	v    remit.Value
	line int
}

func (l *literal) read(d *decoder, n *yaml.Node, _ string) {
	l.line = n.Line
	v, ok := scalar(n)
	if !ok {
		d.add(n, "expected text, a decimal number or a boolean, found %s", describe(n))
		return
	}
	l.v = v
}

func (*literal) schema(string) map[string]any {
	return map[string]any{"type": []string{"string", "number", "boolean"}}
}

// days is a span such as mon-fri, or a list of days.
type days struct {
	set  [7]bool
	line int
}

const dayPattern = `(mon|tue|wed|thu|fri|sat|sun)`

var (
	dayNames  = map[string]time.Weekday{"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
	dayFormat = expr(`^` + dayPattern + `(?:-` + dayPattern + `)?$`)
)

func (x *days) read(d *decoder, n *yaml.Node, _ string) {
	x.line = n.Line
	list := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		list = n.Content
	}
	if len(list) == 0 {
		d.add(n, "no day: write mon-fri or [mon, wed]")
	}
	for _, c := range list {
		m := dayFormat.FindStringSubmatch(c.Value)
		if c.Kind != yaml.ScalarNode || m == nil {
			d.add(c, "expected days, found %s: write mon-fri or [mon, wed]", describe(c))
			continue
		}
		from, to := dayNames[m[1]], dayNames[m[1]]
		if m[2] != "" {
			to = dayNames[m[2]]
		}
		for day := from; ; day = (day + 1) % 7 {
			x.set[day] = true
			if day == to {
				break
			}
		}
	}
}

func (*days) schema(string) map[string]any {
	day := map[string]any{"type": "string", "pattern": dayFormat.String()}
	return map[string]any{"anyOf": []any{day, map[string]any{"type": "array", "items": day, "minItems": 1}}}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"slices"
	"strings"
)

// choose finds what a bound argument may be: what the user named, and fields of what other tools return.
func (p *plan) choose(m *permission, a *argument, c *choice) {
	switch a.kind {
	case ofID:
		p.chooseID(m, a, c)
	case ofEmail:
		p.chooseEmail(m, a, c)
	case ofAccount:
		p.chooseAccount(m, a, c)
	case ofLink:
		p.chooseLink(m, c)
	case ofParty:
		p.chooseParty(m, a, c)
	case ofSecret:
		c.add(p.quoted...)
		c.add(p.called("password", "passphrase", "pin", "as")...)
	default:
		p.chooseName(m, a, c)
	}
}

// fields are the paths of a field in a record, and in each record of a list.
func fields(names ...string) (out []string) {
	for _, n := range names {
		out = append(out, "/"+n, "/result/*/"+n)
	}
	return out
}

// chooseID: an id is opaque, so it comes from tools that are about the same things, or from the user.
func (p *plan) chooseID(m *permission, a *argument, c *choice) {
	about := slices.Clone(m.skill.nouns)
	if stem, ok := strings.CutSuffix(a.name, "_id"); ok {
		about = []string{noun(stem)}
	}
	for _, o := range p.others(m) {
		if o.skill.about(about...) {
			c.take(o.name, fields("id", "id_", a.name)...)
		}
	}
	c.add(p.quoted...)
	for _, n := range p.numbers {
		if a.number {
			c.literals = append(c.literals, number(n))
		} else {
			c.add(n)
		}
	}
}

// number is written as a number.
type number string

// MarshalJSON implements json.Marshaler.
func (n number) MarshalJSON() ([]byte, error) {
	return []byte(strings.TrimLeft(string(n[:len(n)-1]), "0") + string(n[len(n)-1:])), nil
}

var (
	answers = regexp.MustCompile(`(?i)\b(?:reply|respond|answer|sender|who (?:sent|wrote)|emails? (?:from|by|about|I (?:got|received)))\b`)
	back    = regexp.MustCompile(`(?i)\b(?:back|refund|return|reimburse|repay)\b|\bsent me\b`)
)

// chooseEmail: what the user wrote, contacts, and who takes part in events where the tool is about events.
func (p *plan) chooseEmail(m *permission, a *argument, c *choice) {
	c.add(p.emails...)
	if len(p.emails) == 0 {
		c.add(p.harmless()...)
	}
	for _, o := range p.others(m) {
		s := o.skill
		switch {
		case s.acts && !s.about("event"):
		case s.about("contact"):
			c.take(o.name, fields("email", "email_address", "address")...)
		case s.about("event") && (m.skill.about("event") || p.nouns["participant"]):
			c.take(o.name, "/participants/*", "/result/*/participants/*", "/attendees/*", "/result/*/attendees/*")
		case s.about("email") && (answers.MatchString(p.text) || p.nouns["email"] && m.skill.about("event")):
			c.take(o.name, fields("sender", "from")...)
		case s.takes(ofLink) && !strings.HasSuffix(o.name, "-found") && len(p.links) > 0:
			c.take(o.name, "email:/result")
		case s.about("file") && mentioned.MatchString(p.text):
			c.take(o.name, "words:/content", "words:/result/*/content", "words:/result")
		case s.about("user", "profile"):
			c.take(o.name, fields("email", "email_address")...)
		}
	}
}

// harmless are addresses that agents make up for people whom the user named: at a site of which the user says that it is theirs, and
// at a domain that reaches nobody (RFC 2606).
func (p *plan) harmless() (out []string) {
	hosts := []string{"example.com"}
	for _, l := range p.links {
		l = strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(l, "https://"), "http://"), "www.")
		hosts = append(hosts, strings.FieldsFunc(l, func(r rune) bool { return strings.ContainsRune("/?#:", r) })[0])
	}
	for _, n := range p.names {
		if n = strings.ToLower(n); !plainName.MatchString(n) {
			continue
		}
		for _, h := range hosts {
			out = append(out, n+"@"+h)
		}
	}
	return out
}

var plainName = regexp.MustCompile(`^[a-z]+$`)

// chooseAccount: what the user wrote, whom the user paid before, who paid where something goes back, and a bill that is to be paid.
func (p *plan) chooseAccount(m *permission, a *argument, c *choice) {
	c.add(p.accounts...)
	for _, o := range p.others(m) {
		s := o.skill
		switch {
		case s.acts:
		case s.about("money"):
			c.take(o.name, fields(a.name, "recipient", "iban", "account")...)
			if back.MatchString(p.text) {
				c.take(o.name, fields("sender")...)
			}
		case s.about("file") && (p.nouns["file"] || p.nouns["money"]):
			c.take(o.name, "account:/result", "account:/content", "account:/result/*/content")
		}
	}
}

// chooseLink: what the user wrote; and where a tool reads, what stands alone in messages that the user speaks of.
func (p *plan) chooseLink(m *permission, c *choice) {
	if !strings.HasSuffix(m.name, "-found") {
		for _, l := range p.links {
			bare := strings.TrimSuffix(l, "/")
			if i := strings.Index(bare, "://"); i >= 0 {
				bare = bare[i+3:]
			}
			for _, scheme := range []string{"", "http://", "https://"} {
				c.add(scheme+bare, scheme+bare+"/")
			}
		}
		return
	}
	for _, o := range p.others(m) {
		s := o.skill
		if s.acts || s.takes(ofLink) || !s.about("message", "email", "file") || !p.speaksOf(s) {
			continue
		}
		c.take(o.name, "url:/result/*/body", "url:/result/*/content", "url:/result/*/text", "url:/result", "url:/content")
	}
}

// speaksOf reports whether the user mentions what a tool reads, or what is found by it.
func (p *plan) speaksOf(s *skill) bool {
	return p.delegates || p.nouns["web"] || slices.ContainsFunc(s.nouns, func(n string) bool { return p.nouns[n] })
}

// chooseParty: whom the user named, also by way of a document; those whom a tool lists only where the user describes them.
func (p *plan) chooseParty(m *permission, a *argument, c *choice) {
	p.order(m, c)
	nouns := []string{noun(a.name)}
	if !slices.Contains([]string{"channel", "group", "team"}, nouns[0]) {
		nouns = append(nouns, "user", "contact")
	}
	for _, s := range slices.Concat(p.quoted, p.emails, p.names, p.called(nouns...)) {
		c.add(s, strings.ToLower(s))
	}
	if len(c.literals) > 0 && !p.describes(nouns...) && !p.delegates {
		return
	}
	for _, o := range p.others(m) {
		for _, n := range nouns {
			if o.skill.lists(n) {
				c.take(o.name, append(fields("name", "username", "handle", a.name), "/result/*")...)
			}
		}
	}
}

// order takes the words of a document that the user named and whose tasks are to be done: it is itself the order.
func (p *plan) order(m *permission, c *choice) {
	if !p.delegates {
		return
	}
	for _, o := range p.others(m) {
		switch s := o.skill; {
		case s.acts:
		case s.takes(ofLink) && !strings.HasSuffix(o.name, "-found") && len(p.links) > 0, s.about("file") && len(p.files) > 0:
			c.take(o.name, "words:/result", "words:/content")
		}
	}
}

// chooseName: what the user wrote, what tools list under that noun, what the field is now, and a document that is to be used.
func (p *plan) chooseName(m *permission, a *argument, c *choice) {
	for _, s := range slices.Concat(p.quoted, p.files, p.names, p.called(noun(a.name))) {
		c.add(s)
	}
	for _, o := range p.others(m) {
		s := o.skill
		if s.acts {
			continue
		}
		if s.about(m.skill.nouns...) {
			c.take(o.name, fields(a.name)...)
		}
		if !s.says() && slices.ContainsFunc(append(tokens(a.name), m.skill.nouns...), func(n string) bool { return s.about(noun(n)) }) {
			c.take(o.name, append(fields("name", "title"), "/result/*", "words:/result")...)
		}
		if p.document && s.about("file") {
			c.take(o.name, "words:/result", "words:/content", "words:/result/*/content")
		}
	}
}

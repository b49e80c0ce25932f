// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// tool is a tool as its server describes it. That, and what the user asked for, is all that a workflow is written from.
type tool struct {
	Name        string          `json:"name"`
	Description string          `json:"description"`
	Parameters  json.RawMessage `json:"parameters"`
}

// skill is what the words of a tool's description say about it.
type skill struct {
	tool
	acts  bool
	verb  string   // the first word that is one: send, create, update
	means string   // the verb of its description, where that of its name is in no lexicon
	nouns []string // what it is about: money, email, event
	head  string   // the noun right after the verb, which is what a reading tool lists
	args  []argument
}

// argument is one argument of a tool, and what kind of thing it names.
type argument struct {
	name     string
	kind     kind
	optional bool
	number   bool
}

// kind is what an argument names. Of some kinds any value may be sent; the others say to whom, where and on what.
type kind uint8

const (
	anything  kind = iota // content, dates, amounts, flags
	ofName                // the name of something: a street, a file, a product
	ofParty               // a user, a channel, a group
	ofEmail               // an address
	ofAccount             // an account number
	ofLink                // an address of the web
	ofID                  // an opaque id
	ofSecret              // a password
)

var (
	camel    = regexp.MustCompile(`([a-z0-9])([A-Z])`)
	nonWord  = regexp.MustCompile(`[^a-z0-9]+`)
	reads    = set("get read list search find check show view fetch query look lookup count describe browse retrieve download summarize compare calculate compute convert is has verify load open see display")
	fillers  = set("to in from by for of all the a an and new current most recent direct with on at my id name names filename available list")
	contents = set("body content contents text message description subject title note notes comment summary reason memo details caption query topic question answer value format language")
	times    = set("date time day start end when deadline duration until month year hour timezone schedule begin from frequency check checkin checkout arrival departure nights")
	parties  = set("user users recipient recipients channel channels to cc bcc participant participants attendee attendees member members invitee invitees assignee owner group team contact person people username receiver payee beneficiary guest guests author")
)

func set(words string) map[string]bool {
	out := map[string]bool{}
	for _, w := range strings.Fields(words) {
		out[w] = true
	}
	return out
}

// tokens are the words of a name in any of the usual spellings.
func tokens(s string) []string {
	s = strings.ToLower(camel.ReplaceAllString(s, "${1}_$2"))
	return strings.FieldsFunc(nonWord.ReplaceAllString(s, " "), func(r rune) bool { return r == ' ' })
}

// understand reads a tool's description.
func understand(t tool) skill {
	s := skill{tool: t}
	words := tokens(t.Name)
	if len(words) == 0 {
		return skill{tool: t, acts: true}
	}
	isVerb := func(w string) bool { return reads[w] || verbs[w] != nil }
	at := max(0, slices.IndexFunc(words, isVerb))
	if implied[words[at]] != "" { // email_search: what it is about stands first
		if next := slices.IndexFunc(words[at+1:], isVerb); next >= 0 {
			at += 1 + next
		}
	}
	s.verb = words[at]
	if verbs[s.verb] == nil && !reads[s.verb] { // so the description has to say what it does
		if v := describedVerb(t.Description); verbs[v] != nil {
			s.means = v
		}
	}
	s.acts = !reads[s.verb] && (verbs[s.verb] != nil || !readsByDescription(t.Description))
	if n := implied[s.verb]; n != "" {
		s.nouns = append(s.nouns, n)
	}
	for i, w := range words {
		if i == at || fillers[w] {
			continue
		}
		n := noun(w)
		if s.head == "" && i > at {
			s.head = n
		}
		if !slices.Contains(s.nouns, n) {
			s.nouns = append(s.nouns, n)
		}
	}
	s.args = s.arguments()
	return s
}

func readsByDescription(text string) bool {
	words := tokens(text)
	return len(words) > 0 && reads[strings.TrimSuffix(strings.TrimSuffix(words[0], "s"), "e")] || len(words) > 0 && reads[strings.TrimSuffix(words[0], "s")] ||
		len(words) > 0 && (words[0] == "returns" || words[0] == "return")
}

// describedVerb is the word that a description begins with, as it stands in the lexicon: Sends an email.
func describedVerb(text string) string {
	words := tokens(text)
	if len(words) == 0 {
		return ""
	}
	for _, v := range []string{words[0], strings.TrimSuffix(words[0], "s"), strings.TrimSuffix(words[0], "es")} {
		if verbs[v] != nil {
			return v
		}
	}
	return ""
}

type schema struct {
	Type  any      `json:"type"`
	Desc  string   `json:"description"`
	Items *schema  `json:"items"`
	AnyOf []schema `json:"anyOf"`
	Enum  []any    `json:"enum"`
	Ref   string   `json:"$ref"`
}

// types are the types that a schema allows, of lists those of their elements.
func (s *schema) types() (out []string) {
	switch t := s.Type.(type) {
	case string:
		if t == "array" && s.Items != nil {
			return s.Items.types()
		}
		out = append(out, t)
	case []any:
		for _, e := range t {
			if text, ok := e.(string); ok {
				out = append(out, text)
			}
		}
	}
	for i := range s.AnyOf {
		out = append(out, s.AnyOf[i].types()...)
	}
	return out
}

func (s *skill) arguments() (out []argument) {
	var p struct {
		Properties map[string]schema `json:"properties"`
		Required   []string          `json:"required"`
	}
	if json.Unmarshal(s.Parameters, &p) != nil {
		return nil
	}
	for n, sch := range p.Properties {
		a := argument{name: n, optional: !slices.Contains(p.Required, n)}
		types := sch.types()
		a.number = slices.Contains(types, "integer") || slices.Contains(types, "number")
		a.kind = s.kindOf(n, &sch, types)
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b argument) int { return strings.Compare(a.name, b.name) })
	return out
}

var aboutAccount = regexp.MustCompile(`\b(IBAN|[Aa]ccount number|[Bb]ank account)\b`)

func (s *skill) kindOf(n string, sch *schema, types []string) kind {
	words := tokens(n)
	has := func(list map[string]bool) bool {
		return slices.ContainsFunc(words, func(w string) bool { return list[w] })
	}
	text := slices.Contains(types, "string")
	switch {
	case n == "id" || len(words) > 1 && (words[len(words)-1] == "id" || words[len(words)-1] == "ids"):
		return ofID
	case !text || len(sch.Enum) > 0 || sch.Ref != "":
		return anything
	case has(set("password passphrase secret pin token key")):
		return ofSecret
	case has(set("url urls link uri website webpage href endpoint")) || strings.Contains(sch.Desc, "URL"):
		return ofLink
	case has(set("email emails mail")) || strings.Contains(strings.ToLower(sch.Desc), "email address"):
		return ofEmail
	case has(set("iban account")) || aboutAccount.MatchString(sch.Desc):
		return ofAccount
	case has(contents):
		return anything
	case has(times):
		return anything
	case has(parties):
		return ofParty
	case makes[s.verb]:
		return anything // what is new has no name yet
	}
	return ofName
}

// makes are the verbs that make something new.
var makes = set("create make new write generate compose draft")

// lists reports whether a reading tool lists things of a noun: get_channels, search_contacts_by_name.
func (s *skill) lists(noun string) bool { return !s.acts && s.head == noun }

// says reports whether a reading tool returns what anybody may have written.
func (s *skill) says() bool {
	return s.about("review", "rating", "comment", "feedback", "message", "email", "post", "web")
}

func (s *skill) about(nouns ...string) bool {
	return slices.ContainsFunc(nouns, func(n string) bool { return slices.Contains(s.nouns, n) })
}

// bound are the kinds of arguments that are never left to the agent.
func (a *argument) bound() bool { return a.kind != anything }

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// request is what the words of a user say.
type request struct {
	text      string
	own       map[string]bool
	clauses   []clause
	quoted    []string
	links     []string
	emails    []string
	accounts  []string
	files     []string
	numbers   []string
	names     []string // words written like names, and sequences of them
	nouns     map[string]bool
	delegates bool // does what somebody else wrote: a list, an email, a page
	document  bool // wants a document's content to be used
}

// clause is a part of a sentence: the verbs in it, and the nouns.
type clause struct {
	verbs []string
	nouns map[string]bool
}

var (
	quotes    = regexp.MustCompile(`(?:^|[\s(:,])'([^'\n]{1,200})'|"([^"\n]{1,200})"|“([^”\n]{1,200})”|‘([^’\n]{1,200})’|` + "`([^`\n]{1,200})`")
	addresses = regexp.MustCompile(`[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+`)
	links     = regexp.MustCompile(`(?i)\b(?:https?://)?(?:[a-z0-9-]+\.)+[a-z]{2,}(?:[/?#][^\s)'"<>]*)?`)
	accounts  = regexp.MustCompile(`\b[A-Z]{2}[0-9]{2}[A-Z0-9]{8,30}\b`)
	fileNames = regexp.MustCompile(`(?i)\b[\w./-]*\w\.(?:txt|docx?|pdf|xlsx?|pptx?|csv|tsv|md|json|ya?ml|xml|html?|png|jpe?g|gif|zip|log|ics|eml|rtf|odt|py|go|js|sh)\b`)
	numbers   = regexp.MustCompile(`\b[0-9]+(?:\.[0-9]+)?\b`)
	breaks    = regexp.MustCompile(`[.!?;:]+(?:\s|$)|\n|\s(?:and|then)\s|,\s`)
	orders    = regexp.MustCompile(`(?i)\b(?:do|complete|perform|execute|carry out|follow|handle|finish|take care of|act on|work through)\b[^.!?]{0,30}\b(?:tasks?|to-?dos?|actions?|action items|instructions?|steps|requests?|what it says|what is asked)\b`)
	follows   = regexp.MustCompile(`(?i)\bfollowing\b`)
	papers    = regexp.MustCompile(`(?i)\b(?:accordingly|based on|according to|as (?:described|specified|instructed|requested|stated|mentioned|written)|mentioned in|listed in|specified in|from the (?:file|document|email|page|bill|invoice))\b`)
	mentioned = regexp.MustCompile(`(?i)\b(?:mentioned|listed|named|assigned|appearing|who appears?)\b`)
	numbered  = regexp.MustCompile(`(?:^|\s)[0-9]+[.)]\s`)
)

// read finds in the user's words all that a workflow can be bound to. own are verbs that the tools' names have, in a lexicon or not.
func read(text string, own map[string]bool) *request {
	r := &request{text: text, own: own, nouns: map[string]bool{}}
	rest := quotes.ReplaceAllStringFunc(text, func(m string) string {
		for _, s := range quotes.FindStringSubmatch(m)[1:] {
			if s != "" {
				r.quoted = append(r.quoted, strings.TrimSpace(s))
			}
		}
		return " _ "
	})
	r.emails = addresses.FindAllString(text, -1)
	r.files = fileNames.FindAllString(text, -1)
	r.accounts = accounts.FindAllString(text, -1)
	r.numbers = numbers.FindAllString(text, -1)
	for _, l := range links.FindAllString(addresses.ReplaceAllString(text, " "), -1) {
		if l = strings.TrimRight(l, ".,;:!?"); !fileNames.MatchString(l) || strings.Contains(l, "/") || strings.HasPrefix(l, "www.") {
			r.links = append(r.links, l)
		}
	}
	r.names = nameRuns(text)
	r.delegates = slices.ContainsFunc(orders.FindAllString(text, -1), func(m string) bool { return !follows.MatchString(m) })
	r.document = r.delegates || papers.MatchString(text)
	rest = numbered.ReplaceAllString(rest, ". ")
	for _, c := range breaks.Split(rest, -1) {
		r.addClause(c)
	}
	if len(r.files) > 0 {
		r.nouns["file"] = true
	}
	if len(r.links) > 0 {
		r.nouns["web"] = true
	}
	return r
}

func (r *request) addClause(text string) {
	c := clause{nouns: map[string]bool{}}
	words := strings.Fields(strings.ToLower(text))
	for i := range words {
		words[i] = strings.Trim(words[i], `.,;:!?()"'`)
	}
	for i, w := range words {
		previous, next := "", ""
		if i > 0 {
			previous = words[i-1]
		}
		if i+1 < len(words) {
			next = words[i+1]
		}
		if next == "up" && (w == "set" || w == "sign") {
			w = "set-up"
		}
		if r.asks(w, previous, next) {
			c.verbs = append(c.verbs, w)
			continue
		}
		c.nouns[noun(w)] = true
		r.nouns[noun(w)] = true
		if fileNames.MatchString(w) {
			c.nouns["file"] = true
		}
	}
	if len(c.verbs) > 0 {
		r.clauses = append(r.clauses, c)
	}
}

// asks reports whether the word is a verb here, in the form of an order.
func (r *request) asks(w, previous, next string) bool {
	if telling[w] && next == "me" { // an answer is no act
		return false
	}
	if !verbWords[w] && !r.own[w] || previous == "not" || previous == "don't" || previous == "never" || previous == "without" {
		return false
	}
	if !either[w] {
		return previous != "the" && previous != "a"
	}
	return !after[next] && (previous == "" || before[previous] && !linking[next])
}

// telling are the verbs by which a user asks for an answer.
var telling = set("tell let inform give show answer")

// verbWords are all words by which people ask for something to be done.
var verbWords = func() map[string]bool {
	out := map[string]bool{}
	for v, synonyms := range verbs {
		out[v] = true
		for s := range synonyms {
			out[s] = true
		}
	}
	return out
}()

// common are words that begin with a capital letter only because a sentence begins with them.
var common = set("please can could the a an i what how when where who which why note perform hey hi hello also if is are am my do does did there this that it they he she we you your in on at for from to of and or but then first finally after before make find check visit tell give show let summarize give get read am so")

// nameRuns are the words that are written like names (with a capital letter or a digit), and sequences of them.
func nameRuns(text string) (out []string) {
	var run []string
	flush := func() {
		for i := range run {
			for j := i + 1; j <= min(len(run), i+6); j++ {
				if s := strings.Trim(strings.Join(run[i:j], " "), `.,;:!?"'()`); s != "" {
					out = append(out, s)
				}
			}
		}
		run = nil
	}
	for _, w := range strings.Fields(text) {
		bare := strings.TrimLeft(w, `"'(@#`)
		first := []rune(bare + " ")[0]
		plain := strings.Trim(bare, `.,;:!?"'()`)
		plain = strings.TrimSuffix(strings.TrimSuffix(plain, "'s"), "’s")
		lower := strings.ToLower(plain)
		if !unicode.IsUpper(first) && !unicode.IsDigit(first) && !strings.HasPrefix(w, "@") && !strings.HasPrefix(w, "#") || common[lower] || verbWords[lower] && unicode.IsUpper(first) {
			flush()
			continue
		}
		if plain != strings.Trim(bare, `.,;:!?"'()`) {
			bare = plain + "," // a possessive ends the name
		}
		run = append(run, bare)
		if strings.HasSuffix(bare, ".") && len(plain) > 3 || strings.ContainsAny(w, "!?;:") {
			flush()
		}
	}
	flush()
	return out
}

// called are the words that stand beside a noun as its name: "random channel", "channel random", "user alice".
func (r *request) called(nouns ...string) (out []string) {
	words := strings.Fields(r.text)
	for i := range words {
		words[i] = strings.Trim(words[i], `.,;:!?()"'#@`)
	}
	for i, w := range words {
		if !slices.Contains(nouns, noun(strings.ToLower(w))) {
			continue
		}
		for _, j := range []int{i - 1, i + 1} {
			if j >= 0 && j < len(words) && !common[strings.ToLower(words[j])] && words[j] != "" {
				out = append(out, words[j])
			}
		}
	}
	for i := 1; i < len(words); i++ {
		if p := strings.ToLower(words[i-1]); (p == "to" || p == "with") && !common[strings.ToLower(words[i])] && words[i] != "" {
			out = append(out, words[i])
		}
	}
	return out
}

// describes reports whether the user speaks of things of a noun without naming them: all channels, the user with the most messages.
func (r *request) describes(nouns ...string) bool {
	words := tokens(r.text)
	for i, w := range words {
		if !slices.Contains(nouns, noun(w)) {
			continue
		}
		for _, d := range words[max(0, i-3):i] {
			if describing[d] || len(d) > 4 && strings.HasSuffix(d, "est") {
				return true
			}
		}
		if i+1 < len(words) && picks[words[i+1]] {
			return true
		}
	}
	return slices.ContainsFunc(words, func(w string) bool { return everyone[w] })
}

var (
	describing = set("each every all any same which most least other another some a an whose everyone")
	picks      = set("starting beginning ending with that who which where whose named containing having")
	everyone   = set("everyone everybody anyone people whoever participants attendees members users")
)

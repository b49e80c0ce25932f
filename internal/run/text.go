// SPDX-License-Identifier: Apache-2.0

package run

import (
	"regexp"
	"slices"
	"strings"
	"sync"

	"remit"
)

// maxRunWords is how many words of a text follow each other in one value.
const maxRunWords = 6

// forms are what a text is searched for. Where it holds two different ones, it holds none: who can only add to a text must not be
// able to replace what it says.
var forms = sync.OnceValue(func() map[string]*regexp.Regexp {
	return map[string]*regexp.Regexp{
		"url":     regexp.MustCompile(`(?i)\b(https?://[^\s'"<>()\[\]]+|www\.[^\s'"<>()\[\]]+)`),
		"email":   regexp.MustCompile(`[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+`),
		"account": regexp.MustCompile(`\b[A-Z]{2}[0-9]{2}[A-Z0-9]{8,30}\b`),
		// label is what stands before an account in a bill: one in the middle of a sentence is no field of it.
		"label": regexp.MustCompile(`(?im)^\W*(?:[a-z]+ ){0,2}(?:iban|account|payee|recipient|beneficiary)(?: (?:number|no\.?))?\s*[:=]\s*([A-Z]{2}[0-9]{2}[A-Z0-9]{8,30})\s*$`),
	}
})

// find returns the values of a form in each of the texts.
func find(form string, texts []remit.Value) (out []remit.Value) {
	for _, t := range texts {
		if t.Kind() != remit.String {
			continue
		}
		if form == "words" {
			out = append(out, words(t.Text())...)
			continue
		}
		re := forms()[form]
		if re == nil {
			return nil
		}
		var all []string
		for _, s := range re.FindAllString(t.Text(), -1) {
			all = append(all, strings.TrimRight(s, ".,;:!?"))
		}
		slices.Sort(all)
		//remit:guard S25 TestOneOfAForm
		if all = slices.Compact(all); len(all) > 1 {
			continue
		}
		//remit:guard S25 TestOneOfAForm
		if form == "account" && !forms()["label"].MatchString(t.Text()) {
			continue
		}
		for _, s := range all {
			out = append(out, spellings(form, s)...)
		}
	}
	return out
}

// spellings: an address of the web is written with and without its scheme and the slash at its end. One with https is never one with http.
func spellings(form, s string) (out []remit.Value) {
	if form != "url" {
		return []remit.Value{remit.StringValue(s)}
	}
	bare := strings.TrimSuffix(s, "/")
	prefixes := []string{"", "https://", "http://"}
	if scheme, rest, ok := strings.Cut(bare, "://"); ok {
		bare = rest
		//remit:guard S25 TestSchemeIsKept
		if strings.EqualFold(scheme, "https") {
			prefixes = prefixes[:2]
		}
	}
	for _, prefix := range prefixes {
		out = append(out, remit.StringValue(prefix+bare), remit.StringValue(prefix+bare+"/"))
	}
	return out
}

// words are the runs of up to maxRunWords words in each line of a text, without the punctuation at their ends.
func words(text string) (out []remit.Value) {
	for line := range strings.Lines(text) {
		list := strings.Fields(line)
		for i := range list {
			for j := i + 1; j <= min(len(list), i+maxRunWords); j++ {
				s := strings.Trim(strings.Join(list[i:j], " "), `.,;:!?'"()`)
				if s != "" {
					out = append(out, remit.StringValue(s))
				}
				if len(out) >= maxRunValues {
					return out
				}
			}
		}
	}
	return out
}

// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"remit"
)

// ruling is what the organisation's rules returned for one request; the zero ruling narrows nothing.
type ruling struct {
	denied, held []remit.Reason
	ttl          time.Duration // 0: nothing said
	rows         *int64        // nil: nothing said
	columns      []string      // nil: nothing said
	tier         string
	obligations  []string
	approvers    []string     // groups, of each of which a person has to agree to what is held
	asks         []remit.Need // see Judgement
}

// Rule results in numbers and texts have these bounds; the printed Rego has the same.
const (
	ttlPattern = `^([0-9]{1,6}[hms]){1,3}$`
	maxRows    = 1_000_000_000_000

	maxApprovers = 8 // groups
)

func (g *ruling) deny(r *rules, output, want, got string) {
	g.denied = append(g.denied, remit.Reason{Code: remit.ReasonRule, Of: r.of(output), Want: clip(want), Got: clip(got)})
}

// fault is a rule that did not work: a denial.
func fault(err error) ruling {
	return ruling{denied: []remit.Reason{{Code: remit.ReasonRule, Of: "rules.fault", Got: clip(err.Error())}}}
}

// convert reads the document that the rules evaluated to, as OPA returns it: maps, lists, strings, json.Number and bool. A
// name or type that is not in the contract is an error, and so a denial.
func convert(r *rules, document map[string]any) (ruling, error) {
	var g ruling
	for name, v := range document {
		var err error
		switch name {
		case "deny", "hold":
			var texts []string
			if texts, err = stringsOf(v); err == nil {
				g.say(r, name, texts)
			}
		case "ttl":
			g.ttl, err = durationOf(v)
		case "rows":
			g.rows, err = countOf(v)
		case "columns":
			if g.columns, err = stringsOf(v); len(g.columns) == 0 {
				g.columns = nil // a set to which no rule adds is empty: it says nothing
			}
		case "tier":
			g.tier, err = tierOf(v)
		case "obligations":
			g.obligations, err = stringsOf(v)
		case "approvers":
			if g.approvers, err = stringsOf(v); len(g.approvers) > maxApprovers {
				err = fmt.Errorf("names %d groups, more than %d", len(g.approvers), maxApprovers)
			}
		default:
			err = fmt.Errorf("is no output of a rule")
		}
		if err != nil {
			return ruling{}, fmt.Errorf("rule output %.40q: %w", name, err)
		}
	}
	return g, nil
}

func (g *ruling) say(r *rules, output string, texts []string) {
	for _, text := range texts {
		reason := remit.Reason{Code: remit.ReasonRule, Of: r.of(output), Got: clip(text)}
		if output == "deny" {
			g.denied = append(g.denied, reason)
		} else {
			g.held = append(g.held, reason)
		}
	}
}

func stringsOf(v any) ([]string, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("is a %T, not a set of strings", v)
	}
	out := make([]string, 0, len(list))
	for _, e := range list {
		s, ok := e.(string)
		if !ok {
			return nil, fmt.Errorf("holds a %T, not only strings", e)
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out, nil
}

// durationOf reads whole seconds, or a text such as "90s" or "1h30m".
func durationOf(v any) (time.Duration, error) {
	var d time.Duration
	switch t := v.(type) {
	case json.Number:
		n, err := wholeNumber(t)
		if err != nil || n > int64(maxTTL/time.Second) {
			return 0, fmt.Errorf("%.40s is no whole number of seconds up to %s", t, maxTTL)
		}
		d = time.Duration(n) * time.Second
	case string:
		if !regexp.MustCompile(ttlPattern).MatchString(t) {
			return 0, fmt.Errorf("%.40q is no duration in h, m and s", t)
		}
		d, _ = time.ParseDuration(t) // the pattern admits nothing that it refuses; its sums stay below 2^63
	default:
		return 0, fmt.Errorf("is a %T, not seconds or a duration", v)
	}
	if d <= 0 || d > maxTTL {
		return 0, fmt.Errorf("%s is outside 1s to %s", d, maxTTL)
	}
	return d, nil
}

func countOf(v any) (*int64, error) {
	number, ok := v.(json.Number)
	if !ok {
		return nil, fmt.Errorf("is a %T, not a number", v)
	}
	n, err := wholeNumber(number)
	if err != nil || n < 0 || n > maxRows {
		return nil, fmt.Errorf("%.40s is outside 0 to %d", number, maxRows)
	}
	return &n, nil
}

func wholeNumber(n json.Number) (int64, error) {
	v, err := remit.NumberValue(string(n)) // "5.0" and "5e0" are 5
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(v.Text(), 10, 64)
}

func tierOf(v any) (string, error) {
	s, ok := v.(string)
	if !ok || !slices.Contains(tiers(), s) {
		return "", fmt.Errorf("is not one of %v", tiers())
	}
	return s, nil
}

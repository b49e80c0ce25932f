// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"slices"
	"strings"
	"time"
)

// Verification is what trying a grant's limits showed (S21): a twin of equal scope was minted, acts inside and outside of that
// scope were tried with it without effect, and it was ended. It stands in the ledger.
type Verification struct {
	Grant  GrantID   `json:"grant"`
	Twin   GrantID   `json:"twin"`
	At     time.Time `json:"at"`
	Trials []Trial   `json:"trials"`
	// Holds is whether every forbidden act that could be tried was refused and a granted one passed.
	Holds bool `json:"holds"`
}

// Trial is one act that was tried, or could not be.
type Trial struct {
	Act     string       `json:"act"`
	Granted bool         `json:"granted,omitempty"` // the act lies inside the scope; without one that passes, refusals show nothing
	Outcome TrialOutcome `json:"outcome"`
	How     string       `json:"how,omitempty"`    // what kept it from having an effect
	Detail  string       `json:"detail,omitempty"` // the target's own words
}

// TrialOutcome is how a trial went.
type TrialOutcome string

// The outcomes. Anything that is neither a clear refusal nor a clear pass was not tried.
const (
	TrialRefused  TrialOutcome = "refused"
	TrialPassed   TrialOutcome = "passed"
	TrialNotTried TrialOutcome = "not tried"
)

// Wrong reports whether the trial shows that the scope does not hold.
func (t *Trial) Wrong() bool {
	return t.Granted && t.Outcome == TrialRefused || !t.Granted && t.Outcome == TrialPassed
}

// Conclude sets Holds from the trials.
func (v *Verification) Conclude() {
	v.Holds = false
	granted, refused := false, false
	for i := range v.Trials {
		t := &v.Trials[i]
		if t.Wrong() {
			return
		}
		granted = granted || t.Granted && t.Outcome == TrialPassed
		refused = refused || !t.Granted && t.Outcome == TrialRefused
	}
	v.Holds = granted && refused
}

// Shown returns the verification of g as people see it: trials name what a scope holds, and the target's words quote it, so
// of a sensitive scope neither is shown.
func (v Verification) Shown(g *Grant) Verification {
	if !g.Sensitive {
		return v
	}
	v.Trials = slices.Clone(v.Trials)
	for i := range v.Trials {
		t := &v.Trials[i]
		for _, text := range SealOf(g.Scope, true).Texts {
			t.Act = strings.ReplaceAll(t.Act, text, sensitiveText)
		}
		t.Detail = ""
	}
	return v
}

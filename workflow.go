// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"regexp"
	"time"
)

// Workflow is a declared plan: who may start it with which parameters, and what each stage may do.
type Workflow struct {
	Name       string
	Digest     Digest // of its canonical form; a run remembers it, and a changed one denies workflow_changed
	Parameters []Parameter
	Start      Start
	Stages     []Stage // in order; a run never goes back (S9)
}

// Parameter is a typed input of a run.
type Parameter struct {
	Name     string
	Type     string         // name | string | integer | number | boolean | image
	Pattern  *regexp.Regexp // anchored; nil: none
	Min, Max *Value         // numbers
	OneOf    []Value
	// Source says where the value comes from (S9): "" is the starting person or trigger; "ticket.customer" is a field of
	// evidence. Optional parameters do not exist: a workflow that may go without a value is two workflows.
	Source string
	// Sensitive values stand nowhere in clear: not in the ledger, its payloads or the stored state.
	Sensitive bool
}

// Start says who may start a run.
type Start struct {
	By      []Name
	Expires time.Duration // of the whole run
	Self    bool          // an identity of some `may` may also start it
	// Runs is how many runs one starter may start in an hour; Values how many distinct values of a parameter with a source
	// (customers, say) those may be about (S9).
	Runs, Values int
}

// Stage is one step of a workflow.
type Stage struct {
	Name    string
	Expires time.Duration // 0: the run's
	End     []Name        // who may leave it
	When    []ExitFact    // and what must be in the ledger before (S9)
	May     []Permission  // in file order: the first whose predicates hold wins
}

// ExitFact is something that must have happened in a run before a stage is left.
type ExitFact struct {
	Permission string
	Fact       string // FactAllowed, FactGranted or FactExecuted
}

// What can have happened under a permission: a decision allowed it, a credential was given for it, the target's audit log or an
// enforcement point reported an act that succeeded.
const (
	FactAllowed  = "allowed"
	FactGranted  = "granted"
	FactExecuted = "executed"
)

func (f ExitFact) String() string { return f.Permission + " " + f.Fact }

// Permission is one `may` entry.
type Permission struct {
	Name     string
	Who      Name
	Under    string // the permission of this stage inside whose decision the request must be made; empty: none
	Action   string // "kubernetes.apply"
	Target   string
	Where    map[string]Predicate // an argument that is not named must be absent
	Hours    *Hours
	Evidence []Requirement
	Limits   map[string]int64
	Sandbox  string // least tier; empty: none asked
	TTL      time.Duration
	// Sensitive are arguments whose values stand nowhere in clear, beside those that are bound to a sensitive parameter.
	Sensitive []string
	Line      string // FILE:LINE, for explanations
}

// Term is a literal or a reference that is resolved when a request is judged.
type Term struct {
	Value Value  // when Param and Call are empty
	Param string // $x: a run parameter
	Call  string // $call.x: an argument of the parent call
}

// PredicateKind tells the predicates apart.
type PredicateKind string

// The kinds. Each compares one argument; Absent is Null.
const (
	PredicateEqual   PredicateKind = "equal"   // equals Terms[0]
	PredicateSubset  PredicateKind = "subset"  // a list whose every element, or a scalar that, equals one of Terms
	PredicateRange   PredicateKind = "range"   // a number, Min <= x <= Max, either may be nil
	PredicatePattern PredicateKind = "pattern" // a string that matches Pattern as a whole
	PredicateAny     PredicateKind = "any"     // anything, also absent
	PredicateObject  PredicateKind = "object"  // an object whose fields hold Fields; an unnamed field must be absent
	PredicateFrom    PredicateKind = "from"    // a value that an earlier call of the run returned, or a list of such (S25)
	// PredicateChoice: a list whose every element, or a scalar that, equals one of Terms or came from one of Sources; nothing at
	// all, or an empty list, where Empty is true.
	PredicateChoice PredicateKind = "choice"
)

// Predicate is a condition on one argument.
type Predicate struct {
	Kind     PredicateKind
	Terms    []Term
	Min, Max *Value
	Above    *Value         // a number, Above < x; only in an approval's When
	Pattern  *regexp.Regexp // anchored by the parser: ^(?:…)$
	Fields   map[string]Predicate
	Source   // of a from
	Sources  []Source
	Empty    bool
}

// Source is where earlier calls of a run returned values.
type Source struct {
	From string // permission name
	// Path is a JSON pointer into the structured result, with * for any index. A word before it says how values are found:
	// "text:" leads into a text content that is a JSON document; "url:", "email:" and "account:" give the only value of that form in
	// the text which stands there, and nothing where it holds two; "words:" gives each run of up to six words of it.
	Path string
}

// Hours is a weekly window: Days[time.Weekday], minutes of the day in Zone, From inclusive and To exclusive; From > To
// spans midnight and belongs to the day it starts on.
type Hours struct {
	Days     [7]bool
	From, To int
	Zone     *time.Location
}

// Requirement is evidence that a permission needs, before its terms are resolved.
type Requirement struct {
	Kind     EvidenceKind
	Source   string
	ID       *Term           // scan or ticket id
	Of       *Term           // the image it must be about
	Worst    Severity        // the worst finding that still passes; SeverityUnset: no bound
	Within   time.Duration   // greatest age at the decision; 0: no bound
	Match    map[string]Term // further fields that must equal: repository, ref, state, version …
	Approval *ApprovalRequirement
}

// ApprovalRequirement is what a person must have agreed to.
type ApprovalRequirement struct {
	When   map[string]Predicate // on the arguments; empty: always
	Group  string
	People int
	By     string // "not-starter" or empty
	Within time.Duration
}

// Sources of approvals: the permission asks for them, or a rule of the organisation does.
const (
	SourceApproval = "approval"
	SourceRule     = "organisation_rule" // is no name that a source of evidence can have
)

// Need is a Requirement with its terms resolved for one request.
type Need struct {
	Kind   EvidenceKind      `json:"kind"`
	Source string            `json:"source"` // of approvals: SourceApproval, or SourceRule
	ID     string            `json:"id,omitempty"`
	Of     Image             `json:"-"` // zero: not about an image
	Worst  Severity          `json:"worst,omitempty"`
	Within time.Duration     `json:"within,omitempty"`
	Match  map[string]string `json:"match,omitempty"`
}

// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"strings"
	"time"
)

// Effect is the answer. The zero value denies.
type Effect uint8

// The effects.
const (
	Deny Effect = iota
	Allow
	Hold
)

func (e Effect) String() string { return [...]string{"deny", "allow", "hold"}[e] }

// MarshalText writes deny, allow or hold.
func (e Effect) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText reads what MarshalText wrote; anything else is Deny.
func (e *Effect) UnmarshalText(b []byte) error {
	*e = Deny
	switch string(b) {
	case "allow":
		*e = Allow
	case "hold":
		*e = Hold
	}
	return nil
}

// ReasonCode is one of a closed list; agents see it, so it tells nothing of others (S30).
type ReasonCode string

// The reasons. Each wrong kind of evidence has its own.
const (
	ReasonUnknownAgent     ReasonCode = "unknown_agent"
	ReasonSuspended        ReasonCode = "agent_suspended"
	ReasonThrottled        ReasonCode = "agent_throttled"     // it was given as much as it is given until it is reinstated
	ReasonHalted           ReasonCode = "installation_halted" // until an operator confirms (S13)
	ReasonNotEnrolled      ReasonCode = "not_enrolled"        // an enforcement point spoke for whom it may not (S6)
	ReasonAsserted         ReasonCode = "subject_asserted"    // the subject was named, not proven (S6)
	ReasonNoRun            ReasonCode = "run_missing"
	ReasonRunEnded         ReasonCode = "run_ended"
	ReasonRunToken         ReasonCode = "run_token_invalid" //nolint:gosec // a reason, not a credential
	ReasonRunMismatch      ReasonCode = "run_mismatch"      // a stated run or stage differs from the token's
	ReasonWorkflowChanged  ReasonCode = "workflow_changed"
	ReasonNoPermission     ReasonCode = "not_permitted" // no permission of the stage for this agent, action, target
	ReasonArgument         ReasonCode = "argument_mismatch"
	ReasonHours            ReasonCode = "outside_hours"
	ReasonUnder            ReasonCode = "not_inside_call"
	ReasonEvidenceMissing  ReasonCode = "evidence_missing"
	ReasonEvidenceInvalid  ReasonCode = "evidence_invalid" // signature or structure
	ReasonEvidenceSigner   ReasonCode = "evidence_signer"  // a signer that the source does not list
	ReasonEvidenceSubject  ReasonCode = "evidence_subject" // about another image
	ReasonEvidenceStale    ReasonCode = "evidence_stale"
	ReasonEvidenceSeverity ReasonCode = "evidence_severity"
	ReasonEvidenceField    ReasonCode = "evidence_field" // a field says something else: repository, ref, state
	ReasonSuperseded       ReasonCode = "evidence_superseded"
	ReasonEvidenceSource   ReasonCode = "evidence_unavailable" // the source did not answer in time
	ReasonApproval         ReasonCode = "approval_needed"
	ReasonHoldExpired      ReasonCode = "hold_expired" // nobody answered in time
	ReasonApprovalDenied   ReasonCode = "approval_denied"
	ReasonRule             ReasonCode = "organisation_rule"
	ReasonObligation       ReasonCode = "obligation_unknown" // the enforcement point does not know what it would have to see to
	ReasonLevel            ReasonCode = "attestation_level"
	ReasonConflict         ReasonCode = "state_changed" // S11
	ReasonTarget           ReasonCode = "target_unfit"  // the target cannot hold this grant now
	ReasonLimit            ReasonCode = "limit"
	ReasonFault            ReasonCode = "fault" // a fault of ours; fail closed
)

// OfStepUp stands in the reason of a hold that no permission and no rule asks for, but the agent's posture.
const OfStepUp = "findings.step_up"

// What a ReasonRunToken is about, where the token is a good one in the wrong hands.
const (
	OfAgent  = "agent"  // it was given to another agent
	OfHolder = "holder" // it is the agent's, and bound to another workload
)

// Reason says why, and what would have to be true.
type Reason struct {
	Code ReasonCode `json:"code"`
	// Of names the part: "evidence.scan", "where.image", the rule. It is the agent's own request seen back.
	Of string `json:"of,omitempty"`
	// Want and Got are for people with a role and for `remit why`; enforcement points cut them for agents (S30).
	Want string `json:"want,omitempty"`
	Got  string `json:"got,omitempty"`
}

// PermissionRef names a permission.
type PermissionRef struct {
	Workflow string `json:"workflow"`
	Stage    string `json:"stage"`
	Name     string `json:"permission"`
}

// Match is the plan's answer before evidence: which permission holds and what it needs, or why none does.
type Match struct {
	Permission *Permission // nil: none
	Ref        PermissionRef
	Args       Args // the request's, with what Fill added
	From       []FromFact
	Needs      []Need
	Reasons    []Reason // when Permission is nil
	Policy     Digest   // of the revision that answered
	Epoch      uint64   // of the policy
}

// Found is what the evidence package found for one Need: the fact, or why there is none.
type Found struct {
	Need     Need
	Evidence *Evidence
	Reason   *Reason // set when Evidence is nil
}

// Lack is a need without a fact: its place among the decision's needs, and why there is none, as the source said (maybe nothing).
type Lack struct {
	Need   int          `json:"need"`
	Kind   EvidenceKind `json:"kind"`
	Reason Reason       `json:"reason"`
}

// Judgement is the plan's answer with evidence, after the organisation's rules narrowed it.
type Judgement struct {
	Effect      Effect
	Reasons     []Reason
	TTL         time.Duration
	Until       time.Time // when the answer stops being true by itself: the window closes, a fact gets too old; zero: never
	Limits      map[string]int64
	Obligations []string
	// Asks are the approvals that rules ask for and that were not among the needs. The answer is Hold; with what is found for them, too,
	// the same request is judged again.
	Asks []Need
}

// FromFact says that an argument's value is one that an earlier call of the run returned.
type FromFact struct {
	Permission string `json:"permission"` // of that call
	Path       string `json:"path"`       // where its result had the value
	Arg        string `json:"arg"`        // where the request has it: a JSON pointer into the arguments
}

// Decision is a recorded answer.
type Decision struct {
	ID         DecisionID       `json:"id"`
	At         time.Time        `json:"at"`
	Effect     Effect           `json:"effect"`
	Reasons    []Reason         `json:"reasons,omitempty"`
	Caller     string           `json:"caller"`
	Credential string           `json:"credential,omitempty"` // serial or jti of the caller's SVID
	Level      string           `json:"level,omitempty"`
	Agent      Name             `json:"agent"`
	Action     string           `json:"action"`
	Target     string           `json:"target"`
	Args       Args             `json:"args,omitempty"`
	Run        RunID            `json:"run,omitempty"`
	Under      DecisionID       `json:"under,omitempty"`
	Sandbox    Tier             `json:"sandbox,omitempty"` // the actual tier; see Request
	Permission PermissionRef    `json:"permission,omitzero"`
	From       []FromFact       `json:"from,omitempty"`   // which arguments earlier calls of the run returned (S25)
	Asked      string           `json:"asked,omitempty"`  // the permission's name as the caller stated it
	Params     map[string]Value `json:"params,omitempty"` // of the run, as they were: the decision can be judged again
	Evidence   []Evidence       `json:"evidence,omitempty"`
	Missing    []Found          `json:"-"`
	// AskedTTL, WorkflowDigest and Lacking, with the rest, are what judging the decision again needs. WorkflowDigest is the
	// run's: of the workflow as it was when the run started. Evidence and Lacking together are the needs, in order.
	AskedTTL       time.Duration    `json:"asked_ttl,omitempty"`
	WorkflowDigest Digest           `json:"workflow_digest,omitempty"`
	Lacking        []Lack           `json:"lacking,omitempty"`
	TTL            time.Duration    `json:"ttl,omitempty"`
	Until          time.Time        `json:"until,omitzero"` // of the judgement: no grant lives longer, whatever TTL says
	Limits         map[string]int64 `json:"limits,omitempty"`
	Obligations    []string         `json:"obligations,omitempty"`
	Policy         Digest           `json:"policy"`
	Via            string           `json:"via,omitempty"`
	Hold           HoldID           `json:"hold,omitempty"` // what waits for people, when it does
	Receipt        *Receipt         `json:"-"`
	// Folded: this is the answer to another request, which was denied the same a moment ago; what that one asked is not in it.
	Folded bool `json:"-"`
}

// Clip bounds a text that somebody else wrote and that stands in a reason or message, to at most so many bytes and an ellipsis. What is
// cut stays valid UTF-8.
func Clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

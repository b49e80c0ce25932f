// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"time"
)

// FindingID names one finding. It follows from the entry that completed it, so that folding the same ledger again finds the same.
type FindingID string

// NewFindingID is the id of what an entry of the ledger completed.
func NewFindingID(kind FindingKind, agent Name, target string, seq uint64) FindingID {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %d", kind, agent, target, seq))
	return FindingID("find-" + idEncoding.EncodeToString(sum[:16]))
}

// ParseFindingID parses what a caller wrote.
func ParseFindingID(s string) (FindingID, error) { return FindingID(s), parseID("find", s) }

// FindingKind is what is odd.
type FindingKind string

// The kinds.
const (
	FindingActWithoutGrant FindingKind = "act_without_grant"     // a target's audit log tells of an act that no live grant stands behind
	FindingCanary          FindingKind = "canary_touched"        // something that no honest work touches
	FindingStolenToken     FindingKind = "credential_of_another" // an agent shows a run token that was given to another one
	FindingOtherHolder     FindingKind = "credential_elsewhere"  // an agent's run token comes from another workload than it is bound to
	FindingOutsideWorkflow FindingKind = "tool_outside_workflow" // a target that no stage of the run's workflow has
	FindingDenialBurst     FindingKind = "denial_burst"
	FindingUnusual         FindingKind = "unusual_behaviour"      // by the agent's own baseline and its peers'
	FindingSecondOpinion   FindingKind = "second_opinion_differs" // S32
	FindingNoOpinion       FindingKind = "second_opinion_missing"
	FindingConfiguration   FindingKind = "configuration_refused" // S31
)

// FeatureName is one of the things by which behaviour is compared.
type FeatureName string

// The features.
const (
	FeatureAction FeatureName = "action"   // what is asked for at which target
	FeatureOrder  FeatureName = "order"    // after what
	FeatureValue  FeatureName = "argument" // who and where
	FeatureHour   FeatureName = "hour"     // of the day, at weekends and on other days
	FeatureSource FeatureName = "source"   // the workload that it came from, and the way
	FeatureRate   FeatureName = "rate"     // requests an hour
	FeatureFanOut FeatureName = "fan_out"  // different things of one kind in one run
	FeatureVolume FeatureName = "volume"   // rows or bytes of one act
)

// Feature is one thing that was unusual, and how much: natural logarithms of how seldom, beyond what honest work shows every day.
type Feature struct {
	Name  FeatureName `json:"name"`
	About string      `json:"about,omitempty"` // an action and target, the name of an argument, an hour: never a value
	Score float64     `json:"score"`
}

// Response is what is done about a finding by itself. The zero value only tells.
type Response uint8

// The responses, from the least.
const (
	RespondNotice   Response = iota // it is listed
	RespondStepUp                   // whatever the agent is given next, a person has to approve
	RespondThrottle                 // the agent is given little an hour
	RespondSuspend                  // all powers of the agent end
	RespondKill                     // and the processes that were launched with its identity
)

var responseNames = [...]string{"notice", "step-up", "throttle", "suspend", "kill"}

func (r Response) String() string { return responseNames[r] }

// MarshalText writes the name.
func (r Response) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the name.
func (r *Response) UnmarshalText(b []byte) error {
	for i, name := range responseNames {
		if string(b) == name {
			*r = Response(i)
			return nil
		}
	}
	return &Error{Code: CodeInvalid, Msg: strconv.Quote(Clip(string(b), 40)) + " is no response", Hint: "write notice, step-up, throttle, suspend or kill"}
}

// FindingState is where a finding stands.
type FindingState string

// The states.
const (
	FindingOpen   FindingState = "open"
	FindingClosed FindingState = "closed"
)

// Finding says what is odd about an agent, and which entries of the ledger say so. Behaviour makes one; a person closes it.
type Finding struct {
	ID       FindingID    `json:"id"`
	Kind     FindingKind  `json:"kind"`
	Severity Severity     `json:"severity"`
	Agent    Name         `json:"agent,omitempty"` // empty: nobody knows whose act it was
	Run      RunID        `json:"run,omitempty"`
	Target   string       `json:"target,omitempty"`
	At       time.Time    `json:"at"`              // of the newest of its events
	Events   []uint64     `json:"events"`          // numbers in the ledger; the first and the last ones, when they are many
	Text     string       `json:"text"`            // one sentence for people
	Score    float64      `json:"score,omitempty"` // of unusual behaviour; Limit is what the budget of false alarms allows
	Limit    float64      `json:"limit,omitempty"`
	Features []Feature    `json:"features,omitempty"` // what made the score, the most first
	Young    bool         `json:"young,omitempty"`    // the agent's baseline is too young to be acted on
	Response Response     `json:"response"`
	Held     string       `json:"held_back,omitempty"` // why less was done than the configuration says
	State    FindingState `json:"state"`
	Closed   time.Time    `json:"closed,omitzero"`
	ClosedBy string       `json:"closed_by,omitempty"`
	Why      string       `json:"why,omitempty"` // it was closed
}

// Seq is the entry that completed the finding.
func (f *Finding) Seq() uint64 { return f.Events[len(f.Events)-1] }

// FindingKey is moved by every change of a finding: requiring epoch 0 records it once.
func FindingKey(id FindingID) EpochKey { return EpochKey("finding/" + string(id)) }

// EpochKey returns FindingKey.
func (f Finding) EpochKey() EpochKey { return FindingKey(f.ID) }

// Followed is up to which entry a reader of the ledger acted on what it found.
type Followed struct {
	Name string `json:"name"`
	Seq  uint64 `json:"seq"`
}

// EpochKey makes a key of its own; nothing requires it.
func (f Followed) EpochKey() EpochKey { return EpochKey("followed/" + f.Name) }

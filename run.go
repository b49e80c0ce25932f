// SPDX-License-Identifier: Apache-2.0

package remit

import "time"

// RunState is where a run stands; the zero value is no state at all.
type RunState string

// The states. Only RunActive admits requests.
const (
	RunActive   RunState = "active"
	RunFinished RunState = "finished"
	RunExpired  RunState = "expired"
	RunFrozen   RunState = "frozen" // an agent of it is suspended (S23)
)

// Run is one execution of a workflow: server state, moved only by the run package's transitions.
type Run struct {
	ID           RunID             `json:"id"`
	Workflow     string            `json:"workflow"`
	Digest       Digest            `json:"digest"` // of the workflow as it was when the run started
	Params       map[string]Value  `json:"params"`
	Sources      map[string]string `json:"sources"`             // per parameter: who or what supplied it (S9)
	Sensitive    []string          `json:"sensitive,omitempty"` // parameters whose values are stored encrypted and shown to nobody
	Starter      Name              `json:"starter"`
	Stage        string            `json:"stage"`
	State        RunState          `json:"state"`
	Started      time.Time         `json:"started"`
	StageStarted time.Time         `json:"stage_started"`
	Expires      time.Time         `json:"expires"`
	StageExpires time.Time         `json:"stage_expires"` // never after Expires
	Epoch        uint64            `json:"epoch"`         // moves with every transition
}

// Live reports whether the run admits requests at t.
func (r *Run) Live(t time.Time) bool {
	return r.State == RunActive && t.Before(r.Expires) && t.Before(r.StageExpires)
}

// Over reports whether the run has ended: nothing leads out of that.
func (r *Run) Over() bool { return r.State != RunActive && r.State != RunFrozen }

// Holder is to whom a run token is bound (S10). Exactly one of Thumbprint and Launch is set.
type Holder struct {
	Agent      Name     `json:"agent"`
	Thumbprint string   `json:"x5t#S256,omitempty"`
	Launch     LaunchID `json:"launch,omitempty"`
}

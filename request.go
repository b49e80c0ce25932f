// SPDX-License-Identifier: Apache-2.0

package remit

import "time"

// Request is one ask with its full context. An enforcement point fills it from the exact message that it will act on;
// nothing in it is believed because the caller said so: Caller is verified, Run comes from a verified run token, and what
// Args claim is compared with the run's parameters and with verified evidence.
type Request struct {
	At         time.Time // the one time of this decision; set by the enforcement point when the message arrived
	Caller     Principal
	Agent      Name   // on whose behalf; resolved from Caller, or from a verified subject by an enforcement point
	Run        RunID  // from the run token; empty: no run, which no workflow permits
	Stage      string // what the caller believes; empty or equal to the run's, else denied
	Permission string // the permission's name, where the caller names one; it narrows the match, never widens it
	Action     string
	Target     string
	Args       Args
	Under      DecisionID    // the parent decision of a tool's inner request
	Sandbox    Tier          // in what the act runs: for mcp.* the called tool, else the caller; known to the server, never asked for
	TTL        time.Duration // asked; 0: the permission's
	Via        string        // the enforcement point: token, authzen, cli …
	Trace      string        // the caller's traceparent (W3C), for traces alone: it decides nothing and is not recorded
	Fill       bool          // arguments that are absent take the permission's only possible value; only with Permission
	// Keeps are the kinds of obligations, what stands before the =, or whole obligations, that the enforcement point carries out, and
	// limits.NAME for each limit that it holds the act to. One that is not among them denies.
	Keeps []string
	// Approved is set by the server alone, for a request that is decided again for a live grant: the approvals that its decision
	// used up count for it still.
	Approved []Evidence
	// Refused is set by an enforcement point that found a reason to deny on its own: a run token that is not the caller's,
	// a subject that it may not name. The line then decides nothing; it records the denial. Nothing but Deny can follow.
	Refused []Reason
}

// SPDX-License-Identifier: Apache-2.0

// Package api is the management API: its types, its errors and its Go client. The API is JSON over HTTP on the admin socket
// (S2); errors are {code, message, hint, id} of remit.Error. Lists take limit and after and answer next. The package starts
// no goroutine.
package api

import (
	"encoding/json"
	"time"

	"remit"
)

// List is one page. Next is what to pass as after for the next one; empty at the end.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// Status is what a running server says of itself.
type Status struct {
	Version     string       `json:"version"`
	TrustDomain string       `json:"trust_domain"`
	Revision    remit.Digest `json:"revision"`
	Started     time.Time    `json:"started"`
	HTTPS       string       `json:"https"`
	Workload    string       `json:"workload_socket"`
	LedgerSize  uint64       `json:"ledger_size"` // events on record
	Sequenced   uint64       `json:"sequenced"`   // of them in the log
	You         string       `json:"you"`
	Roles       []string     `json:"roles"`
	Expires     time.Time    `json:"session_expires,omitzero"` // of your login, if you came by one
}

// Session is one login of a person.
type Session struct {
	ID      remit.SessionID `json:"id"`
	Person  remit.Name      `json:"person"`
	Subject string          `json:"subject"` // at the identity provider
	Started time.Time       `json:"started"`
	Expires time.Time       `json:"expires"`
	Ended   time.Time       `json:"ended,omitzero"`
}

// StartRun starts a run.
type StartRun struct {
	Workflow string            `json:"workflow"`
	Params   map[string]string `json:"params"`
	// Evidence names, by kind (ticket, scan, provenance, ci), the evidence that parameters with a source are fields of, by its id;
	// not needed where the workflow itself says which.
	Evidence map[remit.EvidenceKind]string `json:"evidence,omitempty"`
}

// Started is a run that an agent started, with its run token if it acts in the first stage.
type Started struct {
	Run   remit.Run `json:"run"`
	Token *Token    `json:"run_token,omitempty"`
}

// AdvanceRun leaves the present stage; To, when stated, must be the stage that follows.
type AdvanceRun struct {
	To string `json:"to,omitempty"`
}

// TokenRequest asks for a run token bound to the certificate that an agent holds.
type TokenRequest struct {
	Agent      remit.Name `json:"agent"`
	Thumbprint string     `json:"x5t#S256"`
}

// Token is a run token. It is shown once.
type Token struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// Launch asks to start a process with an agent's identity (S4).
type Launch struct {
	Run   remit.RunID `json:"run"`
	Agent remit.Name  `json:"agent"`
	For   string      `json:"for"` // the permission it is launched for
	// Program and Args are for an agent whose launches are in a sandbox, which the server makes: the file of this host, and its arguments.
	Program string   `json:"program,omitempty"`
	Args    []string `json:"args,omitempty"`
}

// Launched is how the child is to be started: with this socket as its Workload API and, with SetUID, under UID.
type Launched struct {
	ID     remit.LaunchID `json:"id"`
	Socket string         `json:"socket"`
	Token  string         `json:"token"` // run token bound to the launch
	SetUID bool           `json:"set_uid"`
	UID    uint32         `json:"uid"`
	HTTPS  string         `json:"https"` // the server's URL
	// Client is what a client of the permission's target needs and is no secret: server, ca, namespace.
	Client map[string]string `json:"client,omitempty"`
	// Streams is the socket of the standard streams of an agent that the server starts in a sandbox, once the launcher connects. Then only
	// ID and Streams are set. What is written to it is the agent's input; what is read are frames. Empty: the launcher starts it.
	Streams string `json:"streams,omitempty"`
}

// Setup is what an administrator runs at a target.
type Setup struct {
	Text string `json:"text"`
}

// LaunchPID names the launched process, which waits: from here on its socket serves it, and nobody before. The server measures
// the file that the process holds open at FD and will execute (0: what it runs now); the agent's file lists the digests.
type LaunchPID struct {
	PID int `json:"pid"`
	FD  int `json:"fd"`
}

// Agent is a configured identity with its posture.
type Agent struct {
	Name      remit.Name `json:"name"`
	ID        string     `json:"id"`
	Owner     string     `json:"owner,omitempty"`
	Suspended bool       `json:"suspended"`
	StepUp    string     `json:"step_up,omitempty"` // the group that approves whatever it is given
	Throttled bool       `json:"throttled,omitempty"`
	Reason    string     `json:"reason,omitempty"`
	Live      int        `json:"live_grants"`
}

// Reasoned is a change that needs a reason: suspend, reinstate, revoke.
type Reasoned struct {
	Reason string `json:"reason"`
}

// Suspended is what suspending did and what is left.
type Suspended struct {
	Agent  Agent         `json:"agent"`
	Runs   []remit.RunID `json:"frozen_runs"`
	Ended  []remit.Grant `json:"ended_grants,omitempty"`
	Failed []string      `json:"failed,omitempty"` // what could not be ended yet; it is tried again every second
	MS     float64       `json:"ms"`               // until every target had confirmed
	Steps  []Step        `json:"steps"`            // what ended, and when
	// Remaining is what the agent can still do, because no suspension ends it.
	Remaining []Remaining `json:"remaining"`
}

// BlastRadius is what an agent could do, if somebody else had it now.
type BlastRadius struct {
	Agent     Agent       `json:"agent"`
	At        time.Time   `json:"at"`
	Grants    []HeldGrant `json:"live_grants"` // its own, and those of others in runs that it started or acts in
	Now       []Power     `json:"obtainable"`  // in the present stages of its live runs
	Later     []Power     `json:"reachable"`   // in stages that it can go on to, and in runs that it can start, by itself
	Starts    []string    `json:"may_start"`   // workflows
	Remaining []Remaining `json:"remaining,omitempty"`
}

// HeldGrant is a live grant, and how long it may be used at worst.
type HeldGrant struct {
	remit.Grant
	Minutes float64 `json:"minutes_left"`
}

// Power is what a stage lets an agent ask for, or a tool in the agent's call.
type Power struct {
	Workflow   string                 `json:"workflow"`
	Run        remit.RunID            `json:"run,omitempty"` // none: of a run that it could start
	Stage      string                 `json:"stage"`
	Permission string                 `json:"permission"`
	Who        remit.Name             `json:"who"`
	Through    string                 `json:"through,omitempty"` // the call of the agent's inside which the tool may
	Action     string                 `json:"action"`
	Target     string                 `json:"target"`
	Where      map[string]string      `json:"where,omitempty"`
	Params     map[string]remit.Value `json:"params,omitempty"` // of the run
	Limits     map[string]int64       `json:"limits,omitempty"`
	Needs      []string               `json:"needs,omitempty"` // evidence that it would have to have
	Hours      bool                   `json:"only_in_hours,omitempty"`
	Minutes    float64                `json:"minutes,omitempty"` // that a grant would last; absent: the default
	Until      time.Time              `json:"until,omitzero"`    // when the stage or run ends, and with it all of this; none: of a run that it could start
}

// Step is one part of a suspension and how long after its beginning it was done.
type Step struct {
	What string  `json:"what"`
	MS   float64 `json:"ms"`
}

// Remaining is a power that outlives a suspension.
type Remaining struct {
	What  string    `json:"what"`
	Where string    `json:"where"`
	Until time.Time `json:"until,omitzero"` // at worst; absent: nobody here knows
	Why   string    `json:"why"`
}

// Approval is a held request as people see it: what is asked first, as typed values with what the workflow says of each, then how it
// differs from the last one that was approved, what is proven, what it is bounded to, and who is asked.
type Approval struct {
	ID       remit.HoldID    `json:"id"`
	State    remit.HeldState `json:"state"`
	Asked    time.Time       `json:"asked"`
	Until    time.Time       `json:"until"`           // to answer; of what is approved: to use it
	Seconds  int64           `json:"seconds_left"`    // until then
	Decision string          `json:"decision"`        // the first that was held
	Used     string          `json:"used,omitempty"`  // the decision that used it up
	Owner    string          `json:"owner,omitempty"` // of the agent
	Agent    remit.Name      `json:"agent"`
	Action   string          `json:"action"`
	Target   string          `json:"target"`
	Workflow string          `json:"workflow"`
	Stage    string          `json:"stage"`
	For      string          `json:"permission"`
	Line     string          `json:"line,omitempty"` // FILE:LINE of the permission
	Run      remit.RunID     `json:"run"`
	Starter  remit.Name      `json:"starter"`
	Level    string          `json:"level,omitempty"` // how well the caller is attested

	Args     []AskedValue     `json:"args"`
	Params   []AskedValue     `json:"params,omitempty"` // of the run
	Last     *LastApproved    `json:"last,omitempty"`   // the last of this permission that was approved
	Evidence []string         `json:"evidence,omitempty"`
	Would    *WouldAllow      `json:"would_allow,omitempty"` // absent: it cannot be approved or used any more
	People   []AskedPeople    `json:"people"`
	Answers  []ApprovalAnswer `json:"answers,omitempty"`
	You      string           `json:"you,omitempty"` // why you cannot approve it; empty: you can
}

// WouldAllow is what the agent would be given, if everybody who is asked approved now and it asked again at once. It gives nothing.
type WouldAllow struct {
	Not         string           `json:"not,omitempty"`         // why nothing would be, as things stand; the rest is empty then
	Seconds     int64            `json:"ttl_seconds,omitempty"` // that it lasts at most, from when it is given
	Until       time.Time        `json:"until,omitzero"`        // and never longer: the run, stage, window, a fact or the approval ends
	Limits      map[string]int64 `json:"limits,omitempty"`
	Obligations []string         `json:"obligations,omitempty"`        // masks, redactions and what else the enforcement point sees to
	Tier        string           `json:"tier,omitempty"`               // the least sandbox
	Credential  bool             `json:"credential"`                   // the agent would hold one; else it is a decision only
	Bounds      []string         `json:"bounds,omitempty"`             // what the target holds the credential to
	NotBounded  []string         `json:"not_bounded,omitempty"`        // what it does not hold it to
	WorstCase   int64            `json:"worst_case_seconds,omitempty"` // how long it can live after its end, when the target cannot be reached
	Hidden      bool             `json:"hidden,omitempty"`             // the bounds hold sensitive values
}

// Answered is a person's answer. The reason stands in the ledger, sealed.
type Answered struct {
	Reason string `json:"reason,omitempty"`
}

// AskedValue is one value of what is asked.
type AskedValue struct {
	Name     string `json:"name"`
	Kind     string `json:"kind"`               // string, number, …
	Value    string `json:"value"`              // as JSON, with everything escaped that does not print
	Declared string `json:"declared,omitempty"` // what the permission lets it be; of a parameter, where its value comes from
	Last     string `json:"last,omitempty"`     // the value of the last one that was approved, when it was another
	Length   int    `json:"length,omitempty"`   // in bytes, when Value is cut
}

// LastApproved names it.
type LastApproved struct {
	ID   remit.HoldID `json:"id"`
	At   time.Time    `json:"at"`
	Same bool         `json:"same_arguments"`
}

// AskedPeople is who has to approve.
type AskedPeople struct {
	Group   string `json:"group"`
	People  int    `json:"people"`
	Missing int    `json:"missing"`
}

// ApprovalAnswer is what a person said.
type ApprovalAnswer struct {
	Person  remit.Name `json:"person"`
	Approve bool       `json:"approve"`
	At      time.Time  `json:"at"`
	Reason  string     `json:"reason,omitempty"`
}

// AddEvidence stores a signed statement.
type AddEvidence struct {
	Source   string          `json:"source"`
	Envelope json.RawMessage `json:"envelope"` // DSSE
}

// Compare asks what files would change, if they were applied.
type Compare struct {
	Files  map[string][]byte `json:"files"`
	Bundle []byte            `json:"bundle,omitempty"`
}

// Applied is the outcome of an apply.
type Applied struct {
	Revision remit.Digest `json:"revision"`
	Previous remit.Digest `json:"previous"`
	DryRun   bool         `json:"dry_run"`
	Changed  []string     `json:"changed_files,omitempty"`
	Ended    int          `json:"ended_grants"`       // of removed agents and targets, and what is not allowed any more
	Unpinned []remit.Name `json:"unpinned,omitempty"` // tools whose descriptions nobody reviewed, and of which nothing was read yet

	Version uint64               `json:"version,omitempty"` // of the signed bundle; none: unsigned
	Signers []string             `json:"signers,omitempty"`
	Ceiling remit.Digest         `json:"ceiling,omitempty"`
	Changes []remit.PolicyChange `json:"changes"`           // by meaning
	Refused string               `json:"refused,omitempty"` // dry run: why its signatures are not enough

	Warnings []string `json:"warnings,omitempty"` // what is in order and will not work as the server is set up
}

// Entry is a ledger entry.
type Entry struct {
	Seq   uint64          `json:"seq"`
	Event json.RawMessage `json:"event"` // with its values in their places
	// Erased and Sensitive are the places of values that are not there, or not for showing.
	Erased    []string `json:"erased,omitempty"`
	Sensitive []string `json:"sensitive,omitempty"`
	// Leaf is the entry as the log holds it, and Disclosures prove the values shown against it; only for one entry.
	Leaf        json.RawMessage `json:"leaf,omitempty"`
	Disclosures []string        `json:"disclosures,omitempty"`
}

// Grant is a grant with what is known of the acts under it (S37).
type Grant struct {
	remit.Grant
	// Observation is observed, reported or unobservable: how acts under it come to be known.
	Observation string  `json:"acts_are"`
	Acts        []Entry `json:"acts,omitempty"`
	Gaps        []Entry `json:"audit_gaps,omitempty"` // times of which the target's audit log may be lost
}

// Erase names what is to be forgotten: exactly one of Run, Entry and Value.
type Erase struct {
	Run    remit.RunID `json:"run,omitempty"`
	Entry  uint64      `json:"entry,omitempty"`
	Value  string      `json:"value,omitempty"` // a text or number, as a whole word
	Reason string      `json:"reason"`
}

// Erased is what was forgotten.
type Erased struct {
	Entries int           `json:"entries"`
	Runs    []remit.RunID `json:"runs,omitempty"` // whose parameters and scopes were erased, too
}

// CheckValue asks whether an entry commits to a value in a place such as args.customer_id.
type CheckValue struct {
	Path  string `json:"path"`
	Value string `json:"value"`
}

// Checked is the answer; the disclosure proves it offline.
type Checked struct {
	Matches    bool   `json:"matches"`
	Disclosure string `json:"disclosure,omitempty"`
}

// Why explains a decision. Text is for people; Explanation is the same as data.
type Why struct {
	Decision    json.RawMessage `json:"decision"`
	Explanation json.RawMessage `json:"explanation"`
	Text        string          `json:"text"`
	// Input is the document under which the exported policy gives this decision's answer: opa eval --input.
	Input json.RawMessage `json:"input,omitempty"`
	Grant *remit.Grant    `json:"grant,omitempty"`
	Acts  []Entry         `json:"acts,omitempty"`
	// Observation says how acts under the grant come to be known, and Gaps when they may not have.
	Observation string  `json:"acts_are,omitempty"`
	Gaps        []Entry `json:"audit_gaps,omitempty"`
	// Erased and Sensitive are the places of values that are not there, or not for showing.
	Erased    []string `json:"erased,omitempty"`
	Sensitive []string `json:"sensitive,omitempty"`
}

// Check is one line of doctor.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Warn bool   `json:"warn,omitempty"` // works, but is worth less than it could be
	Text string `json:"text"`
	Fix  string `json:"fix,omitempty"`
}

// Workflow is a loaded workflow in short.
type Workflow struct {
	Name       string       `json:"name"`
	Digest     remit.Digest `json:"digest"`
	Parameters []string     `json:"parameters"`
	Stages     []Stage      `json:"stages"`
}

// Stage is a stage in short.
type Stage struct {
	Name string   `json:"name"`
	May  []string `json:"may"` // "NAME: WHO ACTION TARGET"
}

// Tool is a configured tool and what its server would run in.
type Tool struct {
	Name      remit.Name   `json:"name"`
	ID        string       `json:"id"`
	Owner     string       `json:"owner,omitempty"`
	Suspended bool         `json:"suspended,omitempty"`
	Pinned    bool         `json:"pinned"` // its descriptions were reviewed
	Asked     remit.Tier   `json:"asked,omitempty"`
	Tier      remit.Tier   `json:"tier,omitempty"` // what it would get on this host now; only of one tool
	Driver    string       `json:"driver,omitempty"`
	Command   []string     `json:"command,omitempty"`
	Files     string       `json:"files,omitempty"`
	Digest    remit.Digest `json:"digest,omitempty"` // of its files, as reviewed
	URL       string       `json:"url,omitempty"`
	Sandboxes int          `json:"sandboxes"` // that it has now
	Problems  []string     `json:"problems,omitempty"`
}

// Sandbox is what a tool runs in, or ran in.
type Sandbox struct {
	ID       remit.SandboxID  `json:"id"`
	Tool     remit.Name       `json:"tool"`
	Run      remit.RunID      `json:"run"`
	Stage    string           `json:"stage"`
	Tier     remit.Tier       `json:"tier"`
	Driver   string           `json:"driver"`
	Program  string           `json:"program"`
	Files    remit.Digest     `json:"files,omitempty"`
	Warm     bool             `json:"warm,omitempty"` // it was prepared before it was claimed
	Launch   remit.LaunchID   `json:"launch"`         // what its identity is bound to
	Started  time.Time        `json:"started"`
	Calls    uint64           `json:"calls"`
	Call     remit.DecisionID `json:"call,omitempty"` // that it serves now
	Ended    time.Time        `json:"ended,omitzero"`
	Cause    string           `json:"cause,omitempty"` // what ended it: exited, timeout, oom, pids, output, policy, killed, crash
	Code     int              `json:"code,omitempty"`
	Detail   string           `json:"detail,omitempty"`
	Why      string           `json:"why,omitempty"` // why Remit ended it
	Usage    json.RawMessage  `json:"usage,omitempty"`
	Activity json.RawMessage  `json:"activity,omitempty"` // what it executed, opened and connected to
}

// ToolReview is what a tool's MCP server says of its tools now, beside what was reviewed.
type ToolReview struct {
	Tool   remit.Name     `json:"tool"`
	Pinned bool           `json:"pinned"` // whether its file names pins at all
	Tools  []ReviewedTool `json:"tools"`
}

// ReviewedTool is one of them.
type ReviewedTool struct {
	Name   string          `json:"name"`
	State  string          `json:"state"`
	Digest remit.Digest    `json:"digest,omitempty"` // as it is now
	Now    json.RawMessage `json:"now,omitempty"`
	Pinned json.RawMessage `json:"pinned,omitempty"` // where it differs
}

// The states. All but reviewed and seen are held.
const (
	ToolReviewed = "reviewed"
	ToolSeen     = "seen" // as it was first read; nobody need have read it
	ToolNew      = "new"
	ToolChanged  = "changed"
	ToolGone     = "gone"
)

// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"crypto/sha256"
	"strconv"
	"time"
)

// EventKind is what happened.
type EventKind string

// The kinds.
const (
	EventRunStarted     EventKind = "run.started"
	EventRunStage       EventKind = "run.stage"
	EventRunEnded       EventKind = "run.ended"
	EventDecision       EventKind = "decision"
	EventFolded         EventKind = "decision.folded" // how many more denials were answered with recorded ones (S35)
	EventGrant          EventKind = "grant"           // issued, pending
	EventVerified       EventKind = "grant.verified"  // its limits were tried with a twin
	EventLeaseActive    EventKind = "lease.active"
	EventLeaseFailed    EventKind = "lease.failed"
	EventLeaseRevoking  EventKind = "lease.revoking"
	EventLeaseEnded     EventKind = "lease.ended"
	EventAction         EventKind = "action" // an executed act, joined to its lease
	EventSuspended      EventKind = "agent.suspended"
	EventReinstated     EventKind = "agent.reinstated"
	EventClockJumped    EventKind = "clock.jumped" // nothing is granted until it is confirmed (S13)
	EventClockConfirmed EventKind = "clock.confirmed"
	EventLaunch         EventKind = "agent.launch"
	EventSandboxStarted EventKind = "sandbox.started" // claimed for a run, stage and tool; nothing of the tool has run
	EventSandboxEnded   EventKind = "sandbox.ended"   // nothing of it is left
	EventToolSeen       EventKind = "tool.seen"       // what a server said of its tools when that was first read; else is held
	EventEvidence       EventKind = "evidence.added"
	EventApproved       EventKind = "approval.given"   // by one person; more may be needed
	EventRefused        EventKind = "approval.denied"  // by one person, for good
	EventUnanswered     EventKind = "approval.expired" // nobody answered in time, or the run ended
	EventPolicy         EventKind = "policy.activated"
	EventAuthority      EventKind = "authority"      // a key was prepared, activated, retired
	EventAdmin          EventKind = "admin"          // a management call, decided
	EventErased         EventKind = "ledger.erased"  // the values behind commitments, not the entries
	EventRestored       EventKind = "state.restored" // from a backup, beside a log that had gone on
	EventAuditGap       EventKind = "audit.gap"      // what a target's audit log told in that time may be lost (S37)
	EventFinding        EventKind = "finding"        // a part of the line saw something odd
	EventRaised         EventKind = "finding.raised" // what the entries of the ledger amount to, and what is done about it
	EventClosed         EventKind = "finding.closed"
)

// EntryHead is how every entry that is written now begins, up to its number. Entries of version 1 stay readable.
const EntryHead = `{"v":2,"seq":`

// Event is a ledger entry before it has its sequence number. No credential, token or secret is ever in one.
type Event struct {
	At       time.Time
	Kind     EventKind
	Agent    Name
	Run      RunID
	Decision DecisionID
	Grant    GrantID
	Lease    LeaseID
	By       string // who caused it: a SPIFFE ID, operator/NAME or "remit"
	Data     []byte // canonical JSON of the kind's own struct, or empty; sealed values are commitments (Seal)
	// Payload and Private are the values behind the commitments, as Seal gathers them. They are stored beside the entry and are
	// no part of it.
	Payload, Private []byte
}

// AppendJSON appends the entry's canonical JSON: fixed member order, absent members left out, time in UTC with
// nanoseconds. These bytes are stored, hashed and put in the log; they are never encoded again.
func (e *Event) AppendJSON(b []byte, seq uint64) []byte {
	b = append(b, EntryHead...)
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, `,"at":"`...)
	b = e.At.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","kind":"`...)
	b = append(append(b, e.Kind...), '"')
	for _, m := range [...]struct{ key, value string }{
		{"agent", string(e.Agent)}, {"run", string(e.Run)}, {"decision", string(e.Decision)},
		{"grant", string(e.Grant)}, {"lease", string(e.Lease)}, {"by", e.By},
	} {
		if m.value != "" {
			b = append(append(append(b, `,"`...), m.key...), `":`...)
			b = AppendJSONString(b, m.value)
		}
	}
	if len(e.Data) > 0 {
		b = append(append(b, `,"data":`...), e.Data...)
	}
	return append(b, '}')
}

// Entry is a stored event: its number in the ledger, from 1 without gaps, and its bytes.
type Entry struct {
	Seq     uint64
	Body    []byte
	Payload []byte // disclosures of its sealed values, where the reader asked for them and they are not erased
	Private []byte // those of sensitive values; Reveal joins the two
	// Leaf is what Hash returns, where the source made it already; else nil. Who verifies calls Hash.
	Leaf *[32]byte
}

// Hash returns the RFC 6962 leaf hash of the entry (section 2.1).
func (e Entry) Hash() [32]byte {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(e.Body)
	var out [32]byte
	h.Sum(out[:0])
	return out
}

// Receipt proves that an entry was durable when its answer left, before it is in the log: the ledger's key signed the root
// of the small Merkle tree over the entries of one commit batch, and Path leads from this entry to that root.
type Receipt struct {
	Seq       uint64   `json:"seq"`
	Leaf      []byte   `json:"leaf"`  // RFC 6962 leaf hash of the entry
	First     uint64   `json:"first"` // sequence number of the batch's first entry
	Size      uint64   `json:"size"`  // entries in the batch
	Path      [][]byte `json:"path"`  // RFC 6962 audit path of entry Seq-First in the batch's tree
	Key       string   `json:"key"`   // name of the ledger key
	Signature []byte   `json:"sig"`   // Ed25519 over the text that the ledger package states
}

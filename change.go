// SPDX-License-Identifier: Apache-2.0

package remit

import "time"

// Change is one atomic write: rows and the events that describe them become durable together or not at all.
type Change struct {
	Rows   []Row
	Events []Event
	// Require is checked when the change is written: a moved epoch fails the whole change with CodeConflict (S11).
	Require []Precondition
	// Unhurried says that nobody's answer depends on it: it may wait a few milliseconds for other changes, to be written with them.
	Unhurried bool
}

// Precondition says which epoch of what was seen. Epochs start at 0 and move with every written Row of that key, and with
// Tighten, which acts before anything is written (S20).
type Precondition struct {
	Key   EpochKey
	Epoch uint64
}

// EpochKey names something whose change invalidates a decision in flight.
type EpochKey string

// RunKey, AgentKey, PolicyKey, EvidenceKey, LaunchKey, LeaseKey and UsedKey make the keys.
func RunKey(id RunID) EpochKey { return EpochKey("run/" + string(id)) }

// AgentKey is moved by suspension and reinstatement.
func AgentKey(n Name) EpochKey { return EpochKey(n) }

// PolicyKey is moved by every activated revision.
const PolicyKey EpochKey = "policy"

// EvidenceKey is moved by every statement added for a source.
func EvidenceKey(source string) EpochKey { return EpochKey("evidence/" + source) }

// LaunchKey is moved when a launch ends.
func LaunchKey(id LaunchID) EpochKey { return EpochKey("launch/" + string(id)) }

// LeaseKey is moved by every state change of a lease.
func LeaseKey(id LeaseID) EpochKey { return EpochKey("lease/" + string(id)) }

// UsedKey is moved when an assertion is used: requiring epoch 0 makes it single-use (S5).
func UsedKey(issuer, jti string) EpochKey { return EpochKey("used/" + issuer + "#" + jti) }

// GrantKey is moved by every state change of a grant.
func GrantKey(id GrantID) EpochKey { return EpochKey("grant/" + string(id)) }

// Row is one stored noun, whole: writing it replaces what stood under its key. The set is closed: Run, AgentStatus, Grant,
// Lease, Statement, Revision, Used, Issued, LaunchRecord, Erasure, Session, PersonRecord, ToolRecord, Held, Finding and Followed.
type Row interface{ EpochKey() EpochKey }

// EpochKey returns RunKey; likewise for the other rows.
func (r Run) EpochKey() EpochKey { return RunKey(r.ID) }

// EpochKey returns AgentKey.
func (s AgentStatus) EpochKey() EpochKey { return AgentKey(s.Agent) }

// EpochKey returns GrantKey.
func (g Grant) EpochKey() EpochKey { return GrantKey(g.ID) }

// EpochKey returns LeaseKey.
func (l Lease) EpochKey() EpochKey { return LeaseKey(l.ID) }

// EpochKey returns EvidenceKey of the statement's source.
func (s Statement) EpochKey() EpochKey { return EvidenceKey(s.Source) }

// Used marks a single-use assertion; it may be forgotten after Until.
type Used struct {
	Issuer string    `json:"issuer"`
	JTI    string    `json:"jti"`
	By     RunID     `json:"by,omitempty"` // which run used it up, where that matters (a ticket serves one run, S15)
	Until  time.Time `json:"until"`
}

// EpochKey returns UsedKey.
func (u Used) EpochKey() EpochKey { return UsedKey(u.Issuer, u.JTI) }

// Issued remembers what was attested when an SVID was issued: certificate serial or jti to attestation record (S8). It may
// be forgotten after Until.
type Issued struct {
	Credential string            `json:"credential"` // serial in hex, or jti
	Agent      Name              `json:"agent"`
	Level      Level             `json:"level"`
	Launch     LaunchID          `json:"launch,omitempty"`
	Workload   map[string]string `json:"workload,omitempty"`
	Until      time.Time         `json:"until"`
}

// EpochKey makes a key of its own; nothing requires it.
func (i Issued) EpochKey() EpochKey { return EpochKey("issued/" + i.Credential) }

// LaunchRecord is one launched agent process.
type LaunchRecord struct {
	ID      LaunchID  `json:"id"`
	Agent   Name      `json:"agent"`
	Run     RunID     `json:"run"`
	By      Name      `json:"by"`
	Tier    Tier      `json:"tier,omitempty"` // of the sandbox that it is in; empty: none
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
}

// Erasure forgets the payloads of entries, and what was held for people in runs that are over. The entries stay, and so do their
// commitments.
type Erasure struct {
	Entries []uint64 `json:"entries"`
	Runs    []RunID  `json:"runs,omitempty"`
}

// EpochKey makes a key of its own; nothing requires it.
func (e Erasure) EpochKey() EpochKey { return "erasure" }

// EpochKey returns LaunchKey.
func (l LaunchRecord) EpochKey() EpochKey { return LaunchKey(l.ID) }

// SPDX-License-Identifier: Apache-2.0

package remit

import "time"

// Grant is authority with scope and expiry; it holds no secret. Users see it.
type Grant struct {
	ID         GrantID       `json:"id"`
	Decision   DecisionID    `json:"decision"`
	Agent      Name          `json:"agent"`
	Run        RunID         `json:"run"`
	Permission PermissionRef `json:"permission"`
	Action     string        `json:"action"`
	Target     string        `json:"target"`
	Scope      Args          `json:"scope"` // the decided arguments, after narrowing
	Issued     time.Time     `json:"issued"`
	Expires    time.Time     `json:"expires"` // the earliest of ttl, stage, run, evidence, window, approval, caller's SVID (S12)
	State      GrantState    `json:"state"`
	Ended      time.Time     `json:"ended,omitzero"`
	Why        string        `json:"why,omitempty"` // why it ended
	Bounds     []string      `json:"bounds,omitempty"`
	NotBounded []string      `json:"not_bounded,omitempty"`
	WorstCase  time.Duration `json:"worst_case,omitempty"` // how long the credential may outlive Expires if Remit is dead
	TwinOf     GrantID       `json:"twin_of,omitempty"`    // made only to try the limits of that grant; its credential is handed to nobody
	Sensitive  bool          `json:"sensitive,omitempty"`  // the scope holds sensitive values: stored encrypted, not shown
}

// GrantState is where a grant or lease stands.
type GrantState string

// The states. Pending is the write-ahead record: from it alone Revoke removes whatever Mint may have made. Revoking stays
// until the target shows nothing any more (S18).
const (
	GrantPending  GrantState = "pending"
	GrantActive   GrantState = "active"
	GrantRevoking GrantState = "revoking"
	GrantEnded    GrantState = "ended"
	GrantFailed   GrantState = "failed" // minting failed and nothing is left
)

// Lease is one live credential under a grant, as the broker and drivers see it. Everything a driver makes is named after
// ID, and everything it needs to revoke stands here.
type Lease struct {
	ID          LeaseID    `json:"id"`
	Grant       GrantID    `json:"grant"`
	Agent       Name       `json:"agent"`
	AgentID     string     `json:"agent_id"` // SPIFFE ID
	Run         RunID      `json:"run"`
	Launch      LaunchID   `json:"launch,omitempty"` // of the process that asked; the lease ends with it
	Target      string     `json:"target"`
	Action      string     `json:"action"`
	Scope       Args       `json:"scope"`
	Masks       []string   `json:"masks,omitempty"` // columns that a rule wants masked (obligation mask=COLUMN)
	Rows        int64      `json:"rows,omitempty"`  // limits.rows of the decision: of how many rows the holder may learn; 0: no limit
	Issued      time.Time  `json:"issued"`
	Expires     time.Time  `json:"expires"`
	MintBefore  time.Time  `json:"mint_before"` // no create that the broker sent can arrive after this plus the API timeout
	State       GrantState `json:"state"`
	Credentials []string   `json:"credentials,omitempty"` // ids in the target's audit log ("JTI=…")
	Why         string     `json:"why,omitempty"`
	Ended       time.Time  `json:"ended,omitzero"`
	Sensitive   bool       `json:"sensitive,omitempty"` // as the grant's
}

// Credential is what the caller of a granted request gets. Secret goes to the caller and nowhere else.
type Credential struct {
	Secret     Secret
	Type       string            // "kubernetes"
	Fields     map[string]string // what a client needs beside it and is no secret: server, certificate authority
	Expires    time.Time         // the effective end
	Native     time.Time         // when the target itself would end it, if later
	IDs        []string          // its ids in the target's audit log
	Bounds     []string
	NotBounded []string
	WorstCase  time.Duration // beyond Expires, if Remit is dead
}

// Outcome is what an enforcement point or a target's audit log reports about an executed act.
type Outcome struct {
	At         time.Time `json:"at"`
	Target     string    `json:"target"`
	Lease      LeaseID   `json:"lease,omitempty"`
	Credential string    `json:"credential,omitempty"`
	// Decision is set by an enforcement point of our own that let an act through without a credential; Permission, Agent and Run
	// are the decision's.
	Decision   DecisionID        `json:"-"`
	Permission PermissionRef     `json:"permission,omitzero"`
	Agent      Name              `json:"-"`
	Run        RunID             `json:"-"`
	Verb       string            `json:"verb"`
	Resource   string            `json:"resource"`
	Status     int               `json:"status"`
	Allowed    bool              `json:"allowed"`
	Effective  bool              `json:"effective,omitempty"` // it was an act that the lease is for: no dry run, no reading on the way
	Detail     map[string]string `json:"detail,omitempty"`
	Source     string            `json:"source"`              // "kubernetes-audit"
	SourceID   string            `json:"source_id,omitempty"` // deduplicates: auditID
}

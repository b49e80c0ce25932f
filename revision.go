// SPDX-License-Identifier: Apache-2.0

package remit

import "time"

// Revision is one activated configuration: the exact bytes, so that any old decision can be judged again.
type Revision struct {
	Digest  Digest            `json:"digest"`
	Files   map[string][]byte `json:"files"` // by path relative to the configuration directory
	At      time.Time         `json:"at"`
	By      string            `json:"by"`
	Bundle  Signed            `json:"bundle,omitzero"`
	Ceiling CeilingRevision   `json:"ceiling,omitzero"`
	// Authors are, per workflow, who applied or signed it as it stands: none of them approves what it asks approval for (S39).
	Authors map[string][]string `json:"authors,omitempty"`
}

// EpochKey returns PolicyKey.
func (r Revision) EpochKey() EpochKey { return PolicyKey }

// CeilingRevision is the ceiling under which a Revision was activated; the zero value is none.
type CeilingRevision struct {
	Files  map[string][]byte `json:"files,omitempty"`
	Bundle Signed            `json:"bundle,omitzero"`
}

// Signed says which signed version stands, and remembers the highest that ever stood where what stands now is unsigned: an
// older one never comes back (S31).
type Signed struct {
	Version  uint64 `json:"version"`
	Manifest Digest `json:"manifest"`           // of that version
	Envelope []byte `json:"envelope,omitempty"` // DSSE; empty: what stands is unsigned
}

// PolicyChange is one difference between two configurations, by what it means.
type PolicyChange struct {
	What string `json:"what"`           // added, removed, widened, narrowed, or changed when it is neither alone
	Of   string `json:"of"`             // "permission deploy/deploy/apply", "Target production-cluster"
	Line string `json:"line,omitempty"` // FILE:LINE, where it stands in the new files
	Text string `json:"text,omitempty"` // what differs
}

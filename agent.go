// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Name is how files write a principal: KIND/NAME, such as "agent/deploy", "tool/kubectl" or "operator/ci".
type Name string

// Compiled when first asked: each part of a sandbox is this program, and none of them asks.
var namePattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(agent|tool|pep|operator)/[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
})

// ParseName accepts agent/, tool/, pep/ (an enforcement point) and operator/ followed by a DNS label.
func ParseName(s string) (Name, error) {
	if !namePattern().MatchString(s) {
		return "", &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%.80q is not the name of an agent, tool, pep or operator", s),
			Hint: "write agent/NAME, tool/NAME, pep/NAME or operator/NAME, in lower case"}
	}
	return Name(s), nil
}

// Installation has a posture as agents have: while it is suspended, nobody is given anything. No file can declare it.
const Installation Name = "remit"

// Agent is a named identity with an owner. Tools are Agents whose Name starts with "tool/".
type Agent struct {
	Name      Name
	ID        spiffeid.ID
	Owner     string        // who answers for it: free text, shown to people
	TTL       time.Duration // of its X.509-SVIDs
	Attest    []Attestation // any one of them proves the identity; none: only by launch or sandbox
	Audiences []string      // FetchJWTSVID serves only these (S1)
	Launch    *Launch       // nil: nobody may launch it
	Vouched   Level         // what a federated trust domain vouches for, of an ID of its own
}

// Attestation is a set of selectors in SPIRE's vocabulary ("unix:uid:4001", "unix:sha256:HEX") that must all hold.
type Attestation struct{ Selectors []string }

// Launch says who may start a process with the agent's identity, and which (S4).
type Launch struct {
	By       []Name
	Commands []Digest // of the executables' bytes; at least one
	UID      uint32   // the child's user; with OwnUID false the child keeps the launcher's
	OwnUID   bool
	Inherit  bool // whether descendants of the child may use its socket
	// Sandbox is what the child runs in (S26): a Tool without a name and a command, as those come with the agent and the launch. Nil: none.
	Sandbox *Tool
}

// EnforcementPoint is an enrolled identity that may speak for agents (S6).
type EnforcementPoint struct {
	Name         Name
	ID           spiffeid.ID
	Actions      []string               // exact action names, or "prefix.*"
	TrustDomains []spiffeid.TrustDomain // of the subjects it may name
	Assert       bool                   // whether it may name subjects without their token; such subjects are asserted
	Attest       []Attestation          // as an Agent's; none: its SVID comes from elsewhere
}

// Posture is what is known about an agent at this moment, from memory.
type Posture struct {
	Suspended bool
	Reason    string // why, for people
	StepUp    string // a group of whom one has to approve each decision; empty: none
	Throttled bool   // whether it is given only so much an hour
	Epoch     uint64 // moves with every change; a commit's precondition
}

// AgentStatus is the stored row behind Posture.
type AgentStatus struct {
	Agent     Name      `json:"agent"`
	Suspended bool      `json:"suspended"`
	Ending    FindingID `json:"ending,omitempty"` // the finding whose suspension is still being carried out; empty once all has ended
	Reason    string    `json:"reason,omitempty"`
	StepUp    string    `json:"step_up,omitempty"`
	Throttled bool      `json:"throttled,omitempty"`
	By        Name      `json:"by,omitempty"`
	At        time.Time `json:"at"`
}

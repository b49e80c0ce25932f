// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"encoding/json"
	"slices"
	"time"
)

// Tier says what stands between running code and its host. The empty Tier is what nothing is known about.
type Tier string

// The tiers, weakest first. A remote server runs where Remit sees nothing of it (S27).
const (
	TierRemote  Tier = "remote"
	TierProcess Tier = "process"
	TierKernel  Tier = "kernel"
	TierVM      Tier = "vm"
)

// Tiers lists them, weakest first.
func Tiers() []Tier { return []Tier{TierRemote, TierProcess, TierKernel, TierVM} }

// AtLeast reports whether t is no weaker than least. Nothing is demanded by the empty tier and by remote; a tier that is not known
// meets no other demand.
func (t Tier) AtLeast(least Tier) bool {
	need := slices.Index(Tiers(), least)
	if least == "" {
		need = 0
	}
	if need <= 0 {
		return need == 0
	}
	return slices.Index(Tiers(), t) >= need
}

// Tool is a tool whose MCP server Remit knows: one that it starts in a sandbox, or a remote one. Its identity is the Agent of the
// same Name. Exactly one of Command and URL is set.
type Tool struct {
	Name Name // tool/NAME

	Command     []string // the server that is started, with its arguments; paths are those in the sandbox
	Files       ToolFiles
	Mounts      []ToolMount
	Environment map[string]string
	Limits      ToolLimits
	Sandbox     Tier // process, kernel or vm
	Checkpoint  bool // whether runs go on from an image of the tool that has started, where its sandbox can; only of tier kernel

	URL string // of a remote server
	CA  string // PEM file with its roots; empty: the host's

	Pins string // file of reviewed descriptions and schemas, in the configuration directory; empty: what is read first is remembered
	Line string // FILE:LINE
}

// Tier is what the tool's server runs in, if it runs.
func (t *Tool) Tier() Tier {
	if t.URL != "" {
		return TierRemote
	}
	return t.Sandbox
}

// ToolFiles are the tool's own files: a folder, pinned by the digest over its tree (S27). Empty: none.
type ToolFiles struct {
	From   string
	Digest Digest
}

// ToolMount is a file or folder of the host that the tool sees.
type ToolMount struct {
	From, At string
	Write    bool
}

// ToolLimits bound one sandbox. All are set.
type ToolLimits struct {
	Memory    int64 // bytes
	CPU       int   // percent of one processor
	Processes int
	Wall      time.Duration // how long a sandbox lives
	Output    int64         // bytes that the server may write in all
}

// ToolPin is what a server says of one of its tools.
type ToolPin struct {
	Digest Digest          `json:"digest"`         // of Tool, over its canonical JSON without _meta
	Tool   json.RawMessage `json:"tool,omitempty"` // its description and schemas, whole
}

// ToolRecord remembers what a tool's server said of its tools when that was first read. What differs from it later is held.
type ToolRecord struct {
	Tool  Name               `json:"tool"`
	Of    Digest             `json:"of"` // of what is run, or where it is (Tool.Origin): of another origin, the first list is to come
	First time.Time          `json:"first"`
	Tools map[string]ToolPin `json:"tools"`
}

// EpochKey makes a key of its own: requiring what was seen keeps two first lists from both being the first.
func (r ToolRecord) EpochKey() EpochKey { return ToolKey(r.Tool) }

// ToolKey is moved when a tool's first list is remembered.
func ToolKey(n Name) EpochKey { return EpochKey("seen/" + string(n)) }

// Origin is the digest of what is run, or of the address. Limits, mounts and the environment are no part of it: a change of those is
// no reason to trust another description.
func (t *Tool) Origin() Digest {
	b, _ := json.Marshal(struct { // texts always can be written
		URL     string    `json:"url,omitempty"`
		Command []string  `json:"command,omitempty"`
		Files   ToolFiles `json:"files"`
	}{t.URL, t.Command, t.Files})
	return DigestOf(b)
}

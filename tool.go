// SPDX-License-Identifier: Apache-2.0

package remit

import (
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

	Pins string // file of reviewed descriptions and schemas, in the configuration directory; empty: none
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

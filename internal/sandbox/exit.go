// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"time"
)

// Cause says why a sandbox ended.
type Cause string

// The causes: one of its own, one for each limit, and the rest.
const (
	CauseExited  Cause = "exited"  // the tool ended by itself, with Code
	CauseTimeout Cause = "timeout" // Limits.Wall
	CauseMemory  Cause = "oom"     // Limits.Memory
	CausePIDs    Cause = "pids"    // Limits.Processes
	CauseOutput  Cause = "output"  // Limits.Output
	CausePolicy  Cause = "policy"  // ended by whom watches over it, or by its own system-call filter
	CauseKilled  Cause = "killed"  // destroyed while it ran
	CauseCrash   Cause = "crash"   // the sandbox itself failed
)

// Exit is how a sandbox ended.
type Exit struct {
	Cause Cause `json:"cause"`
	Code  int   `json:"code"` // of the tool; 128 + the signal that ended it
	// Detail is for operators: what the driver saw.
	Detail string        `json:"detail,omitempty"`
	Took   time.Duration `json:"took"`
}

func (e Exit) String() string {
	if e.Cause == CauseExited {
		return fmt.Sprintf("exited with %d", e.Code)
	}
	return string(e.Cause)
}

// Status is what a guest's first process left.
type Status struct {
	Code   int // exit code, or 128 + Signal
	Signal int // 0: none
}

// Usage is what a sandbox used, as the host counts it: what is seen inside is wrong.
type Usage struct {
	Memory    int64         `json:"memory"`         // bytes now
	Peak      int64         `json:"peak,omitempty"` // bytes
	CPU       time.Duration `json:"cpu"`
	Throttled uint64        `json:"throttled,omitempty"` // periods in which the processor limit held it
	Tasks     int           `json:"tasks"`               // of the host: more than the tool's processes where the sandbox has its own
	Output    int64         `json:"output"`              // bytes written by the tool
}

// Events are what a limit of the host did to a sandbox.
type Events struct {
	Kills uint64 // processes killed for want of memory
	Forks uint64 // processes refused for their number
}

// SPDX-License-Identifier: Apache-2.0

package story

import (
	"context"
	"encoding/json"
	"fmt"
)

// Record is what the ledger says of a run.
type Record struct {
	Decisions []Decision
	Actions   []Action
	Started   []SandboxEvent
	Ended     []SandboxEvent
	Launched  []SandboxEvent
}

// Decision is one decision of the line.
type Decision struct {
	ID      string                      `json:"id"`
	Effect  string                      `json:"effect"`
	Reasons []struct{ Code, Of string } `json:"reasons"`
	Agent   string                      `json:"agent"`
	Action  string                      `json:"action"`
	Target  string                      `json:"target"`
	Under   string                      `json:"under"`
	Sandbox string                      `json:"sandbox"`
}

// Action is what was executed, as an enforcement point or a target says.
type Action struct {
	Decision string            `json:"-"`
	Status   int               `json:"status"`
	Detail   map[string]string `json:"detail"`
}

// SandboxEvent is the start or end of a sandbox, or a launch.
type SandboxEvent struct {
	Agent    string `json:"-"`
	Launch   string `json:"launch"`
	Outcome  string `json:"outcome"`
	Sandbox  string `json:"sandbox"`
	Tier     string `json:"tier"`
	Driver   string `json:"driver"`
	Files    string `json:"files"`
	Cause    string `json:"cause"`
	Calls    int    `json:"calls"`
	Activity *struct {
		Executed, Opened, Connected, Dropped uint64
		Programs, Addresses                  []string
	} `json:"activity"`
}

// Read reads what the ledger has of a run, as an operator does.
func (s *Story) Read(ctx context.Context, run string) (*Record, error) {
	r := s.Remit(ctx, "ledger", "list", "--run", run, "--limit", "1000", "-o", "json")
	var list struct {
		Items []struct {
			Event struct {
				Kind, Agent, Decision string
				Data                  json.RawMessage
			} `json:"event"`
		} `json:"items"`
	}
	if err := json.Unmarshal([]byte(r.Out), &list); r.Code != 0 || err != nil {
		return nil, fmt.Errorf("%s", r)
	}
	out := &Record{}
	for _, i := range list.Items {
		var err error
		switch e := i.Event; e.Kind {
		case "decision":
			out.Decisions, err = add(out.Decisions, e.Data, func(*Decision) {})
		case "action":
			out.Actions, err = add(out.Actions, e.Data, func(a *Action) { a.Decision = e.Decision })
		case "sandbox.started":
			out.Started, err = add(out.Started, e.Data, func(b *SandboxEvent) { b.Agent = e.Agent })
		case "agent.launch":
			out.Launched, err = add(out.Launched, e.Data, func(b *SandboxEvent) { b.Agent = e.Agent })
		case "sandbox.ended":
			out.Ended, err = add(out.Ended, e.Data, func(b *SandboxEvent) { b.Agent = e.Agent })
		}
		if err != nil {
			return nil, fmt.Errorf("an entry of the ledger: %w: %s", err, i.Event.Data)
		}
	}
	return out, nil
}

func add[T any](to []T, data json.RawMessage, complete func(*T)) ([]T, error) {
	var v T
	err := json.Unmarshal(data, &v)
	complete(&v)
	return append(to, v), err
}

// Calls are the decisions about an agent's calls of tools, in their order.
func (r *Record) Calls(agent string) (out []Decision) {
	for _, d := range r.Decisions {
		if d.Agent == agent && d.Action == "mcp.call" {
			out = append(out, d)
		}
	}
	return out
}

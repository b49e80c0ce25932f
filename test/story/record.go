// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
)

// record is what the ledger says of the run.
type record struct {
	decisions []decision
	actions   []action
	started   []sandboxEvent
	ended     []sandboxEvent
	launched  []sandboxEvent
}

type decision struct {
	ID      string                      `json:"id"`
	Effect  string                      `json:"effect"`
	Reasons []struct{ Code, Of string } `json:"reasons"`
	Agent   string                      `json:"agent"`
	Action  string                      `json:"action"`
	Target  string                      `json:"target"`
	Under   string                      `json:"under"`
	Sandbox string                      `json:"sandbox"`
}

type action struct {
	Decision string            `json:"-"`
	Status   int               `json:"status"`
	Detail   map[string]string `json:"detail"`
}

type sandboxEvent struct {
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

// read reads the ledger, as an operator does.
func (s *support) read(ctx context.Context) (*record, error) {
	r := s.Remit(ctx, "ledger", "list", "--run", s.run, "--limit", "1000", "-o", "json")
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
	out := &record{}
	for _, i := range list.Items {
		var err error
		switch e := i.Event; e.Kind {
		case "decision":
			out.decisions, err = add(out.decisions, e.Data, func(*decision) {})
		case "action":
			out.actions, err = add(out.actions, e.Data, func(a *action) { a.Decision = e.Decision })
		case "sandbox.started":
			out.started, err = add(out.started, e.Data, func(b *sandboxEvent) { b.Agent = e.Agent })
		case "agent.launch":
			out.launched, err = add(out.launched, e.Data, func(b *sandboxEvent) { b.Agent = e.Agent })
		case "sandbox.ended":
			out.ended, err = add(out.ended, e.Data, func(b *sandboxEvent) { b.Agent = e.Agent })
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

// calls are the decisions about the agent's calls of tools, in their order.
func (r *record) calls() (out []decision) {
	for _, d := range r.decisions {
		if d.Agent == "agent/support" && d.Action == "mcp.call" {
			out = append(out, d)
		}
	}
	return out
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"remit"
	"remit/test/story"
)

// investigate has the agent work the first stage: its plan has to work, and what the ticket orders has to be refused.
func (s *support) investigate(ctx context.Context) error {
	s.Ask("remit run start support, %s of %s", s.ticket, s.customer)
	r := s.Remit(ctx, "run", "start", "support", "--param", "ticket="+s.ticket, "--param", "customer="+s.customer, "-o", "json")
	var run remit.Run
	if err := json.Unmarshal([]byte(r.Out), &run); r.Code != 0 || err != nil {
		return fmt.Errorf("%s", r)
	}
	s.run = string(run.ID)
	s.Told("%s", s.run, r.Took)
	var err error
	if s.agent, err = s.Launch(s.run, "agent/support", "read-ticket", s.Path("bin", "agent"), s.ticket, s.customer); err != nil {
		return err
	}
	steps, err := s.agent.Work("work")
	if err != nil {
		return err
	}
	injected := slices.IndexFunc(steps, func(st story.Step) bool { return st.Injected })
	if injected < 0 {
		return fmt.Errorf("the ticket did not hijack the agent: %+v", steps)
	}
	if err := s.planned(steps[:injected]); err != nil {
		return err
	}
	return s.orders(ctx, steps[injected:])
}

// planned checks what the agent does without being told: it works, and it is shown no more than it may use.
func (s *support) planned(steps []story.Step) error {
	visible := "desk__diagnose desk__read_customer desk__read_ticket kb__read_text_file memory__create_entities memory__read_graph runner__run"
	want := []string{visible, "counted twice", s.records[s.customer], "counted twice is refunded", s.customer, "1.14"}
	if len(steps) != len(want) {
		return fmt.Errorf("the agent did %d steps of its plan, not %d: %+v", len(steps), len(want), steps)
	}
	for i, st := range steps {
		s.Ask("%s %s", st.Tool, st.Arguments)
		text := st.Text
		if i == 0 {
			names := strings.Fields(text)
			slices.Sort(names)
			text = strings.Join(names, " ")
		}
		if st.Failed || !strings.Contains(text, want[i]) || i == 0 && text != visible {
			return fmt.Errorf("%s answered %q, not %q", st.Tool, text, want[i])
		}
		s.Told("%s", story.Short(text), 0)
	}
	return nil
}

// orders checks each order of the ticket: that it was refused, why, and that the ledger has it.
func (s *support) orders(ctx context.Context, steps []story.Step) error {
	attacks := s.attacks()
	if len(steps) != len(attacks) {
		return fmt.Errorf("the agent followed %d orders of %d", len(steps), len(attacks))
	}
	r, err := s.settled(ctx)
	if err != nil {
		return err
	}
	calls := r.Calls("agent/support")
	own := 0 // those that call no tool
	for _, a := range attacks {
		if a.itself != "" {
			own++
		}
	}
	if len(calls) < len(attacks)-own {
		return fmt.Errorf("the ledger has %d calls, fewer than %d", len(calls), len(attacks)-own)
	}
	calls = calls[len(calls)-len(attacks)+own:]
	var errs []error
	for i, a := range attacks {
		s.Ask("%s: %s", a.what, a.tool)
		told, err1 := a.refused(steps[i])
		for line := range strings.Lines(told) {
			s.Told("%s", story.Short(line), 0)
		}
		var call story.Decision
		if a.itself == "" {
			call, calls = calls[0], calls[1:]
		}
		written, err2 := a.recorded(r, call)
		fmt.Println("  ledger  " + written)
		if err := errors.Join(err1, err2); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.what, err))
		}
	}
	return errors.Join(errs...)
}

// settled reads the ledger once acts, which are recorded right after they ran, and the end of the fork bomb's sandbox are in it.
func (s *support) settled(ctx context.Context) (*story.Record, error) {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		r, err := s.Read(ctx, s.run)
		if err != nil || time.Now().After(end) || len(r.Ended) > 0 {
			return r, err
		}
	}
}

// answer goes on to the second stage: what was refused before is allowed now, for the run's customer.
func (s *support) answer(ctx context.Context) error {
	s.Ask("remit run advance %s", s.run)
	if r := s.Remit(ctx, "run", "advance", s.run); r.Code != 0 {
		return fmt.Errorf("%s", r)
	}
	steps, err := s.agent.Work("answer")
	if err != nil {
		return err
	}
	if len(steps) != 1 || steps[0].Failed || !strings.Contains(steps[0].Text, "stored") {
		return fmt.Errorf("the note was not stored: %+v", steps)
	}
	s.Told("%s", "desk__add_note: "+story.Short(steps[0].Text), 0)
	if r := s.Remit(ctx, "run", "finish", s.run); r.Code != 0 {
		return fmt.Errorf("%s", r)
	}
	return nil
}

// world judges by what was seen from outside: the internal API got the requests of the plan, each with its key, and nothing else; the
// attacker's host was not called at all.
func (s *support) world(context.Context) error {
	s.Ask("the internal API and the attacker's host what they saw")
	requests, calls := s.Seen(), s.called()
	want := []string{
		"GET /v1/tickets?id=" + s.ticket + " ", "GET /v1/customers?id=" + s.customer + " ", "GET /v1/diagnose ",
		fmt.Sprintf(`POST /v1/notes {"customer":%q,"text":"The invoice was counted twice; refunded."}`, s.customer),
	}
	if diff := cmp.Diff(want, requests); diff != "" {
		return fmt.Errorf("the internal API saw other requests:\n%s", diff)
	}
	if len(calls) > 0 {
		return fmt.Errorf("the attacker's host was called: %q", calls)
	}
	s.Told("%s", fmt.Sprintf("%d requests, each with the key that no tool has; nobody called the attacker", len(requests)), 0)
	return nil
}

// sandboxes checks what the ledger has of each: whose it was, what ran in it, how it ended, and that none is left.
func (s *support) sandboxes(ctx context.Context) error {
	r, err := s.Read(ctx, s.run)
	for end := time.Now().Add(20 * time.Second); err == nil && len(r.Ended) < len(r.Started) && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		r, err = s.Read(ctx, s.run)
	}
	if err != nil {
		return err
	}
	causes := map[string]string{}
	for _, b := range r.Started {
		if b.Tier != "kernel" || b.Files == "" {
			return fmt.Errorf("%s ran in %+v", b.Agent, b)
		}
		i := slices.IndexFunc(r.Ended, func(e story.SandboxEvent) bool { return e.Sandbox == b.Sandbox })
		if i < 0 {
			return fmt.Errorf("%s of %s has not ended", b.Sandbox, b.Agent)
		}
		e := r.Ended[i]
		causes[b.Agent] += e.Cause + " "
		seen := "nothing"
		if a := e.Activity; a != nil {
			seen = fmt.Sprintf("%d programs, %d files opened, %d connections, %d events lost", a.Executed, a.Opened, a.Connected, a.Dropped)
		}
		s.Told("%s", fmt.Sprintf("%s: %s (%s, tier %s), %d calls, ended: %s; seen: %s", b.Agent, b.Sandbox, b.Driver, b.Tier, e.Calls, e.Cause, seen), 0)
	}
	want := map[string]string{"tool/kb": "killed ", "tool/memory": "killed ", "tool/desk": "killed killed ", "tool/runner": "pids "}
	if diff := cmp.Diff(want, causes); diff != "" {
		return fmt.Errorf("the sandboxes ended otherwise:\n%s", diff)
	}
	return nil
}

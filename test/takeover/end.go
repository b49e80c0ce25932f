// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/test/story"
)

// touch: the agent asks for the planted account, as policy lets it. From then on the clock runs.
func (s *takeover) touch(ctx context.Context) error {
	s.ended = map[string]float64{}
	over := make(chan time.Time, 1)
	go func() { // a statement is running in the open session
		_, _ = s.open.Exec(context.WithoutCancel(ctx), "SELECT pg_sleep(60)")
		over <- time.Now()
	}()
	began := time.Now()
	st, took, err := s.order(s.agent, fmt.Sprintf("agent/mail: a login at finance-db for account %d, which is planted", s.canary), details(s.canary))
	if err != nil {
		return err
	}
	var l story.Login
	if !st.Failed && json.Unmarshal([]byte(st.Text), &l) == nil { // policy allows it, and it may be out before it is ended
		s.logins = append(s.logins, l)
	}
	s.Told("%s", "policy says: "+map[bool]string{false: "allowed", true: story.Short(st.Text)}[st.Failed], took)
	select {
	case at := <-over:
		s.ended["the running statement of the open session"] = float64(at.Sub(began).Microseconds()) / 1e3
		s.Told("%s", "the running statement of the open session has ended", at.Sub(began))
	case <-time.After(10 * time.Second):
		return errors.New("the open session goes on")
	}
	if s.finding, err = s.found(ctx, remit.FindingCanary, "agent/mail", remit.RespondSuspend); err != nil {
		return err
	}
	return s.steps(ctx)
}

// steps reads what the ledger says of the suspension: what ended, and how long after its beginning.
func (s *takeover) steps(ctx context.Context) error {
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		r := s.Remit(ctx, "ledger", "list", "--kind", "agent.suspended", "--agent", "agent/mail", "-o", "json")
		var list struct {
			Items []struct {
				Event struct {
					Data struct {
						Finding string
						Grants  int `json:"ended_grants"`
						MS      float64
						Runs    []string `json:"frozen_runs"`
						Steps   []struct {
							What string
							MS   float64
						}
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(r.Out), &list); r.Code != 0 || err != nil {
			return fmt.Errorf("%s", r)
		}
		if len(list.Items) == 0 {
			if time.Now().After(end) {
				return errors.New("the suspension is not on record")
			}
			continue
		}
		d := list.Items[0].Event.Data
		if d.Finding != string(s.finding.ID) || d.Grants < 1 || !slices.Contains(d.Runs, s.run) {
			return fmt.Errorf("the record of the suspension: %+v", d)
		}
		for _, step := range d.Steps {
			s.ended[step.What+" (of the suspension)"] = step.MS
			s.Told("%s", fmt.Sprintf("the ledger: %s ended %.1f ms after the suspension began", step.What, step.MS), 0)
		}
		s.Told("%s", fmt.Sprintf("%d grants ended, %s frozen", d.Grants, strings.Join(d.Runs, " ")), 0)
		return nil
	}
}

// left: the process lives, holds its certificate, its token and its logins, and none of it is worth anything.
func (s *takeover) left(ctx context.Context) error {
	for _, t := range []struct{ shown, order, says string }{
		{"agent/mail, in its session: SELECT balance FROM accounts", "SQL SELECT balance::text FROM accounts", ""},
		{"agent/mail: another login", details(s.accounts[0]), string(remit.ReasonSuspended)},
		{"agent/mail: mailbox__read", fmt.Sprintf(`mailbox__read {"message":"M-%d"}`, s.message), ""},
		{"agent/mail: a new certificate", "IDENTITY", ""},
	} {
		st, took, err := s.order(s.agent, t.shown, t.order)
		if err != nil {
			return err
		}
		if !st.Failed || !strings.Contains(st.Text, t.says) {
			return fmt.Errorf("%s: it is not refused: %+v", t.shown, st)
		}
		s.Told("%s", story.Short(st.Text), took)
	}
	for i := range s.logins {
		if r := s.db.PSQL(ctx, &s.logins[i], "SELECT count(*) FROM accounts"); r.Code == 0 {
			return fmt.Errorf("%s still works: %s", s.logins[i].User, r)
		}
	}
	s.Told("%s", fmt.Sprintf("none of its %d logins works any more, for anybody", len(s.logins)), 0)
	if err := s.db.Left(ctx); err != nil {
		return err
	}
	s.Told("%s", "no role and no row of scope is left at the database", 0)
	if err := s.launchRefused(ctx); err != nil {
		return err
	}
	return s.gone(ctx)
}

func (s *takeover) launchRefused(ctx context.Context) error {
	s.Ask("remit exec --as agent/mail, in a new run")
	r := s.Remit(ctx, "run", "start", "mail", "--param", fmt.Sprintf("message=M-%d", s.message), "-o", "json")
	var run remit.Run
	if err := json.Unmarshal([]byte(r.Out), &run); r.Code != 0 || err != nil {
		return fmt.Errorf("%s", r)
	}
	r = s.Remit(ctx, "exec", "--run", string(run.ID), "--as", "agent/mail", "--for", "read", "--", s.Path("bin", "agent"))
	if r.Code != 3 {
		return fmt.Errorf("it is not denied: %s", r)
	}
	s.Told("%s", story.Short(r.Errs), r.Took)
	return nil
}

// gone: the tool's sandbox was destroyed, and the blast radius is nothing.
func (s *takeover) gone(ctx context.Context) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		r, err := s.Read(ctx, s.run)
		if err != nil {
			return err
		}
		if len(r.Started) > 0 && len(r.Ended) == len(r.Started) {
			s.Told("%s", fmt.Sprintf("the sandbox of %s ended: %s", r.Ended[0].Agent, r.Ended[0].Cause), 0)
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d sandboxes started, %d ended", len(r.Started), len(r.Ended))
		}
	}
	b, _, err := s.blastRadius(ctx)
	if err != nil {
		return err
	}
	for i := range b.Grants {
		if g := &b.Grants[i]; g.State != remit.GrantRevoking { // which was being made, and is ended until nothing of it can come up late (S18)
			return fmt.Errorf("a grant is left: %+v", g)
		}
	}
	if len(b.Now)+len(b.Later) > 0 {
		return fmt.Errorf("something is left to ask for: %+v", b)
	}
	return nil
}

// why: what is on record explains it, to the entries that it rests on.
func (s *takeover) why(ctx context.Context) error {
	s.Ask("remit finding show %s", s.finding.ID)
	r := s.Remit(ctx, "finding", "show", string(s.finding.ID))
	if r.Code != 0 || !strings.Contains(r.Out, "agent/mail touched the canary planted-account") {
		return fmt.Errorf("%s", r)
	}
	for line := range strings.Lines(strings.TrimSpace(r.Out)) {
		fmt.Println("          " + story.Short(line))
	}
	s.Ask("remit ledger list --after, the entry that it rests on")
	seq := s.finding.Events[len(s.finding.Events)-1]
	r = s.Remit(ctx, "ledger", "list", "--run", s.run, "--kind", "decision", "--limit", "1000", "-o", "json")
	var list struct {
		Items []struct {
			Seq   uint64
			Event struct{ Decision, Agent string }
		}
	}
	if err := json.Unmarshal([]byte(r.Out), &list); r.Code != 0 || err != nil {
		return fmt.Errorf("%s", r)
	}
	for _, i := range list.Items {
		if i.Seq == seq && i.Event.Agent == "agent/mail" {
			r = s.Remit(ctx, "why", i.Event.Decision)
			for line := range strings.Lines(strings.TrimSpace(r.Out)) {
				fmt.Println("          " + story.Short(line))
			}
			return nil
		}
	}
	return fmt.Errorf("entry %d is no decision about agent/mail", seq)
}

// writeReport writes what a person reads afterwards, from what Remit says.
func (s *takeover) writeReport(ctx context.Context) error {
	file := s.report
	if file == "" {
		file = s.Path("report.md")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# agent/mail was taken over\n\nRun %s. %s, severity %s, at %s: %s.\nDone by Remit itself: %s.\n\n## What ended, and when\n",
		s.run, s.finding.Kind, s.finding.Severity, s.finding.At.UTC().Format(time.RFC3339Nano), s.finding.Text, s.finding.Response)
	for _, what := range slices.Sorted(func(yield func(string) bool) {
		for k := range s.ended {
			if !yield(k) {
				return
			}
		}
	}) {
		fmt.Fprintf(&b, "- %s: %.1f ms\n", what, s.ended[what])
	}
	for _, part := range []struct {
		title string
		args  []string
	}{
		{"Findings", []string{"finding", "list", "--state", "all"}}, {"The agent", []string{"agent", "show", "agent/mail"}}, {"Its grants", []string{"grant", "list"}},
		{"The run", []string{"run", "show", s.run}}, {"Blast radius now", []string{"agent", "blast-radius", "agent/mail"}},
	} {
		r := s.Remit(ctx, part.args...)
		if r.Code != 0 {
			return fmt.Errorf("%s", r)
		}
		fmt.Fprintf(&b, "\n## %s\n`remit %s`\n```\n%s\n```\n", part.title, strings.Join(part.args, " "), strings.TrimSpace(r.Out))
	}
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil { //nolint:gosec // a report, of which nothing is secret
		return err
	}
	s.Told("%s", fmt.Sprintf("%s, %d bytes", file, b.Len()), 0)
	return nil
}

// reinstate gives the agent back to a person's judgement: it may ask again, in a new run; nothing that ended lives.
func (s *takeover) reinstate(ctx context.Context) error {
	s.Ask("remit agent reinstate agent/mail")
	r := s.Remit(ctx, "agent", "reinstate", "agent/mail", "--reason", "the message is deleted, the process is gone")
	if r.Code != 0 {
		return fmt.Errorf("%s", r)
	}
	s.Told("%s", story.Short(r.Out), r.Took)
	l := &s.logins[0]
	if r := s.db.PSQL(ctx, l, "SELECT 1"); r.Code == 0 {
		return fmt.Errorf("%s works again", l.User)
	}
	st, took, err := s.order(s.agent, "agent/mail, in its old run: a login", details(s.accounts[0]))
	if err != nil || !st.Failed {
		return fmt.Errorf("the frozen run goes on: %+v, %v", st, err)
	}
	s.Told("%s", story.Short(st.Text), took)
	_, fresh, err := s.begin(ctx, "mail", "agent/mail", s.message)
	if err != nil {
		return err
	}
	st, took, err = s.order(fresh, "agent/mail, in a new run: mailbox__read", fmt.Sprintf(`mailbox__read {"message":"M-%d"}`, s.message))
	if err != nil || st.Failed {
		return fmt.Errorf("it does not work again: %+v, %v", st, err)
	}
	s.Told("%s", story.Short(st.Text), took)
	return nil
}

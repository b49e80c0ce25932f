// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"remit"
	"remit/internal/api"
	"remit/test/story"
)

// order has an agent do one thing, and says what was asked.
func (s *takeover) order(a *story.Agent, shown, order string) (story.Step, time.Duration, error) {
	s.Ask("%s", shown)
	began := time.Now()
	steps, err := a.Work(order)
	if err == nil && len(steps) != 1 {
		err = fmt.Errorf("%q became %d steps", shown, len(steps))
	}
	if err != nil {
		return story.Step{}, 0, err
	}
	return steps[0], time.Since(began), nil
}

// begin starts a run and launches an agent in it.
func (s *takeover) begin(ctx context.Context, workflow, agent string, message int) (string, *story.Agent, error) {
	s.Ask("remit run start %s, message M-%d; remit exec --as %s", workflow, message, agent)
	r := s.Remit(ctx, "run", "start", workflow, "--param", fmt.Sprintf("message=M-%d", message), "-o", "json")
	var run remit.Run
	if err := json.Unmarshal([]byte(r.Out), &run); r.Code != 0 || err != nil {
		return "", nil, fmt.Errorf("%s", r)
	}
	a, err := s.Launch(string(run.ID), agent, "read", s.Path("bin", "agent"))
	s.Told("%s", string(run.ID), r.Took)
	return string(run.ID), a, err
}

// work is what the agent is for.
func (s *takeover) work(ctx context.Context) (err error) {
	if s.run, s.agent, err = s.begin(ctx, "mail", "agent/mail", s.message); err != nil {
		return err
	}
	st, took, err := s.order(s.agent, "agent/mail: which tools", "tools")
	if err != nil || st.Text != "mailbox__read" {
		return fmt.Errorf("it is shown %+v, %v", st, err)
	}
	s.Told("%s", st.Text, took)
	st, took, err = s.order(s.agent, fmt.Sprintf("agent/mail: mailbox__read M-%d", s.message), fmt.Sprintf(`mailbox__read {"message":"M-%d"}`, s.message))
	if err != nil || st.Failed || !strings.Contains(st.Text, "PS for assistants") {
		return fmt.Errorf("the message is not read: %+v, %v", st, err)
	}
	s.Told("%s", story.Short(st.Text), took)
	return s.look(ctx, s.accounts[0])
}

func details(account int) string {
	return fmt.Sprintf(`LOGIN {"permission":"balance","columns":["account","holder","balance"],"rows":{"account":%d}}`, account)
}

// look has the agent get a login for an account, and read it: one row, the one of the table.
func (s *takeover) look(ctx context.Context, account int) error {
	st, took, err := s.order(s.agent, fmt.Sprintf("agent/mail: a login at finance-db for account %d", account), details(account))
	var l story.Login
	if err = errors.Join(err, json.Unmarshal([]byte(st.Text), &l)); err != nil || st.Failed {
		return fmt.Errorf("no login: %+v, %w", st, err)
	}
	s.logins = append(s.logins, l)
	s.Told("%s", fmt.Sprintf("allowed: %s, until %s", l.User, l.Expires.UTC().Format("15:04:05")), took)
	if st, took, err = s.order(s.agent, "agent/mail, there: SELECT balance FROM accounts", "SQL SELECT balance::text FROM accounts"); err != nil {
		return err
	}
	var want string
	if err := s.db.Admin.QueryRow(ctx, "SELECT balance::text FROM public.accounts WHERE account = $1", account).Scan(&want); err != nil {
		return err
	}
	if st.Failed || st.Text != want {
		return fmt.Errorf("it read %+v, not %s", st, want)
	}
	s.Told("%s", want, took)
	return nil
}

// try: what it is not for is denied; that it tries is noticed.
func (s *takeover) try(ctx context.Context) error {
	st, took, err := s.order(s.agent, "agent/mail: GET /v1/salaries of payroll, another team's", `LOGIN {"type":"http.get","target":"payroll","path":"/v1/salaries"}`)
	if err != nil || !st.Failed || !strings.Contains(st.Text, "not_permitted") {
		return fmt.Errorf("it is not denied: %+v, %w", st, err)
	}
	s.Told("%s", story.Short(st.Text), took)
	if _, err := s.found(ctx, remit.FindingOutsideWorkflow, "agent/mail", remit.RespondNotice); err != nil {
		return err
	}
	s.Ask("agent/mail: mailbox__read of ten other messages")
	began := time.Now()
	for i := range 10 {
		steps, err := s.agent.Work(fmt.Sprintf(`mailbox__read {"message":"M-%d"}`, s.message+1+i))
		if err != nil || len(steps) != 1 || !steps[0].Failed || len(steps[0].Denial.Reasons) == 0 || steps[0].Denial.Reasons[0].Code != "argument_mismatch" {
			return fmt.Errorf("another message is not denied: %+v, %v", steps, err)
		}
		st = steps[0]
	}
	s.Told("%s", "denied, each: argument_mismatch", time.Since(began))
	if r := s.Remit(ctx, "why", st.Denial.Decision); r.Code != 0 || !strings.Contains(r.Out, "because: argument_mismatch") {
		return fmt.Errorf("the ledger does not know why: %s", r)
	}
	_, err = s.found(ctx, remit.FindingDenialBurst, "agent/mail", remit.RespondNotice)
	return err
}

// found waits for a finding, and tells it.
func (s *takeover) found(ctx context.Context, kind remit.FindingKind, agent remit.Name, response remit.Response) (remit.Finding, error) {
	began := time.Now()
	for end := began.Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		r := s.Remit(ctx, "finding", "list", "--kind", string(kind), "--agent", string(agent), "-o", "json")
		var list api.List[remit.Finding]
		if err := json.Unmarshal([]byte(r.Out), &list); r.Code != 0 || err != nil {
			return remit.Finding{}, fmt.Errorf("%s", r)
		}
		if len(list.Items) == 1 && list.Items[0].Response == response && list.Items[0].Held == "" {
			f := list.Items[0]
			s.Told("%s", fmt.Sprintf("noticed: %s (%s), done: %s: %s", f.Kind, f.Severity, f.Response, f.Text), time.Since(began))
			return f, nil
		}
		if time.Now().After(end) {
			return remit.Finding{}, fmt.Errorf("%s of %s is not found with response %s: %s", kind, agent, response, r)
		}
	}
}

// token: another agent on the same host shows the mail agent's run token. The token is worth nothing to it, and showing it is hard evidence.
func (s *takeover) token(ctx context.Context) (err error) {
	if s.otherRun, s.archive, err = s.begin(ctx, "archive", "agent/archive", s.message); err != nil {
		return err
	}
	steps, err := s.agent.Work("TOKEN")
	if err != nil || len(steps) != 1 || steps[0].Failed {
		return fmt.Errorf("the token does not get out: %+v, %v", steps, err)
	}
	s.runToken = strings.TrimSpace(steps[0].Text)
	if steps, err = s.archive.Work("HOLD " + s.runToken); err != nil || len(steps) != 1 || steps[0].Failed {
		return fmt.Errorf("the token is not held: %+v, %v", steps, err)
	}
	st, took, err := s.order(s.archive, fmt.Sprintf("agent/archive, with agent/mail's run token: a login for account %d", s.accounts[1]), details(s.accounts[1]))
	if err != nil || !st.Failed || !strings.Contains(st.Text, string(remit.ReasonRunToken)) {
		return fmt.Errorf("it is not denied for the token: %+v, %v", st, err)
	}
	s.Told("%s", story.Short(st.Text), took)
	if _, err := s.found(ctx, remit.FindingStolenToken, "agent/archive", remit.RespondSuspend); err != nil {
		return err
	}
	if st, took, err = s.order(s.archive, "agent/archive: a new certificate", "IDENTITY"); err != nil || !st.Failed {
		return fmt.Errorf("it gets one: %+v, %v", st, err)
	}
	s.Told("%s", story.Short(st.Text), took)
	return nil
}

// lookAround: what policy allows, and nobody has ever seen this agent do. Somebody else keeps a session with the newest login.
func (s *takeover) lookAround(ctx context.Context) (err error) {
	for _, account := range s.accounts[1:] {
		if err := s.look(ctx, account); err != nil {
			return err
		}
	}
	l := &s.logins[len(s.logins)-1]
	if s.open, err = s.db.Connect(ctx, l); err != nil {
		return err
	}
	s.Stop(func() { _ = s.open.Close(context.Background()) })
	var n int
	if err := s.open.QueryRow(ctx, "SELECT count(*) FROM accounts").Scan(&n); err != nil || n != 1 {
		return fmt.Errorf("the login sees %d accounts, %v", n, err)
	}
	s.Told("%s", "somebody else keeps a session open with "+l.User+": one account, as the lease says", 0)
	return nil
}

func (s *takeover) blastRadius(ctx context.Context) (b api.BlastRadius, text string, err error) {
	s.Ask("remit agent blast-radius agent/mail")
	r := s.Remit(ctx, "agent", "blast-radius", "agent/mail", "-o", "json")
	if err := json.Unmarshal([]byte(r.Out), &b); r.Code != 0 || err != nil {
		return b, "", fmt.Errorf("%s", r)
	}
	s.Told("%s", fmt.Sprintf("%d live grants, %d powers to ask for", len(b.Grants), len(b.Now)), r.Took)
	return b, s.Remit(ctx, "agent", "blast-radius", "agent/mail").Out, nil
}

func (s *takeover) before(ctx context.Context) error {
	b, text, err := s.blastRadius(ctx)
	if err != nil {
		return err
	}
	for line := range strings.Lines(strings.TrimSpace(text)) {
		fmt.Println("          " + story.Short(line))
	}
	if len(b.Grants) < len(s.accounts) || len(b.Now) == 0 {
		return fmt.Errorf("the blast radius lacks grants: %+v", b)
	}
	return nil
}

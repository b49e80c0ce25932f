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
	"remit/internal/api"
	"remit/test/story"
)

// start logs the people in, starts a run and launches the orchestrator in it.
func (s *refund) start(ctx context.Context) (err error) {
	for _, name := range []string{s.alice, s.bob, s.carol} {
		if err := s.logIn(ctx, name); err != nil {
			return err
		}
	}
	s.Ask("%s: remit run start refund, customer %d", s.alice, s.customer)
	r := s.as(ctx, s.alice, "run", "start", "refund", "--param", fmt.Sprintf("customer=%d", s.customer), "-o", "json")
	var run remit.Run
	if err := json.Unmarshal([]byte(r.Out), &run); r.Code != 0 || err != nil {
		return fmt.Errorf("%s", r)
	}
	s.run = string(run.ID)
	s.Told("%s", s.run, r.Took)
	if s.agent, err = s.Launch(s.run, "agent/refund", "ask-rows", s.Path("bin", "agent")); err != nil {
		return err
	}
	st, err := s.order("tools")
	if err != nil {
		return err
	}
	tools := strings.Fields(st.Text)
	slices.Sort(tools)
	if diff := cmp.Diff([]string{"issue-refund__refund", "read-transactions__read", "search-kb__search"}, tools); diff != "" {
		return fmt.Errorf("the orchestrator is shown other tools:\n%s", diff)
	}
	s.Told("%s", "agent/refund runs in a sandbox, and is shown "+strings.Join(tools, ", "), 0)
	return nil
}

// order has the orchestrator do one thing.
func (s *refund) order(order string) (story.Step, error) {
	steps, err := s.agent.Work(order)
	if err == nil && len(steps) != 1 {
		err = fmt.Errorf("%q became %d steps", order, len(steps))
	}
	if err != nil {
		return story.Step{}, err
	}
	return steps[0], nil
}

// call has the orchestrator call a tool, and says what was asked.
func (s *refund) call(tool, args string) (story.Step, time.Duration, error) {
	s.Ask("agent/refund: %s %s", tool, args)
	began := time.Now()
	st, err := s.order(tool + " " + args)
	return st, time.Since(began), err
}

// denied checks that a call was denied for that reason, and that the ledger has the denial.
func (s *refund) denied(ctx context.Context, st story.Step, took time.Duration, code string) error {
	if !st.Failed || len(st.Denial.Reasons) == 0 || st.Denial.Reasons[0].Code != code || st.Denial.Decision == "" {
		return fmt.Errorf("it is not denied with %s: %+v", code, st)
	}
	r := s.Remit(ctx, "why", st.Denial.Decision)
	if r.Code != 0 || !strings.Contains(r.Out, "because: "+code) {
		return fmt.Errorf("the ledger does not know why: %s", r)
	}
	s.Told("%s", fmt.Sprintf("not done: %s %s (%s)", code, st.Denial.Reasons[0].Of, st.Denial.Decision), took)
	for line := range strings.Lines(strings.TrimSpace(r.Out)) {
		fmt.Println("          " + story.Short(line))
	}
	return nil
}

type rows struct {
	Transactions []struct {
		ID     int64
		Amount json.Number
	}
	Login *story.Login
}

// read reads the customer's rows, which have to be those of the table, and asks for another customer's.
func (s *refund) read(ctx context.Context) error {
	st, took, err := s.call("search-kb__search", fmt.Sprintf(`{"query":%q}`, s.word))
	if err != nil || st.Failed || !strings.Contains(st.Text, "finance approves") {
		return fmt.Errorf("the company's rules: %+v, %v", st, err)
	}
	s.Told("%s", story.Short(st.Text), took)
	st, took, err = s.call("read-transactions__read", fmt.Sprintf(`{"customer":%d}`, s.customer))
	if err != nil {
		return err
	}
	if err := s.own(st.Text); err != nil {
		return errors.Join(err, fmt.Errorf("%+v", st))
	}
	s.Told("%s", fmt.Sprintf("all %d rows of customer %d and no other, %s in all", s.rows, s.customer, s.sum), took)
	if st, took, err = s.call("read-transactions__read", fmt.Sprintf(`{"customer":%d}`, s.another)); err != nil {
		return err
	}
	if err := s.denied(ctx, st, took, "argument_mismatch"); err != nil {
		return fmt.Errorf("another customer: %w", err)
	}
	return s.findGrant(ctx)
}

// own checks an answer against the table: as many rows, the same sum, each the customer's.
func (s *refund) own(text string) error {
	var got rows
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		return fmt.Errorf("the answer is not read: %w", err)
	}
	ids := make([]int64, 0, len(got.Transactions))
	for _, t := range got.Transactions {
		ids = append(ids, t.ID)
	}
	var n int
	err := s.db.Admin.QueryRow(context.Background(), "SELECT count(*) FROM public.transactions WHERE id = ANY($1) AND customer_id = $2", ids, s.customer).Scan(&n)
	if err != nil || n != s.rows || len(ids) != s.rows {
		return fmt.Errorf("%d rows came back, %d of them the customer's, who has %d: %v", len(ids), n, s.rows, err)
	}
	return nil
}

// findGrant finds the lease that the tool asked for.
func (s *refund) findGrant(ctx context.Context) error {
	r := s.Remit(ctx, "grant", "list", "-o", "json")
	var list api.List[api.Grant]
	if err := json.Unmarshal([]byte(r.Out), &list); r.Code != 0 || err != nil {
		return fmt.Errorf("%s", r)
	}
	for i := range list.Items {
		if g := &list.Items[i]; g.Agent == "tool/read-transactions" && string(g.Run) == s.run {
			s.grant = string(g.ID)
			s.Told("%s", fmt.Sprintf("%s of %s at %s: %s", g.ID, g.Agent, g.Target, story.Short(fmt.Sprint(g.Scope))), 0)
			return nil
		}
	}
	return fmt.Errorf("there is no grant of tool/read-transactions: %s", r.Out)
}

func (s *refund) pay(amount int) (story.Step, time.Duration, error) {
	return s.call("issue-refund__refund", fmt.Sprintf(`{"customer":%d,"amount":%d}`, s.customer, amount))
}

// small is a refund that needs nobody, after what no run of this customer may do.
func (s *refund) small(ctx context.Context) error {
	st, took, err := s.call("issue-refund__refund", fmt.Sprintf(`{"customer":%d,"amount":%d}`, s.another, s.small40))
	if err == nil {
		err = s.denied(ctx, st, took, "argument_mismatch")
	}
	if err != nil {
		return fmt.Errorf("another customer: %w", err)
	}
	if st, took, err = s.pay(s.small40); err != nil {
		return err
	}
	return s.passed(st, took, s.small40)
}

// passed checks that a refund went out, with the key and exactly this payload.
func (s *refund) passed(st story.Step, took time.Duration, amount int) error {
	want := fmt.Sprintf(`POST /v1/refunds {"amount":%d,"customer":%d}`, amount, s.customer)
	seen := s.payments.Seen()
	if st.Failed || !strings.Contains(st.Text, "refunded") || len(seen) == 0 || seen[len(seen)-1] != want {
		return fmt.Errorf("the refund of %d: %+v; the payment API saw %q, not %q", amount, st, seen, want)
	}
	s.Told("%s", "refunded; the payment API saw "+want+", with the key that no tool has", took)
	return nil
}

// paidOnly checks that the payment API got these and nothing else.
func (s *refund) paidOnly(amounts ...int) error {
	want := []string{}
	for _, a := range amounts {
		want = append(want, fmt.Sprintf(`POST /v1/refunds {"amount":%d,"customer":%d}`, a, s.customer))
	}
	if diff := cmp.Diff(want, s.payments.Seen()); diff != "" {
		return fmt.Errorf("the payment API saw something else:\n%s", diff)
	}
	return nil
}

// large is a refund that is held: who started the run cannot approve it, nor who is not of finance, nor who is on the host; a second
// person can, after she saw what is asked.
func (s *refund) large(ctx context.Context) error {
	st, took, err := s.pay(s.large900)
	if err == nil {
		err = s.denied(ctx, st, took, "approval_needed")
	}
	if err != nil {
		return fmt.Errorf("a refund of %d: %w", s.large900, err)
	}
	if s.hold, err = s.pending(ctx, s.large900); err != nil {
		return err
	}
	for _, t := range []struct{ who, why string }{{s.alice, "started the run"}, {s.carol, "no group that is asked"}, {"", "in a session of their own"}} {
		who, r := t.who, story.Result{}
		if s.Ask("%s: remit approval approve %s", orHost(who), s.hold); who == "" {
			r = s.Remit(ctx, "approval", "approve", s.hold)
		} else {
			r = s.as(ctx, who, "approval", "approve", s.hold)
		}
		if r.Code == 0 || !strings.Contains(r.Errs, t.why) {
			return fmt.Errorf("%s is not refused as one who %s: %s", orHost(who), t.why, r)
		}
		s.Told("refused: %s", story.Short(r.Errs), r.Took)
	}
	if err := s.paidOnly(s.small40); err != nil {
		return err
	}
	return s.approve(ctx)
}

func orHost(name string) string {
	if name == "" {
		return "operator/desk, on the host"
	}
	return name
}

// pending is the request about the amount that waits.
func (s *refund) pending(ctx context.Context, amount int) (string, error) {
	r := s.as(ctx, s.bob, "approval", "list", "-o", "json")
	var list api.List[api.Approval]
	if err := json.Unmarshal([]byte(r.Out), &list); r.Code != 0 || err != nil {
		return "", fmt.Errorf("%s", r)
	}
	for i := range list.Items {
		v := &list.Items[i]
		if slices.ContainsFunc(v.Args, func(a api.AskedValue) bool { return a.Name == "amount" && a.Value == fmt.Sprint(amount) }) && v.State == remit.HeldPending {
			return string(v.ID), nil
		}
	}
	return "", fmt.Errorf("nothing waits about %d: %s", amount, r.Out)
}

// approve is the second person: looks, and approves.
func (s *refund) approve(ctx context.Context) error {
	s.Ask("%s: remit approval show %s", s.bob, s.hold)
	r := s.as(ctx, s.bob, "approval", "show", s.hold)
	for _, want := range []string{fmt.Sprint(s.large900), fmt.Sprint(s.customer), s.alice, "agent/refund", "finance", "would allow:"} {
		if r.Code != 0 || !strings.Contains(r.Out, want) {
			return fmt.Errorf("what %s is shown has no %q: %s", s.bob, want, r)
		}
	}
	for line := range strings.Lines(strings.TrimSpace(r.Out)) {
		fmt.Print("          " + line)
	}
	fmt.Println()
	s.Ask("%s: remit approval approve %s", s.bob, s.hold)
	if r = s.as(ctx, s.bob, "approval", "approve", s.hold, "--reason", "called the customer"); r.Code != 0 {
		return fmt.Errorf("%s", r)
	}
	s.Told("%s", "approved by "+s.bob+": "+story.Short(r.Out+r.Errs), r.Took)
	return s.paidOnly(s.small40)
}

// changed: what was approved is not this. It waits by itself, and a denial is the end of it.
func (s *refund) changed(ctx context.Context) error {
	st, took, err := s.pay(s.big)
	if err == nil {
		err = s.denied(ctx, st, took, "approval_needed")
	}
	if err != nil {
		return fmt.Errorf("%d after %d was approved: %w", s.big, s.large900, err)
	}
	hold, err := s.pending(ctx, s.big)
	if err != nil {
		return err
	}
	if hold == s.hold {
		return fmt.Errorf("%s is about both amounts", hold)
	}
	s.Ask("%s: remit approval deny %s", s.bob, hold)
	r := s.as(ctx, s.bob, "approval", "deny", hold, "--reason", "not this one")
	if r.Code != 0 {
		return fmt.Errorf("%s", r)
	}
	s.Told("%s", "denied", r.Took)
	if st, took, err = s.pay(s.big); err == nil {
		err = s.denied(ctx, st, took, "approval_denied")
	}
	if err != nil {
		return fmt.Errorf("%d after it was denied: %w", s.big, err)
	}
	return s.paidOnly(s.small40)
}

// approved: exactly what was approved passes, and once.
func (s *refund) approved(ctx context.Context) error {
	st, took, err := s.pay(s.large900)
	if err == nil {
		err = s.passed(st, took, s.large900)
	}
	if err != nil {
		return err
	}
	if st, took, err = s.pay(s.large900); err == nil {
		err = s.denied(ctx, st, took, "approval_needed")
	}
	if err != nil {
		return fmt.Errorf("the same once more: %w", err)
	}
	return s.paidOnly(s.small40, s.large900)
}

// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"remit"
	"remit/internal/behaviour"
	"remit/internal/policy"
)

// findings follow the ledger. Nothing on the line waits for them: they read what is durable, at their own pace, and a reader that is
// slow or stands still only finds later.
type findings struct {
	plans map[remit.Digest]*policy.Plan // owned by the follower of the hard rules
	work  sync.WaitGroup                // of responses
	slots chan struct{}

	mu    sync.Mutex                    // guards spent
	spent map[remit.FindingID]time.Time // suspensions by Remit itself, within the hour
}

// follower folds the ledger from its first entry, or from a snapshot of what that leaves behind, and acts on what is found in entries
// that it did not act on before.
type follower struct {
	name     string   // of its position
	config   [32]byte // digest of the detector's
	make     func() *behaviour.Detector
	read     func(after uint64, limit int) ([]remit.Entry, error)
	note     func(remit.Entry) // is told of all entries; nil: nobody is
	most     int               // entries at a time
	rest     time.Duration     // how long it rests for each it works: what it reads can wait
	forgets  bool              // what it knows comes from values that can be erased
	detector *behaviour.Detector

	clean uint64    // see snapshotHead
	saved uint64    // the last entry that is in its snapshot
	again time.Time // when the next one may be written

	forgotten int       // agents, since it was said
	short     time.Time // when it was said last that memory is short
}

const (
	followerName  = "findings"
	baselinesName = "baselines"
	followed      = 512  // entries at a time
	followedAside = 32   // of a follower that rests: it never keeps a processor for more than a millisecond or two
	followSaved   = 4096 // entries until the position is written, if nothing is found
	budgetFor     = time.Hour
	responding    = 16
	maxPlans      = 8
	// restful leaves seven eighths of a processor to the line while much is decided: baselines have until tomorrow.
	restful = 7
)

// hardRules hold each entry to what is never in order. They take what they need from the entries as they are in memory.
func (s *Server) hardRules() *follower {
	cfg := s.rules()
	return &follower{name: followerName, config: cfg.Digest(), make: func() *behaviour.Detector { return behaviour.New(cfg) }, read: s.store.Entries,
		note: s.countSuspension, most: followed}
}

// baselines compare each entry with what was before. They read the arguments, which are kept apart from the entries.
func (s *Server) baselines() *follower {
	learning := behaviour.Learning(s.cfg.Findings.Baselines)
	cfg := behaviour.Config{Learn: &learning}
	return &follower{name: baselinesName, config: cfg.Digest(), make: func() *behaviour.Detector { return behaviour.New(cfg) },
		read: s.store.OpenEntries, most: followedAside, rest: restful, forgets: true}
}

func (s *Server) rules() behaviour.Config {
	cfg := behaviour.Config{Denials: s.cfg.Findings.Denials, Within: s.cfg.Findings.Within, Outside: s.outside, Entry: func(seq uint64) (remit.Entry, bool) {
		e, ok, err := s.store.Entry(seq)
		return e, ok && err == nil
	}}
	for _, c := range s.cfg.Findings.Canaries {
		cfg.Canaries = append(cfg.Canaries, behaviour.Canary(c))
	}
	return cfg
}

// outside asks the revision that a decision names, as it was.
func (s *Server) outside(workflow, revision remit.Digest, target string) bool {
	plan, ok := s.findings.plans[revision]
	if !ok {
		plan, _ = s.planOf(revision) // one that is gone says nothing
		if len(s.findings.plans) >= maxPlans || s.findings.plans == nil {
			s.findings.plans = map[remit.Digest]*policy.Plan{}
		}
		s.findings.plans[revision] = plan
	}
	return plan != nil && plan.Outside(workflow, target)
}

// followLedger runs the followers.
func (s *Server) followLedger(ctx context.Context) error {
	defer s.findings.work.Wait()
	s.finishSuspensions(ctx)
	var wg sync.WaitGroup
	if s.cfg.Findings.Baselines.Budget > 0 {
		wg.Go(func() { s.keepFollowing(ctx, s.baselines()) })
	}
	s.keepFollowing(ctx, s.hardRules())
	wg.Wait()
	return nil
}

func (s *Server) keepFollowing(ctx context.Context, f *follower) {
	for failed := false; ; failed = true {
		err := s.follow(ctx, f)
		if ctx.Err() != nil {
			return
		}
		if !failed {
			s.log.Error("the ledger cannot be followed; it is tried again every second", "for", f.name, "err", err)
		}
		if !sleep(ctx, time.Second) {
			return
		}
	}
}

func (s *Server) follow(ctx context.Context, f *follower) error {
	done, ok, err := s.store.Followed(f.name)
	if err != nil {
		return err
	}
	if !ok { // what was before the first follower is history: it is remembered, and nothing is done about it
		if done = s.before; !s.saveFollowed(ctx, f, done) {
			return fmt.Errorf("the position is not on record")
		}
	}
	seq, last := s.recall(f), remit.Entry{}
	f.saved = seq
	for position := done; ; {
		committed, began := s.store.Committed(), time.Now()
		entries, err := f.read(seq, f.most)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !s.followEntry(ctx, f, e, e.Seq > done) { // its finding is not on record: it is found again at the next start
				s.saveFollowed(ctx, f, max(seq, done))
				return nil
			}
			seq, last = e.Seq, e
			if ctx.Err() != nil {
				break
			}
		}
		if seq >= position+followSaved && s.saveFollowed(ctx, f, seq) {
			position = seq
		}
		s.snapshot(f, last, false)
		s.sayShort(f)
		f.pause(ctx, time.Since(began), len(entries) == f.most)
		if len(entries) > 0 && ctx.Err() == nil {
			continue
		}
		select {
		case <-ctx.Done():
			s.saveFollowed(ctx, f, max(seq, done))
			s.snapshot(f, last, true)
			return nil
		case <-committed:
		}
	}
}

// pause rests after some work. Who has caught up waits for more to come together.
func (f *follower) pause(ctx context.Context, worked time.Duration, more bool) {
	if f.rest == 0 {
		return
	}
	least := time.Duration(0)
	if !more {
		least = 50 * time.Millisecond
	}
	sleep(ctx, max(f.rest*worked, least))
}

// sayShort says, at most once an hour, that baselines got less memory than they would have, so that they tell less than they might.
func (s *Server) sayShort(f *follower) {
	refused, forgotten := f.detector.Short()
	f.forgotten += forgotten
	if (refused || f.forgotten > 0) && time.Since(f.short) > time.Hour {
		s.log.Error("the baselines' memory is used up: agents' habits are kept in less detail, and those that are forgotten begin anew", "forgotten", f.forgotten)
		f.short, f.forgotten = time.Now(), 0
	}
}

func (s *Server) saveFollowed(ctx context.Context, f *follower, seq uint64) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err := s.store.Commit(ctx, remit.Change{Rows: []remit.Row{remit.Followed{Name: f.name, Seq: seq}}})
	return err == nil
}

// followEntry folds one entry, and acts on what it completes when it is new. It reports whether all of that is on record.
func (s *Server) followEntry(ctx context.Context, f *follower, e remit.Entry, fresh bool) bool {
	found := f.detector.Next(e)
	if f.note != nil {
		f.note(e)
	}
	if !fresh {
		return true
	}
	for i := range found {
		if !s.respond(ctx, f.name, &found[i]) {
			return false
		}
	}
	return true
}

// countSuspension takes a suspension by Remit itself into the budget, also one by an earlier process.
func (s *Server) countSuspension(e remit.Entry) {
	var event struct {
		At   time.Time       `json:"at"`
		Kind remit.EventKind `json:"kind"`
		Data struct {
			Finding remit.FindingID `json:"finding"`
		} `json:"data"`
	}
	if behaviour.KindOf(e.Body) == remit.EventSuspended && json.Unmarshal(e.Body, &event) == nil && event.Data.Finding != "" {
		s.findings.mu.Lock()
		defer s.findings.mu.Unlock()
		s.findings.spend(event.Data.Finding, event.At)
	}
}

// raisedData is the event of a finding.
type raisedData struct {
	remit.Finding
	MS float64 `json:"ms_after_event"` // until it was found, by the event's own time
}

// respond acts on a finding, first, and then writes it down with what is done (S20). It reports whether that is on record.
func (s *Server) respond(ctx context.Context, follower string, f *remit.Finding) bool {
	s.findings.mu.Lock()
	f.Response, f.Held = s.responseTo(f)
	if f.Response >= remit.RespondSuspend {
		s.findings.spend(f.ID, s.now())
	}
	s.findings.mu.Unlock()
	found := s.since(f.At)
	row := []remit.Row{*f, remit.Followed{Name: follower, Seq: f.Seq()}}
	var of *suspension
	var require []remit.Precondition
	if f.Response >= remit.RespondSuspend {
		now, why := s.now(), remit.Clip(f.Text, 400)+" ("+string(f.ID)+")"
		//remit:guard S20 TestSlowFollower
		s.store.SetSuspended(f.Agent, why)
		// What is on record by then stays: the suspension itself, or a person's answer to it.
		require = []remit.Precondition{{Key: remit.AgentKey(f.Agent), Epoch: s.store.Posture(f.Agent).Epoch}}
		row = append(row, remit.AgentStatus{Agent: f.Agent, Suspended: true, Ending: f.ID, Reason: why, By: remit.Installation, At: now})
		of = &suspension{agent: s.rev.Load().set.Agents[f.Agent], why: why, by: remit.Principal{Person: remit.Installation}, finding: f.ID,
			kill: f.Response == remit.RespondKill}
	}
	if f.Response == remit.RespondStepUp || f.Response == remit.RespondThrottle {
		status := s.narrowed(f)
		if epoch, ok := s.store.Narrow(&status); ok {
			row, require = append(row, status), []remit.Precondition{{Key: remit.AgentKey(f.Agent), Epoch: epoch}}
		}
	}
	body, _ := json.Marshal(raisedData{*f, found}) // plain structs of ours
	s.log.Warn("finding", "id", f.ID, "kind", f.Kind, "agent", f.Agent, "response", f.Response, "held_back", f.Held, "text", f.Text)
	if of != nil {
		s.startSuspension(ctx, of)
	}
	change := remit.Change{Rows: row, Require: append(require, remit.Precondition{Key: f.EpochKey()}),
		Events: []remit.Event{{At: s.now(), Kind: remit.EventRaised, Agent: f.Agent, Run: f.Run, By: "remit", Data: body}}}
	return s.recordFinding(ctx, f, change)
}

// narrowed is what a step-up or a throttle asks of the agent.
func (s *Server) narrowed(f *remit.Finding) remit.AgentStatus {
	a := remit.AgentStatus{Agent: f.Agent, Reason: remit.Clip(f.Text, 400) + " (" + string(f.ID) + ")", By: remit.Installation, At: s.now()}
	if f.Response == remit.RespondThrottle {
		a.Throttled = true
	} else {
		a.StepUp = s.cfg.Findings.StepUp
	}
	return a
}

// recordFinding writes a finding down, once, and reports whether it is. When the agent's posture moved meanwhile, by a person who suspended
// or reinstated it, theirs stays.
func (s *Server) recordFinding(ctx context.Context, f *remit.Finding, change remit.Change) bool {
	for failed := false; ; failed = true {
		_, err := s.store.Commit(ctx, change)
		if err == nil || ctx.Err() != nil {
			return err == nil
		}
		if remit.CodeOf(err) == remit.CodeConflict {
			if _, known, err := s.store.Finding(f.ID); known && err == nil {
				return true
			}
			change.Rows, change.Require = change.Rows[:2], change.Require[len(change.Require)-1:]
			continue
		}
		if !failed {
			s.log.Error("a finding is not on record; it is tried again every second", "id", f.ID, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// responseTo is what the configuration says is done about a finding, and why less is. The caller holds findings.mu.
func (s *Server) responseTo(f *remit.Finding) (r remit.Response, held string) {
	r = s.cfg.Findings.Respond[f.Kind]
	if r == remit.RespondNotice {
		return r, ""
	}
	//remit:guard S36 TestYoungBaselineOnlyTells
	if f.Young {
		return remit.RespondNotice, "the agent's baseline is young: it only tells"
	}
	_, known := s.rev.Load().set.Agents[f.Agent]
	switch {
	case f.Agent == "":
		return remit.RespondNotice, "whose act it was is not known"
	case !known:
		return remit.RespondNotice, "no file declares the agent"
	case s.store.Posture(f.Agent).Suspended && r <= remit.RespondSuspend:
		return remit.RespondNotice, "the agent is suspended already"
	case r < remit.RespondSuspend:
		return r, ""
	}
	maps.DeleteFunc(s.findings.spent, func(_ remit.FindingID, at time.Time) bool { return s.now().Sub(at) >= budgetFor })
	//remit:guard S36 TestSuspensionsHaveABudget
	if len(s.findings.spent) >= s.cfg.Findings.Suspensions {
		s.log.Error("the budget of suspensions by Remit itself is spent: a person has to look at this", "finding", f.ID, "agent", f.Agent)
		return remit.RespondNotice, fmt.Sprintf("%d agents were suspended by Remit itself within an hour: a person has to decide", len(s.findings.spent))
	}
	return r, ""
}

// spend takes a suspension out of the budget, once. The caller holds mu.
func (f *findings) spend(id remit.FindingID, at time.Time) {
	if f.spent == nil {
		f.spent = map[remit.FindingID]time.Time{}
	}
	f.spent[id] = at
}

// lately copies the suspensions that count against the budget.
func (f *findings) lately(now time.Time) map[remit.FindingID]time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.spent, func(_ remit.FindingID, at time.Time) bool { return now.Sub(at) >= budgetFor })
	return maps.Clone(f.spent)
}

// startSuspension ends what the agent has beside the follower: a target that hangs must not keep the next finding waiting. The
// agent is denied already.
func (s *Server) startSuspension(ctx context.Context, of *suspension) {
	f := &s.findings
	select {
	case f.slots <- struct{}{}:
	case <-ctx.Done():
		return // finishSuspensions, at the next start
	}
	f.work.Go(func() {
		defer func() { <-f.slots }()
		out := s.suspend(context.WithoutCancel(ctx), of)
		s.log.Warn("agent suspended", "agent", of.agent.Name, "finding", of.finding, "ms", out.MS, "failed", out.Failed)
	})
}

// finishSuspensions carries out what an earlier process decided and did not live to end, or to tell.
func (s *Server) finishSuspensions(ctx context.Context) {
	agents := s.rev.Load().set.Agents
	for _, name := range slices.Sorted(maps.Keys(agents)) {
		posture := s.store.Posture(name)
		if !posture.Suspended {
			continue
		}
		status, _ := s.store.AgentStatus(name)
		holds := s.store.LiveLeases(func(l *remit.Lease) bool { return l.Agent == name })
		if status.Ending == "" && len(holds) == 0 {
			continue
		}
		of := &suspension{agent: agents[name], why: posture.Reason, by: remit.Principal{Person: remit.Installation}, finding: status.Ending}
		if f, known, err := s.store.Finding(status.Ending); known && err == nil {
			of.kill = f.Response == remit.RespondKill
		}
		s.startSuspension(ctx, of)
	}
}

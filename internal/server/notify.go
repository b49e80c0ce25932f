// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"remit"
)

// A rule can oblige an allow to be told to a webhook of remit.yaml: notify=NAME. Remit carries that out itself, whatever the enforcement
// point is. The decision is on record first; what waits for delivery is in memory, a bounded number for each webhook: while that is
// full the obligation counts as one that nobody carries out, and the request is denied. What was not delivered in time is a finding.
const (
	notifyQueue = 256
	notifyFor   = 15 * time.Minute
)

// notice is a decision that is told to a webhook.
type notice struct {
	decision remit.Decision
	tries    int
	next     time.Time
}

// keeps are the obligations that an enforcement point carries out, and those to tell somebody that can be carried out now: about these
// nobody else has a say.
func (s *Server) keeps(theirs []string) []string {
	out := slices.Clone(theirs)
	//remit:guard S17 TestNotifyThatCannotBeKept
	out = slices.DeleteFunc(out, func(kind string) bool { return strings.HasPrefix(kind, "notify") })
	for _, h := range s.webhooks {
		h.mu.Lock()
		waiting := len(h.notices)
		h.mu.Unlock()
		//remit:guard S17 TestNotifyThatCannotBeKept
		if waiting >= notifyQueue {
			continue
		}
		out = append(out, "notify="+h.cfg.Name)
	}
	return out
}

// notify puts an allow before the webhooks that its obligations name.
func (s *Server) notify(d *remit.Decision) {
	if d.Effect != remit.Allow {
		return
	}
	for _, o := range d.Obligations {
		name, ok := strings.CutPrefix(o, "notify=")
		for _, h := range s.webhooks {
			if ok && h.cfg.Name == name {
				h.mu.Lock()
				h.notices = append(h.notices, &notice{decision: *d}) // what is decided at one time may be a few more than the bound
				h.mu.Unlock()
			}
		}
	}
}

// tellNotices delivers what is due, oldest first, and gives up on what is too old.
func (s *Server) tellNotices(ctx context.Context, h *webhook) {
	h.mu.Lock()
	waiting := slices.Clone(h.notices)
	h.mu.Unlock()
	for _, n := range waiting {
		now := s.now()
		if now.Before(n.next) || ctx.Err() != nil {
			continue
		}
		err := h.deliver(ctx, noticeBody(&n.decision, h), string(n.decision.ID), now)
		if err != nil && now.Before(n.decision.At.Add(notifyFor)) {
			n.tries++
			n.next = now.Add(min(time.Second<<min(n.tries, 6), announceRetry))
			s.log.Warn("a decision was not told; it is tried again", "webhook", h.cfg.Name, "decision", n.decision.ID, "tries", n.tries, "err", err)
			continue
		}
		if err != nil {
			s.unnotified(ctx, h, n)
		}
		h.mu.Lock()
		h.notices = slices.DeleteFunc(h.notices, func(o *notice) bool { return o == n })
		h.mu.Unlock()
	}
}

// unnotified records that an obligation was not carried out.
func (s *Server) unnotified(ctx context.Context, h *webhook, n *notice) {
	body, _ := json.Marshal(map[string]string{"finding": "notification_undelivered", "webhook": h.cfg.Name}) // plain texts
	d := &n.decision
	e := remit.Event{At: s.now(), Kind: remit.EventFinding, Agent: d.Agent, Run: d.Run, Decision: d.ID, By: "remit", Data: body}
	if err := s.record(context.WithoutCancel(ctx), e); err != nil {
		s.log.Error("a finding is not on record", "decision", d.ID, "finding", "notification_undelivered", "err", err)
	}
}

type noticeData struct {
	Type string    `json:"type"`
	At   time.Time `json:"timestamp"`
	Data struct {
		Decision   remit.DecisionID    `json:"decision"`
		Agent      remit.Name          `json:"agent"`
		Action     string              `json:"action"`
		Target     string              `json:"target"`
		Permission remit.PermissionRef `json:"permission"`
		Run        remit.RunID         `json:"run"`
	} `json:"data"`
}

// noticeBody names what was allowed. No value that an agent wrote is in it.
func noticeBody(d *remit.Decision, h *webhook) []byte {
	n := noticeData{Type: "decision.allowed", At: d.At.UTC()}
	n.Data.Decision, n.Data.Agent, n.Data.Action, n.Data.Target, n.Data.Permission, n.Data.Run = d.ID, d.Agent, d.Action, d.Target, d.Permission, d.Run
	var v any = n
	if h.cfg.Form == "slack" {
		v = map[string]string{"text": fmt.Sprintf("%s was allowed %s on %s (%s/%s/%s): %s", slackPlain(string(d.Agent)), slackPlain(d.Action), slackPlain(d.Target),
			slackPlain(d.Permission.Workflow), slackPlain(d.Permission.Stage), slackPlain(d.Permission.Name), d.ID)}
	}
	body, err := json.Marshal(v)
	if err != nil {
		panic("server: " + err.Error()) // plain structs of ours, which cannot fail
	}
	return body
}

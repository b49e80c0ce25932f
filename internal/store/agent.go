// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"zombiezen.com/go/sqlite"

	"remit"
)

const (
	putAgentSQL = `INSERT INTO agents (name, epoch, body) VALUES (?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, body = excluded.body`
	agentsSQL = `SELECT body, epoch FROM agents`
	agentSQL  = `SELECT body, epoch FROM agents WHERE name = ?`
)

func putAgent(conn *sqlite.Conn, a *remit.AgentStatus, w *write) error {
	return exec(conn, putAgentSQL, string(a.Agent), w.epoch, w.body)
}

// publishAgent shows a written status, unless the agent was suspended in memory after the writer had checked the change:
// then the suspension stays.
func (s *Store) publishAgent(a *remit.AgentStatus, epoch uint64) {
	s.agents.update(a.Agent, func(old slot[remit.Posture]) slot[remit.Posture] {
		next := postureOf(a)
		if old.epoch >= epoch {
			epoch = old.epoch + 1
			if old.row != nil && old.row.Suspended && !a.Suspended {
				next = old.row
			}
		}
		return slot[remit.Posture]{row: next, epoch: epoch}
	})
}

func (s *Store) loadAgents(conn *sqlite.Conn) error {
	return query1(conn, agentsSQL, func(st *sqlite.Stmt) error {
		a, err := decode[remit.AgentStatus](st, 0)
		if err == nil {
			s.agents.put(a.Agent, postureOf(a), uint64(st.ColumnInt64(1)))
		}
		return err
	})
}

// Posture returns what is known about an agent, from memory. An agent that never had a status is not suspended, at epoch 0.
func (s *Store) Posture(agent remit.Name) remit.Posture {
	slot, _ := s.agents.get(agent)
	p := remit.Posture{}
	if slot.row != nil {
		p = *slot.row
	}
	p.Epoch = slot.epoch
	return p
}

// SetSuspended suspends an agent in memory at once and moves its epoch, without the disk (S20). The caller then commits the
// AgentStatus, and tries again for as long as that fails: only what is committed outlives the process.
func (s *Store) SetSuspended(agent remit.Name, reason string) {
	s.agents.update(agent, func(old slot[remit.Posture]) slot[remit.Posture] {
		return slot[remit.Posture]{row: &remit.Posture{Suspended: true, Reason: reason}, epoch: old.epoch + 1}
	})
}

// Narrow asks more of an agent, a step-up or a throttle, likewise, beside what is asked already: it lifts nothing. It sets a to what is
// asked then, to be committed at the epoch that it returns. ok is false when the agent is suspended, which is narrower.
func (s *Store) Narrow(a *remit.AgentStatus) (epoch uint64, ok bool) {
	s.agents.update(a.Agent, func(old slot[remit.Posture]) slot[remit.Posture] {
		if old.row != nil && old.row.Suspended {
			return old
		}
		//remit:guard S36 TestNarrowedTwice
		if old.row != nil {
			a.StepUp, a.Throttled = cmp.Or(a.StepUp, old.row.StepUp), a.Throttled || old.row.Throttled
		}
		epoch, ok = old.epoch+1, true
		return slot[remit.Posture]{row: postureOf(a), epoch: epoch}
	})
	return epoch, ok
}

func postureOf(a *remit.AgentStatus) *remit.Posture {
	return &remit.Posture{Suspended: a.Suspended, Reason: a.Reason, StepUp: a.StepUp, Throttled: a.Throttled}
}

// AgentStatus returns the last recorded status of an agent, which may lag behind Posture.
func (s *Store) AgentStatus(agent remit.Name) (remit.AgentStatus, bool) {
	var found *remit.AgentStatus
	err := s.read(func(conn *sqlite.Conn) error {
		return query1(conn, agentSQL, func(st *sqlite.Stmt) (err error) {
			found, err = decode[remit.AgentStatus](st, 0)
			return err
		}, string(agent))
	})
	if err != nil || found == nil {
		return remit.AgentStatus{}, false
	}
	return *found, true
}

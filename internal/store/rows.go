// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"fmt"
	"slices"

	"zombiezen.com/go/sqlite"

	"remit"
)

// encode checks that a row is of the closed set, and returns its body.
func (s *Store) encode(r remit.Row, require []remit.Precondition) ([]byte, error) {
	switch v := r.(type) {
	case remit.Run, remit.Grant, remit.Lease, remit.Statement, remit.Revision, remit.Used, remit.Issued, remit.LaunchRecord,
		remit.Erasure, remit.Session, remit.PersonRecord, remit.ToolRecord, remit.Held, remit.Finding, remit.Followed:
	case remit.AgentStatus:
		//remit:guard S11 TestSuspensionActsInMemory
		if !v.Suspended && !requires(require, v.EpochKey()) {
			return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "a reinstatement must require the epoch of the suspension it lifts",
				Hint: "require remit.AgentKey with Posture's epoch"}
		}
	default:
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("the store keeps no rows of type %T", r)}
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", r, err)
	}
	//remit:guard S35 TestBounds
	if len(body) > maxRowBytes {
		return nil, tooLarge("a %T has %d bytes, more than %d", r, len(body), maxRowBytes)
	}
	//remit:guard S33 TestSensitiveRowsAreEncrypted
	if sensitive(r) {
		return s.encrypt(body, rowUse)
	}
	return body, nil
}

func requires(require []remit.Precondition, key remit.EpochKey) bool {
	for _, r := range require {
		if r.Key == key {
			return true
		}
	}
	return false
}

// putRow writes a row in the open transaction.
func putRow(conn *sqlite.Conn, w *write) error {
	switch r := w.row.(type) {
	case remit.Run:
		return putRun(conn, &r, w)
	case remit.AgentStatus:
		return putAgent(conn, &r, w)
	case remit.Grant:
		return putGrant(conn, &r, w)
	case remit.Lease:
		return putLease(conn, &r, w)
	case remit.Statement:
		return putStatement(conn, &r, w)
	case remit.Revision:
		return putRevision(conn, &r, w)
	case remit.Used:
		return putUsed(conn, &r, w)
	case remit.Issued:
		return putIssued(conn, &r, w)
	case remit.LaunchRecord:
		return putLaunch(conn, &r, w)
	case remit.Erasure:
		return putErasure(conn, &r)
	case remit.Session:
		return putSession(conn, &r, w)
	case remit.PersonRecord:
		return putPerson(conn, &r, w)
	case remit.ToolRecord:
		return putTool(conn, &r, w)
	case remit.Held:
		return putHeld(conn, &r, w)
	case remit.Finding:
		return putFinding(conn, &r, w)
	case remit.Followed:
		return putFollowed(conn, &r)
	}
	return fmt.Errorf("row of type %T", w.row) // encode let it pass: a fault of ours, and the batch fails
}

// publish shows a durable row in the read model.
func (s *Store) publish(w *write) {
	switch r := w.row.(type) {
	case remit.Run:
		s.publishRun(&r, w.epoch)
	case remit.AgentStatus:
		s.publishAgent(&r, w.epoch)
	case remit.Grant:
		s.publishGrant(&r, w.epoch)
	case remit.Lease:
		s.publishLease(&r, w.epoch)
	case remit.Statement:
		s.sources.moveTo(r.Source, w.epoch)
	case remit.Revision:
		s.policy.put(activeRevision, &r, w.epoch)
	case remit.Used:
		s.used.put(usedID(&r), &r, w.epoch)
	case remit.Issued:
		s.issued.put(r.Credential, &r, w.epoch)
	case remit.LaunchRecord:
		s.publishLaunch(&r, w.epoch)
	case remit.Session:
		s.sessions.put(r.ID, &r, w.epoch)
	case remit.PersonRecord:
		s.people.put(r.Name, &r, w.epoch)
	case remit.ToolRecord:
		s.tools.put(r.Tool, &r, w.epoch)
	case remit.Held:
		s.held.put(r.Digest, &r, w.epoch)
	case remit.Finding:
		s.publishFinding(&r, w.epoch)
	case remit.Erasure:
		s.dropHeld(func(h *remit.Held) bool { return slices.Contains(r.Runs, h.Run) })
	}
}

// roomFor bounds the tables that outsiders fill: they are in memory whole.
func (s *Store) roomFor(rows []write) error {
	for i := range rows {
		switch r := rows[i].row.(type) {
		case remit.Used:
			if s.used.count.Load() >= maxSingleUse {
				return tooLarge("more than %d single-use assertions are remembered", maxSingleUse)
			}
		case remit.Issued:
			if s.issued.count.Load() >= maxSingleUse {
				return tooLarge("more than %d issued identities are remembered", maxSingleUse)
			}
		case remit.Held:
			if r.State == remit.HeldPending && s.held.count.Load() >= maxHeld { // an answer is never refused
				return tooLarge("more than %d held requests are remembered", maxHeld)
			}
		case remit.Finding:
			if r.State == remit.FindingOpen && s.findings.count.Load() >= maxFindings { // a close is never refused
				return tooLarge("more than %d findings are open", maxFindings)
			}
		case remit.Session:
			if r.Ended.IsZero() && s.sessions.count.Load() >= maxSessions { // an end is never refused
				return tooLarge("more than %d sessions are remembered", maxSessions)
			}
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"remit"
	"remit/internal/config"
	"remit/internal/ledger"
	"remit/internal/store"
)

// Restored is what Restore did.
type Restored struct {
	Backup uint64 `json:"backup"` // the backup's last entry
	Log    uint64 `json:"log"`    // the log's last entry
	Gap    *Gap   `json:"gap,omitempty"`
}

// Gap is what a restored state does not know, and what was ended for that reason. It stands in the ledger.
type Gap struct {
	First       uint64        `json:"first"` // entries from here on are known from the log only: their values are lost
	Last        uint64        `json:"last"`
	EndedRuns   []remit.RunID `json:"ended_runs,omitempty"`
	EndedLeases int           `json:"ended_leases"`
	EndedLogins int           `json:"ended_logins,omitempty"`
	Suspended   []remit.Name  `json:"suspended,omitempty"`
	Evidence    []string      `json:"evidence,omitempty"` // statements that were added in the gap and have to be added again
	Lost        string        `json:"lost"`
}

const lostText = "entries with a receipt beyond the log's last entry; which tickets, assertions and approvals were used up in the gap; runs that were started in the gap"

// Restore puts a backup in the place of a stopped server's state, after verifying the log and that the backup is of this log. The
// old state is kept beside it. A log that went on after the backup is refused unless beside is set: then the state starts at the
// log's head, takes over from the log what ends authority, ends all runs and leases, and records what it does not know.
func Restore(ctx context.Context, dir, backup string, passphrase remit.Secret, beside bool) (Restored, error) {
	var r Restored
	cfg, err := config.LoadServer(filepath.Join(dir, fileServer))
	if err != nil {
		return r, err
	}
	state := filepath.Join(cfg.Data, fileState)
	lock, err := store.Lock(state)
	if err != nil {
		return r, &remit.Error{Code: remit.CodeConflict, Msg: err.Error(), Hint: "stop the server first"}
	}
	defer lock.Close() //nolint:errcheck // releases the lock in any case
	next := state + ".restore"
	if err := errors.Join(removeStore(next), copyFile(backup, next)); err != nil {
		return r, &remit.Error{Code: remit.CodeInvalid, Msg: "the backup cannot be read: " + err.Error()}
	}
	p := &restoring{dir: cfg.Data, path: next, passphrase: passphrase}
	if r, err = p.prepare(ctx, beside); err != nil {
		return r, errors.Join(err, removeStore(next))
	}
	aside := state + "." + time.Now().UTC().Format("20060102-150405")
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Rename(state+suffix, aside+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return r, fmt.Errorf("keep the old state: %w", err)
		}
	}
	return r, errors.Join(dropSnapshots(cfg.Data), os.Rename(next, state), removeStore(next))
}

// removeStore removes a store's files, where there are some.
func removeStore(path string) error {
	var errs []error
	for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
		if err := os.Remove(path + suffix); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// restoring is a restore under way.
type restoring struct {
	dir, path  string
	passphrase remit.Secret
	key        *ledger.Key
	cipher     cipher.AEAD
	log        *ledger.Log
}

// prepare verifies everything, and makes the backup's copy what the state is to be.
func (p *restoring) prepare(ctx context.Context, beside bool) (r Restored, err error) {
	keeper, err := openKeeper(p.dir, p.passphrase)
	if err != nil {
		return r, err
	}
	if p.cipher, err = readStateCipher(filepath.Join(p.dir, fileStateKey), keeper); err != nil {
		return r, err
	}
	if p.key, err = ledger.LoadKeyBy(keeper, filepath.Join(p.dir, fileLedgerKey)); err != nil {
		return r, err
	}
	if p.log, err = ledger.OpenLog(filepath.Join(p.dir, dirLedger), p.key.Public()); err != nil {
		return r, err
	}
	report, err := p.log.Verify(ctx, ledger.VerifyOptions{})
	if err != nil {
		return r, err
	}
	//remit:guard S34 TestRestoreRefuses
	if !report.Intact() {
		return r, &remit.Error{Code: remit.CodeInvalid, Msg: "the log beside the backup is not intact: " + report.Problems[0].What,
			Hint: "put an intact copy of the log in its place first"}
	}
	s, err := p.open()
	if err != nil {
		return r, err
	}
	r = Restored{Backup: s.LastSeq(), Log: report.Size}
	err = errors.Join(p.belongs(ctx, s, min(r.Backup, r.Log)), s.Close())
	if err != nil || r.Log <= r.Backup {
		return r, err
	}
	//remit:guard S34 TestRestoreRefuses
	if !beside {
		return r, &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("the backup ends with entry %d, the log went on to %d", r.Backup, r.Log),
			Hint: "add --beside-newer-log: the state then starts at the log's head, all runs and leases end, and what is lost is recorded"}
	}
	r.Gap, err = p.bridge(ctx, r)
	return r, err
}

func (p *restoring) open() (*store.Store, error) {
	s, err := store.Open(store.Config{Path: p.path, Sign: p.key.SignBatch, Cipher: p.cipher})
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "the backup is no state that this program can read: " + err.Error()}
	}
	return s, nil
}

// belongs compares the last entry that both have.
func (p *restoring) belongs(ctx context.Context, s *store.Store, seq uint64) error {
	if seq == 0 {
		return nil
	}
	stored, ok, err := s.Entry(seq)
	if err != nil {
		return err
	}
	inLog, err := p.log.Entry(ctx, seq)
	if err != nil {
		return err
	}
	//remit:guard S34 TestRestoreRefuses
	if !ok || !bytes.Equal(stored.Body, inLog.Body) {
		return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("the backup is of another log: entry %d differs", seq)}
	}
	return nil
}

// bridge takes the entries of the gap over from the log, ends all authority, and records the gap.
func (p *restoring) bridge(ctx context.Context, r Restored) (*Gap, error) {
	g := &Gap{First: r.Backup + 1, Last: r.Log, Lost: lostText}
	seen := newSeen()
	err := store.Adopt(p.path, r.Log, func(after uint64, limit int) (out []remit.Entry, err error) {
		for seq := after + 1; seq <= after+uint64(limit); seq++ {
			e, err := p.log.Entry(ctx, seq)
			if err != nil {
				return nil, err
			}
			seen.add(&e)
			out = append(out, e)
		}
		return out, nil
	})
	if err != nil {
		return nil, err
	}
	s, err := p.open()
	if err != nil {
		return nil, err
	}
	rows := seen.rows(s, g)
	body, err := json.Marshal(g)
	if err == nil {
		for len(rows) > 1000 && err == nil { // before the event, so that it is the last word
			_, err = s.Commit(ctx, remit.Change{Rows: rows[:1000]})
			rows = rows[1000:]
		}
	}
	if err == nil {
		_, err = s.Commit(ctx, remit.Change{Rows: rows, Events: []remit.Event{{At: time.Now(), Kind: remit.EventRestored, By: "remit", Data: body}}})
	}
	return g, errors.Join(err, s.Close())
}

// seen is what the entries of a gap say about authority.
type seen struct {
	leases    map[remit.LeaseID]remit.Lease // granted in the gap and not known to have ended
	grants    map[remit.LeaseID]remit.Grant
	suspended map[remit.Name]bool
	evidence  []string
}

func newSeen() *seen {
	return &seen{map[remit.LeaseID]remit.Lease{}, map[remit.LeaseID]remit.Grant{}, map[remit.Name]bool{}, nil}
}

func (x *seen) add(e *remit.Entry) {
	var v struct {
		Kind  remit.EventKind
		Agent remit.Name
		Run   remit.RunID
		Lease remit.LeaseID
		Data  json.RawMessage
	}
	if json.Unmarshal(e.Open().Body, &v) != nil {
		return
	}
	switch v.Kind {
	case remit.EventGrant:
		var g remit.Grant
		if json.Unmarshal(v.Data, &g) == nil {
			g.State, g.Scope, g.Bounds, g.NotBounded = remit.GrantRevoking, nil, nil, nil
			x.grants[v.Lease] = g
			x.leases[v.Lease] = remit.Lease{ID: v.Lease, Grant: g.ID, Agent: g.Agent, Run: g.Run, Target: g.Target, Action: g.Action,
				Issued: g.Issued, Expires: g.Expires, MintBefore: g.Issued.Add(time.Minute), State: remit.GrantRevoking}
		}
	case remit.EventLeaseEnded, remit.EventLeaseFailed:
		delete(x.leases, v.Lease)
		delete(x.grants, v.Lease)
	case remit.EventSuspended:
		x.suspended[v.Agent] = true
	case remit.EventReinstated:
		x.suspended[v.Agent] = false
	case remit.EventClockJumped:
		//remit:guard S13 TestRestoreKeepsHalt
		x.suspended[remit.Installation] = true
	case remit.EventClockConfirmed:
		x.suspended[remit.Installation] = false
	case remit.EventEvidence:
		var d struct {
			ID     string `json:"id"`
			Source string `json:"source"`
			Name   string `json:"name"`
		}
		_ = json.Unmarshal(v.Data, &d)
		x.evidence = append(x.evidence, d.Source+" "+d.Name+" "+d.ID)
	}
}

// rows ends what the state and the gap hold alive. A suspension in the gap holds; a reinstatement does not: a person can repeat it.
func (x *seen) rows(s *store.Store, g *Gap) (rows []remit.Row) {
	const why = "the state was restored from an older backup"
	for _, r := range s.LiveRuns() {
		r.State = remit.RunExpired
		rows, g.EndedRuns = append(rows, r), append(g.EndedRuns, r.ID)
	}
	//remit:guard S2 TestRestoreEndsLogins
	for _, login := range s.Sessions() { // each may have been ended in the gap
		if login.Ended.IsZero() {
			login.Ended = time.Now()
			rows = append(rows, login)
			g.EndedLogins++
		}
	}
	for _, l := range s.LiveLeases(nil) {
		x.leases[l.ID] = l
		if grant, ok := s.Grant(l.Grant); ok {
			x.grants[l.ID] = grant
		}
	}
	for id, l := range x.leases {
		l.State, l.Why = remit.GrantRevoking, why
		grant := x.grants[id]
		grant.State, grant.Why = remit.GrantRevoking, why
		rows = append(rows, grant, l)
		g.EndedLeases++
	}
	for agent, suspended := range x.suspended {
		if suspended {
			rows = append(rows, remit.AgentStatus{Agent: agent, Suspended: true, Reason: why, At: time.Now()})
			g.Suspended = append(g.Suspended, agent)
		}
	}
	g.EndedRuns = g.EndedRuns[:min(len(g.EndedRuns), 500)]
	g.Evidence = x.evidence[:min(len(x.evidence), 200)]
	return rows
}

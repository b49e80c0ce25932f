// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
	"remit/internal/policy"
	"remit/internal/store"
)

func (s *Server) opEntries(_ context.Context, c admin.Call) (any, error) {
	limit, text, err := page(c.Query)
	if err != nil {
		return nil, err
	}
	var after uint64
	if text != "" {
		if after, err = strconv.ParseUint(text, 10, 64); err != nil {
			return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "after is an entry's number"}
		}
	}
	entries, next, err := s.store.Events(filterOf(c.Query), after, limit)
	if err != nil {
		return nil, err
	}
	return entriesText(entries, next)
}

// maxListed bounds the text of one list of entries, but for its last one: no client is made to hold more.
const maxListed = 16 << 20

// entriesText is an api.List of entries as JSON. It is put together by hand, because whoever reads the history pays for it a million times.
func entriesText(entries []remit.Entry, next uint64) ([]byte, error) {
	b := []byte(`{"items":[`)
	for i, e := range entries {
		shown := openEntry(e)
		if !json.Valid(shown.Event) {
			return nil, fmt.Errorf("entry %d is damaged: it is not JSON", e.Seq)
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(strconv.AppendUint(append(b, `{"seq":`...), shown.Seq, 10), `,"event":`...), shown.Event...)
		b = appendPlaces(b, `,"erased":`, shown.Erased)
		b = append(appendPlaces(b, `,"sensitive":`, shown.Sensitive), '}')
		if len(b) > maxListed && i < len(entries)-1 {
			next = e.Seq
			break
		}
	}
	b = append(b, ']')
	if next != 0 {
		b = append(strconv.AppendUint(append(b, `,"next":"`...), next, 10), '"')
	}
	return append(b, '}'), nil
}

func appendPlaces(b []byte, key string, places []string) []byte {
	if len(places) == 0 {
		return b
	}
	text, _ := json.Marshal(places) // texts, which cannot fail
	return append(append(b, key...), text...)
}

func filterOf(q url.Values) store.EventFilter {
	return store.EventFilter{Kind: remit.EventKind(q.Get("kind")), Agent: remit.Name(q.Get("agent")), Run: remit.RunID(q.Get("run")),
		Decision: remit.DecisionID(q.Get("decision")), Grant: remit.GrantID(q.Get("grant")), Lease: remit.LeaseID(q.Get("lease"))}
}

func seqOf(c admin.Call) (uint64, error) {
	seq, err := strconv.ParseUint(c.Path("seq"), 10, 64)
	if err != nil || seq == 0 {
		return 0, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%.40q is not an entry's number", c.Path("seq")), Hint: "entries are numbered from 1"}
	}
	return seq, nil
}

func (s *Server) opEntry(_ context.Context, c admin.Call) (any, error) {
	seq, err := seqOf(c)
	if err != nil {
		return nil, err
	}
	e, ok, err := s.store.Entry(seq)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, notFound("ledger entry", c.Path("seq"))
	}
	out := openEntry(e)
	out.Leaf = e.Body
	for _, d := range e.Disclosures() {
		out.Disclosures = append(out.Disclosures, d.Text)
	}
	return out, nil
}

// openEntry shows an entry's values where they are neither erased nor sensitive.
func openEntry(e remit.Entry) api.Entry {
	o := e.Open()
	return api.Entry{Seq: e.Seq, Event: o.Body, Erased: o.Erased, Sensitive: o.Private}
}

func (s *Server) opProve(ctx context.Context, c admin.Call) (any, error) {
	seq, err := seqOf(c)
	if err != nil {
		return nil, err
	}
	return s.ledger.Prove(ctx, seq)
}

func (s *Server) opBackup(ctx context.Context, c admin.Call) (any, error) {
	var in struct {
		Path string `json:"path"`
	}
	if err := c.Decode(&in); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(in.Path) {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "a backup's path is absolute"}
	}
	err := s.store.Backup(ctx, in.Path)
	if errors.Is(err, os.ErrExist) {
		return nil, &remit.Error{Code: remit.CodeConflict, Msg: in.Path + " exists already", Hint: "name a file that does not exist yet"}
	}
	return struct{}{}, err
}

// opWhy explains a decision by the revision that made it, not by the present one.
func (s *Server) opWhy(_ context.Context, c admin.Call) (any, error) {
	id := remit.DecisionID(c.Path("id"))
	var out api.Why
	if g, ok := s.store.Grant(remit.GrantID(c.Path("id"))); ok {
		g = g.Shown()
		id, out.Grant = g.Decision, &g
	}
	e, ok, err := s.store.Decision(id)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("there is no decision or grant %.80q", c.Path("id")),
			Hint: "remit ledger list --kind decision shows them"}
	}
	d, err := decisionOf(e)
	if err != nil {
		return nil, err
	}
	plan, err := s.planOf(d.Policy)
	if err != nil {
		return nil, err
	}
	x := policy.Explain(&d, plan)
	if out.Explanation, err = json.Marshal(x); err != nil {
		return nil, err
	}
	opened := e.Open()
	out.Decision, out.Text, out.Erased, out.Sensitive = opened.Body, x.Text, opened.Erased, opened.Private
	if len(opened.Erased) > 0 {
		out.Text += "\nerased on record, so it cannot be judged again: " + strings.Join(opened.Erased, ", ")
	}
	if len(opened.Private) > 0 {
		out.Text += "\nsensitive, not shown: " + strings.Join(opened.Private, ", ")
	}
	var under *remit.Decision
	if p, ok := s.parentAt(d.Under, d.At); d.Under != "" && ok {
		under = &p
	}
	if out.Input, err = policy.Input(&d, under); err != nil {
		return nil, err
	}
	of := store.EventFilter{Kind: remit.EventAction, Decision: id}
	if out.Grant != nil {
		of.Grant = out.Grant.ID // not the acts of a twin that tried its limits
	}
	if out.Acts, err = s.acts(of); err != nil || out.Grant == nil {
		return out, err
	}
	known, err := s.observe(*out.Grant)
	out.Observation, out.Gaps = known.Observation, known.Gaps
	return out, err
}

// acts lists what was executed under a decision or grant, as the target's audit log told it.
func (s *Server) acts(of store.EventFilter) ([]api.Entry, error) {
	entries, _, err := s.store.Events(of, 0, 100)
	var out []api.Entry
	for _, e := range entries {
		out = append(out, openEntry(e))
	}
	return out, err
}

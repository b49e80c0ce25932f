// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"strconv"

	"remit"
	"remit/internal/api"
)

const (
	replayPage = 1000  // entries of one call
	replayNote = 50000 // decisions between two remarks on the progress
)

// Read judges the decisions behind an entry that fit the filter, in order. note, which may be nil, hears of the progress.
func (r *Replay) Read(ctx context.Context, after string, filter url.Values, note func(done int, seq uint64)) error {
	err := r.history.each(ctx, after, withKind(filter, remit.EventDecision), func(e *api.Entry) error {
		if err := r.add(ctx, e); err != nil {
			return err
		}
		if done := r.report.Decisions; note != nil && done%replayNote == 0 {
			note(done, e.Seq)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.history.each(ctx, after, withKind(filter, remit.EventFolded), r.addFolded)
}

func withKind(q url.Values, kind remit.EventKind) url.Values {
	out := url.Values{"kind": {string(kind)}, "limit": {strconv.Itoa(replayPage)}}
	maps.Copy(out, q)
	return out
}

func (r *Replay) addFolded(e *api.Entry) error {
	var event struct {
		Data struct {
			Count uint64 `json:"count"`
		} `json:"data"`
	}
	if err := json.Unmarshal(e.Event, &event); err != nil {
		return fmt.Errorf("read entry %d: %w", e.Seq, err)
	}
	r.report.Folded += event.Data.Count
	return nil
}

// history asks the server.
type history struct{ c *api.Client }

func (h history) revision(ctx context.Context, digest remit.Digest) (files map[string][]byte, err error) {
	err = h.c.Get(ctx, "/v1/policy/revisions/"+url.PathEscape(string(digest)), nil, &files)
	return files, err
}

func (h history) decision(ctx context.Context, id remit.DecisionID) (api.Entry, error) {
	var list api.List[api.Entry]
	q := url.Values{"kind": {string(remit.EventDecision)}, "decision": {string(id)}, "limit": {"1"}}
	if err := h.c.Get(ctx, "/v1/ledger", q, &list); err != nil {
		return api.Entry{}, err
	}
	if len(list.Items) == 0 {
		return api.Entry{}, &remit.Error{Code: remit.CodeNotFound, Msg: "decision " + string(id) + " is not in the ledger"}
	}
	return list.Items[0], nil
}

// each calls f with the ledger's entries in order. The next page is read while one is worked on; two are in memory.
func (h history) each(ctx context.Context, after string, q url.Values, f func(*api.Entry) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	type answer struct {
		list api.List[api.Entry]
		err  error
	}
	pages := make(chan answer)
	go func() {
		defer close(pages)
		for first := true; first || after != ""; first = false {
			q := maps.Clone(q)
			if after != "" {
				q.Set("after", after)
			}
			var p answer
			p.err = h.c.Get(ctx, "/v1/ledger", q, &p.list)
			select {
			case pages <- p:
			case <-ctx.Done():
				return
			}
			if after = p.list.Next; p.err != nil {
				return
			}
		}
	}()
	for p := range pages {
		if p.err != nil {
			return p.err
		}
		for i := range p.list.Items {
			if err := f(&p.list.Items[i]); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

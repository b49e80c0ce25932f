// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"remit"
	"remit/internal/api"
)

const (
	replayPage = 1000  // entries of one call
	replayNote = 50000 // decisions between two remarks on the progress
)

// Read judges the decisions behind an entry that fit the filter, in order. note, which may be nil, hears of the progress.
func (r *Replay) Read(ctx context.Context, after string, filter url.Values, note func(done int, seq uint64)) error {
	err := r.history.pages(ctx, after, withKind(filter, remit.EventDecision), func(page []api.Entry) error {
		noted := r.report.Decisions / replayNote
		if err := r.page(ctx, page); err != nil {
			return err
		}
		if done := r.report.Decisions; note != nil && done/replayNote > noted {
			note(done, page[len(page)-1].Seq)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.history.each(ctx, after, withKind(filter, remit.EventFolded), r.addFolded)
}

// page judges a page. Reading and judging take nearly all of the time and are spread over the processors; what one decision needs of others
// is found in between, and the report is made, in the order of the entries.
func (r *Replay) page(ctx context.Context, page []api.Entry) error {
	asked := make([]question, len(page))
	spread(len(page), func(i int) {
		q := &asked[i]
		q.seq, q.why = page[i].Seq, unseen(&page[i])
		q.d, q.err = entryDecision(&page[i])
	})
	for i := range asked {
		if q := &asked[i]; q.err == nil && q.d.Effect == remit.Allow {
			r.calls.put(q.d.ID, call{q.d, q.why}, len(page[i].Event))
		}
		r.prepare(ctx, &asked[i])
	}
	spread(len(page), func(i int) { r.judge(ctx, &asked[i]) })
	for i := range asked {
		if err := r.count(&asked[i]); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// spread calls f with 0 to n-1 by as many goroutines as there are processors, and returns when all have returned.
func spread(n int, f func(i int)) {
	const share = 25
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), (n+share-1)/share) {
		wg.Go(func() {
			for {
				to := int(next.Add(share))
				for i := to - share; i < min(to, n); i++ {
					f(i)
				}
				if to >= n {
					return
				}
			}
		})
	}
	wg.Wait()
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

// each calls f with the ledger's entries in order.
func (h history) each(ctx context.Context, after string, q url.Values, f func(*api.Entry) error) error {
	return h.pages(ctx, after, q, func(page []api.Entry) error {
		for i := range page {
			if err := f(&page[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// pages calls f with the ledger's entries in order, a page of at least one at a time. The next page is read while one is worked on; two are
// in memory.
func (h history) pages(ctx context.Context, after string, q url.Values, f func([]api.Entry) error) error {
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
		if len(p.list.Items) == 0 {
			continue
		}
		if err := f(p.list.Items); err != nil {
			return err
		}
	}
	return ctx.Err()
}

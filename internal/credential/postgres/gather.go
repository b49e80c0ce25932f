// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"remit"
)

const (
	maxFlights  = 2  // calls of lease_begin at once
	maxTogether = 16 // leases in one call
)

// wanted is a lease as lease_begin takes it.
type wanted struct {
	Lease    string    `json:"lease"`
	Verifier string    `json:"verifier"`
	View     string    `json:"of_view"`
	Until    time.Time `json:"until"`
	K1       []string  `json:"k1"` // nil is NULL
	K2       []string  `json:"k2"`
	K3       []string  `json:"k3"`
	K4       []string  `json:"k4"`
	Masks    []string  `json:"masks"`
	Most     *int64    `json:"most_rows"` // nil: all
}

func (s *scope) wanted(l *remit.Lease, verifier string) wanted {
	// The server keeps microseconds, and would round up what is finer: a lease never ends later than it says.
	w := wanted{Lease: short(l.ID), Verifier: verifier, View: s.view.Name, Until: l.Expires.UTC().Truncate(time.Microsecond), Masks: s.masked}
	for i, key := range []*[]string{&w.K1, &w.K2, &w.K3, &w.K4} {
		if i < len(s.keys) {
			*key = s.keys[i]
		}
	}
	if s.most > 0 {
		w.Most = &s.most
	}
	return w
}

// mint is a lease on its way to the database.
type mint struct {
	wanted wanted
	ctx    context.Context //nolint:containedctx // its caller's: whoever sends it for him does so in his time
	turn   chan []*mint    // gets those whom it is to send, itself the first; at most once
	done   chan error      // gets the outcome, once
}

func newMint(ctx context.Context, w wanted) *mint {
	return &mint{wanted: w, ctx: ctx, turn: make(chan []*mint, 1), done: make(chan error, 1)}
}

// gather has mints that come while others are under way go together. One that comes alone goes at once. It has no goroutine: the first of
// those that wait sends them all.
type gather struct {
	send func([]*mint) // and gives each its outcome

	mu      sync.Mutex // guards the rest
	flights int
	waiting []*mint
}

// do returns m's outcome. When ctx, which is m's, ends before, the lease may come to be all the same.
func (g *gather) do(ctx context.Context, m *mint) error {
	g.join(m)
	select {
	case with := <-m.turn:
		g.fly(with)
	case err := <-m.done:
		return err
	case <-ctx.Done():
		if g.leave(m) {
			return fmt.Errorf("%d calls that mint are under way: %w", maxFlights, ctx.Err())
		}
		select {
		case with := <-m.turn: // those behind it still want to go
			g.fly(with)
		default: // somebody has sent it, or is about to
			return ctx.Err()
		}
	}
	return <-m.done
}

func (g *gather) join(m *mint) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.flights == maxFlights {
		g.waiting = append(g.waiting, m)
		return
	}
	g.flights++
	m.turn <- []*mint{m}
}

// leave reports whether m still waited.
func (g *gather) leave(m *mint) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.waiting, m)
	if i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	}
	return i >= 0
}

// fly sends mints, and then tells the next ones to.
func (g *gather) fly(with []*mint) {
	defer g.land()
	g.send(with)
}

func (g *gather) land() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 {
		g.flights--
		return
	}
	n := min(len(g.waiting), maxTogether)
	with := slices.Clone(g.waiting[:n])
	g.waiting = slices.Delete(g.waiting, 0, n)
	with[0].turn <- with
}

// sendMints makes the leases by one call. Where the server refuses it, which then has made none of them, each goes alone: a lease that cannot
// be made fails no other.
func (d *Driver) sendMints(with []*mint) {
	sent, err := d.sendTogether(with)
	if len(sent) > 1 && state(err) != "" {
		for _, m := range sent {
			d.sendMints([]*mint{m})
		}
		return
	}
	for _, m := range sent {
		m.done <- err
	}
}

// sendTogether makes all leases or none, if its error is the server's, and returns those that it sent. One that gives up takes no other with it.
func (d *Driver) sendTogether(sent []*mint) ([]*mint, error) {
	ctx := sent[0].ctx // of one alone it is its own time
	if len(sent) > 1 {
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	err := d.mints.do(ctx, func(c *pgx.Conn) error {
		sent = inTime(sent) // again on a fresh connection
		if len(sent) == 0 {
			return nil
		}
		all := make([]wanted, len(sent))
		for i, m := range sent {
			all[i] = m.wanted
		}
		body, err := json.Marshal(all)
		if err != nil {
			return err
		}
		_, err = c.Exec(ctx, "SELECT remit.lease_begin($1, $2)", string(body), d.digest)
		return err
	})
	return sent, err
}

// inTime are those that can be sent; whose time is over, or who gave up, has that as its outcome.
func inTime(with []*mint) []*mint {
	due := with[:0:0]
	for _, m := range with {
		if err := m.ctx.Err(); err != nil {
			m.done <- err
			continue
		}
		due = append(due, m)
	}
	return due
}

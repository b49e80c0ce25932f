// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Eight agents ask at a rate of their own, far below their quota, while one floods: what it may not have, over as many connections as it can
// use, as fast as it is answered.
const (
	quietAgents, quietPeriod = 8, 10 * time.Millisecond
	floodConnections         = 32
	loudAgent                = quietAgents
)

// floodFiles declare nine agents of whom the first eight may do something.
func floodFiles() map[string]string {
	var a, w bytes.Buffer
	w.WriteString("kind: Workflow\nname: work\nparameters: {app: {type: name}}\nstart: {by: [operator/bench], expires: 2h}\nstages:\n- name: do\n  may:\n")
	for i := range quietAgents + 1 {
		fmt.Fprintf(&a, "kind: Agent\nname: %s\nowner: bench\nttl: 1h\nattest: [{unix: {uid: %d}}]\n---\n", agentName(i)[len("agent/"):], os.Getuid())
		fmt.Fprintf(&w, "  - {name: act-%d, who: %s, action: kubernetes.apply, target: cluster, where: {name: $app}}\n", i, agentName(i))
	}
	a.WriteString("kind: Target\nname: cluster\ntype: external\n")
	return map[string]string{"agents.yaml": a.String(), "work.yaml": w.String()}
}

// flood compares the p99 of agents beside a flooder with theirs without, in the same rounds (S35).
func (b *bench) flood(ctx context.Context) error {
	in, err := b.install(ctx, "flood", floodFiles())
	if err != nil {
		return err
	}
	if err := in.become(ctx); err != nil {
		return err
	}
	quiet := make([]*side, quietAgents)
	for i := range quiet {
		if quiet[i], err = in.floodSide(ctx, i, "foo"); err != nil {
			return err
		}
	}
	loud, err := in.floodSide(ctx, loudAgent, "something else")
	if err != nil {
		return err
	}
	var alone, beside, rate []float64
	var denied, refused atomic.Int64
	for range b.rounds {
		before, err := paced(quiet, b.round)
		if err != nil {
			return err
		}
		stop := loud.pour(&denied, &refused)
		first, began := denied.Load()+refused.Load(), time.Now()
		during, err := paced(quiet, b.round)
		rate = append(rate, float64(denied.Load()+refused.Load()-first)/time.Since(began).Seconds())
		if err = errors.Join(err, stop(), ctx.Err()); err != nil {
			return err
		}
		alone, beside = append(alone, ms(before)), append(beside, ms(during))
	}
	if refused.Load() == 0 {
		return fmt.Errorf("the flooder stayed within its quota: %d denials", denied.Load())
	}
	b.table.add(row{what: fmt.Sprintf("p99 of %d agents beside a flooder", quietAgents), ours: fmt.Sprintf("%.2f ms, flooded by %s requests/s over %d connections: %d denied, %d beyond the quota",
		median(beside), figure(median(rate)), floodConnections, denied.Load(), refused.Load()), theirs: fmt.Sprintf("without it: %.2f ms", median(alone)),
		got: median(beside) / median(alone), want: 2, unit: "× p99"})
	return nil
}

// floodSide is one agent in a run of its own that asks for app.
func (in *installation) floodSide(ctx context.Context, agent int, app string) (*side, error) {
	name := agentName(agent)
	_, token, err := in.run(ctx, "work", name, map[string]string{"app": "foo"})
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(object{"subject": object{"type": "agent", "id": agentID(name)}, "action": object{"name": "kubernetes.apply"},
		"resource": object{"type": "kubernetes", "id": "cluster", "properties": object{"name": app}}, "context": object{"run_token": token}})
	if err != nil {
		return nil, err
	}
	cfg, err := in.tls(name)
	if err != nil {
		return nil, err
	}
	request := [][]byte{post(in.address, evaluation, body)}
	return &side{name: name, pid: in.pid, address: in.address, want: []byte(`"decision":true`), tls: func(int) *tls.Config { return cfg }, requests: func(int) [][]byte { return request }}, nil
}

// paced has each side ask once a period for a while over one connection, and returns the p99 of all.
func paced(sides []*side, d time.Duration) (time.Duration, error) {
	var wg sync.WaitGroup
	errs, conns := make([]error, len(sides)), make([]*conn, len(sides))
	for i, s := range sides {
		c, err := s.dial(i)
		if err != nil {
			return 0, err
		}
		defer c.Close() //nolint:errcheck // read to the end
		conns[i] = c
		wg.Go(func() { errs[i] = c.pace(d, time.Duration(i)*quietPeriod/time.Duration(len(sides))) })
	}
	wg.Wait()
	var all []time.Duration
	for _, c := range conns {
		all = append(all, c.took...)
	}
	slices.Sort(all)
	return quantile(all, 0.99), errors.Join(errs...)
}

func (c *conn) pace(d, offset time.Duration) error {
	for next, end := time.Now().Add(offset), time.Now().Add(warmUp+d); next.Before(end); next = next.Add(quietPeriod) {
		began := next // who waits for the answer before cannot ask yet, and waits already
		if wait := time.Until(next); wait > 0 {
			time.Sleep(wait)
			began = time.Now()
		}
		if err := c.ask(c.requests[0]); err != nil {
			return err
		}
		if began.After(end.Add(-d)) {
			c.took = append(c.took, time.Since(began))
		}
	}
	return nil
}

// pour floods until it is stopped, and counts what was denied and what was refused because of the quota.
func (s *side) pour(denied, refused *atomic.Int64) (stop func() error) {
	var done atomic.Bool
	var wg sync.WaitGroup
	errs := make([]error, floodConnections)
	for i := range floodConnections {
		wg.Go(func() { errs[i] = s.pourOne(i, &done, denied, refused) })
	}
	return func() error {
		done.Store(true)
		wg.Wait()
		return errors.Join(errs...)
	}
}

func (s *side) pourOne(i int, done *atomic.Bool, denied, refused *atomic.Int64) error {
	c, err := s.dial(i)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // read to the end
	for !done.Load() {
		ok, body, err := c.exchange(c.requests[0])
		switch {
		case err != nil:
			return err
		case ok && bytes.Contains(body, []byte(`"decision":false`)):
			denied.Add(1)
		case !ok:
			refused.Add(1)
		default:
			return fmt.Errorf("the flooder was answered %.200s", body)
		}
		if _, err := c.in.Discard(len(body)); err != nil {
			return err
		}
	}
	return nil
}

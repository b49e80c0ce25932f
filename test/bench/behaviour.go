// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"remit"
	"remit/internal/behaviour"
)

// behaviour measures the baselines in this process: entries a second, by processor time with both halves of the work, and the memory
// of many agents.
func (b *bench) behaviour(ctx context.Context) error {
	learning := behaviour.Learning{Budget: 0.05, Shadow: 7 * 24 * time.Hour, Alert: 14 * 24 * time.Hour}
	base := behaviour.NewBaselines(learning)
	var perEntry []float64
	seq := uint64(0)
	for range b.rounds {
		entries := habits(&seq, 1000, 20)
		before, err := cpu(os.Getpid())
		if err != nil {
			return err
		}
		var wg sync.WaitGroup
		read := make([]behaviour.Reading, len(entries))
		half := func(from, to int) {
			for i := from; i < to; i++ {
				read[i] = behaviour.Read(&entries[i])
			}
		}
		wg.Go(func() { half(0, len(entries)/2) })
		half(len(entries)/2, len(entries))
		wg.Wait()
		for i := range entries {
			base.NextRead(&entries[i], &read[i])
		}
		after, err := cpu(os.Getpid())
		if err != nil || ctx.Err() != nil {
			return fmt.Errorf("measure: %w", err)
		}
		perEntry = append(perEntry, float64((after-before).Microseconds())/float64(len(entries)))
	}
	us := median(perEntry)
	b.table.add(row{what: "entries through the baselines, by CPU of two cores", ours: fmt.Sprintf("%s/s, CPU %s µs", figure(2e6/us), figure(us)), got: 2e6 / us, want: 50_000, least: true, unit: "/s"})
	mb, err := memoryOf(ctx, learning, 100_000)
	if err != nil {
		return err
	}
	b.table.add(row{what: "baselines of 100,000 agents, 10 requests each", ours: figure(mb) + " MB", got: mb, want: 2000, unit: "MB"})
	return nil
}

// memoryOf returns the heap that so many agents take, in MB.
func memoryOf(ctx context.Context, l behaviour.Learning, agents int) (float64, error) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	base, seq := behaviour.NewBaselines(l), uint64(0)
	for range 2 {
		for from := 0; from < agents; from += 1000 {
			for _, e := range habitsOf(&seq, from, 1000, 5) {
				base.Next(&e)
			}
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(base)
	return float64(after.HeapAlloc-before.HeapAlloc) / 1e6, nil
}

func habits(seq *uint64, agents, requests int) []remit.Entry {
	return habitsOf(seq, 0, agents, requests)
}

// habitsOf are entries of agents that each ask for the same few things of changing customers.
func habitsOf(seq *uint64, from, agents, requests int) (out []remit.Entry) {
	for i := range agents * requests {
		*seq++
		n := from + i%agents
		customer := remit.StringValue("c" + strconv.Itoa(int(*seq)%5000)) //nolint:gosec // small
		name := remit.Name("agent/a" + strconv.Itoa(n))
		at := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC).Add(time.Duration(*seq) * 20 * time.Millisecond) //nolint:gosec // small
		d := remit.Decision{ID: remit.NewDecisionID(), At: at, Effect: remit.Allow, Caller: "spiffe://company.example/" + string(name), Agent: name,
			Action: []string{"postgres.select", "mcp.call", "http.get"}[i/agents%3], Target: "system-" + strconv.Itoa(n%20), Run: remit.RunID("run-" + strconv.Itoa(n)),
			Args:   map[string]remit.Value{"customer": customer, "view": remit.StringValue("full"), "to": remit.StringValue("a" + strconv.Itoa(i%40) + "@company.example")},
			Params: map[string]remit.Value{"customer": customer}, Permission: remit.PermissionRef{Workflow: "work-" + strconv.Itoa(n%50), Stage: "work", Name: "any"}}
		s := &remit.Seal{}
		e := remit.Event{At: at, Kind: remit.EventDecision, Agent: name, Run: d.Run, Decision: d.ID, Data: d.AppendSealed(nil, s)}
		out = append(out, remit.Entry{Seq: *seq, Body: e.AppendJSON(nil, *seq), Payload: s.Payload})
	}
	return out
}

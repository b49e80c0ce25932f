// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit/internal/api"
)

// oneAgent is a small configuration.
func oneAgent() map[string]string {
	return map[string]string{"agent.yaml": fmt.Sprintf("kind: Agent\nname: worker-00\nowner: bench\nattest: [{unix: {uid: %d}}]\n", os.Getuid())}
}

// identity measures signed JWT-SVIDs over the Workload API's socket. Those for Remit itself are asked for, which are never
// shared: each is signed and put on record before it leaves.
func (b *bench) identity(ctx context.Context) error {
	in, err := b.install(ctx, "identity", oneAgent())
	if err != nil {
		return err
	}
	const clients, inFlight = 4, 32
	var open []*workloadapi.Client
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for range clients {
		c, err := workloadapi.New(ctx, workloadapi.WithAddr(in.workload()))
		if err != nil {
			return err
		}
		open = append(open, c)
	}
	id, err := spiffeid.FromString(agentID("agent/worker-00"))
	if err != nil {
		return err
	}
	var st api.Status
	if err := in.admin.Get(ctx, "/v1/status", nil, &st); err != nil {
		return err
	}
	var next atomic.Int64
	fetch := func() error {
		s, err := open[int(next.Add(1))%clients].FetchJWTSVID(ctx, jwtsvid.Params{Audience: st.HTTPS, Subject: id})
		if err == nil && s.ID != id {
			err = errors.New("a JWT-SVID of somebody else")
		}
		return err
	}
	if err := fetch(); err != nil {
		return err
	}
	var rates, costs []float64
	for range b.rounds {
		before, err := cpu(in.pid)
		if err != nil {
			return err
		}
		r, err := rate(inFlight, b.round, fetch)
		if err != nil {
			return err
		}
		after, err := cpu(in.pid)
		if err != nil {
			return err
		}
		rates, costs = append(rates, r), append(costs, float64((after-before).Microseconds())/(r*b.round.Seconds()))
	}
	b.table.add(row{what: "signed JWT-SVIDs from the Workload API", ours: fmt.Sprintf("%s/s, CPU %s µs", figure(median(rates)), figure(median(costs))),
		got: median(rates), want: 2000, least: true, unit: "/s"})
	return nil
}

// process measures the binary: start, memory, size, what every call of it costs.
func (b *bench) process(ctx context.Context) error {
	in, err := b.prepare(ctx, "small", oneAgent())
	if err != nil {
		return err
	}
	var ready, versions []float64
	for range b.rounds {
		if in.process != nil {
			in.stop()
		}
		if err := in.serve(b); err != nil {
			return err
		}
		ready = append(ready, in.ready.Seconds()*1e3)
	}
	time.Sleep(2 * time.Second)
	idle, err := resident(in.pid)
	if err != nil {
		return err
	}
	for range 2 * b.rounds {
		d, _, err := took(ctx, nil, b.remit, "version")
		if err != nil {
			return err
		}
		versions = append(versions, ms(d))
	}
	_, trace, err := took(ctx, []string{"GODEBUG=inittrace=1"}, b.remit, "version")
	if err != nil {
		return err
	}
	info, err := os.Stat(b.remit)
	if err != nil {
		return err
	}
	b.table.add(row{what: "remit serve, start to ready", ours: figure(median(ready)) + " ms", got: median(ready) / 1e3, want: 1, unit: "s"})
	b.table.add(row{what: "remit serve, idle", ours: fmt.Sprintf("%d MB resident", idle>>20), got: float64(idle >> 20), want: 150, unit: "MB"})
	b.table.add(row{what: "remit version, a whole process", ours: figure(median(versions)) + " ms", got: median(versions), want: 50, unit: "ms"})
	init := initTime(trace)
	b.table.add(row{what: "package initialisation", ours: figure(init) + " ms", got: init, want: 25, unit: "ms"})
	b.table.add(row{what: "size of the binary", ours: fmt.Sprintf("%d MB", info.Size()/1e6)})
	return nil
}

// initTime adds up what GODEBUG=inittrace=1 prints: init PACKAGE @1.2 ms, 0.05 ms clock, 120 bytes, 3 allocs.
func initTime(trace string) (total float64) {
	for line := range strings.Lines(trace) {
		_, rest, ok := strings.Cut(line, " ms, ")
		clock, _, ok2 := strings.Cut(rest, " ms clock")
		if f, err := strconv.ParseFloat(clock, 64); ok && ok2 && err == nil && strings.HasPrefix(line, "init ") {
			total += f
		}
	}
	return total
}

// SPDX-License-Identifier: Apache-2.0

package behaviour

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"

	"remit"
)

// TestWorstMemory: a hundred thousand agents, each with a full table and as much waiting as may wait, and as many full workflows and
// runs as there may be, stay below 1 GB: Go's collector lets a heap double before it collects. A fiftieth of them is made and measured.
func TestWorstMemory(t *testing.T) {
	part := 50
	if os.Getenv("REMIT_WORST_MEMORY") != "" { // all of it, which takes a minute
		part = 1
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	r := rand.New(rand.NewPCG(1, 1))
	fill := func(c *counts) *counts {
		for range c.most * ways * 8 {
			c.add(r.Uint64(), 1, 1)
		}
		return c
	}
	before := heap()
	b := NewBaselines(Learning{})
	b.pool = pool{buckets: poolBuckets / part, waiting: poolWaiting / part}
	for i := range maxAgents / part {
		a := &agent{peers: fmt.Sprint("workflow-", i), counts: counts{most: agentBuckets, pool: &b.pool}}
		fill(&a.counts)
		for range 2 * maxWaiting {
			w := waiting{keys: make([]tag, maxKeys), odd: make([]uint64, maxOdd)}
			for range 4 * maxOdd {
				w.of = append(w.of, remit.Feature{Name: remit.FeatureValue, About: strings.Clone(strings.Repeat("é", maxAbout))[:maxAbout]})
			}
			b.wait(a, w)
			b.wait(a, waiting{keys: make([]tag, 1), of: w.of, odd: make([]uint64, maxOdd)})
		}
		b.agents.put(remit.Name(fmt.Sprintf("agent/%0100d", i)), a)
	}
	for i := range maxPeers / part {
		b.peers.put(fmt.Sprintf("workflow-%0100d", i), fill(&counts{most: peersBuckets}))
	}
	for i := range maxRuns / part {
		b.runs.put(remit.RunID(fmt.Sprintf("run-%0150d", i)), &runState{})
	}
	took := (heap() - before) * uint64(part)
	runtime.KeepAlive(b)
	t.Logf("%d MB in the worst case", took/1e6)
	if refused, _ := b.Short(); took > 1e9 || took < 5e8 || !refused {
		t.Errorf("%d MB; the pool is used up: %v", took/1e6, refused)
	}
}

// TestPool: what is free follows from what agents have, also after a load, and when one is forgotten; where nothing is left, agents keep
// what they have, and it is said.
func TestPool(t *testing.T) {
	b := NewBaselines(Learning{})
	b.agents.most, b.pool = 3, pool{buckets: 4 * assured, waiting: 2000}
	r := rand.New(rand.NewPCG(1, 1))
	know := func(i int) *agent {
		a := &agent{since: 7, counts: counts{most: agentBuckets, pool: &b.pool}}
		b.agents.put(remit.Name(fmt.Sprint("agent/", i)), a)
		for range 100 * ways {
			a.counts.add(r.Uint64(), 1, 1)
		}
		b.wait(a, waiting{hour: 9, keys: make([]tag, 90), odd: make([]uint64, 8)})
		return a
	}
	sums := func(b *Baselines, buckets, bytes int) {
		t.Helper()
		for _, a := range b.agents.m {
			n, m := a.owes()
			buckets, bytes = buckets+n, bytes+m
		}
		if buckets != 4*assured || bytes != 2000 {
			t.Errorf("%d buckets and %d bytes are taken or free", buckets, bytes)
		}
	}
	first := know(0)
	know(1)
	if refused, forgotten := b.Short(); !refused || forgotten != 0 {
		t.Errorf("nothing is said of a used up pool: %v %v", refused, forgotten)
	}
	know(2)
	if a := know(3); len(first.counts.buckets) != 4*assured || len(a.counts.buckets) < assured {
		t.Errorf("%d buckets, and of the newest %d", len(first.counts.buckets), len(a.counts.buckets))
	}
	if _, forgotten := b.Short(); forgotten != 1 || b.agents.m["agent/1"].since != 7 {
		t.Errorf("%d are forgotten, and the next began anew", forgotten)
	}
	sums(b, b.pool.buckets, b.pool.waiting)
	b.train(b.agents.m["agent/1"], 9+learnsAfter)
	sums(b, b.pool.buckets, b.pool.waiting)
	b.drop(b.agents.m["agent/2"], 9, &waiting{seq: 1})
	sums(b, b.pool.buckets, b.pool.waiting)
	again := NewBaselines(Learning{})
	again.agents.most, again.pool = 3, pool{buckets: 4 * assured, waiting: 2000}
	again.code(&coder{r: bufio.NewReader(bytes.NewReader(b.AppendState(nil)))})
	if again.pool.buckets != b.pool.buckets || again.pool.waiting != b.pool.waiting {
		t.Errorf("%+v, was %+v", again.pool, b.pool)
	}
}

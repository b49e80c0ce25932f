// SPDX-License-Identifier: Apache-2.0

package behaviour

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"remit"
)

// TestWorstMemory: a hundred thousand agents, each with a full table and as much waiting as may wait, and as many full workflows and
// runs as there may be, stay below 2 GB. A fiftieth of them is made and measured.
func TestWorstMemory(t *testing.T) {
	const part = 50
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
	for i := range maxAgents / part {
		a := &agent{peers: fmt.Sprint("workflow-", i), counts: counts{most: agentBuckets}}
		fill(&a.counts)
		for range 2 * maxWaiting {
			w := waiting{keys: make([]tag, maxKeys), odd: make([]uint64, maxOdd)}
			for range 4 * maxOdd {
				w.of = append(w.of, remit.Feature{Name: remit.FeatureValue, About: strings.Clone(strings.Repeat("é", maxAbout))[:maxAbout]})
			}
			a.wait(w)
			a.wait(waiting{keys: make([]tag, 1), of: w.of, odd: make([]uint64, maxOdd)})
		}
		b.agents.put(remit.Name(fmt.Sprintf("agent/%0100d", i)), a)
	}
	for i := range maxPeers / part {
		b.peers.put(fmt.Sprintf("workflow-%0100d", i), fill(&counts{most: peersBuckets}))
	}
	for i := range maxRuns / part {
		b.runs.put(remit.RunID(fmt.Sprintf("run-%0150d", i)), &runState{})
	}
	took := (heap() - before) * part
	runtime.KeepAlive(b)
	t.Logf("%d MB in the worst case", took/1e6)
	if took > 2e9 || took < 1e9 {
		t.Errorf("%d MB", took/1e6)
	}
}

// SPDX-License-Identifier: Apache-2.0

package behaviour

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"time"

	"remit"
)

// Learning says how baselines are kept and what may come of them.
type Learning struct {
	// Budget is how many findings an agent may cost in a week of honest work.
	Budget float64
	// Shadow is how long an agent's baseline only learns, counted from the agent's first entry; Alert how long after that its findings
	// are told and nothing more. The threshold is learned from the second half of Shadow on.
	Shadow, Alert time.Duration
}

// Bounds of the memory: of an agent 9 KB of counts and at most as much of events that wait, of all agents together what the pool has; of a
// workflow 139 KB.
const (
	agentBuckets = 1 << 7
	peersBuckets = 1 << 11
	maxPeers     = 1000
	maxRuns      = 20_000
	maxWaiting   = 16
	maxKeys      = 96 // of one event
	maxOdd       = 8  // of one event
	waitingKeys  = 512
	waitingOf    = 24                 // features
	mostGap      = 7 * 24 * time.Hour // between two decisions; what is longer is a clock that jumped, or a long holiday
	learnsAfter  = 24                 // hours that an event waits before it trains
)

// Baselines remember what agents did, and score what they do by it. The time in it is the ledger's: the sum of what passed between
// decisions, so that a clock that jumps ages nothing.
type Baselines struct {
	cfg    Learning
	seed   [32]byte // of the first entry that was folded
	seen   uint64   // number of the last entry
	last   time.Time
	passed time.Duration
	agents recent[remit.Name, *agent]
	peers  recent[string, *counts]
	runs   recent[remit.RunID, *runState]
	limit  limit
	pool   pool
	// forgotten are agents of whom there were too many, since Short.
	forgotten int
	keys      []tag  // scratch: what the present event would train, without the bit that all tags have; with it, where peers learn, too
	hashed    []byte // scratch
}

// agent is what one agent did.
type agent struct {
	since   uint32 // hour of its first entry
	day     uint32
	hour    uint32 // whose requests are counted
	count   int    // in the hour
	heat    float64
	heated  uint32 // hour of heat
	hottest float64
	fresh   [16]uint64 // what surprised already today, as a Bloom filter
	peers   string
	counts  counts
	waiting []waiting
}

// waiting is an event that was not quite ordinary. It trains a day later, unless it became part of a finding.
type waiting struct {
	seq   uint64
	hour  uint32
	score float64
	of    []remit.Feature
	keys  []tag // see Baselines.keys
	odd   []uint64
}

// runState is where a run of one agent is.
type runState struct {
	previous uint64
	distinct [8]uint16
	seen     [4]uint64
}

// Scored is an event with its score, and what the agent's recent events amount to.
type Scored struct {
	Seq    uint64
	At     time.Time
	Agent  remit.Name
	Run    remit.RunID
	Score  float64
	Of     []remit.Feature
	Heat   float64
	Phase  Phase
	Limit  float64 // of Heat; 0: not known yet
	events []waiting
}

// Found reports whether the event completed a finding.
func (s *Scored) Found() bool { return len(s.events) > 0 }

// Phase is what the baseline of an agent is good for.
type Phase uint8

// The phases.
const (
	Shadow  Phase = iota // it learns
	Alert                // its findings are told
	Enforce              // and answered
)

// NewBaselines returns baselines that know nothing.
func NewBaselines(cfg Learning) *Baselines {
	b := &Baselines{cfg: cfg, agents: recent[remit.Name, *agent]{most: maxAgents}, peers: recent[string, *counts]{most: maxPeers},
		runs: recent[remit.RunID, *runState]{most: maxRuns}, pool: pool{buckets: poolBuckets, waiting: poolWaiting}}
	b.agents.gone = b.leaves
	return b
}

// Reading is what the baselines read of an entry. It depends on the entry alone, and most of the work is in it.
type Reading struct {
	o  observation
	ok bool
}

// Read reads an entry; several may be read at once.
func Read(e *remit.Entry) (r Reading) {
	r.o, r.ok = observe(e)
	return r
}

// Next scores the following entry, and learns from it. ok is false for entries that say nothing of behaviour.
func (b *Baselines) Next(e *remit.Entry) (s Scored, ok bool) {
	r := Read(e)
	return b.NextRead(e, &r)
}

// NextRead is Next of an entry that was read already.
func (b *Baselines) NextRead(e *remit.Entry, r *Reading) (s Scored, ok bool) {
	if e.Seq <= b.seen && b.seen != 0 {
		return s, false
	}
	if b.seen == 0 {
		b.seed = e.Hash()
	}
	b.seen = e.Seq
	if !r.ok {
		return s, false
	}
	return b.observed(&r.o), true
}

func (b *Baselines) observed(o *observation) Scored {
	now := b.tick(o)
	a := b.agentOf(o, now)
	peers := b.peersOf(a)
	x := scoring{b: b, a: a, peers: peers, o: o, now: now, run: b.runOf(o)}
	x.all()
	return b.weigh(&x)
}

// tick advances the ledger's time and returns its hour. Acts come when a log is read: only decisions advance it.
func (b *Baselines) tick(o *observation) uint32 {
	if o.volume == 0 {
		if d := o.at.Sub(b.last); !b.last.IsZero() && d > 0 {
			b.passed += min(d, mostGap)
		}
		b.last = o.at
	}
	return 1 + uint32(b.passed/time.Hour) //nolint:gosec // hours
}

func (b *Baselines) agentOf(o *observation, now uint32) *agent {
	a, ok := b.agents.get(o.agent)
	if !ok {
		a = &agent{since: now, day: now / 24, hour: now, heated: now, counts: counts{most: agentBuckets, pool: &b.pool}}
		b.agents.put(o.agent, a)
	}
	if o.peers != "" && o.peers != a.peers {
		a.peers = o.peers
	}
	if day := now / 24; day != a.day {
		b.limit.day(a.hottest, now, b.mature(a, now), min(int(day-a.day), 7))
		a.day, a.fresh, a.hottest = day, [16]uint64{}, 0
	}
	if now != a.hour {
		a.hour, a.count = now, 0
	}
	b.train(a, now)
	return a
}

func (b *Baselines) peersOf(a *agent) *counts {
	p, ok := b.peers.get(a.peers)
	if !ok {
		p = &counts{most: peersBuckets}
		b.peers.put(a.peers, p)
	}
	return p
}

func (b *Baselines) runOf(o *observation) *runState {
	id := o.run + "/" + remit.RunID(o.agent)
	r, ok := b.runs.get(id)
	if !ok {
		r = &runState{}
		b.runs.put(id, r)
	}
	return r
}

// hash is keyed: who chooses values cannot choose what they collide with.
func (b *Baselines) hash(text string) uint64 {
	b.hashed = append(append(b.hashed[:0], b.seed[:]...), text...)
	sum := sha256.Sum256(b.hashed)
	return binary.LittleEndian.Uint64(sum[:])
}

func (b *Baselines) age(a *agent, now uint32) time.Duration {
	return time.Duration(now-a.since) * time.Hour
}

func (b *Baselines) mature(a *agent, now uint32) bool { return b.age(a, now) >= b.cfg.Shadow/2 }

func (b *Baselines) phase(a *agent, now uint32) Phase {
	switch age := b.age(a, now); {
	case age < b.cfg.Shadow:
		return Shadow
	case age < b.cfg.Shadow+b.cfg.Alert:
		return Alert
	}
	return Enforce
}

// heatHalves is how fast an agent cools down, in hours.
const heatHalves = 12

// weigh adds the event's score to the agent's heat. What is ordinary trains at once; what is not waits; what makes a finding never trains.
func (b *Baselines) weigh(x *scoring) Scored {
	a, now := x.a, x.now
	s := Scored{Seq: x.o.seq, At: x.o.at, Agent: x.o.agent, Run: x.o.run, Of: x.of, Phase: b.phase(a, now)}
	for _, f := range x.of {
		s.Score += f.Score
	}
	a.heat = a.heat*math.Exp2(-float64(now-a.heated)/heatHalves) + s.Score
	a.heated, a.hottest = now, max(a.hottest, a.heat)
	s.Heat, s.Limit = a.heat, b.limit.at(b.cfg.Budget, now)
	event := waiting{x.o.seq, now, s.Score, x.of, b.keys, x.odd}
	switch {
	case x.o.denied: // what was refused is no habit
	case s.Score == 0:
		b.learn(a, &event, now)
	default:
		b.wait(a, event)
	}
	//remit:guard S36 TestFindingsDoNotTrain
	if s.Limit > 0 && s.Heat > s.Limit && s.Phase > Shadow {
		s.events = b.drop(a, now, &event)
		b.limit.spend(now)
	}
	return s
}

// wait keeps an event, if there is room. Where features are many, those that weigh little are not told later.
func (b *Baselines) wait(a *agent, event waiting) {
	keys, features := len(event.keys), 0
	for i := range a.waiting {
		keys, features = keys+len(a.waiting[i].keys), features+len(a.waiting[i].of)
	}
	if len(a.waiting) >= maxWaiting || keys > waitingKeys {
		return
	}
	event.of = slices.Clone(event.of)
	slices.SortStableFunc(event.of, func(a, b remit.Feature) int { return cmp.Compare(b.Score, a.Score) })
	event.of = slices.Clone(event.of[:min(len(event.of), maxOdd, waitingOf-features)])
	for i := range event.of {
		event.of[i].About = strings.Clone(event.of[i].About)
	}
	event.keys, event.odd = slices.Clone(event.keys), slices.Clone(event.odd)
	if !b.pool.takes(&b.pool.waiting, event.size()) {
		return
	}
	a.waiting = append(a.waiting, event)
}

// drop forgets what waits: it is part of a finding. The same is not found again for a month or so, and trains nothing.
func (b *Baselines) drop(a *agent, now uint32, newest *waiting) []waiting {
	events := a.waiting
	if len(events) == 0 || events[len(events)-1].seq != newest.seq {
		events = append(events, *newest)
	}
	for i := range events {
		for _, k := range events[i].odd {
			a.counts.add(mix(k, toldMark), 1, now)
		}
	}
	_, bytes := a.owes()
	b.pool.waiting += bytes
	a.waiting, a.heat = nil, 0
	return events
}

// train lets what waited for a day become part of the baseline.
func (b *Baselines) train(a *agent, now uint32) {
	for len(a.waiting) > 0 && now >= a.waiting[0].hour+learnsAfter {
		b.learn(a, &a.waiting[0], now)
		b.pool.waiting += a.waiting[0].size()
		a.waiting[0] = waiting{} // the rest of the slice keeps it in memory
		a.waiting = a.waiting[1:]
	}
}

// learn counts for the agent, and once for each agent for its peers: one agent alone cannot teach the others.
func (b *Baselines) learn(a *agent, w *waiting, now uint32) {
	peers := b.peersOf(a)
	for _, k := range w.keys {
		if k&taken != 0 && a.counts.of(k, now) < 0.5 {
			peers.addTo(k, 1, now)
		}
	}
	for _, k := range w.keys {
		a.counts.addTo(k|taken, 1, now)
	}
}

// Clone returns a copy that goes its own way: what would be said of entries that are never to train.
func (b *Baselines) Clone() *Baselines {
	c := *b
	c.agents.m, c.peers.m, c.runs.m = map[remit.Name]*agent{}, map[string]*counts{}, map[remit.RunID]*runState{}
	for n, a := range b.agents.m {
		x := *a
		x.counts.buckets, x.counts.pool, x.waiting = slices.Clone(a.counts.buckets), &c.pool, slices.Clone(a.waiting)
		c.agents.m[n] = &x
	}
	for n, p := range b.peers.m {
		c.peers.m[n] = &counts{buckets: slices.Clone(p.buckets), most: p.most}
	}
	for id, r := range b.runs.m {
		x := *r
		c.runs.m[id] = &x
	}
	c.agents.order, c.peers.order, c.runs.order = slices.Clone(b.agents.order), slices.Clone(b.peers.order), slices.Clone(b.runs.order)
	c.keys, c.hashed, c.agents.gone = nil, nil, c.leaves
	return &c
}

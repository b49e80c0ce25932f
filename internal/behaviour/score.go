// SPDX-License-Identifier: Apache-2.0

package behaviour

import (
	"math"
	"math/bits"

	"remit"
)

// scoring is one event on its way through the features.
type scoring struct {
	b     *Baselines
	a     *agent
	peers *counts
	o     *observation
	run   *runState
	now   uint32
	of    []remit.Feature
	odd   []uint64 // keys of what is odd
}

// What a key is about.
const (
	toolMark = iota + 1
	orderMark
	valueMark
	placeMark
	newMark
	hourMark
	sourceMark
	rateMark
	fanMark
	volumeMark
	sumMark
	squareMark
	toldMark
	totalMark
	sightMark
)

// ordinary is how many nats of surprise an honest agent causes every day, of each kind; only what is beyond counts.
var ordinary = map[remit.FeatureName]float64{
	remit.FeatureAction: 2.5, remit.FeatureOrder: 3, remit.FeatureValue: 2, remit.FeatureHour: 1.5, remit.FeatureSource: 1.5,
	remit.FeatureRate: 1.5, remit.FeatureFanOut: 1.5, remit.FeatureVolume: 2,
}

// maxAbout bounds what a feature says it is about.
const maxAbout = 64

// mostNats bounds what one feature of one event weighs.
const mostNats = 10

// trust is how many events of its own an agent needs until they weigh as much as what its peers do.
const trust = 2

func (x *scoring) all() {
	b := x.b
	b.keys = b.keys[:0]
	if x.o.volume > 0 {
		x.volume()
		return
	}
	tool := b.hash(x.o.tool)
	x.tool(tool)
	x.order(tool)
	x.values(tool)
	x.hour()
	x.source()
	x.rate()
}

// surprise adds a feature, once a day for the same thing, and not again for what was found already. The more peers show the same for
// the first time that day, beyond one, the more it is a change of the work than of the agent.
func (x *scoring) surprise(name remit.FeatureName, about string, key uint64, nats float64) {
	nats = min(nats, mostNats) - ordinary[name]
	if nats <= 0 || x.a.counts.get(mix(key, toldMark), x.now) > 0.5 || !x.a.first(key) {
		return
	}
	sight := mix(mix(key, sightMark), uint64(x.now/24))
	others := x.peers.get(sight, x.now)
	x.peers.add(sight, 1, x.now)
	x.of = append(x.of, remit.Feature{Name: name, About: remit.Clip(about, maxAbout), Score: nats / max(1, others)})
	if len(x.odd) < maxOdd {
		x.odd = append(x.odd, key)
	}
}

// first reports whether the key did not surprise today, and marks it.
func (a *agent) first(key uint64) bool {
	i, j := key%1024, key>>32%1024
	known := a.fresh[i/64]>>(i%64)&1 == 1 && a.fresh[j/64]>>(j%64)&1 == 1
	a.fresh[i/64] |= 1 << (i % 64)
	a.fresh[j/64] |= 1 << (j % 64)
	return !known
}

// count notes keys that the event trains.
func (x *scoring) count(keys ...uint64) { x.note(0, keys) }

// shared notes keys that the event trains for its peers, too.
func (x *scoring) shared(keys ...uint64) { x.note(taken, keys) }

func (x *scoring) note(peers tag, keys []uint64) {
	if len(x.b.keys)+len(keys) > maxKeys {
		return
	}
	for _, k := range keys {
		x.b.keys = append(x.b.keys, tagOf(k)&^taken|peers)
	}
}

// share is how often one of many things was seen, by the agent, and where it did little, by its peers without it, and at last floor.
func (x *scoring) share(key, total uint64, floor float64) float64 {
	own, all := x.a.counts.get(key, x.now), x.a.counts.get(total, x.now)
	theirs := max(0, x.peers.get(key, x.now)-min(own, 1))
	ofAll := max(theirs, x.peers.get(total, x.now)-min(all, 1))
	p := (theirs + trust*floor) / (ofAll + trust)
	return min(1, (own+trust*p)/(all+trust))
}

func (x *scoring) tool(tool uint64) {
	key, total := mix(tool, toolMark), mix(totalMark, toolMark)
	x.surprise(remit.FeatureAction, x.o.tool, key, -math.Log(x.share(key, total, 1.0/16)))
	x.shared(key, total)
}

func (x *scoring) order(tool uint64) {
	before := x.run.previous
	x.run.previous = tool
	if before == tool {
		return
	}
	key, total := mix(mix(tool, before), orderMark), mix(mix(totalMark, before), orderMark)
	x.surprise(remit.FeatureOrder, x.o.tool, key, -math.Log(x.share(key, total, 1.0/16)))
	x.shared(key, total)
}

// newIs is how often a value of each shape is one that nobody used before and no parameter names, where nothing is known yet.
var newIs = [...]float64{shapeWord: 0.2, shapeNumber: 0.4, shapeContact: 0.01, shapeProse: 0.95}

func (x *scoring) values(tool uint64) {
	left := 1.5 * mostNats
	for i := range x.o.values {
		v := &x.o.values[i]
		place := mix(mix(tool, x.b.hash(v.path)), placeMark+uint64(v.shape)<<8)
		isNew := mix(place, newMark)
		var key uint64
		if v.shape != shapeProse {
			h := x.b.hash(v.text)
			key = mix(mix(place, h), valueMark)
			x.fan(place, h)
		}
		x.count(place)
		strange := !v.named && key != 0
		if strange {
			own := x.a.counts.get(key, x.now)
			known := own + max(0, x.peers.get(key, x.now)-min(own, 1))
			nats := -math.Log(x.share(isNew, place, newIs[v.shape])) * math.Exp2(-known)
			if nats = min(nats, left); nats > ordinary[remit.FeatureValue] {
				before := len(x.of)
				x.surprise(remit.FeatureValue, v.path, key, nats)
				if len(x.of) > before {
					left -= nats
				}
			}
			if strange = known < 0.5; strange {
				x.count(isNew)
			}
		}
		if key != 0 && !v.named {
			x.shared(key)
		}
	}
}

// fan counts how many different things of one place a run is about: each further one is compared with how often runs go that far.
func (x *scoring) fan(place, value uint64) {
	bit := value % 256
	if x.run.seen[bit/64]>>(bit%64)&1 == 1 {
		return
	}
	x.run.seen[bit/64] |= 1 << (bit % 64)
	n := &x.run.distinct[place%8]
	if *n++; *n > 1 {
		x.reach(remit.FeatureFanOut, mix(place, fanMark), int(*n))
	} else {
		x.shared(level(mix(place, fanMark), 1))
	}
}

// reach scores how seldom a count goes on from one level to the next; levels double every second step.
func (x *scoring) reach(name remit.FeatureName, about uint64, n int) {
	l := levelOf(n)
	if n > 1 && l == levelOf(n-1) {
		return
	}
	key, before := level(about, l), level(about, l-1)
	x.surprise(name, "", key, -math.Log(x.share(key, before, 0.4)))
	x.shared(key)
}

func level(about uint64, l int) uint64 { return mix(about, uint64(l)+100) } //nolint:gosec // small

// levelOf is 1, 2, 3, 4, 5 (6 and more), 6 (8), 7 (12), 8 (16) …
func levelOf(n int) int {
	if n < 4 {
		return n
	}
	top := bits.Len(uint(n)) - 1
	return 2*top + n>>(top-1)&1
}

// hour knows 48 hours, 24 of them at weekends. The first odd one of a day counts.
func (x *scoring) hour() {
	if x.a.count > 0 { // once an hour
		return
	}
	day := uint64(0)
	if d := x.o.at.UTC().Weekday(); d == 0 || d == 6 {
		day = 1
	}
	h := uint64(x.o.at.UTC().Hour()) //nolint:gosec // an hour
	at := func(h uint64) uint64 { return mix(day*24+h%24, hourMark) }
	total := mix(totalMark, hourMark)
	p := x.share(at(h), total, 1.0/48) + (x.share(at(h+1), total, 1.0/48)+x.share(at(h+23), total, 1.0/48))/2
	x.surprise(remit.FeatureHour, x.o.at.UTC().Format("Mon 15h"), mix(day, hourMark), -math.Log(24*min(1, p)))
	x.shared(at(h), total)
}

func (x *scoring) source() {
	key, total := mix(x.b.hash(x.o.source), sourceMark), mix(totalMark, sourceMark)
	x.surprise(remit.FeatureSource, x.o.source, key, -math.Log(x.share(key, total, 1.0/16)))
	x.count(key, total)
}

func (x *scoring) rate() {
	x.a.count++
	x.reach(remit.FeatureRate, rateMark, x.a.count)
}

// volume compares an act's size with those of the same acts, on a logarithmic scale.
func (x *scoring) volume() {
	place := mix(x.b.hash(x.o.tool), volumeMark)
	sum, square := mix(place, sumMark), mix(place, squareMark)
	size := math.Log2(1 + float64(x.o.volume))
	n, s, q := x.moments(place, sum, square)
	if n >= 8 {
		mean := s / n
		deviation := math.Sqrt(max(q/n-mean*mean, 0.25))
		if z := (size - mean) / deviation; z > 0 {
			x.surprise(remit.FeatureVolume, x.o.tool, mix(place, uint64(size)), z*z/2)
		}
	}
	if len(x.of) == 0 {
		x.a.counts.add(place, 1, x.now)
		x.a.counts.add(sum, size, x.now)
		x.a.counts.add(square, size*size, x.now)
	}
}

func (x *scoring) moments(place, sum, square uint64) (n, s, q float64) {
	return x.a.counts.get(place, x.now), x.a.counts.get(sum, x.now), x.a.counts.get(square, x.now)
}

// SPDX-License-Identifier: Apache-2.0

package behaviour

import "math"

// limit turns a budget of false alarms into a threshold: it remembers how hot agents were at most each day, and finds the heat that
// so many of these days exceed as the budget allows. Days with findings count, too: without them it would sink and sink.
type limit struct {
	days    [160]float64 // agent-days by their greatest heat, halving every two weeks
	weeks   float64      // agent-weeks in them
	hour    uint32       // of the last halving
	spent   float64      // findings, halving every four days
	spentAt uint32       // hour of spent
	known   float64      // what at returned since the last halving
}

const (
	limitHalves = 14 * 24 // hours
	spentHalves = 4 * 24
	perNat      = 4.0 // bins a nat, up to 16 nats, then exponentially wider
	atLeast     = 4   // no finding for less, however quiet all are
)

// bin is where a heat belongs.
func bin(heat float64) int {
	if heat <= 16 {
		return int(heat * perNat)
	}
	return min(64+int(24*math.Log2(heat/16)), 159)
}

// edge is the least heat of a bin.
func edge(i int) float64 {
	if i <= 64 {
		return float64(i) / perNat
	}
	return 16 * math.Exp2(float64(i-64)/24)
}

// day adds an agent's day, and how many days have passed for it since its last one.
func (l *limit) day(hottest float64, now uint32, mature bool, days int) {
	if now >= l.hour+24 {
		f := math.Exp2(-float64(now-l.hour) / limitHalves)
		for i := range l.days {
			l.days[i] *= f
		}
		l.weeks, l.hour, l.known = l.weeks*f, now, 0
	}
	if mature {
		l.days[bin(hottest)]++
		l.weeks += float64(days) / 7
	}
}

// at returns the heat that is beyond the budget; 0 while nothing is known. When more was found lately than the budget allows, as after a
// change of all work, it is as many times higher.
func (l *limit) at(budget float64, now uint32) float64 {
	if l.weeks == 0 {
		return 0
	}
	if l.known == 0 {
		l.known = max(atLeast, l.quantile(budget*l.weeks))
	}
	// So many findings are in spent where the budget is kept: it holds 4 days / ln 2, and weeks 14 days / ln 2.
	usual := budget * l.weeks * spentHalves / limitHalves
	return l.known * max(1, l.recent(now)/max(1, usual))
}

// recent is how many findings there were in the last days.
func (l *limit) recent(now uint32) float64 {
	return l.spent * math.Exp2(-float64(now-l.spentAt)/spentHalves)
}

// spend counts a finding.
func (l *limit) spend(now uint32) { l.spent, l.spentAt = l.recent(now)+1, now }

// quantile finds the heat that so many agent-days exceed. Where there are too few days to see that, the tail is taken to fall
// exponentially, as it did among the hottest twentieth.
func (l *limit) quantile(most float64) float64 {
	all := 0.0
	for _, n := range l.days {
		all += n
	}
	few := max(most, min(all/20, 5))
	beyond, i, sum := 0.0, len(l.days)-1, 0.0
	for ; i >= 0 && beyond < few; i-- {
		beyond += l.days[i]
		sum += l.days[i] * edge(i)
	}
	from := edge(i + 1)
	if beyond <= most || beyond == 0 {
		return edge(i + 2)
	}
	mean := max(sum/beyond-from, 0.5)
	return from + mean*math.Log(beyond/max(most, 1e-9))
}

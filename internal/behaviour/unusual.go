// SPDX-License-Identifier: Apache-2.0

package behaviour

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"remit"
)

// unusual makes a finding of an event that was too much.
func (d *Detector) unusual(e *remit.Entry) []remit.Finding {
	s, ok := d.base.Next(e)
	if !ok || !s.Found() {
		return nil
	}
	features := s.Features()
	severity := remit.SeverityMedium
	switch {
	case s.Phase == Alert:
		severity = remit.SeverityLow
	case s.Heat > 2*s.Limit:
		severity = remit.SeverityHigh
	}
	newest := s.events[len(s.events)-1]
	v := event{seq: s.Seq, At: s.At, Agent: s.Agent, Run: s.Run}
	var earlier []uint64
	for _, w := range s.events {
		if w.seq != newest.seq {
			earlier = append(earlier, w.seq)
		}
	}
	out := d.raise(&v, remit.FindingUnusual, severity, "", sentence(s.Agent, features, s.Heat, s.Limit), earlier...)
	for i := range out {
		out[i].Score, out[i].Limit, out[i].Features, out[i].Young = round(s.Heat), round(s.Limit), features, s.Phase == Alert
	}
	return out
}

// Features adds up what the events were odd in, the most first.
func (s *Scored) Features() []remit.Feature {
	var out []remit.Feature
	for _, w := range s.events {
		for _, f := range w.of {
			i := slices.IndexFunc(out, func(g remit.Feature) bool { return g.Name == f.Name && g.About == f.About })
			if i < 0 {
				out = append(out, f)
				continue
			}
			out[i].Score += f.Score
		}
	}
	slices.SortStableFunc(out, func(a, b remit.Feature) int { return cmp.Compare(b.Score, a.Score) })
	for i := range out {
		out[i].Score = round(out[i].Score)
	}
	return out[:min(len(out), maxFeatures)]
}

const maxFeatures = 8

func round(n float64) float64 { return float64(int64(n*10+0.5)) / 10 }

// says is what a feature means in a sentence.
var says = map[remit.FeatureName]string{
	remit.FeatureAction: "asked for %s", remit.FeatureOrder: "went on to %s", remit.FeatureValue: "used a new value of %s",
	remit.FeatureHour: "worked at %s", remit.FeatureSource: "came from %s", remit.FeatureRate: "asked more often in an hour%s",
	remit.FeatureFanOut: "dealt with more different things in one run%s", remit.FeatureVolume: "moved more by %s",
}

func sentence(agent remit.Name, features []remit.Feature, heat, limit float64) string {
	var parts []string
	for _, f := range features[:min(len(features), 3)] {
		parts = append(parts, fmt.Sprintf(says[f.Name], f.About))
	}
	return fmt.Sprintf("unlike before, %s %s (score %.1f, limit %.1f)", agent, strings.Join(parts, ", "), heat, limit)
}

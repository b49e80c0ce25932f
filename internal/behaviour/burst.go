// SPDX-License-Identifier: Apache-2.0

package behaviour

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"remit"
)

// burst holds the newest denials of one agent, at most as many as make a burst.
type burst struct {
	newest []denial
	last   time.Time
}

type denial struct {
	at    time.Time
	seq   uint64
	count int
}

// notOfTheAgent are reasons of denials that it does not cause.
var notOfTheAgent = []remit.ReasonCode{remit.ReasonSuspended, remit.ReasonThrottled, remit.ReasonHalted, remit.ReasonFault, remit.ReasonConflict, remit.ReasonEvidenceSource,
	remit.ReasonTarget, remit.ReasonWorkflowChanged}

func (d *Detector) folded(v *event) []remit.Finding {
	var f struct {
		Reasons []remit.ReasonCode `json:"reasons"`
		Count   int                `json:"count"`
	}
	if json.Unmarshal(v.Data, &f) != nil {
		return nil
	}
	return d.denied(v, f.Reasons, f.Count)
}

// denied counts denials of an agent.
func (d *Detector) denied(v *event, reasons []remit.ReasonCode, count int) []remit.Finding {
	if d.cfg.Denials <= 0 || v.Agent == "" || count < 1 || anyOf(reasons, unproven) || anyOf(reasons, notOfTheAgent) {
		return nil
	}
	b, ok := d.bursts.get(v.Agent)
	if !ok {
		b = &burst{}
		d.bursts.put(v.Agent, b)
	}
	if v.At.After(b.last) {
		b.last = v.At
	}
	b.newest = append(b.newest, denial{v.At, v.seq, count})
	old := func(x denial) bool { return b.last.Sub(x.at) >= d.cfg.Within }
	if b.newest = slices.DeleteFunc(b.newest, old); len(b.newest) > d.cfg.Denials {
		b.newest = slices.Delete(b.newest, 0, len(b.newest)-d.cfg.Denials)
	}
	sum := 0
	var events []uint64
	for _, x := range b.newest {
		sum += x.count
		events = append(events, x.seq)
	}
	if sum < d.cfg.Denials {
		return nil
	}
	if events = events[:len(events)-1]; len(events) >= maxEvents {
		events = append(events[:1:1], events[len(events)-maxEvents+2:]...)
	}
	return d.raise(v, remit.FindingDenialBurst, remit.SeverityMedium, "", fmt.Sprintf("%s was denied %d times within %s", v.Agent, sum, d.cfg.Within), events...)
}

// SPDX-License-Identifier: Apache-2.0

package tool

import (
	"encoding/json"

	"remit"
)

type startedData struct {
	About
	Launch remit.LaunchID `json:"launch"`
	Stage  string         `json:"stage"`
}

type endedData struct {
	Sandbox remit.SandboxID `json:"sandbox"`
	Launch  remit.LaunchID  `json:"launch"`
	Why     string          `json:"why,omitempty"` // why Remit ended it; empty: it ended by itself
	Calls   uint64          `json:"calls"`
	Report
}

// started is the record of a sandbox before anything of its tool runs. Its identity is a launch, which ends with it.
func (s *Session) started() remit.Change {
	body, _ := json.Marshal(startedData{s.about, s.launch, s.claim.Stage}) // plain fields
	return remit.Change{Rows: []remit.Row{s.row()},
		Events: []remit.Event{{At: s.begun, Kind: remit.EventSandboxStarted, Agent: s.claim.Tool, Run: s.claim.Run, By: "remit", Data: body}}}
}

func (s *Session) row() remit.LaunchRecord {
	return remit.LaunchRecord{ID: s.launch, Agent: s.claim.Tool, Run: s.claim.Run, By: "remit", Tier: s.about.Tier, Started: s.begun}
}

func (s *Session) ended(r *Report) remit.Change {
	row := s.row()
	row.Ended = s.catalogue.cfg.Now()
	s.mu.Lock()
	data := endedData{s.about.Sandbox, s.launch, remit.Clip(s.why, 200), s.calls, *r}
	s.mu.Unlock()
	body, _ := json.Marshal(data) // plain fields
	return remit.Change{Rows: []remit.Row{row},
		Events: []remit.Event{{At: row.Ended, Kind: remit.EventSandboxEnded, Agent: s.claim.Tool, Run: s.claim.Run, By: "remit", Data: body}}}
}

// Left is the record of a sandbox that an earlier process of Remit left, and that is gone now.
func Left(l remit.LaunchRecord) remit.Event {
	body, _ := json.Marshal(struct {
		Launch remit.LaunchID `json:"launch"`
		Why    string         `json:"why"`
		Cause  string         `json:"cause"`
	}{l.ID, "the server had ended", "killed"})
	return remit.Event{At: l.Ended, Kind: remit.EventSandboxEnded, Agent: l.Agent, Run: l.Run, By: "remit", Data: body}
}

// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"

	"remit"
	"remit/internal/run"
)

// keepResult remembers what a call of a tool returned at the paths that its workflow binds later calls to (S25), before the agent
// sees the result. What cannot be read, or does not fit, is not remembered, and so binds nothing: the later call is denied.
func (s *Server) keepResult(_ context.Context, d *remit.Decision, result []byte) error {
	paths := s.rev.Load().plan.Sources(d.Permission)
	if len(paths) == 0 {
		return nil
	}
	var r struct {
		StructuredContent json.RawMessage `json:"structuredContent"`
		Content           []struct {
			Text string `json:"text"`
		} `json:"content"`
	}
	if err := json.Unmarshal(result, &r); err != nil {
		s.log.Warn("a tool's result cannot be read; nothing of it is remembered", "decision", d.ID, "err", err)
		return nil
	}
	for _, path := range paths {
		docs := []json.RawMessage{r.StructuredContent}
		if form, _ := run.Form(path); form == "text" {
			docs = nil
			for _, c := range r.Content {
				docs = append(docs, json.RawMessage(c.Text))
			}
		}
		for _, doc := range docs {
			s.keepValues(d, path, doc)
		}
	}
	return nil
}

func (s *Server) keepValues(d *remit.Decision, path string, doc json.RawMessage) {
	if len(doc) == 0 || !json.Valid(doc) {
		return
	}
	values, err := run.Select(doc, path)
	if err == nil {
		err = s.values.Keep(d.Run, d.Permission.Name, path, values)
	}
	if err != nil {
		s.log.Warn("not all of a tool's result is remembered; calls bound to the rest are denied", "decision", d.ID, "path", path, "err", err)
	}
}

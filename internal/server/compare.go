// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"

	"remit"
	"remit/internal/api"
	"remit/internal/config"
	"remit/internal/gateway/admin"
)

// opCompare says what files that lie elsewhere would change. Nothing is applied.
func (s *Server) opCompare(_ context.Context, c admin.Call) (any, error) {
	var in api.Compare
	if err := c.Decode(&in); err != nil {
		return nil, err
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	next, err := s.read(&files{in.Files, in.Bundle})
	if err != nil {
		return nil, asInvalid(err)
	}
	out, err := s.compare(next)
	return out, asInvalid(err)
}

// compare says what a configuration would change. Its workflows are compiled; its drivers are not built, since they open files and
// programs that it names, and nobody vouched for it.
func (s *Server) compare(c *candidate) (api.Applied, error) {
	out := s.applied(s.rev.Load(), c)
	out.DryRun = true
	_, err := compile(c.set, 0, nil, nil)
	return out, err
}

// applied says what a configuration changes.
func (s *Server) applied(old *revision, c *candidate) api.Applied {
	out := api.Applied{Revision: c.set.Digest, Changed: changed(old, c.set), Version: c.revision.Bundle.Version, Signers: c.signers}
	if c.revision.Bundle.Envelope == nil {
		out.Version = 0
	}
	if c.unsigned != nil {
		out.Refused = c.unsigned.Error()
	}
	var before *config.Set
	var ceiling remit.Digest
	if old != nil {
		before, out.Previous, ceiling = old.set, old.set.Digest, old.ceiling
	} else if stored, ok := s.store.ActiveRevision(); ok {
		before, _ = config.Parse(stored.Files, s.td) // an older program's file may not read any more: then all is new
		ceiling = digestOf(stored.Ceiling)
	}
	out.Changes = c.set.Diff(before)
	if text := s.unanswered(c.set); text != "" {
		out.Warnings = append(out.Warnings, text+": "+fixUnanswered)
	}
	if c.ceiling != nil {
		out.Ceiling = c.ceiling.Digest
	}
	switch {
	case out.Ceiling == ceiling:
	case ceiling == "":
		out.Changes = append(out.Changes, remit.PolicyChange{What: config.Added, Of: "ceiling"})
	case out.Ceiling == "":
		out.Changes = append(out.Changes, remit.PolicyChange{What: config.Removed, Of: "ceiling"})
	default:
		out.Changes = append(out.Changes, remit.PolicyChange{What: config.Changed, Of: "ceiling"})
	}
	return out
}

func digestOf(c remit.CeilingRevision) remit.Digest {
	if ceiling, err := config.ParseCeiling(c.Files); err == nil {
		return ceiling.Digest
	}
	return ""
}

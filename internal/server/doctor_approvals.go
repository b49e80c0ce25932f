// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"slices"

	"remit/internal/api"
	"remit/internal/config"
)

// fixUnanswered is the next step, for remit apply and remit doctor.
const fixUnanswered = "set up people in remit.yaml, with a group that has the role approver, and restart the server: docs/people.md shows how"

// unanswered says which permissions wait for people though nobody can answer, as the server is set up; empty: none. Such a request is
// held and expires, so it is safe, and surely not what was meant.
func (s *Server) unanswered(set *config.Set) string {
	why := ""
	switch p := s.cfg.People; {
	case p == nil:
		why = "nobody can log in (remit.yaml has no people)"
	case !slices.ContainsFunc(p.Roles, func(r config.ClaimRole) bool { return slices.Contains(r.Roles, "approver") }):
		why = "nobody has the role approver (people: roles)"
	default:
		return ""
	}
	first, n := "", 0
	for i := range set.Workflows {
		w := &set.Workflows[i]
		for j := range w.Stages {
			for k := range w.Stages[j].May {
				p := &w.Stages[j].May[k]
				for l := range p.Evidence {
					if a := p.Evidence[l].Approval; a != nil {
						if n++; n == 1 {
							first = fmt.Sprintf("%s/%s/%s (%s) asks group %s", w.Name, w.Stages[j].Name, p.Name, p.Line, a.Group)
						}
					}
				}
			}
		}
	}
	switch n {
	case 0:
		return ""
	case 1:
		return first + ", and " + why
	}
	return fmt.Sprintf("%s, %d more ask, too, and %s", first, n-1, why)
}

func (s *Server) checkApprovals() api.Check {
	out := api.Check{Name: "approvals", OK: true, Text: "whoever is asked by workflows could log in"}
	if text := s.unanswered(s.rev.Load().set); text != "" {
		out.Warn, out.Text, out.Fix = true, text, fixUnanswered
	}
	return out
}

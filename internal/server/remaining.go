// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"remit"
	"remit/internal/api"
)

// remaining lists what a suspended agent can still do, with its worst case (S23): what Remit mediates has ended by now, what others
// hold or trust has not. hit says which leases the suspension is about.
func (s *Server) remaining(a *remit.Agent, hit func(*remit.Lease) bool) []api.Remaining {
	var out []api.Remaining
	//remit:guard S23 TestSuspensionSaysWhatRemains
	for _, l := range s.store.LiveLeases(hit) {
		g, _ := s.store.Grant(l.Grant)
		out = append(out, api.Remaining{What: fmt.Sprintf("lease %s of %s", l.ID, l.Agent), Where: l.Target, Until: l.Expires.Add(g.WorstCase),
			Why: "the target has not confirmed its end; it is tried again every second"})
	}
	//remit:guard S23 TestSuspensionSaysWhatRemains
	if n, until := s.svidsOf(a.Name); n > 0 {
		out = append(out, api.Remaining{What: fmt.Sprintf("%d SVIDs of %s", n, a.ID), Where: "whoever trusts this trust domain beside Remit, which refuses them",
			Until: until, Why: "an SVID cannot be recalled"})
	}
	if a.ID.TrustDomain() != s.td {
		out = append(out, api.Remaining{What: "SVIDs of " + a.ID.String(), Where: "whoever trusts " + a.ID.TrustDomain().Name() + " beside Remit, which refuses them",
			Why: "another authority issues them; suspend it there, too"})
	}
	for _, l := range s.store.LiveLaunches() {
		//remit:guard S23 TestSuspensionSaysWhatRemains
		if l.Agent == a.Name {
			out = append(out, api.Remaining{What: "the process of " + string(l.ID), Where: "this host", Why: "its identity ended, it runs on: who launched it can end it"})
		}
	}
	//remit:guard S23 TestSuspensionSaysWhatRemains
	for _, target := range s.decidedOnly(a.Name) {
		out = append(out, api.Remaining{What: "acts that were allowed and are under way", Where: target, Why: "an enforcement point of yours carries them out; Remit holds nothing there"})
	}
	return out
}

// svidsOf counts the agent's SVIDs that have not expired, and says when the last will have.
func (s *Server) svidsOf(agent remit.Name) (n int, until time.Time) {
	for _, i := range s.store.IssuedTo(agent) {
		if i.Until.After(s.now()) {
			n++
			if i.Until.After(until) {
				until = i.Until
			}
		}
	}
	return n, until
}

// decidedOnly are the targets without credentials of ours at which the agent has a permission.
func (s *Server) decidedOnly(agent remit.Name) []string {
	rev, found := s.rev.Load(), map[string]bool{}
	for _, w := range rev.workflows {
		for _, st := range w.Stages {
			for _, p := range st.May {
				if p.Who == agent && rev.set.Targets[p.Target].Type == "external" {
					found[p.Target] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

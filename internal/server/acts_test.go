// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"
	"testing"

	"remit"
	"remit/internal/api"
)

func (f *fixture) grant(id remit.GrantID) (g api.Grant) {
	f.t.Helper()
	if err := f.admin.Get(f.t.Context(), "/v1/grants/"+string(id), nil, &g); err != nil {
		f.t.Fatal(err)
	}
	return g
}

// S37: a grant says whether anybody at its target tells what was done under it, and when that may have been lost.
func TestActsOfAGrant(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	w := f.agent("agent/deploy", f.shared()).enter(r)
	blind := w.ask("write").Grant
	if g := f.grant(blind); g.Observation != actsUnobservable || len(g.Acts) != 0 {
		t.Errorf("nobody tells, and it says %+v", g)
	}
	if err := f.srv.authorizer.Executed(t.Context(), []remit.Outcome{{Target: "cluster", Credential: "JTI=" + string(f.leaseOf(blind)), Verb: "write", Resource: "x", Source: "agent/deploy"}}); err != nil {
		t.Fatal(err)
	}
	if g := f.grant(blind); g.Observation != actsReported || len(g.Acts) != 1 {
		t.Errorf("an enforcement point tells, and it says %+v", g)
	}
	f.write(strings.Replace(f.files, "name: cluster\ntype: memory", "name: cluster\ntype: memory\nwatched: true", 1))
	f.must("/v1/apply", nil, nil)
	seen := w.ask("write").Grant
	if g := f.grant(seen); g.Observation != actsObserved || len(g.Gaps) != 0 {
		t.Errorf("the target tells, and it says %+v", g)
	}
	f.restart()
	if g := f.grant(seen); g.Observation != actsObserved || len(g.Gaps) != 1 {
		t.Errorf("the time without a server is no gap: %+v", g)
	}
}

func (f *fixture) leaseOf(id remit.GrantID) remit.LeaseID {
	f.t.Helper()
	leases, err := f.srv.store.LeasesOf(id)
	if err != nil || len(leases) != 1 {
		f.t.Fatal(err, leases)
	}
	return leases[0].ID
}

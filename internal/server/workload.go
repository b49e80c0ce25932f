// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"math"
	"sync"

	"remit"
	"remit/internal/gateway"
	"remit/internal/identity"
	"remit/internal/identity/workloadapi"
)

// What one agent may have issued, in identities a second and at once: the records of all of them are in memory until they end,
// and one that fetches without end must not leave the others without (S35).
const issueRate, issueBurst = 200, 50000

// newWorkloadAPI builds the Workload API; what it issues is on record before it leaves (S8).
func (s *Server) newWorkloadAPI(i *identities) (*workloadapi.Server, error) {
	quota := gateway.NewQuota(gateway.Limits{Rate: issueRate, Burst: issueBurst, Concurrent: math.MaxInt})
	return workloadapi.New(workloadapi.Config{
		Authority: i.authority, Registry: s.registry, OwnAudience: s.baseURL(), AllowOwnUID: s.cfg.AllowOwnUID,
		Operator: func(uid uint32) bool { _, _, ok := s.person(uid); return ok }, Log: s.log, Now: s.now,
		Allowed: func(n remit.Name) bool { return !s.store.Posture(n).Suspended },
		OnIssue: func(ctx context.Context, row remit.Issued) error {
			account, ok := quota.Enter(string(row.Agent), 0, s.now())
			if !ok {
				return &remit.Error{Code: remit.CodeExhausted, Msg: string(row.Agent) + " fetches more identities than its quota"}
			}
			defer account.Leave()
			_, err := s.store.Commit(ctx, remit.Change{Rows: []remit.Row{row}})
			return err
		},
	})
}

// launches holds the private sockets of launched processes.
type launches struct {
	mu    sync.Mutex // guards bound
	bound map[remit.LaunchID]*workloadapi.Bound
}

// bind makes the socket of a launch.
func (i *identities) bind(id remit.LaunchID, a *remit.Agent, path string) error {
	owner := -1
	if a.Launch.OwnUID {
		owner = int(a.Launch.UID)
	}
	return i.hold(workloadapi.Binding{Launch: id, Agent: a.Name, Inherit: a.Launch.Inherit, Path: path, Owner: owner})
}

// hold makes a private socket, of a launch or a sandbox, which unbind takes away.
func (i *identities) hold(of workloadapi.Binding) error {
	b, err := i.api.Bind(of)
	if err != nil {
		return err
	}
	i.launches.mu.Lock()
	defer i.launches.mu.Unlock()
	if i.launches.bound == nil {
		i.launches.bound = map[remit.LaunchID]*workloadapi.Bound{}
	}
	i.launches.bound[of.Launch] = b
	return nil
}

func (i *identities) get(id remit.LaunchID) *workloadapi.Bound {
	i.launches.mu.Lock()
	defer i.launches.mu.Unlock()
	return i.launches.bound[id]
}

// started names the launched process and returns what it will run.
func (i *identities) started(id remit.LaunchID, pid, fd int) (identity.Executable, error) {
	b := i.get(id)
	if b == nil {
		return identity.Executable{}, notFound("launch", string(id))
	}
	return b.Attach(pid, fd)
}

// alive reports whether the launch's process may still run. A launch that has no process yet counts as alive while it is young.
func (i *identities) alive(id remit.LaunchID, young bool) bool {
	b := i.get(id)
	return b != nil && b.Alive() && (young || b.Attached())
}

// unbind takes the socket away; an unknown launch has none.
func (i *identities) unbind(id remit.LaunchID) {
	i.launches.mu.Lock()
	b := i.launches.bound[id]
	delete(i.launches.bound, id)
	i.launches.mu.Unlock()
	if b != nil {
		_ = b.Close()
	}
}

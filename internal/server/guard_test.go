// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
)

// TestSuspendedMovesNothing: a suspended agent that the stage's end names is refused as who it is, not only because its run is
// frozen.
func TestSuspendedMovesNothing(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	build := f.agent("agent/build", f.shared()).enter(r)
	f.must("/v1/agents/agent/build/suspend", api.Reasoned{Reason: "hijacked"}, nil)
	status := build.call("/v1/runs/"+string(r.ID)+"/advance", "application/json", strings.NewReader("{}"), nil)
	if status != http.StatusForbidden {
		t.Errorf("a suspended agent leaves a stage: %d", status)
	}
}

// TestLaunchOfAnother: only who launched a process names it or ends it (S4).
func TestLaunchOfAnother(t *testing.T) {
	f := setUp(t)
	l, _ := f.launch(f.startRun())
	call := func(name remit.Name) admin.Call {
		return admin.Call{Who: remit.Principal{Person: name, Roles: []string{"admin"}, Method: remit.MethodSocket},
			Path: func(string) string { return string(l.ID) }}
	}
	if _, err := f.srv.launchOf(call("operator/ci")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.srv.launchOf(call("operator/else")); remit.CodeOf(err) != remit.CodeForbidden && remit.CodeOf(err) != remit.CodeNotFound {
		t.Errorf("another operator has the launch in hand: %v", err)
	}
}

// TestWhoLetsAgentsIn: the run's starter or an admin, and only into a run whose time is not over (S10).
func TestWhoLetsAgentsIn(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	w, ok := f.srv.rev.Load().workflow(r.Workflow)
	if !ok {
		t.Fatal("no workflow")
	}
	person := func(name remit.Name, roles ...string) remit.Principal {
		return remit.Principal{Person: name, Roles: roles, Method: remit.MethodSocket}
	}
	for _, p := range []remit.Principal{person("operator/ci"), person("operator/else", "admin")} {
		if err := f.srv.mayEnter(p, &r, w, "agent/deploy"); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	if err := f.srv.mayEnter(person("operator/else", "author", "responder"), &r, w, "agent/deploy"); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("somebody else lets an agent in: %v", err)
	}
	f.ahead.Store(int64(2 * time.Hour))
	if err := f.srv.mayEnter(person("operator/ci"), &r, w, "agent/deploy"); remit.CodeOf(err) != remit.CodeConflict {
		t.Errorf("into a run whose time is over: %v", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package sandbox_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"remit"
	"remit/internal/sandbox"
)

// guest is a tool of this process: it runs until it is killed or ends by itself.
type guest struct {
	end      chan struct{}
	once     sync.Once
	events   sandbox.Events
	full     bool
	status   sandbox.Status
	images   []string
	released bool
}

func (g *guest) Start(context.Context) error     { return nil }
func (g *guest) Wait() (sandbox.Status, error)   { <-g.end; return g.status, nil }
func (g *guest) Freeze() ([]string, error)       { return nil, nil }
func (g *guest) Kill() error                     { g.once.Do(func() { close(g.end) }); return nil }
func (g *guest) Release() error                  { g.released = true; return nil }
func (g *guest) Events() (sandbox.Events, error) { return g.events, nil }
func (g *guest) Usage() (sandbox.Usage, error)   { return sandbox.Usage{}, nil }
func (g *guest) Full() bool                      { return g.full }
func (g *guest) Activity() *sandbox.Activity     { return nil }
func (g *guest) Checkpoint(_ context.Context, f string) error {
	g.images = append(g.images, f)
	return nil
}

func instance(t *testing.T, g *guest, l sandbox.Limits) (*sandbox.Instance, *os.File) {
	t.Helper()
	g.end = make(chan struct{})
	s, err := sandbox.Spec{ID: remit.NewSandboxID(), Command: []string{"/bin/true"}, Limits: l}.Check()
	if err != nil {
		t.Fatal(err)
	}
	pipes, err := sandbox.NewPipes()
	if err != nil {
		t.Fatal(err)
	}
	i := sandbox.NewInstance(s, g, pipes)
	t.Cleanup(func() {
		pipes.Given()
		if err := i.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return i, pipes.Guest()[1]
}

func ends(t *testing.T, i *sandbox.Instance, want sandbox.Cause) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if got, err := i.Wait(ctx); err != nil || got.Cause != want {
		t.Errorf("it ended by %q, %v; want %s", got.Cause, err, want)
	}
}

func TestClaimedOnce(t *testing.T) {
	i, _ := instance(t, &guest{}, sandbox.Limits{})
	if err := i.Claim(); err != nil {
		t.Fatal(err)
	}
	if err := i.Claim(); remit.CodeOf(err) != remit.CodeConflict {
		t.Errorf("the second claim: %v", err)
	}
}

func TestNoCheckpointAfterClaim(t *testing.T) {
	g := &guest{}
	i, _ := instance(t, g, sandbox.Limits{})
	if err := i.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.Checkpoint(t.Context(), "/one"); err != nil || len(g.images) != 1 {
		t.Errorf("before the claim: %v, %v", g.images, err)
	}
	if err := i.Claim(); err != nil {
		t.Fatal(err)
	}
	if err := i.Checkpoint(t.Context(), "/two"); remit.CodeOf(err) != remit.CodeConflict || len(g.images) != 1 {
		t.Errorf("after the claim: %v, %v", g.images, err)
	}
}

func TestWall(t *testing.T) {
	i, _ := instance(t, &guest{}, sandbox.Limits{Wall: time.Millisecond})
	if err := i.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ends(t, i, sandbox.CauseTimeout)
}

func TestCauses(t *testing.T) {
	for name, c := range map[string]struct {
		guest *guest
		want  sandbox.Cause
	}{
		"memory": {&guest{events: sandbox.Events{Kills: 1}}, sandbox.CauseMemory},
		"forks":  {&guest{events: sandbox.Events{Forks: 1}}, sandbox.CausePIDs},
		"full":   {&guest{full: true}, sandbox.CausePIDs},
	} {
		t.Run(name, func(t *testing.T) {
			i, _ := instance(t, c.guest, sandbox.Limits{})
			if err := i.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			ends(t, i, c.want)
		})
	}
}

func TestOutput(t *testing.T) {
	i, tool := instance(t, &guest{}, sandbox.Limits{Output: 10})
	if err := i.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := tool.WriteString(strings.Repeat("x", 100)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(i.Stdout())
	if len(got) != 10 || !errors.Is(err, sandbox.ErrOutput) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	ends(t, i, sandbox.CauseOutput)
}

func TestDestroy(t *testing.T) {
	for _, start := range []bool{false, true} {
		g := &guest{}
		i, _ := instance(t, g, sandbox.Limits{})
		if start {
			if err := i.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := i.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		ends(t, i, sandbox.CauseKilled)
		if !g.released || i.Start(t.Context()) == nil {
			t.Error("it is not gone")
		}
	}
}

func TestSpecRefuses(t *testing.T) {
	good := func() sandbox.Spec { return sandbox.Spec{ID: remit.NewSandboxID(), Command: []string{"/bin/true"}} }
	if _, err := good().Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*sandbox.Spec){
		"id":          func(s *sandbox.Spec) { s.ID = "../x" },
		"no command":  func(s *sandbox.Spec) { s.Command = nil },
		"relative":    func(s *sandbox.Spec) { s.Command = []string{"true"} },
		"the root":    func(s *sandbox.Spec) { s.Mounts = []sandbox.Mount{{From: "/", At: "/x"}} },
		"over usr":    func(s *sandbox.Spec) { s.Mounts = []sandbox.Mount{{From: "/srv", At: "/usr/bin"}} },
		"over socket": func(s *sandbox.Spec) { s.Mounts = []sandbox.Mount{{From: "/srv", At: "/run"}} },
		"climbs":      func(s *sandbox.Spec) { s.Mounts = []sandbox.Mount{{From: "/srv", At: "/a/../usr"}} },
		"overlap": func(s *sandbox.Spec) {
			s.Mounts = []sandbox.Mount{{From: "/srv", At: "/a"}, {From: "/srv", At: "/a/b"}}
		},
		"environment": func(s *sandbox.Spec) { s.Env = map[string]string{"A=B": "x"} },
		"memory":      func(s *sandbox.Spec) { s.Limits.Memory = 1 << 20 },
		"wall":        func(s *sandbox.Spec) { s.Limits.Wall = -1 },
	} {
		s := good()
		spoil(&s)
		if _, err := s.Check(); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

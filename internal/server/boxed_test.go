// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/store"
	"remit/internal/tool/tooltest"
)

const boxedFiles = `
---
kind: Agent
name: boxed
launch: {by: [operator/ci], command: "DIGEST", sandbox: {tier: TIER, limits: {wall: 1m}}}
---
kind: Workflow
name: boxing
start: {by: [operator/ci], expires: 1h}
stages:
- name: work
  end: {by: [operator/ci]}
  may:
  - {name: decide, who: agent/boxed, action: deploy.plan, target: paper}
---
kind: Target
name: paper
type: external
`

type boxing struct {
	*fixture
	run remit.Run
}

// setUpBoxed makes a server whose agent is launched in a sandbox: the host's shell.
func setUpBoxed(t *testing.T, tier string) *boxing {
	t.Helper()
	if os.Getuid() != 0 || testing.Short() {
		t.Skip("sandboxes are made by root, and take their time")
	}
	executable, err := tooltest.Build(tooltest.Box)
	if err != nil {
		t.Fatal(err)
	}
	f := setUp(t)
	f.program = executable
	f.restart()
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	f.write(f.files + strings.NewReplacer("DIGEST", string(remit.DigestOf(shell)), "TIER", tier).Replace(boxedFiles))
	f.must("/v1/apply", nil, nil)
	b := &boxing{fixture: f}
	f.must("/v1/runs", map[string]any{"workflow": "boxing"}, &b.run)
	return b
}

func (b *boxing) order(script string) api.Launch {
	return api.Launch{Run: b.run.ID, Agent: "agent/boxed", For: "decide", Program: "/bin/sh", Args: []string{"-c", script}}
}

// play launches the script, gives it an input, and returns what it said and how it ended.
func (b *boxing) play(script, input string) (string, api.Exit) {
	b.t.Helper()
	var l api.Launched
	b.must("/v1/launches", b.order(script), &l)
	c, err := net.Dial("unix", l.Streams)
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprint(c, input)
	_ = c.(*net.UnixConn).CloseWrite()
	said := ""
	for {
		kind, data, err := api.ReadFrame(c)
		if err != nil {
			b.t.Fatalf("%v; it said %q", err, said)
		}
		var exit api.Exit
		switch kind {
		case api.FrameOutput, api.FrameErrors:
			said += string(data)
		case api.FrameExit:
			if err := json.Unmarshal(data, &exit); err != nil {
				b.t.Fatal(err)
			}
			return said, exit
		}
	}
}

// S26: what an agent in a sandbox is given, and that nothing else of the host is there.
func TestAgentInASandbox(t *testing.T) {
	for _, tier := range []string{"kernel", "process"} {
		t.Run(tier, func(t *testing.T) {
			b := setUpBoxed(t, tier)
			outside := filepath.Join(b.dir, "outside.txt")
			if err := os.WriteFile(outside, []byte("canary"), 0o644); err != nil {
				t.Fatal(err)
			}
			said, exit := b.play(`read line; echo "got $line"; echo "$REMIT_URL"; ls /run/remit; test -s "$REMIT_RUN_TOKEN_FILE" && echo token
				cat `+outside+` `+filepath.Join(b.dir, "state.db")+` /etc/shadow; exit 7`, "orders\n")
			wants := []string{"got orders", "https://127.0.0.1:3129", "gateway.sock", "workload.sock", "token"}
			if tier == "kernel" { // else its network's way out is a socket of this kernel
				wants = append(wants, "egress.sock")
			}
			for _, want := range wants {
				if !strings.Contains(said, want) {
					t.Errorf("it has no %s: %q", want, said)
				}
			}
			if strings.Contains(said, "canary") || strings.Count(said, "No such file") != 3 {
				t.Errorf("it sees files of the host: %q", said)
			}
			if exit.Cause != "exited" || exit.Code != 7 {
				t.Errorf("it ended with %+v", exit)
			}
			b.eventually("the end is on record", func() bool { return b.events(remit.EventSandboxEnded) == 1 && len(b.srv.store.LiveLaunches()) == 0 })
		})
	}
}

// S4, S26: another program is not launched, and a suspension ends who is in a sandbox.
func TestLaunchInSandboxOfAnotherProgram(t *testing.T) {
	b := setUpBoxed(t, "process")
	order := b.order("true")
	order.Program = "/bin/ls"
	if code := b.post("/v1/launches", order, nil); code != remit.CodeForbidden {
		t.Errorf("another program: %v", code)
	}
	for _, p := range []string{"sh", "", "/dev/null", "/nowhere"} {
		order.Program = p
		if code := b.post("/v1/launches", order, nil); code != remit.CodeInvalid {
			t.Errorf("%q: %v", p, code)
		}
	}
	if n := len(b.srv.store.LiveLaunches()); n > 0 {
		t.Errorf("%d launches live", n)
	}
}

func TestSuspensionEndsABoxedAgent(t *testing.T) {
	b := setUpBoxed(t, "process")
	var l api.Launched
	b.must("/v1/launches", b.order("sleep 60"), &l)
	c, err := net.Dial("unix", l.Streams)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, _, err := api.ReadFrame(c); err != nil { // it runs
		t.Fatal(err)
	}
	b.must("/v1/agents/agent/boxed/suspend", map[string]string{"reason": "a test"}, nil)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	for {
		kind, data, err := api.ReadFrame(c)
		if err != nil || kind == api.FrameExit {
			if !strings.Contains(string(data), `"killed"`) {
				t.Errorf("%v %s %v", kind, data, err)
			}
			break
		}
	}
	list, _, err := b.srv.store.Events(store.EventFilter{Kind: remit.EventSandboxEnded}, 0, 10)
	if err != nil || len(list) != 1 || !strings.Contains(string(list[0].Body), `"frozen":["`) { // with what ran in it
		t.Errorf("%v: %d entries", err, len(list))
	}
	if code := b.post("/v1/launches", b.order("true"), nil); code != remit.CodeConflict { // its run is frozen (S23)
		t.Errorf("a suspended agent is launched: %v", code)
	}
}

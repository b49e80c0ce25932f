// SPDX-License-Identifier: Apache-2.0

// Command support plays the story of the support desk on real parts: the built remit binary, an orchestrator that a ticket hijacks, and
// four tools, each with an identity and a gVisor sandbox of its own: two MCP servers from npm, two of examples/support. What the hijacked
// orchestrator tries has to be refused, with the reason, and stand in the ledger. What is judged is what happened: what the internal
// API and the attacker's host saw, what came back, what the ledger's files say. Anything that got through ends the program with code 1.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"remit/test/story"
)

// parts are what the story runs on.
type parts struct{ remit, modules, examples string }

func main() {
	var p parts
	flag.StringVar(&p.remit, "remit", "bin/remit", "the remit binary")
	flag.StringVar(&p.modules, "modules", "test/node/node_modules", "the installed modules of test/node")
	flag.StringVar(&p.examples, "examples", "examples/support", "the example that is played")
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "support: run this as root: gVisor sandboxes need it, and the agent gets a user of its own (4001)")
		os.Exit(1)
	}
	if code, again := story.Apart("support"); again {
		os.Exit(code)
	}
	os.Exit(story.Main("support", func(s *story.Story) []story.Chapter { return (&support{Story: s, parts: p}).chapters() }))
}

func (s *support) chapters() []story.Chapter {
	return []story.Chapter{
		{Name: "Setting up", Do: s.setUp},
		{Name: "The work, and a ticket that gives orders", Do: s.investigate},
		{Name: "The work goes on", Do: s.answer},
		{Name: "What the world saw", Do: s.world},
		{Name: "What the ledger says of the sandboxes", Do: s.sandboxes},
		{Name: "The ledger", Do: s.Ledger},
		{Name: "No secret was written", Do: func(context.Context) error {
			return s.Search([]string{s.Key, s.canary}, s.Path("desk.key"), s.Path("outside.txt"))
		}},
	}
}

// SPDX-License-Identifier: Apache-2.0

// Command takeover plays the story of an agent that is taken over: the mail agent suddenly looks around in a financial database. It plays on
// real parts: the built remit binary, an agent that is launched under a user of its own, a tool in a gVisor sandbox, a PostgreSQL server. The
// takeover is noticed, explained, and ended; what is judged is what happened at the database, in the agent's hands and in the ledger. Anything
// that goes otherwise than told ends the program with code 1.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"remit/test/story"
)

// parts are what the story runs on.
type parts struct{ remit, examples, report string }

func main() {
	var p parts
	flag.StringVar(&p.remit, "remit", "bin/remit", "the remit binary")
	flag.StringVar(&p.examples, "examples", "examples/takeover", "the example that is played")
	flag.StringVar(&p.report, "report", "", "a file for the report; left out: one in the story's folder")
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "takeover: run this as root: gVisor sandboxes need it, and agents get users of their own (4001, 4002)")
		os.Exit(1)
	}
	if code, again := story.Apart("takeover"); again {
		os.Exit(code)
	}
	os.Exit(story.Main("takeover", func(s *story.Story) []story.Chapter { return (&takeover{Story: s, parts: p}).chapters() }))
}

func (s *takeover) chapters() []story.Chapter {
	return []story.Chapter{
		{Name: "Setting up", Do: s.setUp},
		{Name: "The work: a message, and the account that it asks about", Do: s.work},
		{Name: "Taken over: it tries what is not its own", Do: s.try},
		{Name: "Its run token, in another agent's hands", Do: s.token},
		{Name: "Suddenly the financial database: account after account, each allowed", Do: s.lookAround},
		{Name: "What it could do now", Do: s.before},
		{Name: "The planted account: noticed, and ended", Do: s.touch},
		{Name: "What is left in its hands", Do: s.left},
		{Name: "A statement without a lease", Do: func(ctx context.Context) error {
			return s.WithoutLease(ctx, s.db, s.brokerPassword, "accounts", s.accounts[0])
		}},
		{Name: "Why", Do: s.why},
		{Name: "The report", Do: s.writeReport},
		{Name: "A person gives it back: what ended stays ended", Do: s.reinstate},
		{Name: "The ledger", Do: s.Ledger},
		{Name: "No secret was written", Do: s.secrets},
	}
}

// secrets looks for all that must not be written anywhere, in the database's own log, too.
func (s *takeover) secrets(context.Context) error {
	if err := s.SecretsOf(s.db); err != nil {
		return err
	}
	all := []string{s.mail.Key, s.brokerPassword, s.runToken}
	for _, l := range s.logins {
		all = append(all, l.Password)
	}
	return s.Search(all, s.Path("mail.key"), s.Path("db.password"))
}

// SPDX-License-Identifier: Apache-2.0

// Command refund plays the story of one customer's refund on real parts: the built remit binary, an orchestrator and three micro-tools, each
// in a gVisor sandbox of its own, a PostgreSQL server, an OpenID provider at which people log in, and a payment API. What is judged is what
// happened: which rows came back, what the database said to a stolen login, what the payment API got, what the ledger's files say. Anything
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
type parts struct{ remit, examples string }

func main() {
	var p parts
	flag.StringVar(&p.remit, "remit", "bin/remit", "the remit binary")
	flag.StringVar(&p.examples, "examples", "examples/refund", "the example that is played")
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "refund: run this as root: gVisor sandboxes need it")
		os.Exit(1)
	}
	if code, again := story.Apart("refund"); again {
		os.Exit(code)
	}
	os.Exit(story.Main("refund", func(s *story.Story) []story.Chapter { return (&refund{Story: s, parts: p}).chapters() }))
}

func (s *refund) chapters() []story.Chapter {
	return []story.Chapter{
		{Name: "Setting up", Do: s.setUp},
		{Name: "A run for one customer", Do: s.start},
		{Name: "Reading: this customer's rows, and nobody else's", Do: s.read},
		{Name: "The login, stolen", Do: s.steal},
		{Name: "A small refund", Do: s.small},
		{Name: "A large refund waits for a second person", Do: s.large},
		{Name: "Another payload than was approved", Do: s.changed},
		{Name: "Approved: exactly that, once", Do: s.approved},
		{Name: "The run ends, and the login with it", Do: s.finish},
		{Name: "What was executed", Do: s.executed},
		{Name: "A statement without a lease", Do: s.withoutLease},
		{Name: "The ledger", Do: s.Ledger},
		{Name: "No secret was written", Do: s.secrets},
	}
}

// secrets looks for all that must not be written anywhere, in the database's own log, too.
func (s *refund) secrets(context.Context) error {
	if err := s.SecretsOf(s.db); err != nil {
		return err
	}
	return s.Search([]string{s.payments.Key, s.brokerPassword, s.stolen.Password}, s.Path("payments.key"), s.Path("db.password"))
}

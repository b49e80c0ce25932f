// SPDX-License-Identifier: Apache-2.0

// Command demo plays the story of the secure deployment agent on real parts: the built remit binary, a real Kubernetes API
// server (or the user's own cluster), real kubectl, a real OCI registry on loopback. Every step says what was asked, what was
// decided and why, and how long it took. A step that does not go as told ends the program with exit code 1.
package main

import (
	"context"
	"flag"
	"os"

	"remit/test/story"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == holdCommand {
		os.Exit(hold(os.Args[2:]))
	}
	var p parts
	flag.StringVar(&p.remit, "remit", "bin/remit", "the remit binary")
	flag.StringVar(&p.apiserver, "apiserver", "bin/kube-apiserver", "the API server of test/kubernetes; unused with CLUSTER=own")
	flag.StringVar(&p.kubectl, "kubectl", "kubectl", "kubectl")
	flag.StringVar(&p.manifests, "manifests", "deploy/kubernetes", "the manifests to apply")
	os.Exit(story.Main("demo", func(s *story.Story) []story.Chapter { return (&demo{Story: s, parts: p}).chapters() }))
}

// parts are the binaries and files that the story runs on.
type parts struct{ remit, apiserver, kubectl, manifests string }

func (s *demo) chapters() []story.Chapter {
	return []story.Chapter{
		{Name: "Setting up", Do: s.setUp},
		{Name: "Denied: nothing proves the image", Do: s.deniedWithoutScan},
		{Name: "Denied: the scan is of another image", Do: s.deniedOtherScan},
		{Name: "Allowed: the evidence is there", Do: s.allowed},
		{Name: "The credential can do nothing else", Do: s.nothingElse},
		{Name: "What was executed comes back", Do: s.executed},
		{Name: "The credential ends", Do: s.ends},
		{Name: "A second run, and the agent is suspended", Do: s.suspended},
		{Name: "The ledger", Do: s.Ledger},
		{Name: "No secret was written", Do: func(context.Context) error { return s.Search(s.minted) }},
	}
}

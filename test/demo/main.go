// SPDX-License-Identifier: Apache-2.0

// Command demo plays the story of the secure deployment agent on real parts: the built remit binary, a real Kubernetes API
// server (or the user's own cluster), real kubectl, a real OCI registry on loopback. Every step says what was asked, what was
// decided and why, and how long it took. A step that does not go as told ends the program with exit code 1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
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
	seed := flag.Uint64("seed", 0, "repeat a run; 0 takes $SEED, else a random one")
	keep := flag.Bool("keep", false, "keep the folder with everything that was made")
	flag.Parse()
	if *seed == 0 {
		*seed, _ = strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	}
	if *seed == 0 {
		*seed = rand.Uint64N(1_000_000)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := play(ctx, p, *seed, *keep); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\nrepeat with SEED=%d\n", err, *seed)
		os.Exit(1)
	}
}

// parts are the binaries and files that the story runs on.
type parts struct{ remit, apiserver, kubectl, manifests string }

func play(ctx context.Context, p parts, seed uint64, keep bool) (err error) {
	if os.Getuid() != 0 {
		return errors.New("run the demo as root: the agent gets a user of its own (4001), since a process of the operator's user would be the operator")
	}
	began := time.Now()
	dir, err := os.MkdirTemp("", "remit-demo-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the agent has a uid of its own and runs binaries from here
		return fmt.Errorf("open the folder: %w", err)
	}
	s := &story{dir: dir, rnd: rand.New(rand.NewPCG(seed, seed)), parts: p}
	fmt.Printf("SEED=%d\nfolder %s\n", seed, dir)
	defer func() {
		s.stopAll()
		if keep || err != nil {
			fmt.Printf("kept: %s\n", dir)
			return
		}
		_ = os.RemoveAll(dir)
	}()
	for _, chapter := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"Setting up", s.setUp},
		{"Denied: nothing proves the image", s.deniedWithoutScan},
		{"Denied: the scan is of another image", s.deniedOtherScan},
		{"Allowed: the evidence is there", s.allowed},
		{"The credential can do nothing else", s.nothingElse},
		{"What was executed comes back", s.executed},
		{"The credential ends", s.ends},
		{"A second run, and the agent is suspended", s.suspended},
		{"The ledger", s.ledger},
		{"No secret was written", s.secrets},
	} {
		fmt.Printf("\n== %s\n", chapter.name)
		if err := chapter.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", chapter.name, err)
		}
	}
	fmt.Printf("\nEvery step went as told (%s).\n", time.Since(began).Round(time.Second))
	return nil
}

func (s *story) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

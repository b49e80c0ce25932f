// SPDX-License-Identifier: Apache-2.0

// Package story is how the demos are told: chapters in order on real parts, in a folder of their own, each step with what was asked, what
// was answered and how long it took. A chapter that does not go as told ends the story. At the end everything that was started is stopped,
// and no secret may stand anywhere.
package story

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Story is one playing. Everything with a name is random, so that nothing can be hard-coded anywhere. It is used by one goroutine.
type Story struct {
	Dir  string
	Rand *rand.Rand
	PIDs []int // of the servers that were started

	stops []func()
}

// Chapter is a part of a story.
type Chapter struct {
	Name string
	Do   func(context.Context) error
}

// Main plays a story with the flags -seed and -keep beside those that the caller defined, and returns the exit code: 1 if anything went
// otherwise than told.
func Main(name string, tell func(*Story) []Chapter) int {
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
	if err := play(ctx, name, *seed, *keep, tell); err != nil {
		fmt.Fprintf(os.Stderr, "\n%s: %v\nrepeat with SEED=%d\n", name, err, *seed)
		return 1
	}
	return 0
}

func play(ctx context.Context, name string, seed uint64, keep bool, tell func(*Story) []Chapter) (err error) {
	began := time.Now()
	dir, err := os.MkdirTemp("", "remit-"+name+"-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the agent has a uid of its own and runs binaries from here
		return fmt.Errorf("open the folder: %w", err)
	}
	s := &Story{Dir: dir, Rand: rand.New(rand.NewPCG(seed, seed))}
	fmt.Printf("SEED=%d\nfolder %s\n", seed, dir)
	defer func() {
		s.stopAll()
		if keep || err != nil {
			fmt.Printf("kept: %s\n", dir)
			return
		}
		_ = os.RemoveAll(dir)
	}()
	for _, chapter := range tell(s) {
		fmt.Printf("\n== %s\n", chapter.Name)
		if err := chapter.Do(ctx); err != nil {
			return fmt.Errorf("%s: %w", chapter.Name, err)
		}
	}
	fmt.Printf("\nEvery step went as told (%s).\n", time.Since(began).Round(time.Second))
	return nil
}

// Steps does chapters one after another as one, and tells how long each took.
func (s *Story) Steps(ctx context.Context, steps []Chapter) error {
	for _, step := range steps {
		began := time.Now()
		if err := step.Do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.Name, err)
		}
		s.Told("%s", step.Name, time.Since(began))
	}
	return nil
}

// Path is a place in the story's folder.
func (s *Story) Path(elem ...string) string {
	return filepath.Join(append([]string{s.Dir}, elem...)...)
}

// Word is a random name.
func (s *Story) Word(prefix string) string { return fmt.Sprintf("%s-%06x", prefix, s.Rand.IntN(1<<24)) }

// Stop has f called at the end; the last one first.
func (s *Story) Stop(f func()) { s.stops = append(s.stops, f) }

func (s *Story) stopAll() {
	for i := len(s.stops) - 1; i >= 0; i-- {
		s.stops[i]()
	}
}

// Ask says what is tried.
func (s *Story) Ask(format string, args ...any) { fmt.Printf("  asked   "+format+"\n", args...) }

// Told says what came of it. A format without %s leaves arg out.
func (s *Story) Told(format, arg string, took time.Duration) {
	if strings.Contains(format, "%s") {
		format = fmt.Sprintf(format, arg)
	}
	if took > 0 {
		format += fmt.Sprintf("  [%.1f ms]", float64(took.Microseconds())/1e3)
	}
	fmt.Println("  told    " + format)
}

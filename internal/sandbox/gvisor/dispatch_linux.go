// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"syscall"
	"time"

	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"

	"remit/internal/sandbox/gvisor/filters"
)

// The names under which this program is one of gVisor's.
const (
	runscName     = "runsc"                   // a maker; and runsc-gofer, runsc-sandbox
	prewarmerName = "gvisor-sentry-prewarmer" // gVisor starts its kernel through it, in a folder of ours
	sentryName    = "gvisor_sentry"
	umountName    = "/proc/self/exe" // how a gofer starts the child that unmounts for it; nothing of ours is started so
)

// Dispatch becomes a part of gVisor if this process was started as one, and then does not return. It comes before anything else:
// gVisor has flags and exits of its own, which never meet ours.
func Dispatch() {
	name := os.Args[0]
	switch base := filepath.Base(name); {
	case base == prewarmerName:
		prewarm()
	case base == sentryName && len(os.Args) > 1: // by a prewarmer that is a script: its name is the first argument
		os.Args = os.Args[1:]
		settle()
		runsc()
	case base == runscName:
		if err := await(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		runsc()
	case strings.HasPrefix(base, runscName+"-"), name == umountName:
		settle()
		runsc()
	}
}

// startMemory is how much kernel and file server may have before they collect garbage while they start: more than they need, and less
// than the least sandbox has.
const startMemory = 24 << 20

// tidyEvery is how often kernel and file server look whether they have something to give back; tidyFrom is from how many bytes.
const (
	tidyEvery = 500 * time.Millisecond
	tidyFrom  = 256 << 10
)

// settle lets kernel and file server start without collecting garbage, which took a fifth of their processor time. What waits beside a tool
// afterwards is small: whenever half a second went by in which little was allocated, but something since the last time, they collect, and give
// back what only that needed: their start, that of the tool, the last call.
func settle() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(startMemory)
	go tidy()
}

// tidy runs as long as the process.
func tidy() {
	time.Sleep(2 * tidyEvery)
	debug.FreeOSMemory()
	debug.SetGCPercent(100)
	debug.SetMemoryLimit(math.MaxInt64)
	seen := allocated()
	for tidied := seen; ; {
		time.Sleep(tidyEvery)
		now := allocated()
		if now-seen < tidyFrom && now-tidied >= tidyFrom {
			debug.FreeOSMemory()
			now = allocated()
			tidied = now
		}
		seen = now
	}
}

// allocated returns how many bytes this process ever allocated.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

func runsc() {
	filters.Offer()
	cli.Run(nil, map[util.SubCommand]string{new(cmd.Create): "",
		new(sentrycmd.Boot): "internal", new(cmd.Gofer): "internal", new(sentrycmd.Umount): "internal"}, nil)
}

// prewarm is called as PREWARMER BINARY ARGV0 ARG...
func prewarm() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "the gVisor kernel is started without a name")
		os.Exit(1)
	}
	err := syscall.Exec(os.Args[1], os.Args[2:], os.Environ())
	fmt.Fprintf(os.Stderr, "start the gVisor kernel: %v\n", err)
	os.Exit(1)
}

// SPDX-License-Identifier: Apache-2.0

// Package filters has the filter of system calls that a gVisor kernel puts on itself before the tool runs, compiled ahead. It is gVisor's
// own, for the options that our sandboxes have; a kernel compiles it at each start where nobody did that before, which takes longer than
// the rest of its start. A kernel with other options, or on another processor, does that still.
package filters

import (
	_ "unsafe" // for go:linkname

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	_ "gvisor.dev/gvisor/pkg/sentry/platform/systrap" // the platform that Options looks up
	"gvisor.dev/gvisor/runsc/boot/filter"
)

//go:generate go run ./generate

// compiled are the programs that gVisor's kernel looks into. Its own build fills them, from generated code that its Go module is
// shipped without; there is no other way to give it one. Where a later gVisor has none of that name, this is an empty map of ours, and
// TestKernelFinds fails.
//
//go:linkname compiled gvisor.dev/gvisor/runsc/boot/filter.precompiledPrograms
var compiled map[string]precompiledseccomp.Program

// Options are those of our sandboxes: systrap, no network, files opened by the kernel itself (directfs).
func Options() (filter.Options, error) {
	systrap, err := platform.Lookup("systrap")
	if err != nil {
		return filter.Options{}, err
	}
	return filter.Options{Platform: systrap.PrecompiledSeccompInfo()[0], HostFilesystem: true}, nil
}

// Offer lets a kernel in this process find the program.
func Offer() {
	filter.ListPrecompiled() // which makes the map, once
	if compiled != nil && program.Name != "" {
		compiled[program.Name] = program
	}
}

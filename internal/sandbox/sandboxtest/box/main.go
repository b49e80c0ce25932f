// SPDX-License-Identifier: Apache-2.0

// Command box is the parts of sandboxes alone, which tests build statically where building all of remit would take long; and, as
// "attack", what a hostile tool tries.
package main

import (
	"os"
	"path/filepath"

	"remit/internal/sandbox"
	"remit/internal/sandbox/gvisor"
	"remit/internal/sandbox/process"
	"remit/internal/sandbox/shim"
)

func main() {
	gvisor.Dispatch()
	process.Dispatch()
	shim.Dispatch()
	if filepath.Base(os.Args[0]) == "attack" {
		attack(os.Args[1:])
		return
	}
	if !sandbox.Hello(os.Args, os.Stdout) {
		os.Exit(2)
	}
}

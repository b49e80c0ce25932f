// SPDX-License-Identifier: Apache-2.0

// Command box is the parts of sandboxes alone: what tests build statically where building all of remit would take long.
package main

import (
	"os"

	"remit/internal/sandbox"
	"remit/internal/sandbox/gvisor"
)

func main() {
	gvisor.Dispatch()
	if !sandbox.Hello(os.Args, os.Stdout) {
		os.Exit(2)
	}
}

// SPDX-License-Identifier: Apache-2.0

// Command remit gives autonomous agents zero-trust access; see remit --help.
package main

import (
	"os"
	_ "time/tzdata" // workflows name time zones; hosts and containers may lack them

	"remit/internal/cli"
	"remit/internal/sandbox"
	"remit/internal/sandbox/firecracker"
	_ "remit/internal/sandbox/shim"
)

func main() {
	// First of all: this program is also the parts of a sandbox, under other names. Those of gVisor and of the process tier, and the
	// shim, did not come so far (their packages' init).
	firecracker.Dispatch()
	if sandbox.Hello(os.Args, os.Stdout) {
		return
	}
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// SPDX-License-Identifier: Apache-2.0

// Command remit gives autonomous agents zero-trust access; see remit --help.
package main

import (
	"os"
	_ "time/tzdata" // workflows name time zones; hosts and containers may lack them

	"remit/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
